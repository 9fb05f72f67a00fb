//! The example site, moved to other addresses so that it lives beside the example itself, and variants of its profile.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A copy of `examples/site` in a temporary folder.
pub struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    /// A copy with other subnets and another device ID.
    pub fn new(device: &str, wan: u8, lan: u8) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("edge-e2e-site-").tempdir()?;
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site");
        copy(&example, dir.path())?;
        let site = Self { dir };
        let file = site.file();
        let text = fs::read_to_string(&file)?;
        let text = replace(&text, "192.168.150.", &format!("192.168.{wan}."))?;
        let text = replace(&text, "192.168.200.", &format!("192.168.{lan}."))?;
        fs::write(&file, replace(&text, "device_id: store-1", &format!("device_id: {device}"))?)?;
        for moved in ["clusters/shop.yaml", "profile/addresses/addresses.yaml"] {
            let file = site.dir().join(moved);
            let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
            fs::write(&file, replace(&text, "192.168.150.", &format!("192.168.{wan}."))?)?;
        }
        Ok(site)
    }

    /// Folder for `cargo xtask up --site`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Edits the site file, before it is used.
    pub fn edit(&self, from: &str, to: &str) -> Result<()> {
        let text = replace(&fs::read_to_string(self.file())?, from, to)?;
        fs::write(self.file(), text).with_context(|| self.file().display().to_string())
    }

    fn file(&self) -> PathBuf {
        self.dir().join("unattended.yaml")
    }

    /// Leaves the profile's machines out: they cost an emulated guest beside them a fifth of its speed.
    pub fn without_machines(&self) -> Result<()> {
        let file = self.dir().join("profile/profile.yaml");
        let text = fs::read_to_string(&file)?;
        let (others, machines) = text.split_once("  - name: router").context("the profile has no router any more")?;
        anyhow::ensure!(!machines.contains("kind: chart") && !machines.contains("kind: manifest"), "{machines}");
        Ok(fs::write(&file, others)?)
    }

    /// A copy of the profile with one more client, `probe`, and the router off or on.
    pub fn variant(&self, name: &str, router_on: bool) -> Result<PathBuf> {
        let profile = self.dir().join(name);
        copy(&self.dir().join("profile"), &profile)?;
        copy(&profile.join("client"), &profile.join("probe"))?;
        let file = profile.join("profile.yaml");
        let mut text = fs::read_to_string(&file)?;
        text.push_str("\n  - name: probe\n    kind: vm\n    path: probe\n    version: \"1\"\n    order: 50\n");
        fs::write(&file, text)?;
        if !router_on {
            let file = profile.join("router/vm.yaml");
            let text = fs::read_to_string(&file)?;
            fs::write(&file, text + "\npowerState: Stopped\n")?;
        }
        Ok(profile)
    }
}

/// Replaces every occurrence; none is an error, because the example has changed then.
pub fn replace(text: &str, from: &str, to: &str) -> Result<String> {
    anyhow::ensure!(text.contains(from), "the site file has no {from:?} any more:\n{text}");
    Ok(text.replace(from, to))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
