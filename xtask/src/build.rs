//! What runs on the host: our own programs, and the artifacts that `edge-image` makes.

use std::fs;
use std::io::{IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::command::{command, last_line, quiet, run};
use crate::workspace::{cache, cargo, root, target};

/// Packages whose programs run on a host, built in one go so that they share their dependencies.
const PACKAGES: &[&str] = &["edge-agent", "edge-tui", "edge-image", "host-gateway", "site-router", "vm-operator"];

/// Kubernetes minors of a bundle.
#[derive(Clone, Copy, Debug)]
pub enum Minors {
    /// The current one.
    Current,
    /// Guests also of the one before.
    WithPrevious,
    /// All of the one before.
    Previous,
}

impl Minors {
    /// For `edge-image build bundle`.
    pub fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Current => &[],
            Self::WithPrevious => &["--previous-minor"],
            Self::Previous => &["--only-previous-minor"],
        }
    }
}

/// Builds our programs; returns the folder they lie in.
pub fn programs() -> Result<PathBuf> {
    let mut build = cargo();
    build.args(["build", "--release", "--locked"]);
    for package in PACKAGES {
        build.args(["-p", package]);
    }
    run(&mut build)?;
    Ok(target()?.join("release"))
}

/// Has `edge-image` build an artifact, unless the cache has it; returns where it lies.
pub fn artifact(bin: &Path, what: &[&str], plain: bool) -> Result<PathBuf> {
    let mut build = command(bin.join("edge-image"));
    build.arg("build").args(what).current_dir(root());
    // Any Go fetches the one that the pins ask for.
    build.env("GOTOOLCHAIN", "auto");
    // Built here with the others: built alone, they would want all their dependencies once more.
    build.arg("--own-programs").arg(bin);
    if plain || !std::io::stderr().is_terminal() {
        build.arg("--plain");
    }
    let path = PathBuf::from(last_line(&mut build)?);
    anyhow::ensure!(path.is_dir(), "edge-image build {} said {}, which is no folder", what.join(" "), path.display());
    Ok(path)
}

/// A cargo subcommand of this version, in the cache: built from its sources, where a debug build is there in a third of
/// the time, and does as well.
pub fn tool(name: &str, version: &str, options: &[&str]) -> Result<PathBuf> {
    let root = cache()?.join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.is_file() {
        eprintln!("    building {name} {version}");
        let mut install = cargo();
        install.args(["install", "--quiet", "--locked", "--debug"]).args(options);
        install.arg(format!("{name}@{version}")).arg("--root").arg(&root).env("CARGO_PROFILE_DEV_DEBUG", "0");
        quiet(&mut install)?;
    }
    Ok(program)
}

/// Copies a program where it differs; a running one keeps its old file. Returns whether it was copied.
pub fn install(from: &Path, to: &Path) -> Result<bool> {
    if same(from, to)? {
        return Ok(false);
    }
    let dir = to.parent().context("a program lies in a folder")?;
    fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let new = to.with_extension("new");
    fs::copy(from, &new).with_context(|| format!("{} to {}", from.display(), new.display()))?;
    fs::File::open(&new)?.sync_all()?;
    fs::rename(&new, to).with_context(|| to.display().to_string())?;
    Ok(true)
}

/// Whether both files are there with the same content.
pub fn same(one: &Path, other: &Path) -> Result<bool> {
    let mut files = match (fs::File::open(one), fs::File::open(other)) {
        (Ok(one), Ok(other)) => [one, other],
        (Ok(_), Err(error)) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        (Err(error), _) => return Err(error).with_context(|| one.display().to_string()),
        (_, Err(error)) => return Err(error).with_context(|| other.display().to_string()),
    };
    if files[0].metadata()?.len() != files[1].metadata()?.len() {
        return Ok(false);
    }
    let mut buffers = [vec![0; 1 << 16], vec![0; 1 << 16]];
    loop {
        let read = files[0].read(&mut buffers[0])?;
        if read == 0 {
            return Ok(true);
        }
        files[1].read_exact(&mut buffers[1][..read])?;
        if buffers[0][..read] != buffers[1][..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("a"), dir.path().join("bin/a"));
        fs::write(&from, vec![7; 100_000]).unwrap();
        assert!(install(&from, &to).unwrap());
        assert!(!install(&from, &to).unwrap());
        let mut changed = vec![7; 100_000];
        changed[99_999] = 8;
        fs::write(&from, changed).unwrap();
        assert!(install(&from, &to).unwrap());
        assert!(same(&from, &to).unwrap());
        assert!(install(&dir.path().join("absent"), &to).is_err());
    }
}
