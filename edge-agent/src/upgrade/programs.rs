//! The last part of an upgrade: our own programs. Those of the bundle take the place of those in `bin/` below the root,
//! which are kept beside them until the upgrade is over, and the agent becomes its successor.

use std::path::{Path, PathBuf};

use edge_api::bundle::{Index, Program};

use crate::bundle;
use crate::durable;
use crate::effects::Effect;
use crate::engine::{Failure, chain};
use crate::paths::Paths;
use crate::ports::process;

/// The daemon.
const AGENT: &str = "edge-agent";
/// Programs of ours that run on a host; a bundle has them in its `bin/`.
const OURS: [&str; 3] = [AGENT, "edgectl", "edge-tui"];
/// Larger than any program.
const LIMIT: u64 = 1 << 30;

/// Where programs lie, and those before.
#[derive(Clone, Debug)]
pub struct Programs {
    bin: PathBuf,
}

impl Programs {
    /// Those below a root; none where this agent is not one of them: then somebody else sees to it what runs.
    pub fn of(paths: &Paths) -> Option<Self> {
        let bin = paths.join("bin");
        let running = std::env::current_exe().ok()?;
        // What the kernel says of a program whose file was replaced.
        let running = running.to_string_lossy().trim_end_matches(" (deleted)").to_owned();
        let own = std::fs::canonicalize(&bin).ok()?.join(AGENT);
        (own == Path::new(&running)).then_some(Self { bin })
    }

    /// Refuses a bundle whose agent does not run on this host, before anything is changed for it.
    pub async fn try_agent(bundle: &Path, index: &Index) -> Result<(), Failure> {
        let Some(agent) = ours(index).find(|program| program.name == AGENT) else { return Ok(()) };
        let program = bundle.join("bin").join(&agent.name);
        let tried = process::Program::new(&program).args(["--version"]).run().await;
        tried
            .map(drop)
            .map_err(|e| Failure::new(format!("the bundle's agent does not run on this host: {}", chain(&e))))
    }

    /// Whether a bundle has other programs.
    pub fn differ(&self, index: &Index) -> Result<bool, bundle::Error> {
        for program in ours(index) {
            let path = self.bin.join(&program.name);
            let (digest, size) = (program.digest.clone(), program.size);
            match bundle::verify(&bundle::Expected { path, digest, size }, |_| {}) {
                Ok(()) => {}
                Err(bundle::Error::Mismatch { .. }) => return Ok(true),
                Err(bundle::Error::Read { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    return Ok(true);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }

    /// Puts a bundle's programs in place, and keeps those that were there. Can be done again.
    pub fn exchange(&self, bundle: &Path, index: &Index) -> Result<(), durable::Error> {
        let before = self.before();
        if !before.exists() {
            let staging = self.bin.join(".staging");
            durable::remove_folder(&staging)?;
            durable::ensure_folder(&staging, 0o755)?;
            for program in ours(index).filter(|program| self.bin.join(&program.name).exists()) {
                copy(&self.bin.join(&program.name), &staging.join(&program.name))?;
            }
            durable::rename(&staging, &before)?;
        }
        ours(index).try_for_each(|program| copy(&bundle.join("bin").join(&program.name), &self.bin.join(&program.name)))
    }

    /// Whether those before are kept: the upgrade has come to the programs, and is not over.
    pub fn are_exchanged(&self) -> bool {
        self.before().exists()
    }

    /// Puts those before in their place. Can be done again.
    pub fn give_back(&self) -> Result<(), durable::Error> {
        let put = |name: &&str| match self.before().join(name) {
            kept if kept.exists() => copy(&kept, &self.bin.join(name)),
            _ => Ok(()),
        };
        Effect::GiveProgramsBack.around(|| OURS.iter().try_for_each(put))?;
        self.forget()
    }

    /// Gives those before up.
    pub fn forget(&self) -> Result<(), durable::Error> {
        durable::remove_folder(&self.before()).map(drop)
    }

    fn before(&self) -> PathBuf {
        self.bin.join(".before")
    }
}

fn ours(index: &Index) -> impl Iterator<Item = &Program> {
    index.programs.iter().filter(|program| OURS.contains(&program.name.as_str()))
}

fn copy(from: &Path, to: &Path) -> Result<(), durable::Error> {
    let missing =
        || durable::Error::Io { action: "copy", path: from.to_owned(), source: std::io::ErrorKind::NotFound.into() };
    durable::write(to, &durable::read(from, LIMIT)?.ok_or_else(missing)?, 0o755)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::bundle::sha256;

    /// A folder of programs, and a bundle with others.
    fn both(folder: &Path) -> (Programs, PathBuf, Index) {
        let (bin, bundle) = (folder.join("bin"), folder.join("bundle"));
        fs::create_dir_all(&bin).unwrap();
        fs::create_dir_all(bundle.join("bin")).unwrap();
        let program = |name: &str, content: &str| {
            fs::write(bundle.join("bin").join(name), content).unwrap();
            serde_json::json!({"name": name, "digest": sha256(content.as_bytes()), "size": content.len(), "source": ""})
        };
        let programs = [program("edge-agent", "new"), program("edgectl", "new"), program("kind", "kind")];
        let index = serde_json::json!({"formatVersion": 1, "version": "", "pinsDigest": "", "artifacts": [],
            "kubernetesVersion": "v1.36.3", "programs": programs});
        fs::write(bin.join("edge-agent"), "old").unwrap();
        fs::write(bin.join("kubectl"), "somebody's").unwrap();
        (Programs { bin }, bundle, serde_json::from_value(index).unwrap())
    }

    fn content(programs: &Programs) -> Vec<(String, String)> {
        let entries = fs::read_dir(&programs.bin).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_file());
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        let mut all: Vec<_> =
            entries.map(|entry| (entry.file_name().into_string().unwrap(), text(&entry.path()))).collect();
        all.sort();
        all
    }

    #[test]
    fn programs_are_exchanged_and_given_back_however_often() {
        let folder = tempfile::tempdir().unwrap();
        let (programs, bundle, index) = both(folder.path());
        let [agent, ctl, foreign] = [("edge-agent", "new"), ("edgectl", "new"), ("kubectl", "somebody's")]
            .map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert!(programs.differ(&index).unwrap() && !programs.are_exchanged());
        programs.exchange(&bundle, &index).unwrap();
        programs.exchange(&bundle, &index).unwrap();
        assert!(!programs.differ(&index).unwrap() && programs.are_exchanged());
        assert_eq!(content(&programs), [agent, ctl.clone(), foreign.clone()], "of the bundle only what is ours");
        programs.give_back().unwrap();
        programs.give_back().unwrap();
        fs::rename(bundle.join("bin/edge-agent"), folder.path().join("elsewhere")).unwrap();
        let missing = programs.exchange(&bundle, &index).unwrap_err().to_string();
        assert!(missing.ends_with("bin/edge-agent"), "{missing}");
        programs.give_back().unwrap();
        assert!(programs.differ(&index).unwrap() && !programs.are_exchanged());
        // What was not there before may stay: nothing runs it.
        assert_eq!(content(&programs), [("edge-agent".to_owned(), "old".to_owned()), ctl, foreign]);
    }

    #[tokio::test]
    async fn an_agent_that_does_not_run_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (_, bundle, mut index) = both(folder.path());
        let refused = Programs::try_agent(&bundle, &index).await.unwrap_err();
        assert!(refused.reason.contains("does not run on this host"), "{}", refused.reason);
        index.programs.retain(|program| program.name != AGENT);
        Programs::try_agent(&bundle, &index).await.unwrap();
    }
}
