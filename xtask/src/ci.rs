//! `ci`: what a change must pass before it lands.

use anyhow::Result;

use crate::command::{quiet, run as show};
use crate::host::Host;
use crate::table::Table;
use crate::{test, up, workspace};

/// Built from its sources; a debug build is there in a third of the time, and checks as well.
const CARGO_DENY: &str = "0.20.2";

/// Runs the task.
pub fn run() -> Result<()> {
    let mut table = Table::new("ci");
    table.part("formatting", || show(workspace::cargo().args(["fmt", "--all", "--check"])))?;
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
    let root = workspace::cache()?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = root.join("bin/cargo-deny");
    if !program.is_file() {
        eprintln!("    building cargo-deny {CARGO_DENY}");
        let mut install = workspace::cargo();
        install.args(["install", "--quiet", "--locked", "--debug", "--no-default-features"]);
        install.arg(format!("cargo-deny@{CARGO_DENY}")).arg("--root").arg(&root).env("CARGO_PROFILE_DEV_DEBUG", "0");
        quiet(&mut install)?;
    }
    let mut deny = crate::command::command(program);
    deny.current_dir(workspace::root()).args(["--workspace", "check", "licenses", "bans", "sources"]);
    show(&mut deny)
}
