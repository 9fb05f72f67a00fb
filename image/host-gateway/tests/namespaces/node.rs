//! One node against a real API server, which lives in the node's namespace.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use edge_tests::control_plane::ControlPlane;
use edge_tests::wait::{Seen, eventually};
use host_gateway::conflist::{FILE, render};
use host_gateway::routes::Table;
use host_gateway::run::{Options, run};
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::namespace::Namespace;

const HEALTH: &str = "127.0.0.1:10261";
const DEADLINE: Duration = Duration::from_secs(30);

fn node(name: &str, pod_cidr: Option<&str>, address: Ipv4Addr) -> Node {
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": pod_cidr.map_or(json!({}), |cidr| json!({"podCIDR": cidr, "podCIDRs": [cidr]})),
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }))
    .unwrap()
}

fn start(client: Client, cni_dir: &Path) -> JoinHandle<anyhow::Result<()>> {
    let options = Options {
        node: "a".to_owned(),
        pod_network: "10.240.0.0/16".parse().unwrap(),
        service_network: "10.112.0.0/16".parse().unwrap(),
        cni_dir: cni_dir.to_owned(),
        health: HEALTH.to_owned(),
    };
    tokio::spawn(run(client, options))
}

async fn healthz(wanted: &str) {
    let look = || async {
        let mut stream = TcpStream::connect(HEALTH).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(Seen::when(answer.contains(wanted), answer))
    };
    eventually(&format!("/healthz with {wanted:?}"), DEADLINE, look).await.unwrap();
}

async fn routes(table: &Table, wanted: &[(&str, &str)]) {
    let wanted = crate::routes(wanted);
    let look = || async { table.ours().await.map(|found| Seen::when(found == wanted, found)) };
    eventually("the routes", DEADLINE, look).await.unwrap();
}

#[test]
fn a_node_follows_the_cluster_through_a_restart() {
    let namespace = Namespace::with_subnet();
    namespace.run(|| async {
        let plane = ControlPlane::start().await.unwrap();
        let nodes: Api<Node> = Api::all(plane.client());
        let create = async |node: Node| nodes.create(&PostParams::default(), &node).await.unwrap();
        let remove = async |name: &str| nodes.delete(name, &DeleteParams::default()).await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (table, _changes) = Table::open().unwrap();

        create(node("a", None, [192, 0, 2, 1].into())).await;
        create(node("b", Some("10.240.1.0/24"), [192, 0, 2, 2].into())).await;
        let running = start(plane.client(), dir.path());
        healthz("503 Service Unavailable").await;
        healthz("waits for the podCIDR of the node a").await;
        routes(&table, &[("10.240.1.0/24", "192.0.2.2")]).await;
        assert!(!dir.path().join(FILE).exists());

        let pod_cidr = json!({"spec": {"podCIDR": "10.240.0.0/24", "podCIDRs": ["10.240.0.0/24"]}});
        nodes.patch("a", &PatchParams::default(), &Patch::Merge(&pod_cidr)).await.unwrap();
        healthz("200 OK").await;
        let list: Value = serde_json::from_slice(&std::fs::read(dir.path().join(FILE)).unwrap()).unwrap();
        assert_eq!(list, render("10.240.0.0/24".parse().unwrap()));

        create(node("c", Some("10.240.2.0/24"), [192, 0, 2, 3].into())).await;
        routes(&table, &[("10.240.1.0/24", "192.0.2.2"), ("10.240.2.0/24", "192.0.2.3")]).await;
        remove("b").await;
        routes(&table, &[("10.240.2.0/24", "192.0.2.3")]).await;

        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        remove("c").await;
        create(node("d", Some("10.240.3.0/24"), [192, 0, 2, 4].into())).await;
        let running = start(plane.client(), dir.path());
        routes(&table, &[("10.240.3.0/24", "192.0.2.4")]).await;
        healthz("200 OK").await;
        assert!(!running.is_finished());
    });
}
