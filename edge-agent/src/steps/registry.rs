//! Step `registry`: the local registry runs, holds the artifacts of the bundle, and everybody may do what they should
//! (D6, R-17).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use edge_api::bundle::{Artifact, Index};
use edge_api::names::OWN_ORIGIN;
use futures::future::LocalBoxFuture;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::ca::Authority;
use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::node;
use crate::objects;
use crate::registry::content::Content;
use crate::registry::login::Login;
use crate::registry::objects::{NAME, namespace};
use crate::registry::probe::Probe;
use crate::registry::reference::Reference;
use crate::registry::upload::Push;
use crate::upgrade;
use crate::world::World;

/// Longest wait for the registry's pod.
const DEADLINE: Duration = Duration::from_mins(3);
/// Longest wait for its port to answer, once its pod is ready.
const PORT_DEADLINE: Duration = Duration::from_mins(1);

/// See the module.
pub struct Registry {
    world: Arc<World>,
}

impl Registry {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world }
    }

    async fn ensure_registry(&self, run: &Run) -> Result<Verdict, Failure> {
        let world = &self.world;
        let (index, client) = (world.index()?, world.client()?);
        let authority =
            Authority::ensure(&world.paths.join("ca"), &format!("PCG-Edge {}", world.instance), &world.clock)
                .map_err(|e| Failure::of(&e))?;
        let leaf = authority
            .ensure_leaf(&world.paths.join("ca"), "registry", &names(&world.instance.kind_cluster()))
            .map_err(|e| Failure::of(&e))?;
        let login = Login::ensure(&world.paths)?;
        self.ensure_mirrors(run, &index, &authority, &login)?;

        let image = index.artifacts.iter().find(|a| a.name.starts_with(&format!("{OWN_ORIGIN}/registry:")));
        let image = image.ok_or_else(|| Failure::new("the bundle has no image of the registry"))?;
        objects::ensure(&client, run, &namespace()).await?;
        for object in crate::registry::objects::objects(&image.name, &leaf, &login, authority.certificate()) {
            objects::ensure(&client, run, &object).await?;
        }
        objects::deployment_available(&client, run, edge_api::names::NAMESPACE, NAME, DEADLINE).await?;

        let probe = Probe::new(world.registry_port, authority.certificate(), &login).map_err(|e| Failure::of(&e))?;
        let wanted = wanted(&index)?;
        let first = wanted.first().map(|(r, _)| r.clone());
        let first = first.ok_or_else(|| Failure::new("the bundle has nothing for the registry"))?;
        self.answers(run, &probe, &first).await?;
        let mut content = Content::with(&world.paths, &index).map_err(|e| Failure::of(&e))?;
        let missing = missing(&probe, &wanted).await?;
        if !missing.is_empty() {
            self.upload(run, &client, &missing).await?;
            let still = self::missing(&probe, &wanted).await?;
            if let Some((reference, artifact)) = still.first() {
                return Err(Failure::new(format!(
                    "{} was uploaded, but {} does not have digest {}",
                    artifact.name,
                    reference.repository(),
                    artifact.digest
                )));
            }
        }
        // An upgrade that may still go back has needs of both sides. What is too much harms nobody: the next look tries it
        // again.
        if content.has_earlier()
            && !upgrade::is_under_way(world)?
            && let Err(e) = content.prune(&world.paths, &client).await
        {
            warn!(step = "registry", "what earlier bundles brought stays for now: {}", e.reason);
        }
        Ok(Verdict::Ready(format!("{} artifacts on port {}, read-only with login", wanted.len(), world.registry_port)))
    }

    /// The registry's port answers as it should. After a start, rules for the port come a moment after the pod.
    async fn answers(&self, run: &Run, probe: &Probe, reference: &Reference) -> Result<(), Failure> {
        let begun = Instant::now();
        loop {
            let wrong = match probe.access(reference).await {
                Ok(None) => return Ok(()),
                Ok(Some(wrong)) => wrong,
                Err(e) => chain(&e),
            };
            if begun.elapsed() > PORT_DEADLINE {
                return Err(Failure::new(format!("the registry on port {}: {wrong}", self.world.registry_port)));
            }
            if begun.elapsed() > Duration::from_secs(2) {
                run.working(format!("waits for the registry on port {}: {wrong}", self.world.registry_port));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }

    async fn upload(
        &self,
        run: &Run,
        client: &kube::Client,
        missing: &[(Reference, &Artifact)],
    ) -> Result<(), Failure> {
        let all: u64 = missing.iter().map(|(_, a)| a.size).sum();
        info!(step = "registry", "uploads {} artifacts, {} MiB", missing.len(), all >> 20);
        let done = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&done);
        let count = move |n| {
            counter.fetch_add(n, Ordering::Relaxed);
        };
        for (reference, artifact) in missing {
            run.working(format!("uploads {}", artifact.name));
            let named = |e| Failure::new(format!("upload {}: {}", artifact.name, chain(&e)));
            let upload = async {
                let mut push = Push::connect(client).await?;
                push.artifact(&self.world.bundle(), reference, &artifact.digest, &count).await
            };
            let show = async {
                let mut tick = tokio::time::interval(Duration::from_millis(300));
                loop {
                    tick.tick().await;
                    run.progress(done.load(Ordering::Relaxed), all);
                }
            };
            tokio::select! {
                uploaded = upload => uploaded.map_err(named)?,
                () = show => {}
            }
        }
        run.no_progress();
        Ok(())
    }

    /// containerd's mirrors: every origin host of the bundle is asked from here. Read at every pull, so no restart.
    fn ensure_mirrors(
        &self,
        run: &Run,
        index: &Index,
        authority: &Authority<'_>,
        login: &Login,
    ) -> Result<(), Failure> {
        let paths = &self.world.paths;
        let write = |path: &str, text: &str| {
            durable::write_if_changed(&paths.join(path), text.as_bytes(), 0o600).map_err(|e| Failure::of(&e))
        };
        let mut written = write("certs.d/ca.crt", authority.certificate())?;
        let mut origins: BTreeSet<String> = wanted(index)?.into_iter().map(|(r, _)| r.origin).collect();
        origins.insert(OWN_ORIGIN.to_owned());
        for origin in origins {
            durable::ensure_folder(&paths.join("certs.d").join(&origin), 0o700).map_err(|e| Failure::of(&e))?;
            written |= write(&format!("certs.d/{origin}/hosts.toml"), &node::hosts_toml(&origin, &login.basic()))?;
        }
        if written {
            run.working("sets up the mirrors");
        }
        Ok(())
    }
}

impl Step for Registry {
    fn name(&self) -> &'static str {
        "registry"
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(self.ensure_registry(run))
    }
}

/// Artifacts that belong into the registry.
fn wanted(index: &Index) -> Result<Vec<(Reference, &Artifact)>, Failure> {
    let artifacts = index.artifacts.iter().filter(|a| a.registry);
    let parsed = artifacts.map(|artifact| {
        let reference = Reference::parse(&artifact.name);
        let reference = reference.ok_or_else(|| Failure::new(format!("{:?} is no full reference", artifact.name)))?;
        Ok((reference, artifact))
    });
    parsed.collect()
}

/// Those of them that are not there with their digest.
async fn missing<'a>(
    probe: &Probe,
    wanted: &[(Reference, &'a Artifact)],
) -> Result<Vec<(Reference, &'a Artifact)>, Failure> {
    let mut missing = Vec::new();
    for (reference, artifact) in wanted {
        let found = probe.manifest(&reference.repository(), &reference.tag).await;
        let found = found.map_err(|e| Failure::new(format!("ask for {}: {}", artifact.name, chain(&e))))?;
        if found.as_deref() != Some(artifact.digest.as_str()) {
            missing.push((reference.clone(), *artifact));
        }
    }
    Ok(missing)
}

/// Names and addresses by which the registry is reached: in the cluster, by guests, on the host and from its LAN.
fn names(cluster: &str) -> Vec<String> {
    let mut names: BTreeSet<String> = [
        "registry.pcg-edge-system.svc",
        "registry.pcg-edge-system.svc.cluster.local",
        "registry.pcg-edge.internal",
        "localhost",
        "127.0.0.1",
    ]
    .map(str::to_owned)
    .into();
    names.insert(format!("{cluster}-control-plane"));
    names.extend(host_addresses().iter().map(ToString::to_string));
    names.into_iter().collect()
}

/// Addresses of the host's physical interfaces. Those of bridges and the like come and go with guests and containers,
/// and every new one would mean a new certificate.
fn host_addresses() -> Vec<Ipv4Addr> {
    let physical = |name: &str| std::path::Path::new("/sys/class/net").join(name).join("device").exists();
    let interfaces = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let addresses = interfaces.filter(|i| physical(&i.interface_name)).filter_map(|i| {
        let address = IpAddr::V4(i.address?.as_sockaddr_in()?.ip());
        match address {
            IpAddr::V4(address) if !address.is_loopback() => Some(address),
            _ => None,
        }
    });
    addresses.collect()
}
