//! Processes by identity: a PID alone may be somebody else's by now.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

/// One process, told apart from a later one with the same PID by its start time.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Process {
    /// Process ID.
    pub pid: i32,
    /// Clock ticks after boot, field 22 of `/proc/PID/stat`.
    pub start: u64,
}

impl Process {
    /// The process that has this ID now, zombies not counted.
    pub fn of(pid: i32) -> Option<Self> {
        let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name in parentheses may hold anything, also a parenthesis.
        let mut fields = line[line.rfind(')')? + 1..].split_whitespace();
        let state = fields.next()?;
        let start = fields.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then_some(Self { pid, start })
    }

    /// This process.
    pub fn own() -> Option<Self> {
        Self::of(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it still runs.
    pub fn alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// Its program file; a replaced one ends in ` (deleted)`.
    pub fn program(self) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/exe", self.pid)).ok()
    }

    /// Its arguments, the program's name first.
    pub fn arguments(self) -> Vec<String> {
        let line = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        line.trim_end_matches('\0').split('\0').map(str::to_owned).collect()
    }

    /// Asks it to end, and kills it where it has not done so in time.
    pub fn end(self, deadline: Duration) -> Result<()> {
        for (signal, deadline) in [(Signal::SIGTERM, deadline), (Signal::SIGKILL, Duration::from_secs(10))] {
            if !self.alive() {
                return Ok(());
            }
            let _ = kill(Pid::from_raw(self.pid), signal);
            let until = Instant::now() + deadline;
            while self.alive() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if self.alive() {
            bail!("process {} does not end, not even killed", self.pid);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn own_arguments_are_those_of_the_process() {
        assert_eq!(Process::own().unwrap().arguments(), std::env::args().collect::<Vec<_>>());
    }

    #[test]
    fn a_process_is_itself_until_it_ends() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let process = Process::of(i32::try_from(child.id()).unwrap()).unwrap();
        assert!(process.alive());
        assert!(!Process { start: process.start + 1, ..process }.alive());
        process.end(Duration::from_secs(5)).unwrap();
        assert!(!process.alive(), "a zombie is not alive");
        child.wait().unwrap();
    }
}
