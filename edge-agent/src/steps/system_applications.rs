//! Step `system-applications`: the layers of the system profile, in install order.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edge_api::SiteConfig;
use edge_api::agent::{Application, StepState};
use edge_api::names::NAMESPACE;
use edge_layers::{Context, Helm};
use edge_profiles::{Limits, ProxyProperties, RenderContext, SiteProperties};
use futures::future::LocalBoxFuture;
use tokio::sync::mpsc;
use tracing::info;

use crate::effects::Effect;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::status::Board;
use crate::world::World;

/// See the module.
pub struct SystemApplications {
    world: Arc<World>,
    told: RefCell<Told>,
}

impl SystemApplications {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, told: RefCell::default() }
    }

    async fn ensure_system_applications(&self, run: &Run) -> Result<Verdict, Failure> {
        let world = &self.world;
        let (index, client) = (world.index()?, world.client()?);
        let Some(archive) = archive_path(&world.paths.conf(), &run.site) else {
            // Law 2: that nothing is named takes nothing away.
            let message = "the site file names no profile; what an earlier one brought stays";
            return Ok(Verdict::Ready(message.to_owned()));
        };
        if !archive.exists() {
            let message = format!("waits for the profile archive {}: copy it there", archive.display());
            return Ok(Verdict::Waiting { message, retry: std::time::Duration::from_secs(30) });
        }
        let store = world.paths.join("profiles");
        let published = {
            let (archive, store) = (archive.clone(), store.clone());
            let publish = move || edge_profiles::publish_archive(&archive, &store, &Limits::default());
            let published = tokio::task::spawn_blocking(|| Effect::PublishProfile.around(publish)).await;
            published.map_err(|e| Failure::of(&e))?
        };
        let published = published.map_err(|e| {
            let hint = if e.is_no_space() {
                let bytes = archive.metadata().map_or(0, |m| m.len()).div_ceil(1 << 20);
                let free = crate::durable::free(&store).unwrap_or(0) >> 20;
                format!(
                    "free space in {}: {free} MiB are free, and the archive of {bytes} MiB is unpacked beside itself; \
                     what runs stays as it is until then",
                    store.display()
                )
            } else {
                format!(
                    "`edgectl profile verify {}` checks it; what runs stays as it is until a good one is there",
                    archive.display()
                )
            };
            Failure::new(chain(&e)).hint(hint)
        })?;
        let profile = edge_profiles::load(&published.dir).map_err(|e| Failure::of(&e))?;
        let context = RenderContext {
            site: site_properties(world, &run.site)?,
            appliance_id: world.identity.appliance_id,
            namespace: NAMESPACE.to_owned(),
            images: index.artifacts.iter().map(|a| (a.name.clone(), a.digest.clone())).collect::<BTreeMap<_, _>>(),
        };
        let layers = edge_profiles::render(&profile, &context)
            .map_err(|e| Failure::of(&e).hint("correct the profile or the site file, whose values it uses"))?;
        let names: Vec<&str> = layers.iter().map(|l| l.name.as_str()).collect();
        begin(&world.board, edge_layers::pending(&layers));
        let helm = Helm { program: world.bundle().join("bin/helm"), kubeconfig: world.paths.kubeconfig() };
        let (sender, mut told) = mpsc::unbounded_channel::<Application>();
        let observer = move |application: Application| drop(sender.send(application));
        let context = Context { client, helm: Some(helm) };
        let mut apply = std::pin::pin!(edge_layers::apply(&context, &layers, &observer));
        let report = loop {
            tokio::select! {
                biased;
                Some(application) = told.recv() => self.observe(run, &application),
                report = &mut apply => break report,
            }
        };
        while let Ok(application) = told.try_recv() {
            self.observe(run, &application);
        }
        let report = report
            .map_err(|e| Failure::of(&e).hint("`edgectl status` and `edgectl vm list` show what it waits for"))?;
        if !report.written.is_empty() || !report.pruned.is_empty() {
            run.working("records what was done");
            info!(step = "system-applications", "wrote {}, removed {}", list(&report.written), list(&report.pruned));
        }
        let removed = Effect::PruneProfiles.around(|| edge_profiles::keep_only(&store, published.digest));
        let removed = removed.map_err(|e| Failure::of(&e))?;
        for digest in removed {
            info!(step = "system-applications", "removed the earlier profile {digest}, which nothing uses any more");
        }
        Ok(Verdict::Ready(format!("profile {} {}: {}", profile.name, profile.version, names.join(", "))))
    }

    fn observe(&self, run: &Run, new: &Application) {
        if matches!(new.state, StepState::Running | StepState::Waiting) {
            run.working(format!("layer {}: {}", new.name, new.message));
        }
        self.world.board.edit(|status| {
            if let Some(old) = status.applications.iter_mut().find(|a| a.name == new.name) {
                let since = if old.state == new.state { old.since } else { new.since };
                *old = Application { since, message: crate::redact::line(&new.message, 400), ..new.clone() };
            }
        });
        if let Some(line) = self.told.borrow_mut().line(new) {
            info!(step = "system-applications", "{line}");
        }
    }
}

impl Step for SystemApplications {
    fn name(&self) -> &'static str {
        "system-applications"
    }

    fn interruptible(&self) -> bool {
        true
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(self.ensure_system_applications(run))
    }
}

/// Path of the profile archive, where the site names one: absolute, or relative to the site file's folder.
pub fn archive_path(conf: &Path, site: &SiteConfig) -> Option<PathBuf> {
    site.profile.as_ref().map(|path| conf.join(path))
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Shows the layers before their turn. One that was shown before keeps its state until something is said about it.
fn begin(board: &Board, pending: Vec<Application>) {
    board.edit(|status| {
        let old = std::mem::take(&mut status.applications);
        let keep = |new: Application| {
            let known = old.iter().find(|o| o.name == new.name && o.kind == new.kind && o.state == StepState::Ready);
            known.map_or_else(|| new.clone(), |o| Application { version: new.version.clone(), ..o.clone() })
        };
        status.applications = pending.into_iter().map(keep).collect();
    });
}

/// What the log says of each layer since it was last ready. Its message follows every second of a wait; the log has a
/// line where another thing is waited for, or the same one for another reason.
#[derive(Default)]
struct Told(BTreeMap<String, BTreeSet<String>>);

impl Told {
    /// The line that news of a layer are worth, where they are worth one.
    fn line(&mut self, new: &Application) -> Option<String> {
        let (kind, line) = match new.state {
            // A probe that found everything as it was is not worth a line.
            StepState::Ready => return self.0.remove(&new.name).map(|_| format!("layer {} is ready", new.name)),
            // The step fails with the same words.
            StepState::Failed | StepState::Pending => return None,
            StepState::Running => (String::new(), format!("layer {} is being changed", new.name)),
            StepState::Waiting => (kind_of_wait(&new.message), format!("layer {} waits for {}", new.name, new.message)),
        };
        let told = self.0.entry(new.name.clone()).or_default();
        told.insert(kind).then_some(line)
    }
}

/// Which object is waited for and why, without numbers and details: `Kind namespace/name: Reason`.
fn kind_of_wait(message: &str) -> String {
    let mut parts = message.split(" (").next().unwrap_or_default().splitn(3, ": ");
    let object = parts.next().unwrap_or_default();
    let reason: String = parts.next().unwrap_or_default().chars().filter(|c| !c.is_ascii_digit()).collect();
    format!("{object}: {reason}")
}

/// What templates see as `site`.
fn site_properties(world: &World, config: &SiteConfig) -> Result<SiteProperties, Failure> {
    let router = config.router.as_ref();
    let wan_gateway = router.map(|r| {
        let wan = crate::site::effective_networks(config).into_iter().find(|n| n.name == "wan");
        r.wan_gateway.or_else(|| wan.and_then(|n| n.address).map(|a| a.addr()))
    });
    let wan_gateway = wan_gateway.flatten();
    let dns: Vec<String> = match router {
        Some(r) if !r.dns.is_empty() => r.dns.iter().map(ToString::to_string).collect(),
        Some(_) => wan_gateway.iter().map(ToString::to_string).collect(),
        None => config.host.dns.iter().map(ToString::to_string).collect(),
    };
    let proxy = config.proxy.as_ref().map(|proxy| {
        let text = |secret: &Option<edge_api::site::Secret>| {
            secret.as_ref().map(|s| s.expose().to_owned()).unwrap_or_default()
        };
        ProxyProperties {
            http: text(&proxy.http),
            https: text(&proxy.https),
            no_proxy: proxy.no_proxy.clone().unwrap_or_default(),
            ca_certificates: crate::site::proxy_certificates(config),
        }
    });
    Ok(SiteProperties {
        device_id: device_id(config)?,
        instance: world.instance.to_string(),
        lan_ip: router.map(|r| r.lan_ip.addr().to_string()),
        lan_prefix: router.map(|r| r.lan_ip.prefix_len()),
        lan_netmask: router.map(|r| r.lan_ip.netmask().to_string()),
        lan_cidr: router.map(|r| r.lan_ip.to_string()),
        wan_ip: router.map(|r| r.wan_ip.addr().to_string()),
        wan_prefix: router.map(|r| r.wan_ip.prefix_len()),
        wan_cidr: router.map(|r| r.wan_ip.to_string()),
        wan_gateway: wan_gateway.map(|a| a.to_string()),
        dhcp_start: router.map(|r| r.dhcp_range.start.to_string()),
        dhcp_end: router.map(|r| r.dhcp_range.end.to_string()),
        dns,
        ntp: config.host.ntp.clone(),
        ssh_keys: config.ssh_keys.clone(),
        proxy,
    })
}

/// Device ID: of the site file, else the machine's.
pub fn device_id(config: &SiteConfig) -> Result<String, Failure> {
    if let Some(id) = &config.device_id {
        return Ok(id.clone());
    }
    let id = std::fs::read_to_string("/etc/machine-id").map(|t| t.trim().to_owned()).unwrap_or_default();
    if id.is_empty() {
        return Err(Failure::new("there is no device_id in the site file, and /etc/machine-id is empty")
            .hint("set device_id, or run `systemd-machine-id-setup`"));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_has_a_line_for_what_changes_in_kind() {
        let mut told = Told::default();
        let mut lines = Vec::new();
        let mut say = |name: &str, state, message: &str| {
            let new = Application {
                name: name.to_owned(),
                kind: "vm".to_owned(),
                state,
                message: message.to_owned(),
                version: None,
                since: None,
            };
            lines.extend(told.line(&new));
        };
        say("web", StepState::Ready, "");
        say("router", StepState::Running, "writes Secret x/router-files");
        say("router", StepState::Running, "writes VirtualMachine x/router");
        for percent in 1..100 {
            say("router", StepState::Waiting, &format!("VirtualMachine x/router: ImageNotReady: {percent} %"));
        }
        say("router", StepState::Waiting, "VirtualMachine x/router: WaitingForAgent: runs");
        say("router", StepState::Waiting, "VirtualMachine x/router: ImageNotReady: 1 %");
        say("router", StepState::Ready, "");
        say("router", StepState::Ready, "");
        for trouble in ["", " (Pod w-1: ErrImagePull: no)", " (Pod w-1: ImagePullBackOff: no)"] {
            say("web2", StepState::Waiting, &format!("Deployment web/web2: 0 of 3 available{trouble}"));
            say("web2", StepState::Waiting, &format!("Deployment web/web2: 1 of 3 available{trouble}"));
        }
        say("web2", StepState::Failed, "after 300 s: Deployment web/web2: 1 of 3 available");
        say("web2", StepState::Waiting, "Deployment web/web2: 2 of 3 available");
        let expected = [
            "layer router is being changed",
            "layer router waits for VirtualMachine x/router: ImageNotReady: 1 %",
            "layer router waits for VirtualMachine x/router: WaitingForAgent: runs",
            "layer router is ready",
            "layer web2 waits for Deployment web/web2: 0 of 3 available",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn archives_are_beside_the_site_file() {
        let site = |path: &str| SiteConfig { profile: Some(path.to_owned()), ..SiteConfig::default() };
        let conf = Path::new("/opt/x/conf");
        assert_eq!(archive_path(conf, &site("p.tar")).unwrap(), Path::new("/opt/x/conf/p.tar"));
        assert_eq!(archive_path(conf, &site("/media/p.tar")).unwrap(), Path::new("/media/p.tar"));
        assert_eq!(archive_path(conf, &SiteConfig::default()), None);
    }
}
