//! The daemon as a process, for tests. It gets as far as a bundle that is not there, so it makes nothing on the host.

#![allow(dead_code, reason = "no test uses all of it")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use edge_api::agent::Status;
use edge_client::{Client, Event};

const DEADLINE: Duration = Duration::from_secs(30);

pub struct Agent {
    root: PathBuf,
    child: Child,
}

impl Agent {
    pub fn start(root: &Path, extra: &[&str]) -> Self {
        let child = command(root, extra).stderr(Stdio::null()).spawn().unwrap();
        Self { root: root.to_owned(), child }
    }

    pub fn client(&self) -> Client {
        Client::new(self.root.join("run/agent.sock"))
    }

    /// Waits for a status, by its events.
    pub async fn until(&self, what: &str, reached: impl Fn(&Status) -> bool) -> Status {
        let last = RefCell::new(None);
        let wait = async {
            loop {
                let Ok(mut events) = self.client().events().await else {
                    // The socket is not there yet.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                };
                while let Ok(Some(event)) = events.next().await {
                    match event {
                        Event::Status(status) if reached(&status) => return *status,
                        Event::Status(status) => drop(last.replace(Some(status))),
                        Event::Log(_) => {}
                    }
                }
            }
        };
        let reached = tokio::time::timeout(DEADLINE, wait).await;
        reached.unwrap_or_else(|_| panic!("not reached: {what}; last seen: {:?}", last.take()))
    }

    /// Waits until the log has a line with this.
    pub async fn until_logged(&self, what: &str) {
        let wait = async {
            loop {
                let lines = self.client().logs(1000).await.unwrap_or_default();
                if lines.iter().any(|line| line.message.contains(what)) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("not logged: {what}"));
    }

    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks it to end, and waits.
    pub fn end(mut self) -> bool {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().success()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(root: &Path, extra: &[&str]) -> Command {
    command_of(Path::new(env!("CARGO_BIN_EXE_edge-agent")), root, extra)
}

pub fn command_of(program: &Path, root: &Path, extra: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["run", "--instance", "agtest", "--bundle", "/nonexistent", "--root"]).arg(root).args(extra);
    command
}

pub fn write_site(root: &Path, text: &str) {
    // As editors do: a new file beside it, renamed over.
    std::fs::write(root.join("conf/.unattended.yaml.swp"), text).unwrap();
    std::fs::rename(root.join("conf/.unattended.yaml.swp"), root.join("conf/unattended.yaml")).unwrap();
}
