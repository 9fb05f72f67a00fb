//! `test`: unit tests, controllers against a real control plane, then everything end to end.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::run as show;
use crate::host::Host;
use crate::services::Hold;
use crate::table::Table;
use crate::{build, up, workspace};

/// How much to run.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Without the end-to-end tests.
    Fast,
    /// What every change must pass.
    Normal,
    /// Also what takes too long for that.
    Long,
}

/// Runs the task.
pub fn run(scope: Scope) -> Result<()> {
    let mut table = Table::new(match scope {
        Scope::Fast => "test --fast",
        Scope::Normal => "test",
        Scope::Long => "test --long",
    });
    parts(scope, &mut table)
}

/// Runs the parts of the task within another one.
pub fn parts(scope: Scope, table: &mut Table) -> Result<()> {
    let ready = table.part("host, programs and bundle", prepare)?;
    table.part("tests of every crate", || {
        let mut tests = ready.cargo();
        tests.args(["test", "--workspace", "--locked"]);
        if scope == Scope::Long {
            tests.args(["--", "--include-ignored"]);
        }
        show(&mut tests)
    })?;
    if scope == Scope::Fast {
        return Ok(());
    }
    table.part("end-to-end tests", || {
        let mut tests = ready.cargo();
        // With the whole workspace, as above: alone, the package would want its dependencies built once more.
        tests.args(["test", "--workspace", "--locked", "--test", "e2e", "--", "--nocapture", "--test-threads=1"]);
        if scope == Scope::Long {
            tests.arg("--include-ignored");
        }
        show(&mut tests)
    })
}

/// What tests find in their environment.
struct Ready {
    bin: PathBuf,
    bundle: PathBuf,
    programs: PathBuf,
    _services: Hold,
}

impl Ready {
    fn cargo(&self) -> std::process::Command {
        let mut cargo = workspace::cargo();
        cargo
            .env("PCG_EDGE_BIN", &self.bin)
            .env("PCG_EDGE_BUNDLE", &self.bundle)
            .env("PCG_EDGE_PROGRAMS", &self.programs);
        if let Ok(xtask) = std::env::current_exe() {
            cargo.env("PCG_EDGE_XTASK", xtask);
        }
        cargo
    }
}

fn prepare() -> Result<Ready> {
    let mut services = None;
    let up::Prepared { host, bin, bundle } = up::prepare(false, |host: &mut Host| {
        services = Some(Hold::new(host, &format!("test-{}", std::process::id()))?);
        Ok(())
    })?;
    let programs = build::artifact(&bin, "programs", false)?;
    drop(host);
    let services = services.ok_or_else(|| anyhow::anyhow!("services are not held"))?;
    Ok(Ready { bin, bundle, programs, _services: services })
}
