//! Where everything lies below the agent's root.

use std::path::{Path, PathBuf};

use crate::durable;

/// The root and what is in it.
#[derive(Clone, Debug)]
pub struct Paths {
    root: PathBuf,
}

impl Paths {
    /// Paths below `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path below the root.
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Folder that people edit.
    pub fn conf(&self) -> PathBuf {
        self.join("conf")
    }

    /// The site file.
    pub fn site_file(&self) -> PathBuf {
        self.join("conf/unattended.yaml")
    }

    /// The last valid site file, which is in force.
    pub fn site_in_force(&self) -> PathBuf {
        self.join("state/site.yaml")
    }

    /// The site file that the appliance was installed with.
    pub fn site_installed(&self) -> PathBuf {
        self.join("state/installed.yaml")
    }

    /// High-level log.
    pub fn log(&self) -> PathBuf {
        self.join("edge.log")
    }

    /// Durable state of the steps.
    pub fn steps(&self) -> PathBuf {
        self.join("state/steps.json")
    }

    /// How late it certainly is.
    pub fn clock(&self) -> PathBuf {
        self.join("state/clock.json")
    }

    /// The last upgrade.
    pub fn upgrade(&self) -> PathBuf {
        self.join("state/upgrade.json")
    }

    /// What bundles have brought into the registry.
    pub fn registry_content(&self) -> PathBuf {
        self.join("state/registry.json")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.join(edge_api::agent::SOCKET)
    }

    /// Lock that only one agent holds.
    pub fn lock(&self) -> PathBuf {
        self.join("run/agent.lock")
    }

    /// Process ID of the agent.
    pub fn pid(&self) -> PathBuf {
        self.join("run/agent.pid")
    }

    /// Administrator's kubeconfig of the system cluster.
    pub fn kubeconfig(&self) -> PathBuf {
        self.join("kube/admin.conf")
    }

    /// Configuration that the kind node was planned with.
    pub fn kind_config(&self) -> PathBuf {
        self.join("state/kind.json")
    }

    /// Mark that vm-operator may have made something on the host: it is there before the first request for it.
    pub fn host_touched(&self) -> PathBuf {
        self.join("state/host-touched")
    }

    /// Makes every folder of the tree with its mode.
    pub fn ensure(&self) -> Result<(), durable::Error> {
        // The root is searchable, because QEMU runs as another user and opens disks and logs below it.
        durable::ensure_folder(&self.root, 0o755)?;
        for (folder, mode) in [
            ("conf", 0o700),
            ("state", 0o700),
            ("run", 0o700),
            ("kube", 0o700),
            ("ca", 0o700),
            ("etcd", 0o700),
            ("pki", 0o700),
            ("registry", 0o700),
            ("certs.d", 0o700),
            ("node", 0o700),
            ("node/containerd.service.d", 0o700),
            ("node/ca-certificates", 0o700),
            ("audit", 0o700),
            ("profiles", 0o700),
            ("console", 0o755),
            ("pools", 0o755),
            ("pools/default", 0o755),
        ] {
            durable::ensure_folder(&self.join(folder), mode)?;
        }
        Ok(())
    }
}
