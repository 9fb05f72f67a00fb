//! Network namespaces of a test's own.

use std::fs::File;
use std::future::Future;
use std::net::UdpSocket;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace; gone with the last that holds it.
pub struct Namespace(File);

impl Namespace {
    /// An empty one.
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Self(File::open("/proc/thread-self/ns/net").unwrap())
        });
        let namespace = made.join().unwrap();
        namespace.ip("link set lo up");
        namespace
    }

    /// One with the subnet 192.0.2.0/24, alone in it.
    pub fn with_subnet() -> Self {
        let namespace = Self::new();
        namespace.connect(("eth0", "192.0.2.1/24"), &namespace, ("peer", "198.18.0.1/32"));
        namespace
    }

    /// Works inside, on a thread of its own.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    /// As [`Namespace::enter`], with a runtime.
    pub fn run<T: Send, F: Future<Output = T>>(&self, work: impl FnOnce() -> F + Send) -> T {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work())
        })
    }

    /// Runs `ip` inside.
    pub fn ip(&self, arguments: &str) {
        let run = || Command::new("ip").args(arguments.split(' ')).output().unwrap();
        let output = self.enter(run);
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// A cable from here to there, each end with its name and address.
    pub fn connect(&self, (name, address): (&str, &str), there: &Self, (peer, peer_address): (&str, &str)) {
        let namespace = format!("/proc/{}/fd/{}", std::process::id(), there.0.as_raw_fd());
        self.ip(&format!("link add {name} type veth peer name {peer} netns {namespace}"));
        for (side, name, address) in [(self, name, address), (there, peer, peer_address)] {
            side.ip(&format!("address add {address} dev {name}"));
            side.ip(&format!("link set {name} up"));
        }
    }

    /// A UDP socket inside.
    pub fn socket(&self, address: &str) -> UdpSocket {
        self.enter(|| UdpSocket::bind(address).unwrap())
    }
}
