//! What every step knows: paths, instance, ports, identity, and the system cluster's client once there is one.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use edge_api::Instance;
use edge_api::bundle::Index;
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::clock::Clock;
use crate::durable;
use crate::effects;
use crate::engine::Failure;
use crate::paths::Paths;
use crate::ports::docker::Docker;
use crate::ports::firewall::Firewall;
use crate::ports::kind::Kind;
use crate::status::Board;

/// Identity of the appliance, made once.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// UUID that marks derive from (D10).
    pub appliance_id: Uuid,
}

impl Identity {
    /// The identity, made where there is none.
    pub fn ensure(paths: &Paths) -> Result<Self, durable::Error> {
        let path = paths.join("state/identity.json");
        if let Some(identity) = durable::read_json(&path)? {
            return Ok(identity);
        }
        let identity = Self { appliance_id: Uuid::new_v4() };
        durable::write_json(&path, &identity)?;
        Ok(identity)
    }
}

/// See the module.
pub struct World {
    /// Paths below the root.
    pub paths: Paths,
    /// Instance (D11).
    pub instance: Instance,
    /// Port of the API server on the host's loopback.
    pub api_port: u16,
    /// Port of the registry on the host.
    pub registry_port: u16,
    /// Folder of the bundle that the agent was given.
    pub given_bundle: PathBuf,
    /// Identity.
    pub identity: Identity,
    /// The status.
    pub board: Board,
    /// The host's clock.
    pub clock: Clock,
    /// docker.
    pub docker: Docker,
    /// Cancelled where the agent's program was exchanged: it ends, and the one that is there now goes on.
    pub renew: CancellationToken,
    client: watch::Sender<Option<kube::Client>>,
    client_of: Mutex<Vec<u8>>,
    index: Mutex<Option<Arc<Index>>>,
    bundle: Mutex<PathBuf>,
}

impl World {
    /// Puts it together.
    pub fn new(
        paths: Paths,
        instance: Instance,
        ports: (u16, u16),
        bundle: PathBuf,
        identity: Identity,
        board: Board,
    ) -> Self {
        let clock = Clock::open(&paths.clock());
        Self {
            clock,
            paths,
            instance,
            api_port: ports.0,
            registry_port: ports.1,
            bundle: Mutex::new(bundle.clone()),
            given_bundle: bundle,
            identity,
            board,
            docker: Docker::default(),
            renew: CancellationToken::new(),
            client: watch::Sender::new(None),
            client_of: Mutex::default(),
            index: Mutex::default(),
        }
    }

    /// kind for this instance.
    pub fn kind(&self) -> Kind {
        Kind::new(
            self.bundle().join("bin/kind"),
            self.instance.kind_cluster(),
            self.instance.docker_network(),
            self.paths.kubeconfig(),
        )
    }

    /// The host's packet filter for this instance.
    pub fn firewall(&self) -> Firewall {
        Firewall::new(&self.instance)
    }

    /// Folder of the bundle in force: what was given, or what an upgrade brought.
    pub fn bundle(&self) -> PathBuf {
        self.bundle.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts a bundle in force; the step `bundle` decides which.
    pub fn set_bundle(&self, bundle: &Path) {
        bundle.clone_into(&mut self.bundle.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The bundle's index, known once step `bundle` has been there.
    pub fn index(&self) -> Result<Arc<Index>, Failure> {
        let index = self.index.lock().unwrap_or_else(PoisonError::into_inner).clone();
        index.ok_or_else(|| Failure::new("the bundle has not been verified yet"))
    }

    /// Publishes the index of a verified bundle.
    pub fn set_index(&self, index: Index) {
        *self.index.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(index));
    }

    /// Follows the system cluster's client.
    pub fn clients(&self) -> watch::Receiver<Option<kube::Client>> {
        self.client.subscribe()
    }

    /// The system cluster's client.
    pub fn client(&self) -> Result<kube::Client, Failure> {
        let client = self.client.borrow().clone();
        client.ok_or_else(|| Failure::new("the system cluster has not been there yet"))
    }

    /// Gives the client up: its connections may lead to a node that is no more, and such a one can hang for minutes.
    pub fn disconnect(&self) {
        self.client_of.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A client from the kubeconfig; the same one as long as that file is the same.
    pub async fn connect(&self) -> Result<kube::Client, Failure> {
        let path = self.paths.kubeconfig();
        let content = durable::read(&path, 1 << 20).map_err(|e| Failure::of(&e))?;
        let content = content.ok_or_else(|| Failure::new(format!("{} is missing", path.display())))?;
        if *self.client_of.lock().unwrap_or_else(PoisonError::into_inner) == content
            && let Some(client) = self.client.borrow().clone()
        {
            return Ok(client);
        }
        let client = client_from(&content).await?;
        *self.client_of.lock().unwrap_or_else(PoisonError::into_inner) = content;
        self.client.send_replace(Some(client.clone()));
        Ok(client)
    }
}

/// A client from the kubeconfig, for commands that have no world.
pub async fn client(paths: &Paths) -> Result<kube::Client, Failure> {
    let path = paths.kubeconfig();
    let content = durable::read(&path, 1 << 20).map_err(|e| Failure::of(&e))?;
    client_from(&content.ok_or_else(|| Failure::new(format!("{} is missing", path.display())))?).await
}

async fn client_from(kubeconfig: &[u8]) -> Result<kube::Client, Failure> {
    let text = String::from_utf8_lossy(kubeconfig);
    let parsed = Kubeconfig::from_yaml(&text).map_err(|e| Failure::of(&e))?;
    let mut config = kube::Config::from_custom_kubeconfig(parsed, &KubeConfigOptions::default())
        .await
        .map_err(|e| Failure::of(&e))?;
    config.connect_timeout = Some(Duration::from_secs(5));
    config.proxy_url = None;
    effects::client(config).map_err(|e| Failure::of(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path());
        paths.ensure().unwrap();
        let first = Identity::ensure(&paths).unwrap();
        assert_eq!(Identity::ensure(&paths).unwrap(), first);
        assert_eq!(first.appliance_id.get_version_num(), 4);
    }
}
