//! `test`: unit tests, controllers against a real control plane, then everything end to end, and fuzz targets.

use std::path::PathBuf;

use anyhow::Result;

use crate::command::{output, run as show};
use crate::host::Host;
use crate::services::Hold;
use crate::table::Table;
use crate::{build, faults, fuzz, up, workspace};

/// How much to run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Scope {
    /// Without the end-to-end tests.
    Fast,
    /// What every change must pass.
    Normal,
    /// Also what takes too long for that.
    Long,
    /// What has this in its name, long or not.
    Named(String),
}

impl Scope {
    /// For the tests' own programs.
    fn arguments(&self) -> Vec<&str> {
        match self {
            Self::Fast | Self::Normal => Vec::new(),
            Self::Long => vec!["--include-ignored"],
            Self::Named(name) => vec!["--include-ignored", name],
        }
    }
}

/// Runs the task.
pub fn run(scope: &Scope) -> Result<()> {
    let mut table = Table::new(match scope {
        Scope::Fast => "test --fast",
        Scope::Normal => "test",
        Scope::Long => "test --long",
        Scope::Named(_) => "test NAME",
    });
    parts(scope, &mut table)
}

/// Runs the parts of the task within another one.
pub fn parts(scope: &Scope, table: &mut Table) -> Result<()> {
    let ready = table.part("host, programs and bundle", prepare)?;
    let (suites, targets) = match scope {
        Scope::Fast => (vec![Suite::Crates], Vec::new()),
        Scope::Normal => (vec![Suite::Crates, Suite::EndToEnd], Vec::new()),
        Scope::Long => (vec![Suite::Crates, Suite::EndToEnd], fuzz::targets("")?),
        Scope::Named(name) => table.part("looking for the name", || ready.all_with(name))?,
    };
    let mut outcome = Ok(());
    for suite in suites {
        outcome = outcome.and_then(|()| table.part(suite.title(), || show(ready.tests(suite).args(scope.arguments()))));
    }
    // Also where a test failed: that is when it is read.
    outcome.and(faults::end(&ready.ledger, *scope == Scope::Long))?;
    if targets.is_empty() { Ok(()) } else { fuzz::run(&targets, table) }
}

/// Tests that run in one go.
#[derive(Clone, Copy, Debug)]
enum Suite {
    Crates,
    EndToEnd,
}

impl Suite {
    fn title(self) -> &'static str {
        match self {
            Self::Crates => "tests of every crate",
            Self::EndToEnd => "end-to-end tests",
        }
    }
}

/// What tests find in their environment.
struct Ready {
    bin: PathBuf,
    bundle: PathBuf,
    programs: PathBuf,
    ledger: PathBuf,
    _services: Hold,
}

impl Ready {
    fn cargo(&self) -> std::process::Command {
        let mut cargo = workspace::cargo();
        cargo
            .env("PCG_EDGE_BIN", &self.bin)
            .env("PCG_EDGE_BUNDLE", &self.bundle)
            .env("PCG_EDGE_PROGRAMS", &self.programs)
            .env("PCG_EDGE_FAULTS", &self.ledger)
            // An error says by its context where it is from; the frames below a test would only bury it.
            .env("RUST_LIB_BACKTRACE", "0");
        if let Ok(xtask) = std::env::current_exe() {
            cargo.env("PCG_EDGE_XTASK", xtask);
        }
        cargo
    }

    /// Cargo with these tests; arguments of the tests' own programs may follow.
    fn tests(&self, suite: Suite) -> std::process::Command {
        let mut tests = self.cargo();
        // Both with the whole workspace: alone, a package would want its dependencies built once more.
        tests.args(["test", "--workspace", "--locked"]);
        match suite {
            Suite::Crates => tests.arg("--"),
            Suite::EndToEnd => tests.args(["--test", "e2e", "--", "--nocapture", "--test-threads=1"]),
        };
        tests
    }

    /// Where a test has this in its name, and fuzz targets that have. A name that none has is a mistake, not a success.
    fn all_with(&self, name: &str) -> Result<(Vec<Suite>, Vec<String>)> {
        let mut found = Vec::new();
        for suite in [Suite::Crates, Suite::EndToEnd] {
            if output(self.tests(suite).args(["--list", name]))?.lines().any(|line| line.ends_with(": test")) {
                found.push(suite);
            }
        }
        let targets = fuzz::targets(name)?;
        anyhow::ensure!(
            !found.is_empty() || !targets.is_empty(),
            "no test or fuzz target has {name:?} in its name: `cargo test --workspace -- --list`, fuzz/fuzz_targets"
        );
        Ok((found, targets))
    }
}

fn prepare() -> Result<Ready> {
    let mut services = None;
    let up::Prepared { host, bin, bundle } = up::prepare(false, build::Minors::Current, |host: &mut Host| {
        services = Some(Hold::new(host, &format!("test-{}", std::process::id()))?);
        Ok(())
    })?;
    let programs = build::artifact(&bin, &["programs"], false)?;
    drop(host);
    let services = services.ok_or_else(|| anyhow::anyhow!("services are not held"))?;
    Ok(Ready { bin, bundle, programs, ledger: faults::begin()?, _services: services })
}
