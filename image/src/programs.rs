//! Go programs, each group in its own folder of the cache, and for each release one folder with hard links to those of
//! a node.

use std::path::{Path, PathBuf};

use crate::build::{Context, Result, mkdir, write};
use crate::cache::Key;
use crate::oci::link;
use crate::pins::{Group, Release};
use crate::process::Tool;
use crate::progress::Task;

/// Key of the folder with a release's programs.
pub fn key(release: &'static Release) -> String {
    release.groups().fold(Key::new("programs"), |key, group| key.with(group.name, group_key(group))).finish()
}

/// Key of a group's folder.
pub fn group_key(group: &Group) -> String {
    let programs: Vec<_> = group.programs.iter().map(|(name, package)| format!("{name}={package}")).collect();
    Key::new(group.name)
        .with("go.mod", group.go_mod)
        .with("go.sum", group.go_sum)
        .with("programs", programs.join("\n"))
        .with("ldflags", group.ldflags())
        .finish()
}

/// The folder of this group of the pins.
pub fn ensure_group(context: &Context, group: &Group) -> Result<PathBuf> {
    let name = format!("go-{}", group.name);
    context.artifact(&name, &group_key(group), group.programs.len(), |staging, task| build_group(group, staging, task))
}

/// The folder with a release's programs.
pub fn ensure(context: &Context, release: &'static Release) -> Result<PathBuf> {
    let key = key(release);
    let path = context.cache.path("programs", &key);
    if path.is_dir() {
        return Ok(path);
    }
    let mut built = Vec::new();
    for group in release.groups() {
        built.push((group, ensure_group(context, group)?));
    }
    context.artifact("programs", &key, 1, |staging, task| {
        task.step("linking");
        for (group, dir) in &built {
            for (program, _) in group.programs {
                link(&dir.join(program), &staging.join(program))?;
            }
        }
        Ok(())
    })
}

fn build_group(group: &Group, staging: &Path, task: &Task) -> Result<()> {
    let module = Module::create(group, staging.join("module"))?;
    for (program, package) in group.programs {
        task.step(program);
        module
            .go()
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &group.ldflags(), "-o"])
            .arg(staging.join(program))
            .arg(package)
            .run()?;
    }
    module.remove()
}

/// A folder with a group's pins as a Go module, to run Go in.
pub struct Module(PathBuf);

impl Module {
    /// Writes the files.
    pub fn create(group: &Group, dir: PathBuf) -> Result<Self> {
        mkdir(&dir)?;
        write(&dir.join("go.mod"), group.go_mod)?;
        write(&dir.join("go.sum"), group.go_sum)?;
        write(&dir.join("tools.go"), group.tools)?;
        Ok(Self(dir))
    }

    /// Go, in this module.
    pub fn go(&self) -> Tool {
        let tool = Tool::new("go", "golang-go (bookworm: from backports)")
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .dir(&self.0)
            .hint("check that the Go module proxy can be reached (go env GOPROXY) and that the disk is not full");
        // The modules ask for a newer Go than Debian may have; Go then fetches it as a module.
        if std::env::var_os("GOTOOLCHAIN").is_some() { tool } else { tool.env("GOTOOLCHAIN", "auto") }
    }

    /// Removes the folder.
    pub fn remove(self) -> Result<()> {
        Ok(std::fs::remove_dir_all(&self.0).map_err(crate::oci::io_at("remove", &self.0))?)
    }
}
