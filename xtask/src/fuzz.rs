//! Fuzz targets: the programs of `fuzz/`, each for a bounded time. What they find is kept in `fuzz/corpus` for the next
//! run, what breaks them in `fuzz/artifacts`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command::run as show;
use crate::table::Table;
use crate::{build, command, workspace};

const CARGO_FUZZ: &str = "0.13.2";
/// Without a sanitizer, whose runtimes want the nightly compiler.
const STABLE: [&str; 2] = ["--sanitizer", "none"];

/// Names of all targets that have this in their name.
pub fn targets(part: &str) -> Result<Vec<String>> {
    let dir = workspace::root().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for item in fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path = item?.path();
        names.extend(path.file_stem().and_then(|name| name.to_str()).filter(|n| n.contains(part)).map(str::to_owned));
    }
    names.sort();
    Ok(names)
}

/// Builds and runs targets.
pub fn run(targets: &[String], table: &mut Table) -> Result<()> {
    let seconds = std::env::var("PCG_EDGE_FUZZ_SECONDS").map_or(Ok(60), |text| text.parse::<u64>());
    let seconds = seconds.context("PCG_EDGE_FUZZ_SECONDS is no number of seconds for each fuzz target")?;
    table.part("fuzz targets", || show(cargo_fuzz("build")?.args(STABLE)))?;
    targets.iter().try_for_each(|target| table.part(&format!("fuzz target {target}"), || fuzz(target, seconds)))
}

fn cargo_fuzz(task: &str) -> Result<Command> {
    let mut fuzz = command::command(build::tool("cargo-fuzz", CARGO_FUZZ, &[])?);
    fuzz.current_dir(workspace::root()).args([task, "--fuzz-dir", "fuzz"]);
    Ok(fuzz)
}

fn fuzz(target: &str, seconds: u64) -> Result<()> {
    let mut fuzz = cargo_fuzz("run")?;
    fuzz.args(STABLE).arg(target);
    // New inputs go into the first folder.
    for folder in ["corpus", "seeds"] {
        let folder = workspace::root().join("fuzz").join(folder).join(target);
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        fuzz.arg(folder);
    }
    fuzz.arg("--").arg(format!("-max_total_time={seconds}"));
    fuzz.args(["-max_len=16384", "-timeout=30"]);
    // Folders that are made and removed thousands of times: in memory.
    let output = fuzz.env("TMPDIR", "/dev/shm").output().context("cannot run cargo-fuzz")?;
    let text = String::from_utf8_lossy(&output.stderr);
    // The last line with this: what follows it.
    let after = |mark: &str| text.lines().rev().find_map(|line| Some(line.split_once(mark)?.1.trim()));
    if !output.status.success() {
        eprint!("{text}");
        let Some(input) = after("Test unit written to ") else { bail!("fuzz target {target}: {}", output.status) };
        let program = fuzz.get_program().display();
        bail!(
            "fuzz target {target} fails; again with: {program} run --fuzz-dir fuzz --sanitizer none {target} {input}"
        );
    }
    eprintln!("    {target}: {}", after("Done ").context("libFuzzer does not say how often it ran")?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_is_a_program() {
        let manifest = fs::read_to_string(workspace::root().join("fuzz/Cargo.toml")).unwrap();
        let all = targets("").unwrap();
        assert!(all.iter().all(|name| manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\""))), "{all:?}");
        assert_eq!(manifest.matches("[[bin]]").count(), all.len());
        assert_eq!(targets("site_").unwrap(), ["site_file"]);
    }
}
