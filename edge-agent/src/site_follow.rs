//! Follows the site file. What is valid goes into force; what is not is shown, and the last valid one stays.
//!
//! `state/site.yaml` is the last valid text. `state/installed.yaml` is the one that the system cluster was made with:
//! what an edit changes of it and cannot be applied to a running appliance stays as installed until a reinstall.

use std::sync::Arc;
use std::time::Duration;

use edge_api::SiteConfig;
use edge_api::agent::{SiteFileState, ValidationError};
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::dirwatch::Watched;
use crate::durable;
use crate::engine::chain;
use crate::paths::Paths;
use crate::site;
use crate::status::Board;
use crate::steps::system_applications::{archive_path, device_id};

/// Pause before a site file is looked at again that could not be put into force, because the disk is full, say.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Largest site file that is read.
pub const LIMIT: u64 = 1 << 20;

/// Writes template and schema beside the site file, where they differ.
pub fn write_examples(paths: &Paths) -> Result<(), durable::Error> {
    durable::write_if_changed(&paths.join("conf/unattended.template.yaml"), site::TEMPLATE.as_bytes(), 0o644)?;
    let schema = format!("{:#}\n", site::schema());
    durable::write_if_changed(&paths.join("conf/unattended.schema.json"), schema.as_bytes(), 0o644)?;
    Ok(())
}

/// Reads and checks a site file's bytes.
pub fn check(bytes: &[u8]) -> Result<SiteConfig, Vec<ValidationError>> {
    site::load_bytes(bytes)
}

/// Keeps the site in force.
pub struct Follower {
    paths: Paths,
    board: Board,
    in_force: watch::Sender<Option<Arc<SiteConfig>>>,
    last_seen: Option<Vec<u8>>,
}

impl Follower {
    /// Starts from the last valid site, if there was one.
    pub fn new(paths: Paths, board: Board) -> Result<Self, durable::Error> {
        let follower = Self { paths, board, in_force: watch::Sender::new(None), last_seen: None };
        if let Some(last) = Self::stored(&follower.paths.site_in_force())? {
            follower.publish(&last);
        }
        Ok(follower)
    }

    /// Follows the site in force.
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<SiteConfig>>> {
        self.in_force.subscribe()
    }

    /// A stored site; one that an older version found valid and this one does not is as good as absent.
    fn stored(path: &std::path::Path) -> Result<Option<SiteConfig>, durable::Error> {
        let Some(bytes) = durable::read(path, LIMIT)? else { return Ok(None) };
        Ok(check(&bytes).map_err(|errors| warn!("{}: {} error(s)", path.display(), errors.len())).ok())
    }

    /// Follows until dropped. A change of the profile archive counts as one of the site.
    pub async fn run(mut self) {
        let (sender, mut changes) = mpsc::channel(1);
        let watched = Watched::new(&self.paths.site_file(), sender);
        if let Err(e) = &watched {
            error!("watch {}: {e}; edits are seen at the next start", self.paths.site_file().display());
        }
        let (archive_sender, mut archive_changes) = mpsc::channel(1);
        let mut archive: Option<Watched> = None;
        loop {
            let looked = self.look();
            if let Err(e) = &looked {
                error!("{}; tries again in {} s", chain(e), LOOK_AGAIN.as_secs());
            }
            let site = self.in_force.borrow().clone();
            let path = site.and_then(|s| archive_path(&self.paths.conf(), &s));
            if archive.as_ref().map(Watched::path) != path.as_deref() {
                archive = path.and_then(|path| Watched::new(&path, archive_sender.clone()).ok());
            }
            loop {
                tokio::select! {
                    Some(()) = changes.recv() => break,
                    () = tokio::time::sleep(LOOK_AGAIN), if looked.is_err() => break,
                    Some(()) = archive_changes.recv() => {
                        info!(step = "system-applications", "the profile archive has changed");
                        self.in_force.send_modify(|_| {});
                    }
                }
            }
        }
    }

    /// Looks at the file once.
    pub fn look(&mut self) -> Result<(), durable::Error> {
        let path = self.paths.site_file();
        let bytes = match durable::read(&path, LIMIT) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                self.last_seen = None;
                self.board.edit(|s| {
                    s.site_file.state = SiteFileState::Absent;
                    s.site_file.errors.clear();
                });
                return Ok(());
            }
            Err(durable::Error::TooLarge { limit, .. }) => {
                let found = format!("more than {limit} bytes");
                let errors = vec![ValidationError {
                    line: 0,
                    column: 0,
                    field: String::new(),
                    found,
                    expected: format!("a file of at most {limit} bytes"),
                    hint: Some("is this really the site file?".to_owned()),
                }];
                self.refuse(errors);
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        if self.last_seen.as_deref() == Some(&bytes) {
            return Ok(());
        }
        match check(&bytes) {
            Err(errors) => self.refuse(errors),
            Ok(new) => self.accept(&bytes, &new)?,
        }
        self.last_seen = Some(bytes);
        Ok(())
    }

    fn refuse(&self, errors: Vec<ValidationError>) {
        for e in errors.iter().take(20) {
            let hint = e.hint.as_deref().map(|h| format!(" ({h})")).unwrap_or_default();
            warn!(
                "unattended.yaml:{}:{}: {}: found {}, expected {}{hint}",
                e.line, e.column, e.field, e.found, e.expected
            );
        }
        self.board.edit(|s| {
            s.site_file.state = SiteFileState::Invalid;
            s.site_file.errors = errors;
        });
    }

    fn accept(&self, bytes: &[u8], new: &SiteConfig) -> Result<(), durable::Error> {
        let old = Self::stored(&self.paths.site_in_force())?;
        // What was in force when something had been made of it is what was installed.
        if old.is_some()
            && self.paths.join("state/cluster.json").exists()
            && !self.paths.site_installed().exists()
            && let Some(text) = durable::read(&self.paths.site_in_force(), LIMIT)?
        {
            durable::write(&self.paths.site_installed(), &text, 0o600)?;
        }
        durable::write_if_changed(&self.paths.site_in_force(), bytes, 0o600)?;
        match &old {
            None => info!("unattended.yaml is valid, the installation begins"),
            Some(old) => {
                let live = site::diff(old, new).live;
                if !live.is_empty() {
                    info!("unattended.yaml was edited; applied live: {}", live.join(", "));
                }
            }
        }
        let needs = self.publish(new);
        if !needs.is_empty() {
            warn!("unattended.yaml: a reinstall is needed for: {}; these stay as installed", needs.join(", "));
        }
        self.board.edit(|s| {
            s.site_file.state = SiteFileState::Applied;
            s.site_file.errors.clear();
        });
        Ok(())
    }

    /// Puts a site into force; returns the fields that need a reinstall.
    fn publish(&self, new: &SiteConfig) -> Vec<String> {
        let installed = Self::stored(&self.paths.site_installed()).ok().flatten();
        let (effective, needs) = match &installed {
            None => (new.clone(), Vec::new()),
            Some(installed) => (site::as_installed(installed, new), site::diff(installed, new).needs_reinstall),
        };
        let id = device_id(&effective).ok();
        self.board.edit(|s| {
            s.site_file.needs_reinstall.clone_from(&needs);
            s.device_id = id;
        });
        self.in_force.send_if_modified(|site| {
            let differs = site.as_deref() != Some(&effective);
            if differs {
                *site = Some(Arc::new(effective));
            }
            differs
        });
        needs
    }
}

#[cfg(test)]
mod tests {
    use edge_api::Instance;
    use edge_api::agent::Phase;

    use super::*;
    use crate::status::STEPS;

    const SITE: &str = "device_id: store-1\nrouter:\n  lan_ip: 192.168.200.1/24\n  wan_ip: 192.168.150.2/24\n  \
                        dhcp_range:\n    start: 192.168.200.100\n    end: 192.168.200.150\n";

    struct Rig {
        _folder: tempfile::TempDir,
        paths: Paths,
        board: Board,
    }

    impl Rig {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let paths = Paths::new(folder.path());
            paths.ensure().unwrap();
            let board = Board::new(&Instance::default(), String::new(), &STEPS);
            Self { _folder: folder, paths, board }
        }

        fn follower(&self) -> Follower {
            Follower::new(self.paths.clone(), self.board.clone()).unwrap()
        }

        fn edit(&self, text: &str) {
            std::fs::write(self.paths.site_file(), text).unwrap();
        }
    }

    #[test]
    fn a_valid_file_goes_into_force_and_an_invalid_edit_does_not() {
        let rig = Rig::new();
        let mut follower = rig.follower();
        follower.look().unwrap();
        assert!(follower.subscribe().borrow().is_none());
        assert_eq!(rig.board.get().phase, Phase::WaitingForSite);
        rig.edit(SITE);
        follower.look().unwrap();
        assert_eq!(rig.board.get().device_id.as_deref(), Some("store-1"));
        rig.edit("device_id: [\n");
        follower.look().unwrap();
        let status = rig.board.get();
        assert_eq!(status.site_file.state, SiteFileState::Invalid);
        assert!(!status.site_file.errors.is_empty());
        let site = follower.subscribe().borrow().clone().unwrap();
        assert_eq!(site.device_id.as_deref(), Some("store-1"));
        // Killed and started again, with the bad file still there.
        let again = rig.follower();
        assert_eq!(*again.subscribe().borrow(), Some(site));
    }

    #[test]
    fn what_cannot_be_applied_live_stays_as_installed() {
        let rig = Rig::new();
        rig.edit(SITE);
        let mut follower = rig.follower();
        follower.look().unwrap();
        std::fs::write(rig.paths.join("state/cluster.json"), "{}").unwrap();
        rig.edit(&SITE.replace("store-1", "store-2").replace("200.150", "200.120"));
        follower.look().unwrap();
        let site = follower.subscribe().borrow().clone().unwrap();
        assert_eq!(site.device_id.as_deref(), Some("store-1"));
        assert_eq!(site.router.as_ref().unwrap().dhcp_range.end.to_string(), "192.168.200.120");
        assert_eq!(rig.board.get().site_file.needs_reinstall, ["device_id"]);
        let again = rig.follower();
        assert_eq!(*again.subscribe().borrow(), Some(site));
        assert_eq!(rig.board.get().site_file.needs_reinstall, ["device_id"], "also after a restart");
    }

    #[test]
    fn before_anything_was_made_everything_is_live() {
        let rig = Rig::new();
        rig.edit(SITE);
        let mut follower = rig.follower();
        follower.look().unwrap();
        rig.edit(&SITE.replace("store-1", "store-2"));
        follower.look().unwrap();
        assert_eq!(rig.board.get().device_id.as_deref(), Some("store-2"));
        assert!(rig.board.get().site_file.needs_reinstall.is_empty());
    }

    #[test]
    fn a_huge_file_is_refused_unread() {
        let rig = Rig::new();
        let file = std::fs::File::create(rig.paths.site_file()).unwrap();
        file.set_len(100 << 20).unwrap();
        let mut follower = rig.follower();
        follower.look().unwrap();
        assert_eq!(rig.board.get().site_file.state, SiteFileState::Invalid);
    }

    #[test]
    fn a_file_that_vanishes_takes_nothing_away() {
        let rig = Rig::new();
        rig.edit(SITE);
        let mut follower = rig.follower();
        follower.look().unwrap();
        std::fs::remove_file(rig.paths.site_file()).unwrap();
        follower.look().unwrap();
        assert_eq!(rig.board.get().site_file.state, SiteFileState::Absent);
        assert!(follower.subscribe().borrow().is_some());
    }
}
