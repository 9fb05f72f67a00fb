//! The agent on the host: its programs below the root, and its life as a systemd unit or a detached process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use edge_api::Instance;

use crate::build;
use crate::command::{command, quiet, succeeds};
use crate::host;
use crate::process::Process;
use crate::services::{detach, systemd};

/// It ends its own children first.
const END_DEADLINE: Duration = Duration::from_secs(40);
/// Programs of the bundle that are copied below the root: ours, and what people want beside them.
const PROGRAMS: &[&str] = &["edge-agent", "edgectl", "edge-tui"];
const TOOLS: &[&str] = &["clusterctl", "kubectl"];

/// One instance's agent.
pub struct Agent {
    /// The instance.
    pub instance: Instance,
    /// Root of its state.
    pub root: PathBuf,
}

impl Agent {
    /// The agent of an instance at its usual root.
    pub fn of(instance: &Instance) -> Self {
        Self { instance: instance.clone(), root: instance.default_root() }
    }

    /// A program below the root.
    pub fn program(&self, name: &str) -> PathBuf {
        self.root.join("bin").join(name)
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join(edge_api::agent::SOCKET)
    }

    /// Where its output goes when it is detached.
    pub fn log(&self) -> PathBuf {
        Path::new(host::LOG_DIR).join(format!("edge-agent-{}.log", self.instance))
    }

    /// Copies the programs below the root; says whether any of ours differed.
    pub fn install(&self, bundle: &Path) -> Result<bool> {
        let install = |name: &str| build::install(&bundle.join("bin").join(name), &self.program(name));
        for name in TOOLS {
            install(name)?;
        }
        let mut changed = false;
        for name in PROGRAMS {
            changed |= install(name)?;
        }
        Ok(changed)
    }

    /// The running process, by its PID file, where that is really an agent of this root.
    pub fn process(&self) -> Option<Process> {
        let pid = fs::read_to_string(self.root.join("run/agent.pid")).ok()?;
        let process = Process::of(pid.trim().parse().ok()?)?;
        let program = process.program()?;
        // A replaced file is shown with " (deleted)" behind it.
        let ours = program.to_string_lossy().starts_with(&*self.program("edge-agent").to_string_lossy());
        ours.then_some(process)
    }

    /// Starts it, or again where it runs another program or with other arguments. Says whether it did.
    pub fn ensure(&self, bundle: &Path) -> Result<bool> {
        let program = self.program("edge-agent");
        let arguments = self.arguments(bundle);
        if let Some(process) = self.process() {
            let current = process.program().as_deref() == Some(&*program);
            if current && process.arguments().get(1..) == Some(&*arguments) {
                return Ok(false);
            }
            self.stop()?;
        }
        if systemd() {
            let unit = self.unit();
            let path = unit_path(&unit);
            fs::write(&path, unit_text(&self.instance, &program, &arguments))
                .with_context(|| path.display().to_string())?;
            quiet(command("systemctl").arg("daemon-reload"))?;
            quiet(command("systemctl").args(["enable", "--quiet", &unit]))?;
            quiet(command("systemctl").args(["restart", &unit]))?;
        } else {
            detach(&program, &arguments, &self.log())?;
        }
        Ok(true)
    }

    /// Ends it, where it runs; the unit stays.
    pub fn stop(&self) -> Result<()> {
        let unit = self.unit();
        if systemd() && unit_path(&unit).exists() {
            quiet(command("systemctl").args(["stop", &unit]))?;
        }
        self.process().map_or(Ok(()), |process| process.end(END_DEADLINE)).context("edge-agent")
    }

    /// Removes the unit; nothing where there is none.
    pub fn forget(&self) -> Result<()> {
        let unit = self.unit();
        let path = unit_path(&unit);
        if systemd() && path.exists() {
            // A unit that is disabled already is no reason to stop here.
            succeeds(command("systemctl").args(["disable", "--quiet", &unit]));
            fs::remove_file(&path)?;
            quiet(command("systemctl").arg("daemon-reload"))?;
        }
        match fs::remove_file(self.log()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn arguments(&self, bundle: &Path) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let root = text(&self.root);
        ["run", "--root", &root, "--instance", self.instance.as_str(), "--bundle", &text(bundle)]
            .map(str::to_owned)
            .to_vec()
    }

    fn unit(&self) -> String {
        if self.instance == Instance::default() {
            "edge-agent.service".to_owned()
        } else {
            format!("edge-agent-{}.service", self.instance)
        }
    }
}

fn unit_path(unit: &str) -> PathBuf {
    Path::new("/etc/systemd/system").join(unit)
}

fn unit_text(instance: &Instance, program: &Path, arguments: &[String]) -> String {
    // `%` and `$` would be expanded, and a blank would split.
    let quoted = |text: &str| format!("\"{}\"", text.replace('%', "%%").replace('$', "$$").replace('"', "\\\""));
    let line: Vec<_> = arguments.iter().map(|argument| quoted(argument)).collect();
    format!(
        "[Unit]\n\
         Description=PCG-Edge agent of instance {instance}\n\
         After=docker.service libvirtd.socket network-online.target\n\
         Wants=docker.service libvirtd.socket network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={} {}\n\
         Environment=HOME=/root\n\
         Restart=always\n\
         RestartSec=2\n\
         TimeoutStopSec={}\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        quoted(&program.to_string_lossy()),
        line.join(" "),
        END_DEADLINE.as_secs()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_starts_the_program_with_its_arguments() {
        let agent = Agent { instance: "e2e".parse().unwrap(), root: PathBuf::from("/srv/100%") };
        let text = unit_text(&agent.instance, &agent.program("edge-agent"), &agent.arguments(Path::new("/b u")));
        assert!(
            text.contains(
                "\nExecStart=\"/srv/100%%/bin/edge-agent\" \"run\" \"--root\" \"/srv/100%%\" \"--instance\" \"e2e\" \
                 \"--bundle\" \"/b u\"\n"
            ),
            "{text}"
        );
    }

    #[test]
    fn a_pid_file_of_something_else_is_not_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let agent = Agent { instance: Instance::default(), root: dir.path().to_owned() };
        assert_eq!(agent.process(), None);
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run/agent.pid"), std::process::id().to_string()).unwrap();
        assert_eq!(agent.process(), None);
    }
}
