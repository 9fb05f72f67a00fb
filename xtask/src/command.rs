//! Running other programs: with their output shown, or captured and shown only when they fail.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// How many lines of captured output an error shows.
const TAIL: usize = 40;

/// A command whose environment is free of what cargo set for this process. Build scripts (ring's, for one) watch some
/// of these variables, and would run again each time.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
        if ours || text == "LD_LIBRARY_PATH" || text == "OUT_DIR" {
            command.env_remove(&name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Runs with both outputs shown.
pub fn run(command: &mut Command) -> Result<()> {
    let shown = describe(command);
    let status = command.status().with_context(|| format!("cannot run {shown}"))?;
    anyhow::ensure!(status.success(), "{shown}: {status}");
    Ok(())
}

/// Runs with both outputs captured and returns standard output.
pub fn quiet(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let output = command.output().with_context(|| format!("cannot run {shown}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let all = text + &String::from_utf8_lossy(&output.stderr);
    bail!("{shown}: {}\n{}", output.status, tail(&all))
}

/// Runs with standard error shown and returns standard output.
pub fn output(command: &mut Command) -> Result<String> {
    let shown = describe(command);
    let output = command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot run {shown}"))?;
    anyhow::ensure!(output.status.success(), "{shown}: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs with standard error shown and returns the last line of standard output.
pub fn last_line(command: &mut Command) -> Result<String> {
    let text = output(command)?;
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    Ok(line.with_context(|| format!("{} printed nothing", describe(command)))?.to_owned())
}

/// Whether it ran and succeeded; its output is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Whether PATH has a program of this name.
pub fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// The last lines of a text.
pub fn tail(text: &str) -> String {
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL)..].join("\n")
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        text.push_str(&arg.to_string_lossy());
    }
    text
}
