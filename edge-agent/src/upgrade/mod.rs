//! An upgrade of the appliance: another bundle for what runs, and the one before where it does not become ready.
//!
//! ```text
//! Asked ── verified, data kept ──► Running ── every step ready, by the new agent ──► Done
//!   │                                 │ deadline
//!   └───────── damaged ──► Returned ◄── Returning
//! ```
//!
//! What is durable is this [`Record`]. The steps do the rest: with another bundle they find another node image, other
//! artifacts, another operator, other manifests, and change what differs, in their order (R-12); the agent itself is the
//! last ([`programs`]). Machines are no part of that, so they run on. Kubernetes cannot go back to a minor before its
//! data: the way back over a minor begins with the data as they were kept (see [`crate::backup`]).

mod programs;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_api::agent::{Upgrade, UpgradeState};
use edge_api::bundle::Index;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::backup::{self, Manifest};
use crate::bundle;
use crate::durable;
use crate::effects::Effect;
use crate::engine::{Failure, chain};
use crate::paths::Paths;
use crate::world::World;
use programs::Programs;

/// A new agent that has started so often, and has not got everything ready, is not started again.
const STARTS: u32 = 5;
/// Below the root: etcd's data as they were before.
pub const KEPT: &str = "etcd/upgrade.db";
/// Below the root: bundles that did not come with the box, each in a folder named by the digest of its index.
pub const BUNDLES: &str = "bundles";

/// A bundle, and what of it matters here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Side {
    bundle: PathBuf,
    version: String,
    kubernetes_version: String,
}

impl Side {
    fn new(bundle: &Path, index: &Index) -> Self {
        let (version, kubernetes_version) = (index.version.clone(), index.kubernetes_version.clone());
        Self { bundle: bundle.to_owned(), version, kubernetes_version }
    }
}

/// The last upgrade and where it stands.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Bundle of the agent's command line. With another one there, somebody has decided anew, and this is history.
    given: PathBuf,
    from: Side,
    to: Side,
    state: UpgradeState,
    /// Seconds that it may take.
    deadline: u64,
    /// When the data were kept.
    kept: Option<Timestamp>,
    /// How often the new agent has started.
    #[serde(default)]
    starts: u32,
    message: String,
}

impl Record {
    /// The last upgrade of an agent that was given this bundle.
    pub fn load(paths: &Paths, given: &Path) -> Result<Option<Self>, durable::Error> {
        let record: Option<Self> = durable::read_json(&paths.upgrade())?;
        Ok(record.filter(|record| record.given == given))
    }

    /// What the steps carry out.
    pub fn bundle(&self) -> &Path {
        match self.state {
            UpgradeState::Asked | UpgradeState::Returning | UpgradeState::Returned => &self.from.bundle,
            UpgradeState::Running | UpgradeState::Done => &self.to.bundle,
        }
    }

    /// For people.
    pub fn told(&self) -> Upgrade {
        let side = |side: &Side| format!("{} (Kubernetes {})", side.version, side.kubernetes_version);
        Upgrade { from: side(&self.from), to: side(&self.to), state: self.state, message: self.message.clone() }
    }

    fn turn(&mut self, world: &World, state: UpgradeState, message: impl Into<String>) -> Result<(), Failure> {
        (self.state, self.message) = (state, message.into());
        if state == UpgradeState::Running && self.kept.is_none() {
            self.kept = Some(Timestamp::now());
        }
        let written = Effect::turn(state).around(|| durable::write_json(&world.paths.upgrade(), self));
        written.map_err(|e| Failure::of(&e))?;
        world.board.edit(|status| status.upgrade = Some(self.told()));
        match state {
            UpgradeState::Returning | UpgradeState::Returned => {
                warn!("upgrade to {}: {}", self.to.version, self.message);
            }
            _ => info!("upgrade to {}: {}", self.to.version, self.message),
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        matches!(self.state, UpgradeState::Done | UpgradeState::Returned)
    }

    fn crosses_a_minor(&self) -> bool {
        minor(&self.from.kubernetes_version) != minor(&self.to.kubernetes_version)
    }
}

/// Why an upgrade cannot be asked for.
#[derive(Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// Why.
    pub message: String,
    /// What to do.
    pub hint: &'static str,
}

/// Writes down that the appliance, whose agent was given one bundle, is to have another one. The next pass begins it.
pub fn ask(paths: &Paths, given: &Path, bundle: &Path, deadline: Duration) -> Result<Upgrade, Refused> {
    let refused = |message: String, hint| Refused { message, hint };
    let damaged = "copy the bundle again, and give its folder";
    if !bundle.is_absolute() {
        return Err(refused(format!("{} is no absolute path", bundle.display()), damaged));
    }
    let last = Record::load(paths, given).map_err(|e| refused(chain(&e), "repair or remove that file"))?;
    if let Some(last) = last.as_ref().filter(|last| !last.is_over()) {
        if last.to.bundle == bundle {
            // Whoever asked was interrupted, and asks again.
            return Ok(last.told());
        }
        let message = format!("the upgrade to {} is not over", last.to.version);
        return Err(refused(message, "`edgectl status` shows how far it is"));
    }
    let present = last.as_ref().map_or(given, Record::bundle);
    let read = |bundle: &Path| bundle::read_index(bundle).map_err(|e| refused(chain(&e), damaged));
    let ((from, from_digest), (to, to_digest)) = (read(present)?, read(bundle)?);
    if from_digest == to_digest {
        return Err(refused(
            format!("the appliance has this bundle already, {}", present.display()),
            "nothing is to do",
        ));
    }
    check_minors(&from.kubernetes_version, &to.kubernetes_version)?;
    let record = Record {
        given: given.to_owned(),
        from: Side::new(present, &from),
        to: Side::new(bundle, &to),
        state: UpgradeState::Asked,
        deadline: deadline.as_secs(),
        kept: None,
        starts: 0,
        message: "begins with the next pass".to_owned(),
    };
    durable::write_json(&paths.upgrade(), &record).map_err(|e| refused(chain(&e), "see to it that there is space"))?;
    Ok(record.told())
}

/// Kubernetes goes one minor at a time, and never back.
fn check_minors(from: &str, to: &str) -> Result<(), Refused> {
    let (Some(old), Some(new)) = (minor(from), minor(to)) else {
        let message = format!("Kubernetes {from} and {to} cannot be compared");
        return Err(Refused { message, hint: "copy the bundle again, and give its folder" });
    };
    if new < old {
        let message = format!("the bundle has Kubernetes {to}, the appliance {from}: data do not go back");
        return Err(Refused { message, hint: "`edgectl restore` brings a backup to a box that is reset" });
    }
    if new.0 != old.0 || new.1 > old.1 + 1 {
        let message = format!("the bundle has Kubernetes {to}, the appliance {from}: only the next minor is possible");
        return Err(Refused { message, hint: "upgrade to a bundle of the minor between first" });
    }
    Ok(())
}

/// Major and minor version of `v1.36.3`.
pub fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix('v')?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Since when this life of the agent has carried out a new bundle. The host's clock may be set meanwhile.
pub type Since = Cell<Option<Instant>>;

/// Brings the upgrade, where there is one, as far as it can be before the steps; the world then has the bundle in force.
/// `verify` looks at every file of a bundle.
pub async fn advance(
    world: &World,
    since: &Since,
    verify: impl AsyncFn(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let Some(mut record) = Record::load(&world.paths, &world.given_bundle).map_err(|e| Failure::of(&e))? else {
        world.set_bundle(&world.given_bundle);
        return Ok(());
    };
    if record.state == UpgradeState::Asked {
        match begin(world, &record.to.bundle, verify).await {
            Ok(()) => {
                since.set(None);
                record.turn(world, UpgradeState::Running, "the steps carry out the new bundle")?;
            }
            Err(failure) => record.turn(world, UpgradeState::Returned, failure.reason)?,
        }
    }
    if record.state == UpgradeState::Running {
        let begun = since.get().unwrap_or_else(Instant::now);
        since.set(Some(begun));
        if begun.elapsed() > Duration::from_secs(record.deadline) {
            let message = format!("not ready after {} s ({})", record.deadline, world.board.get().message);
            record.turn(world, UpgradeState::Returning, message)?;
        }
    }
    if record.state == UpgradeState::Returning {
        if let Some(programs) = Programs::of(&world.paths).filter(Programs::are_exchanged) {
            programs.give_back().map_err(|e| Failure::of(&e))?;
            world.renew.cancel();
            return Err(Failure::new("the agent before takes over"));
        }
        if record.crosses_a_minor() {
            give_data_back(world, &record).await?;
        }
        durable::remove_file(&world.paths.join(KEPT)).map_err(|e| Failure::of(&e))?;
        let message = format!("{}; the appliance is as before", record.message);
        record.turn(world, UpgradeState::Returned, message)?;
    }
    world.set_bundle(record.bundle());
    Ok(())
}

/// Whether an upgrade has begun that can still go back.
pub fn is_under_way(world: &World) -> Result<bool, Failure> {
    let record = Record::load(&world.paths, &world.given_bundle).map_err(|e| Failure::of(&e))?;
    Ok(record.is_some_and(|record| !record.is_over()))
}

async fn begin(
    world: &World,
    bundle: &Path,
    verify: impl AsyncFn(&Path) -> Result<(), Failure>,
) -> Result<(), Failure> {
    verify(bundle).await?;
    let (index, _) = bundle::read_index(bundle).map_err(|e| Failure::of(&e))?;
    Programs::try_agent(bundle, &index).await?;
    let (node, snapshot) = (world.kind().node(), backup::take_snapshot("upgrade.db"));
    let kept = Effect::KeepData.around_async(world.docker.run_in(&node, &snapshot)).await;
    kept.map_err(|e| Failure::new(format!("the system cluster's data cannot be kept: {}", chain(&e))))
}

/// The node goes, and the next one is made on the data that were kept. Each part can be done again.
async fn give_data_back(world: &World, record: &Record) -> Result<(), Failure> {
    let (kept, paths) = (world.paths.join(KEPT), &world.paths);
    if !kept.exists() {
        return Ok(());
    }
    let failed = |e: &dyn std::error::Error| Failure::of(e);
    world.docker.remove_container(&world.kind().node()).await.map_err(|e| failed(&e))?;
    durable::remove_folder(&paths.join("etcd/member")).map_err(|e| failed(&e))?;
    let made = record.kept.unwrap_or_default();
    let version = record.from.kubernetes_version.clone();
    let manifest = Manifest::of_own_data(&world.instance, made, version);
    durable::write_json(&paths.join(backup::RECORD), &manifest).map_err(|e| failed(&e))?;
    durable::rename(&kept, &paths.join(backup::SNAPSHOT)).map_err(|e| failed(&e))
}

/// Every step is ready: an upgrade that runs comes to the programs and, once they are the bundle's, is done. What only it
/// needed goes. Tells whether it has just become so: then the steps may remove what it could have gone back to.
pub fn settle(world: &World) -> bool {
    settle_record(world).unwrap_or_else(|e| {
        warn!("upgrade: {}", e.reason);
        false
    })
}

fn settle_record(world: &World) -> Result<bool, Failure> {
    let failed = |e: &dyn std::error::Error| Failure::of(e);
    let record = Record::load(&world.paths, &world.given_bundle).map_err(|e| failed(&e))?;
    let Some(mut record) = record.filter(|record| record.state == UpgradeState::Running) else { return Ok(false) };
    let programs = Programs::of(&world.paths);
    if let Some(programs) = &programs {
        let index = world.index()?;
        if programs.differ(&index).map_err(|e| failed(&e))? {
            programs.exchange(&record.to.bundle, &index).map_err(|e| failed(&e))?;
            record.turn(world, UpgradeState::Running, "the new agent takes over")?;
            world.renew.cancel();
            return Ok(false);
        }
    }
    // Before it is done: kept by the next upgrade would be those that are there by then.
    programs.map_or(Ok(()), |programs| programs.forget()).map_err(|e| failed(&e))?;
    let from = record.from.bundle.display().to_string();
    record.turn(world, UpgradeState::Done, format!("every step is ready; {from} stays"))?;
    durable::remove_file(&world.paths.join(KEPT)).map_err(|e| failed(&e))?;
    prune(&world.paths.join(BUNDLES), &[&record.from.bundle, &record.to.bundle]).map_err(|e| failed(&e))?;
    Ok(true)
}

/// What an agent does first of all: one that an upgrade brought counts its starts and, where they are too many, gives the
/// place back to the agent before. Tells whether it did.
pub fn begin_life(paths: &Paths, given: &Path) -> Result<bool, durable::Error> {
    let running = |record: &Record| record.state == UpgradeState::Running;
    let Some(mut record) = Record::load(paths, given)?.filter(running) else { return Ok(false) };
    let Some(programs) = Programs::of(paths).filter(Programs::are_exchanged) else { return Ok(false) };
    record.starts += 1;
    let too_many = record.starts > STARTS;
    if too_many {
        record.state = UpgradeState::Returning;
        record.message = format!("the new agent has started {STARTS} times, and did not get everything ready");
    }
    match durable::write_json(&paths.upgrade(), &record) {
        // A full disk must not keep it from starting.
        Err(_) if !too_many => return Ok(false),
        written => written?,
    }
    if too_many {
        programs.give_back()?;
    }
    Ok(too_many)
}

/// Removes bundles that nothing names.
fn prune(bundles: &Path, named: &[&Path]) -> Result<(), durable::Error> {
    let Ok(entries) = std::fs::read_dir(bundles) else { return Ok(()) };
    for entry in entries.flatten().filter(|entry| !named.contains(&entry.path().as_path())) {
        durable::remove_folder(&entry.path())?;
        info!("removed the bundle {}, which is not used any more", entry.path().display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_mins(1);

    fn bundle(folder: &Path, name: &str, kubernetes: &str) -> PathBuf {
        let bundle = folder.join(name);
        std::fs::create_dir(&bundle).unwrap();
        let index = serde_json::json!({"formatVersion": 1, "version": name, "pinsDigest": "", "artifacts": [],
            "kubernetesVersion": kubernetes, "programs": []});
        std::fs::write(bundle.join(edge_api::bundle::INDEX_FILE), index.to_string()).unwrap();
        bundle
    }

    #[test]
    fn one_minor_at_a_time_and_never_back() {
        let check = |from, to| check_minors(from, to).map_err(|refused| refused.message);
        check("v1.35.4", "v1.36.3").unwrap();
        check("v1.36.4", "v1.36.3").unwrap();
        assert!(check("v1.36.3", "v1.35.9").unwrap_err().contains("data do not go back"));
        assert!(check("v1.34.1", "v1.36.3").unwrap_err().contains("only the next minor"));
        assert!(check("v1.36.3", "v2.0.0").unwrap_err().contains("only the next minor"));
        assert!(check("v1.36.3", "latest").unwrap_err().contains("cannot be compared"));
        assert!(minor("v1.36.3") < minor("v1.100.0"));
    }

    #[test]
    fn what_is_asked_for_is_written_down_once() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path().join("root"));
        paths.ensure().unwrap();
        let (old, new) = (bundle(folder.path(), "1", "v1.36.3"), bundle(folder.path(), "2", "v1.36.3"));
        let asked = |bundle: &Path| ask(&paths, &old, bundle, DEADLINE).map_err(|refused| refused.message);
        assert!(asked(&old).unwrap_err().contains("has this bundle already"));
        assert!(asked(Path::new("2")).unwrap_err().contains("no absolute path"));
        assert!(asked(&folder.path().join("none")).unwrap_err().contains("pcg-index.json"));
        assert!(!paths.upgrade().exists());
        let upgrade = asked(&new).unwrap();
        assert_eq!((upgrade.from.as_str(), upgrade.state), ("1 (Kubernetes v1.36.3)", UpgradeState::Asked));
        assert_eq!(asked(&new).unwrap(), upgrade, "asked again");
        let third = self::bundle(folder.path(), "3", "v1.36.3");
        assert!(asked(&third).unwrap_err().contains("the upgrade to 2 is not over"));
        let record = Record::load(&paths, &old).unwrap().unwrap();
        assert_eq!(record.bundle(), old, "until it was verified");
        assert_eq!(Record::load(&paths, &new).unwrap(), None, "an agent that was given another bundle has that one");
    }

    #[test]
    fn bundles_that_nothing_names_go() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c"] {
            bundle(folder.path(), name, "v1.36.3");
        }
        prune(folder.path(), &[&folder.path().join("a"), Path::new("/elsewhere")]).unwrap();
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["a"]);
        prune(&folder.path().join("none"), &[]).unwrap();
    }
}
