//! What every artifact's builder needs: the cache, progress, the workspace, and one error.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{self, Cache};
use crate::oci;
use crate::process::{self, Tool};
use crate::progress::{Progress, Task};

/// An artifact could not be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A foreign program.
    #[error(transparent)]
    Tool(#[from] process::Error),
    /// A layout, layer or file.
    #[error(transparent)]
    Oci(#[from] oci::Error),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// Two parts do not fit together.
    #[error("{0}")]
    Mismatch(String),
}

/// Result of a builder.
pub type Result<T> = std::result::Result<T, Error>;

/// Shared by all builders.
#[derive(Debug)]
pub struct Context {
    /// The artifact cache.
    pub cache: Cache,
    /// Where progress goes.
    pub progress: Progress,
    /// Root of the Cargo workspace: our own programs are built from it.
    pub workspace: PathBuf,
    /// Folder with our own release programs already built, instead of running cargo.
    pub own_programs: Option<PathBuf>,
}

impl Context {
    /// The artifact's folder, built with progress where it is not in the cache.
    pub fn artifact(
        &self,
        name: &str,
        key: &str,
        steps: usize,
        build: impl FnOnce(&Path, &Task) -> Result<()>,
    ) -> Result<PathBuf> {
        self.cache.get_or_build(name, key, |staging| {
            process::check_interrupt()?;
            let task = self.progress.artifact(name, steps);
            build(staging, &task)?;
            process::check_interrupt()?;
            task.done();
            Ok(())
        })
    }

    /// One of this workspace's programs: from [`Context::own_programs`] where that is set, else built by cargo now.
    pub fn own_program(&self, package: &str, program: &str) -> Result<PathBuf> {
        if let Some(dir) = &self.own_programs {
            return Ok(dir.join(program));
        }
        let task = self.progress.artifact(&format!("cargo {program}"), 1).quiet_below(Duration::from_secs(3));
        task.step("cargo build --release");
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
        let output = Tool::new(cargo, "rustup or cargo")
            .args(["build", "--release", "--locked", "-p", package, "--bin", program])
            .args(["--message-format", "json-render-diagnostics"])
            .dir(&self.workspace)
            .hint("the workspace does not build")
            .output()?;
        task.done();
        let executable = |line: &str| {
            let message: serde_json::Value = serde_json::from_str(line).ok()?;
            (message["target"]["name"] == program).then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
        };
        let missing = || Error::Mismatch(format!("cargo built {package} but named no executable {program}"));
        output.lines().rev().find_map(executable).ok_or_else(missing)
    }
}

/// Writes a small file.
pub fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    Ok(std::fs::write(path, content).map_err(oci::io_at("write", path))?)
}

/// Makes a folder and its parents.
pub fn mkdir(path: &Path) -> Result<()> {
    Ok(std::fs::create_dir_all(path).map_err(oci::io_at("create", path))?)
}

/// Writes a small value as JSON.
pub fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<()> {
    let text =
        serde_json::to_string_pretty(value).map_err(|source| oci::Error::Json { path: path.to_owned(), source })?;
    write(path, text)
}

/// Reads a small value from JSON.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).map_err(oci::io_at("read", path))?;
    Ok(serde_json::from_slice(&bytes).map_err(|source| oci::Error::Json { path: path.to_owned(), source })?)
}
