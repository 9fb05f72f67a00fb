//! The node's network in namespaces of the test's own, with packets and with a real API server. Needs root.

#![allow(clippy::panic, clippy::unwrap_used, reason = "this is a test")]

mod namespace;
mod node;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use host_gateway::plan::{Changes, Routes};
use host_gateway::{routes, rules};

use crate::namespace::Namespace;

const SERVICES: &str = "10.112.0.0/16";

fn routes(list: &[(&str, &str)]) -> Routes {
    list.iter().map(|(net, via)| (net.parse().unwrap(), via.parse().unwrap())).collect()
}

/// Who a packet between two sockets comes from, for the one that gets it.
fn seen(from: &UdpSocket, to: &UdpSocket, address: &str) -> Ipv4Addr {
    to.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    from.send_to(b"hello", address).unwrap();
    match to.recv_from(&mut [0; 16]).unwrap_or_else(|error| panic!("nothing arrives at {address}: {error}")).1 {
        SocketAddr::V4(source) => *source.ip(),
        other @ SocketAddr::V6(_) => panic!("{other}"),
    }
}

#[test]
fn only_routes_of_ours_change_and_one_out_of_reach_keeps_none_back() {
    let node = Namespace::with_subnet();
    node.ip("route add 10.9.0.0/16 via 192.0.2.9");
    node.run(|| async {
        let (table, _changes) = routes::Table::open().unwrap();
        let both = routes(&[("10.240.1.0/24", "192.0.2.2"), ("10.240.2.0/24", "192.0.2.3")]);
        assert_eq!(table.ensure(&both).await.unwrap().set, both);
        assert_eq!(table.ours().await.unwrap(), both);
        assert_eq!(table.ensure(&both).await.unwrap(), Changes::default());

        let moved = routes(&[("10.240.2.0/24", "192.0.2.7"), ("10.240.3.0/24", "198.51.100.1")]);
        let error = table.ensure(&moved).await.unwrap_err().to_string();
        assert!(error.contains("10.240.3.0/24 via 198.51.100.1"), "{error}");
        assert_eq!(table.ours().await.unwrap(), routes(&[("10.240.2.0/24", "192.0.2.7")]));

        table.ensure(&Routes::new()).await.unwrap();
        assert_eq!(table.ours().await.unwrap(), Routes::new());
    });
    // Somebody else's; adding it once more fails.
    let again = || Command::new("ip").args(["route", "add", "10.9.0.0/16", "via", "192.0.2.9"]).output().unwrap();
    assert!(!node.enter(again).status.success());
}

#[test]
fn a_route_that_somebody_removes_is_news() {
    let node = Namespace::with_subnet();
    node.run(|| async {
        let (table, mut news) = routes::Table::open().unwrap();
        let wanted = routes(&[("10.240.1.0/24", "192.0.2.2")]);
        table.ensure(&wanted).await.unwrap();
        let removed = Command::new("ip").args(["route", "del", "10.240.1.0/24"]).status().unwrap();
        assert!(removed.success());
        let next = futures::StreamExt::next(&mut news);
        assert_eq!(tokio::time::timeout(Duration::from_secs(10), next).await, Ok(Some(())));
        assert_eq!(table.ensure(&wanted).await.unwrap().set, wanted);
    });
}

#[test]
fn pods_keep_their_address_among_themselves_and_have_their_nodes_outside() {
    let [a, b, pod_a, pod_b] = std::array::from_fn(|_| Namespace::new());
    a.connect(("eth0", "192.0.2.1/24"), &b, ("eth0", "192.0.2.2/24"));
    a.connect(("cni0", "10.240.0.1/24"), &pod_a, ("eth0", "10.240.0.2/24"));
    b.connect(("cni0", "10.240.1.1/24"), &pod_b, ("eth0", "10.240.1.2/24"));
    pod_a.ip("route add default via 10.240.0.1");
    pod_b.ip("route add default via 10.240.1.1");
    for (node, to) in [(&a, ("10.240.1.0/24", "192.0.2.2")), (&b, ("10.240.0.0/24", "192.0.2.1"))] {
        node.run(|| async {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            let (table, _changes) = routes::Table::open().unwrap();
            table.ensure(&routes(&[to])).await.unwrap();
            let (pods, services) = ("10.240.0.0/16".parse().unwrap(), SERVICES.parse().unwrap());
            assert!(rules::ensure(pods, services).await.unwrap());
            assert!(!rules::ensure(pods, services).await.unwrap());
            assert!(rules::ensure("10.240.0.0/12".parse().unwrap(), services).await.unwrap());
            assert!(rules::ensure(pods, services).await.unwrap());
        });
    }
    let (from, to) = (pod_a.socket("10.240.0.2:0"), pod_b.socket("10.240.1.2:7000"));
    assert_eq!(seen(&from, &to, "10.240.1.2:7000"), Ipv4Addr::new(10, 240, 0, 2));
    let outside = b.socket("192.0.2.2:7000");
    assert_eq!(seen(&from, &outside, "192.0.2.2:7000"), Ipv4Addr::new(192, 0, 2, 1));
    let node = a.socket("192.0.2.1:0");
    assert_eq!(seen(&node, &to, "10.240.1.2:7000"), Ipv4Addr::new(192, 0, 2, 1));
}

/// As kube-proxy does it: an address of a service becomes that of a pod. Without that it is refused at once, where
/// before somebody outside answered.
#[test]
fn a_service_that_nobody_serves_stays_on_the_node() {
    let [node, pod, outside] = std::array::from_fn(|_| Namespace::new());
    node.connect(("eth0", "192.0.2.1/24"), &outside, ("eth0", "192.0.2.2/24"));
    node.connect(("cni0", "10.240.0.1/24"), &pod, ("eth0", "10.240.0.2/24"));
    node.ip("route add default via 192.0.2.2");
    pod.ip("route add default via 10.240.0.1");
    outside.ip("address add 10.112.0.10/32 dev lo");
    outside.ip("route add 10.240.0.0/24 via 192.0.2.1");
    node.enter(|| std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap());
    let _answers = outside.enter(|| std::net::TcpListener::bind("10.112.0.10:443").unwrap());
    let _serves = pod.enter(|| std::net::TcpListener::bind("10.240.0.2:443").unwrap());
    let connect = || {
        TcpStream::connect_timeout(&"10.112.0.10:443".parse().unwrap(), Duration::from_secs(10)).map_err(|e| e.kind())
    };
    for from in [&node, &pod] {
        from.enter(connect).unwrap();
    }
    node.run(|| async {
        rules::ensure("10.240.0.0/16".parse().unwrap(), SERVICES.parse().unwrap()).await.unwrap();
    });
    for from in [&node, &pod] {
        assert_eq!(from.enter(connect).unwrap_err(), ErrorKind::ConnectionRefused);
    }
    let proxy = "table ip proxy { chain output { type nat hook output priority -100; \
                 ip daddr 10.112.0.10 dnat to 10.240.0.2; }; }";
    let nft = || Command::new("nft").arg(proxy).output().unwrap();
    let output = node.enter(nft);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    node.enter(connect).unwrap();
}
