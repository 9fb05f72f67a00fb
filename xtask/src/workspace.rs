//! Where things lie: the checkout, cargo and its target folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::command;

/// Root of the checkout.
pub fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// cargo, run at the root of the checkout.
pub fn cargo() -> Command {
    let mut cargo = command(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// cargo's target folder: this program lies in `<target>/debug/`.
pub fn target() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.parent().and_then(Path::parent).context("this program lies in no target folder")?;
    Ok(target.to_owned())
}

/// Folder of the built artifacts, shared by all checkouts; the same rule as `edge-image` has.
pub fn cache() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PCG_EDGE_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|dir| dir.join("pcg-edge")))
        .or_else(|| set("HOME").map(|dir| dir.join(".cache/pcg-edge")))
        .context("no cache folder: set PCG_EDGE_CACHE or HOME")
}

/// Fails where this is not root, saying why it must be.
pub fn require_root() -> Result<()> {
    anyhow::ensure!(
        nix::unistd::Uid::effective().is_root(),
        "this must run as root: it installs packages, starts docker and libvirt, and makes networks"
    );
    Ok(())
}
