//! The lock: Go modules with their checksums, the Debian suite with its packages. Compiled in, so that this program
//! and its pins cannot differ.

use std::sync::LazyLock;

use serde::Deserialize;

/// Programs that share one `go.mod`.
#[derive(Debug)]
pub struct Group {
    /// Name, that of the folder below `pins/`.
    pub name: &'static str,
    /// The module whose version counts.
    pub module: &'static str,
    /// Program name and Go package.
    pub programs: &'static [(&'static str, &'static str)],
    /// `go.mod`.
    pub go_mod: &'static str,
    /// `go.sum`.
    pub go_sum: &'static str,
    /// `tools.go`, which names the packages for the module resolver.
    pub tools: &'static str,
}

impl Group {
    /// Version of the module, with its `v`.
    pub fn version(&self) -> &'static str {
        let required = |line: &'static str| {
            let rest = line.trim().trim_start_matches("require ").strip_prefix(self.module)?;
            rest.strip_prefix(' ').map(str::trim)
        };
        self.go_mod.lines().find_map(required).unwrap_or("unknown")
    }

    /// `module@version`.
    pub fn source(&self) -> String {
        format!("{}@{}", self.module, self.version())
    }

    /// Linker flags: stripped, and with the version where programs report it.
    pub fn ldflags(&self) -> String {
        let package = match self.module {
            "k8s.io/kubernetes" => "k8s.io/component-base/version",
            "sigs.k8s.io/cluster-api" => "sigs.k8s.io/cluster-api/version",
            _ => return "-s -w ".to_owned(),
        };
        let version = self.version();
        let mut parts = version.trim_start_matches('v').split('.');
        let (major, minor) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        format!(
            "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor} \
             -X {package}.gitTreeState=clean"
        )
    }
}

macro_rules! group {
    ($name:literal, $module:literal, [$(($program:literal, $package:literal)),* $(,)?]) => {
        Group {
            name: $name,
            module: $module,
            programs: &[$(($program, $package)),*],
            go_mod: include_str!(concat!("../pins/", $name, "/go.mod")),
            go_sum: include_str!(concat!("../pins/", $name, "/go.sum")),
            tools: include_str!(concat!("../pins/", $name, "/tools.go")),
        }
    };
}

/// A Kubernetes release that nodes are made with, and the images around it by the names that its kubeadm expects. The
/// names are kubeadm's; the programs in those images are the ones of [`GROUPS`], for every release.
#[derive(Debug)]
pub struct Release {
    /// Kubernetes itself.
    pub kubernetes: Group,
    /// Full reference of the etcd image.
    pub etcd: &'static str,
    /// Full reference of the DNS image.
    pub coredns: &'static str,
    /// Full reference of the image of a pod's sandbox.
    pub pause: &'static str,
}

macro_rules! kubernetes {
    ($name:literal) => {
        group!(
            $name,
            "k8s.io/kubernetes",
            [
                ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
                ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
                ("kube-proxy", "k8s.io/kubernetes/cmd/kube-proxy"),
                ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
                ("kubeadm", "k8s.io/kubernetes/cmd/kubeadm"),
                ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
                ("kubelet", "k8s.io/kubernetes/cmd/kubelet"),
            ]
        )
    };
}

/// The release of the system cluster, and of workload clusters unless they name another.
pub static CURRENT: Release = Release {
    kubernetes: kubernetes!("kubernetes"),
    etcd: "registry.k8s.io/etcd:3.6.8-0",
    coredns: "registry.k8s.io/coredns/coredns:v1.14.2",
    pause: "registry.k8s.io/pause:3.10.2",
};

/// The minor release before, to upgrade from.
pub static PREVIOUS: Release = Release {
    kubernetes: kubernetes!("kubernetes-1.35"),
    etcd: "registry.k8s.io/etcd:3.6.6-0",
    coredns: "registry.k8s.io/coredns/coredns:v1.13.1",
    pause: "registry.k8s.io/pause:3.10.1",
};

impl Release {
    /// Kubernetes version, with its `v`.
    pub fn version(&self) -> &'static str {
        self.kubernetes.version()
    }

    /// The groups of a node, the longest to build first.
    pub fn groups(&'static self) -> impl Iterator<Item = &'static Group> {
        std::iter::once(&self.kubernetes).chain(GROUPS)
    }

    /// `module@version` of each of these programs.
    pub fn sources(&'static self, programs: &[&str]) -> String {
        let sources: Vec<_> = programs.iter().map(|program| source_in(self.groups(), program)).collect();
        sources.join(", ")
    }
}

/// What stands beside Kubernetes on a node and in the system cluster, the same for every release.
const GROUPS: &[Group] = &[
    group!(
        "etcd",
        "go.etcd.io/etcd/server/v3",
        [
            ("etcd", "go.etcd.io/etcd/server/v3"),
            ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
            ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
        ]
    ),
    group!(
        "containerd",
        "github.com/containerd/containerd/v2",
        [
            ("containerd", "github.com/containerd/containerd/v2/cmd/containerd"),
            ("containerd-shim-runc-v2", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2"),
            ("ctr", "github.com/containerd/containerd/v2/cmd/ctr"),
        ]
    ),
    group!(
        "cni",
        "github.com/containernetworking/plugins",
        [
            ("bridge", "github.com/containernetworking/plugins/plugins/main/bridge"),
            ("host-local", "github.com/containernetworking/plugins/plugins/ipam/host-local"),
            ("loopback", "github.com/containernetworking/plugins/plugins/main/loopback"),
            ("portmap", "github.com/containernetworking/plugins/plugins/meta/portmap"),
            ("ptp", "github.com/containernetworking/plugins/plugins/main/ptp"),
        ]
    ),
    group!("kind", "sigs.k8s.io/kind", [("kind", "sigs.k8s.io/kind")]),
    group!(
        "registry",
        "github.com/distribution/distribution/v3",
        [("registry", "github.com/distribution/distribution/v3/cmd/registry")]
    ),
    group!("helm", "helm.sh/helm/v4", [("helm", "helm.sh/helm/v4/cmd/helm")]),
    group!("coredns", "github.com/coredns/coredns", [("coredns", "github.com/coredns/coredns")]),
];

/// The groups of workload clusters. Apart, so that a change here rebuilds nothing of the system cluster's.
pub const CLUSTER_GROUPS: &[Group] = &[
    group!(
        "cluster-api",
        "sigs.k8s.io/cluster-api",
        [
            ("cluster-api-controller", "sigs.k8s.io/cluster-api/core"),
            ("clusterctl", "sigs.k8s.io/cluster-api/cmd/clusterctl"),
            ("kubeadm-bootstrap-controller", "sigs.k8s.io/cluster-api/bootstrap/kubeadm"),
            ("kubeadm-control-plane-controller", "sigs.k8s.io/cluster-api/controlplane/kubeadm"),
        ]
    ),
    group!(
        "metallb",
        "go.universe.tf/metallb",
        [
            ("metallb-controller", "go.universe.tf/metallb/controller"),
            ("metallb-speaker", "go.universe.tf/metallb/speaker"),
        ]
    ),
    group!(
        "metrics-server",
        "sigs.k8s.io/metrics-server",
        [("metrics-server", "sigs.k8s.io/metrics-server/cmd/metrics-server")]
    ),
    group!(
        "local-path-provisioner",
        "github.com/rancher/local-path-provisioner",
        [("local-path-provisioner", "github.com/rancher/local-path-provisioner")]
    ),
];

/// Modules of which only files are used.
pub const FILE_GROUPS: &[Group] = &[group!("cert-manager", "github.com/cert-manager/cert-manager", [])];

/// Every group with programs, without [`PREVIOUS`].
pub fn groups() -> impl Iterator<Item = &'static Group> {
    CURRENT.groups().chain(CLUSTER_GROUPS)
}

/// The group of this name.
pub fn group(name: &str) -> Option<&'static Group> {
    groups().chain(FILE_GROUPS).find(|group| group.name == name)
}

/// `module@version` of the group that has this program.
pub fn source_of(program: &str) -> String {
    source_in(groups(), program)
}

fn source_in(mut groups: impl Iterator<Item = &'static Group>, program: &str) -> String {
    let has = |group: &&Group| group.programs.iter().any(|(name, _)| *name == program);
    groups.find(has).map_or_else(|| "unknown".to_owned(), Group::source)
}

/// The Debian half, from `pins/debian.toml`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Debian {
    /// Suite of every image.
    pub suite: String,
    /// Packages of the kind node.
    pub node: Packages,
    /// Packages of the base layer of container images.
    pub container: Packages,
    /// Packages of the guest tree.
    pub guest: Packages,
    /// Packages of the Kubernetes guest.
    pub kubernetes_guest: Packages,
}

/// Packages of one image, beside the essential ones and apt.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packages {
    /// Package names.
    pub packages: Vec<String>,
}

impl Debian {
    /// `Debian <suite>: <packages>`.
    pub fn source(&self, packages: &Packages) -> String {
        format!("Debian {}: {}", self.suite, packages.packages.join(" "))
    }
}

/// The Debian pins. Broken ones fail the unit test below, and mmdebstrap for want of a suite.
pub static DEBIAN: LazyLock<Debian> = LazyLock::new(|| {
    let none = || Packages { packages: vec![] };
    toml::from_str(include_str!("../pins/debian.toml")).unwrap_or_else(|_| Debian {
        suite: String::new(),
        node: none(),
        container: none(),
        guest: none(),
        kubernetes_guest: none(),
    })
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_group_has_a_version_and_its_programs_are_in_tools_go() {
        let mut names = std::collections::BTreeSet::new();
        for group in groups().chain(FILE_GROUPS) {
            assert!(group.version().starts_with('v'), "{}: {}", group.name, group.version());
            for (name, package) in group.programs {
                assert!(names.insert(name), "{name} twice");
                assert!(group.tools.contains(&format!("\"{package}\"")), "{package}");
            }
        }
        assert_eq!(names.len(), 30);
    }

    #[test]
    fn an_upgrade_is_by_one_minor() {
        let minor = |release: &Release| release.version().split('.').nth(1).unwrap().parse::<u32>().unwrap();
        assert_eq!(minor(&PREVIOUS) + 1, minor(&CURRENT));
        assert!(PREVIOUS.kubernetes.ldflags().contains(&format!("gitVersion={} ", PREVIOUS.version())));
        assert_eq!(PREVIOUS.sources(&["kubelet"]), PREVIOUS.kubernetes.source());
        assert_eq!(PREVIOUS.sources(&["ctr"]), CURRENT.sources(&["ctr"]));
    }

    #[test]
    fn versions_reach_the_linker() {
        let minor = CURRENT.version().split('.').nth(1).unwrap();
        assert!(CURRENT.kubernetes.ldflags().contains(&format!("gitMinor={minor} ")));
        assert_eq!(group("etcd").unwrap().ldflags().trim(), "-s -w");
        assert_eq!(source_of("ctr"), group("containerd").unwrap().source());
    }

    #[test]
    fn debian_pins_parse() {
        let pins: Debian = toml::from_str(include_str!("../pins/debian.toml")).unwrap();
        assert!(!pins.suite.is_empty());
        for Packages { packages } in [&pins.node, &pins.container, &pins.guest, &pins.kubernetes_guest] {
            assert!(packages.is_sorted(), "{packages:?}");
        }
    }
}
