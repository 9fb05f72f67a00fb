//! Brings the site file and the profile archive to where the agent looks, without touching what somebody edited there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edge_api::SiteConfig;

use crate::build::same;
use crate::command::{command, quiet};

/// What was done.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// Something that the agent follows was written.
    pub changed: bool,
    /// For people.
    pub notes: Vec<String>,
}

/// Installs `site/unattended.yaml` and the archive of `site/profile/` below `conf`.
pub fn install(site: &Path, conf: &Path, edgectl: &Path) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    fs::create_dir_all(conf).with_context(|| conf.display().to_string())?;
    let wanted = site.join("unattended.yaml");
    let wanted = fs::read_to_string(&wanted).with_context(|| wanted.display().to_string())?;
    let file = conf.join("unattended.yaml");
    // What this tool brought last, to tell edits from an example that has moved on.
    let brought = conf.join(".unattended.yaml.brought");
    let present = read(&file)?;
    let edited =
        present.as_ref().is_some_and(|text| *text != wanted && read(&brought).ok().flatten().as_ref() != Some(text));
    let text = if edited {
        outcome.notes.push(format!("kept {}, which was edited there", file.display()));
        present.clone().unwrap_or_default()
    } else {
        wanted
    };

    // The archive first: the agent reads it as soon as the site file names it.
    let source = site.join("profile");
    if let Some(archive) = profile_of(&text, conf) {
        if !archive.starts_with(conf) || !source.is_dir() {
            outcome.notes.push(format!("profile archive {} is not built here", archive.display()));
        } else if build_archive(&source, &archive, edgectl)? {
            outcome.changed = true;
            outcome.notes.push(format!("wrote {}", archive.display()));
        }
    }
    if present.as_ref() != Some(&text) {
        write(&file, &text)?;
        outcome.changed = true;
        outcome.notes.push(format!("wrote {}", file.display()));
    }
    if !edited && read(&brought)?.as_ref() != Some(&text) {
        write(&brought, &text)?;
    }
    Ok(outcome)
}

/// The archive that a site file names. Whether the file is valid is the agent's business.
fn profile_of(text: &str, conf: &Path) -> Option<PathBuf> {
    let config: SiteConfig = serde_saphyr::from_str(text).ok()?;
    Some(conf.join(config.profile?))
}

fn build_archive(source: &Path, archive: &Path, edgectl: &Path) -> Result<bool> {
    let new = archive.with_extension("new");
    quiet(command(edgectl).args(["profile", "build"]).arg(source).arg("-o").arg(&new))?;
    if same(&new, archive)? {
        fs::remove_file(&new)?;
        return Ok(false);
    }
    fs::rename(&new, archive).with_context(|| archive.display().to_string())?;
    Ok(true)
}

fn read(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| path.display().to_string()),
    }
}

/// Whole or not at all; readable by root only, because a site file may hold a proxy's password.
fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let new = path.with_extension("new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A stand-in for `edgectl profile build DIR -o FILE`, which is another crate's.
    fn edgectl(dir: &Path) -> PathBuf {
        let path = dir.join("edgectl");
        fs::write(&path, "#!/bin/sh\ncat \"$3\"/* > \"$5\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_edited_file_stays_and_an_untouched_one_follows_its_source() {
        let dir = tempfile::tempdir().unwrap();
        let (site, conf, edgectl) = (dir.path().join("site"), dir.path().join("conf"), edgectl(dir.path()));
        fs::create_dir_all(site.join("profile")).unwrap();
        fs::write(site.join("profile/profile.yaml"), "one").unwrap();
        let file = conf.join("unattended.yaml");
        let source = |text: &str| fs::write(site.join("unattended.yaml"), text).unwrap();
        let install = || install(&site, &conf, &edgectl).unwrap();

        source("device_id: a\nprofile: p.tar\n");
        assert!(install().changed);
        assert_eq!(fs::read_to_string(conf.join("p.tar")).unwrap(), "one");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(install(), Outcome::default());

        source("device_id: b\nprofile: p.tar\n");
        assert!(install().changed);
        assert!(fs::read_to_string(&file).unwrap().contains("device_id: b"));

        fs::write(&file, "device_id: mine\nprofile: p.tar\n").unwrap();
        source("device_id: c\nprofile: p.tar\n");
        let outcome = install();
        assert!(!outcome.changed && outcome.notes[0].contains("edited"), "{outcome:?}");
        assert!(fs::read_to_string(&file).unwrap().contains("device_id: mine"));

        fs::write(site.join("profile/profile.yaml"), "two").unwrap();
        assert!(install().changed);
        assert_eq!(fs::read_to_string(conf.join("p.tar")).unwrap(), "two");
    }

    #[test]
    fn an_archive_of_somebody_elses_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (site, conf) = (dir.path().join("site"), dir.path().join("conf"));
        fs::create_dir_all(site.join("profile")).unwrap();
        fs::write(site.join("unattended.yaml"), "profile: /srv/theirs.tar\n").unwrap();
        let outcome = install(&site, &conf, Path::new("/bin/false")).unwrap();
        assert!(outcome.notes.iter().any(|note| note.contains("/srv/theirs.tar is not built here")), "{outcome:?}");
    }
}
