//! kind, by its binary from the bundle.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::process::{Error, Program};
use crate::effects::Effect;

/// The kind command of one instance.
#[derive(Clone, Debug)]
pub struct Kind {
    binary: PathBuf,
    cluster: String,
    network: String,
    kubeconfig: PathBuf,
}

impl Kind {
    /// `binary` working on `cluster`, whose node is on the docker network `network`.
    pub fn new(binary: PathBuf, cluster: String, network: String, kubeconfig: PathBuf) -> Self {
        Self { binary, cluster, network, kubeconfig }
    }

    /// Name of the container of the one node.
    pub fn node(&self) -> String {
        format!("{}-control-plane", self.cluster)
    }

    fn command(&self, words: &[&str]) -> Program {
        let kubeconfig = self.kubeconfig.as_os_str();
        // KUBECONFIG and HOME too: nothing of ours may end in somebody's ~/.kube.
        Program::new(&self.binary)
            .args(words)
            .args(["--name", &self.cluster])
            .env("KIND_EXPERIMENTAL_DOCKER_NETWORK", &self.network)
            .env("KIND_EXPERIMENTAL_PROVIDER", "docker")
            .env("KUBECONFIG", kubeconfig)
            .env("HOME", self.kubeconfig.parent().unwrap_or(Path::new("/")))
    }

    /// Makes the cluster from a configuration file. A failed node stays for a look at it.
    pub async fn create(&self, config: &Path) -> Result<(), Error> {
        let program = self.command(&["create", "cluster", "--retain", "--wait", "0s"]).effect(Effect::CreateNode);
        program
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--kubeconfig".as_ref(), self.kubeconfig.as_os_str()])
            .deadline(Duration::from_mins(10))
            .run()
            .await
            .map(drop)
    }

    /// Writes the kubeconfig again.
    pub async fn export_kubeconfig(&self) -> Result<(), Error> {
        let program = self.command(&["export", "kubeconfig"]).effect(Effect::ExportKubeconfig);
        program.args(["--kubeconfig".as_ref(), self.kubeconfig.as_os_str()]).run().await.map(drop)
    }
}
