//! The port to the `helm` program (D8): captured output, a deadline, no secrets on the argument list.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crash_points::around_async;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// Bytes of output that an error shows.
const SHOWN: usize = 4096;
/// Time beyond Helm's own deadline before it is killed.
const GRACE: Duration = Duration::from_secs(30);

crash_points::effects! {
    /// What Helm changes; objects are written by the client that a pass is given.
    #[allow(missing_docs, reason = "the names say it")]
    pub enum Effect {
        UpgradeRelease = "upgrade-release",
        UninstallRelease = "uninstall-release",
    }
}

/// Helm, and the cluster it works on.
#[derive(Clone, Debug)]
pub struct Helm {
    /// The program, version 4.
    pub program: PathBuf,
    /// Kubeconfig file of the cluster.
    pub kubeconfig: PathBuf,
}

/// Helm did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum HelmError {
    /// It did not start, or its output could not be read.
    #[error("cannot run {}", program.display())]
    Run {
        /// The program.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with an error.
    #[error("{action} failed: {output}")]
    Failed {
        /// For instance `upgrade of release web`.
        action: String,
        /// The end of what it wrote.
        output: String,
    },
    /// It took too long and was killed.
    #[error("{action} did not end within {seconds} s and was stopped")]
    Deadline {
        /// For instance `upgrade of release web`.
        action: String,
        /// Its deadline.
        seconds: u64,
    },
}

/// A release to bring up to date.
pub(crate) struct Upgrade<'u> {
    pub release: &'u str,
    pub namespace: &'u str,
    pub chart: &'u Path,
    pub values: &'u Value,
    /// Labels of Helm's own record; no secrets.
    pub labels: &'u [(&'u str, String)],
    pub timeout: Duration,
}

impl Helm {
    /// Installs or upgrades a release; waits for hooks only.
    pub(crate) async fn upgrade(&self, upgrade: &Upgrade<'_>) -> Result<(), HelmError> {
        let Upgrade { release, namespace, chart, values, labels, timeout } = upgrade;
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let timeout_text = format!("{}s", timeout.as_secs());
        let labels = labels.join(",");
        let mut command = Command::new(&self.program);
        command.args(["upgrade", release]).arg(chart).args([
            "--install",
            "--create-namespace",
            "--namespace",
            namespace,
        ]);
        command.args(["--labels", &labels, "--history-max", "5", "--timeout", &timeout_text, "--hide-notes"]);
        // The appliance follows its profile: a field that somebody else took over is taken back.
        command.args(["--server-side=true", "--force-conflicts"]);
        // Values may hold credentials: an argument list can be read by everybody, a pipe by nobody.
        command.args(["--values", "-"]);
        let input = values.to_string();
        let action = format!("upgrade of release {release}");
        let upgrade = self.run(command, &action, Some(input), *timeout + GRACE);
        around_async(Effect::UpgradeRelease, upgrade).await
    }

    /// Uninstalls a release; one that is not there is fine.
    pub(crate) async fn uninstall(&self, release: &str, namespace: &str, timeout: Duration) -> Result<(), HelmError> {
        let timeout_text = format!("{}s", timeout.as_secs());
        let mut command = Command::new(&self.program);
        command.args([
            "uninstall",
            release,
            "--namespace",
            namespace,
            "--ignore-not-found",
            "--timeout",
            &timeout_text,
        ]);
        let action = format!("removal of release {release}");
        let uninstall = self.run(command, &action, None, timeout + GRACE);
        around_async(Effect::UninstallRelease, uninstall).await
    }

    async fn run(
        &self,
        command: Command,
        action: &str,
        input: Option<String>,
        deadline: Duration,
    ) -> Result<(), HelmError> {
        let failed = |source| HelmError::Run { program: self.program.clone(), source };
        // Helm reads repositories, plugins and registries of whoever runs it; here it has nothing but its arguments.
        let home = tempfile::tempdir().map_err(failed)?;
        // It must not outlive us: the next pass would meet it at work.
        let mut tied = Command::new("setpriv");
        tied.args(["--pdeathsig", "KILL"]).arg(command.as_std().get_program()).args(command.as_std().get_args());
        tied.arg("--kubeconfig").arg(&self.kubeconfig);
        tied.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", home.path());
        tied.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        tied.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = tied.spawn().map_err(failed)?;
        let stdin = child.stdin.take();
        let feed = async {
            if let (Some(mut stdin), Some(input)) = (stdin, input) {
                // Helm that ends before it has read everything says why itself.
                let _ = stdin.write_all(input.as_bytes()).await;
            }
        };
        let both = async { tokio::join!(child.wait_with_output(), feed).0 };
        let output = match tokio::time::timeout(deadline, both).await {
            Ok(output) => output.map_err(failed)?,
            Err(_) => return Err(HelmError::Deadline { action: action.to_owned(), seconds: deadline.as_secs() }),
        };
        if output.status.success() {
            return Ok(());
        }
        let mut text = String::from_utf8_lossy(&output.stderr).into_owned();
        if text.trim().is_empty() {
            text = String::from_utf8_lossy(&output.stdout).into_owned();
        }
        Err(HelmError::Failed { action: action.to_owned(), output: tail(&text) })
    }
}

/// The end of a text, on one line.
fn tail(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let start = line.len().saturating_sub(SHOWN);
    let start = (start..=line.len()).find(|at| line.is_char_boundary(*at)).unwrap_or(0);
    line[start..].to_owned()
}
