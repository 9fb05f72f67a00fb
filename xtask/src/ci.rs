//! `ci`: what a change must pass before it lands.

use anyhow::Result;

use crate::command::run as show;
use crate::host::Host;
use crate::table::Table;
use crate::{build, test, up, workspace};

const CARGO_DENY: &str = "0.20.2";

/// Runs the task.
pub fn run() -> Result<()> {
    let mut table = Table::new("ci");
    table.part("formatting", || {
        show(workspace::cargo().args(["fmt", "--all", "--check"]))?;
        show(workspace::cargo().args(["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"]))
    })?;
    // Before anything that links libvirt is compiled.
    table.part("Debian packages", || {
        workspace::require_root()?;
        up::ensure_packages(&mut Host::lock()?)
    })?;
    table.part("lints", || {
        let mut clippy = workspace::cargo();
        clippy.args(["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"]);
        show(&mut clippy)?;
        // Not among all targets: it is left out of `cargo test --workspace`.
        let mut clippy = workspace::cargo();
        clippy.args(["clippy", "--workspace", "--test", "e2e", "--locked", "--", "-D", "warnings"]);
        show(&mut clippy)
    })?;
    table.part("generated CRDs are current", || {
        show(workspace::cargo().args(["run", "-q", "--locked", "-p", "edge-api", "--example", "crds", "--", "--check"]))
    })?;
    table.part("licences, bans and sources", deny)?;
    test::parts(&test::Scope::Normal, &mut table)
}

/// Without its advisory database, which cannot be had everywhere.
fn deny() -> Result<()> {
    let mut deny = crate::command::command(build::tool("cargo-deny", CARGO_DENY, &["--no-default-features"])?);
    deny.current_dir(workspace::root()).args(["--workspace", "check", "licenses", "bans", "sources"]);
    show(&mut deny)
}
