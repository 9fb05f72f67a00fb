//! Go programs, each group in its own folder of the cache, and one folder with hard links to all.

use std::path::{Path, PathBuf};

use crate::build::{Context, Result, mkdir, write};
use crate::cache::Key;
use crate::oci::link;
use crate::pins::{GROUPS, Group};
use crate::process::Tool;
use crate::progress::Task;

/// Key of the folder with all programs.
pub fn key() -> String {
    GROUPS.iter().fold(Key::new("programs"), |key, group| key.with(group.name, group_key(group))).finish()
}

fn group_key(group: &Group) -> String {
    let programs: Vec<_> = group.programs.iter().map(|(name, package)| format!("{name}={package}")).collect();
    Key::new(group.name)
        .with("go.mod", group.go_mod)
        .with("go.sum", group.go_sum)
        .with("programs", programs.join("\n"))
        .with("ldflags", group.ldflags())
        .finish()
}

/// The folder with all programs.
pub fn ensure(context: &Context) -> Result<PathBuf> {
    let key = key();
    let path = context.cache.path("programs", &key);
    if path.is_dir() {
        return Ok(path);
    }
    let mut built = Vec::new();
    for group in GROUPS {
        let name = format!("go-{}", group.name);
        let dir = context.artifact(&name, &group_key(group), group.programs.len(), |staging, task| {
            build_group(group, staging, task)
        })?;
        built.push((group, dir));
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
    let module = staging.join("module");
    mkdir(&module)?;
    write(&module.join("go.mod"), group.go_mod)?;
    write(&module.join("go.sum"), group.go_sum)?;
    write(&module.join("tools.go"), group.tools)?;
    let go = || {
        let tool = Tool::new("go", "golang-go (bookworm: from backports)")
            .env("CGO_ENABLED", "0")
            .env("GOWORK", "off")
            .dir(&module);
        // The modules ask for a newer Go than Debian may have; Go then fetches it as a module.
        if std::env::var_os("GOTOOLCHAIN").is_some() { tool } else { tool.env("GOTOOLCHAIN", "auto") }
    };
    let hint = "check that the Go module proxy can be reached (go env GOPROXY) and that the disk is not full";
    for (program, package) in group.programs {
        task.step(program);
        go().args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", &group.ldflags(), "-o"])
            .arg(staging.join(program))
            .arg(package)
            .hint(hint)
            .run()?;
    }
    std::fs::remove_dir_all(&module).map_err(crate::oci::io_at("remove", &module))?;
    Ok(())
}
