//! The operator as a process of its own, which ends at the points that a test wants, and is started again each time.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use crash_points::{LAST_WORDS, Point, VARIABLE};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

use super::{NAMESPACE, OPERATOR, Site, kubeconfig_as};

/// Points at which the operator has still to end.
#[derive(Default)]
pub struct Armed {
    points: Mutex<BTreeSet<Point>>,
    process: AtomicU32,
}

impl Armed {
    pub fn new(points: impl IntoIterator<Item = Point>) -> Self {
        Self { points: Mutex::new(points.into_iter().collect()), process: AtomicU32::default() }
    }

    /// Those that were not reached.
    pub fn left(&self) -> BTreeSet<Point> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Process ID of the operator that runs.
    pub fn process(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }

    fn reached(&self, point: &Point) -> bool {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).remove(point)
    }
}

/// Does something while an operator runs that ends at the first of the points that it reaches, and once more at the
/// next, until none is left.
///
/// # Errors
/// As of what is done; or the operator has ended without having been told to.
pub async fn while_it_ends<T>(site: &Site, armed: &Armed, act: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        outcome = act => outcome,
        ended = keep(site, armed) => match ended {
            Err(error) => Err(error),
            Ok(never) => match never {},
        },
    }
}

async fn keep(site: &Site, armed: &Armed) -> Result<std::convert::Infallible> {
    let kubeconfig = kubeconfig_as(&site.plane, OPERATOR)?;
    loop {
        let points: Vec<String> = armed.left().iter().map(ToString::to_string).collect();
        let mut operator = Command::new(env!("CARGO_BIN_EXE_vm-operator"))
            .args(["run", "--namespace", NAMESPACE, "--health", "127.0.0.1:0", "--log-format", "text"])
            .args([
                "--shutdown-seconds",
                "3",
                "--address-seconds",
                "5",
                "--force-seconds",
                "1",
                "--bootstrap-seconds",
                "1",
            ])
            .env("KUBECONFIG", &kubeconfig)
            .env(VARIABLE, points.join(","))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("start the operator")?;
        armed.process.store(operator.id().unwrap_or_default(), Ordering::Relaxed);
        let mut lines = BufReader::new(operator.stderr.take().context("its log")?).lines();
        let mut reached = Vec::new();
        while let Some(line) = lines.next_line().await? {
            println!("operator: {line}");
            // Two threads may come to an end at once.
            reached.extend(line.strip_prefix(LAST_WORDS).map(str::to_owned));
        }
        let status = operator.wait().await?;
        anyhow::ensure!(status.signal() == Some(9) && !reached.is_empty(), "the operator ended by itself: {status}");
        for point in reached {
            let point: Point = point.parse().map_err(anyhow::Error::msg)?;
            anyhow::ensure!(armed.reached(&point), "{point} was not asked for");
        }
    }
}
