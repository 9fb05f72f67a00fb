//! A program that ends at points that a test wants (`crash_points`), and is started again each time.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use crash_points::{LAST_WORDS, Point, VARIABLE};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;

/// Points at which a program has still to end.
#[derive(Default)]
pub struct Armed {
    points: Mutex<BTreeSet<Point>>,
    process: AtomicU32,
}

impl Armed {
    /// These points.
    pub fn new(points: impl IntoIterator<Item = Point>) -> Self {
        Self { points: Mutex::new(points.into_iter().collect()), process: AtomicU32::default() }
    }

    /// Those that were not reached.
    pub fn left(&self) -> BTreeSet<Point> {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Process ID of the program that runs.
    pub fn process(&self) -> u32 {
        self.process.load(Ordering::Relaxed)
    }

    fn reached(&self, point: &Point) -> bool {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).remove(point)
    }
}

/// Does something while a program runs that ends at the first of the points that it reaches, and once more at the next,
/// until none is left.
///
/// # Errors
/// As of what is done; or the program has ended without having been told to.
pub async fn while_it_ends<T>(
    program: impl Fn() -> Command,
    armed: &Armed,
    act: impl Future<Output = Result<T>>,
) -> Result<T> {
    let keep = async {
        loop {
            let status = once(program(), armed).await?;
            if !ended(status) {
                return anyhow::Ok(status);
            }
        }
    };
    tokio::select! {
        outcome = act => outcome,
        ended = keep => anyhow::bail!("the program ended by itself: {}", ended?),
    }
}

/// Runs a program that has an end, again and again where it ended at a point, until it has come to its own.
///
/// # Errors
/// It cannot be run, or has failed.
pub async fn until_it_is_done(program: impl Fn() -> Command, armed: &Armed) -> Result<()> {
    loop {
        let status = once(program(), armed).await?;
        if !ended(status) {
            anyhow::ensure!(status.success(), "the program has failed: {status}");
            return Ok(());
        }
    }
}

fn ended(status: ExitStatus) -> bool {
    status.signal() == Some(nix::sys::signal::Signal::SIGKILL as i32)
}

/// One life of the program, up to a point or its own end.
async fn once(mut program: Command, armed: &Armed) -> Result<ExitStatus> {
    let points: Vec<String> = armed.left().iter().map(ToString::to_string).collect();
    program.env(VARIABLE, points.join(",")).stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = program.spawn().context("start the program")?;
    armed.process.store(child.id().unwrap_or_default(), Ordering::Relaxed);
    let mut lines = BufReader::new(child.stderr.take().context("its log")?).lines();
    let mut reached = Vec::new();
    while let Some(line) = lines.next_line().await? {
        println!("program: {line}");
        // Two threads may come to an end at once.
        reached.extend(line.strip_prefix(LAST_WORDS).map(str::to_owned));
    }
    let status = child.wait().await?;
    anyhow::ensure!(!ended(status) || !reached.is_empty(), "the program was ended by somebody else");
    for point in reached {
        let point: Point = point.parse().map_err(anyhow::Error::msg)?;
        anyhow::ensure!(armed.reached(&point), "{point} was not asked for");
    }
    Ok(status)
}
