//! The one task that changes anything. It carries out the steps in order, again and again, until all are ready; then
//! it sleeps until something happens, and probes them all again, by reads only (D14).
//!
//! ```text
//!             ┌────────── site edit, event, slow resync ───────────┐
//!             ▼                                                    │
//! Pending ─► Running ──► Ready ────────────────────────────────────┤
//!             │  ▲  ▲                                              │
//!             │  │  └─ Waiting   for something outside             │
//!             ▼  │                                                 │
//!           Failed   back-off 2 s … 60 s ──────────────────────────┘
//! ```
//!
//! What is durable is only which step was ready, when, and for what ([`Basis`], `state/steps.json`). A step finds out by
//! itself what is there: so a kill at any instant is followed by the same pass as any other start. A step that was ready
//! and still is keeps its times, and writes nothing; one that mends what was lost keeps them too, and the log tells how
//! long that took. An edit of the site file interrupts a step that says that it may be.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use edge_api::SiteConfig;
use edge_api::agent::StepState;
pub use edge_layers::chain;
use futures::future::LocalBoxFuture;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::durable;
use crate::redact;
use crate::status::Board;

/// Shortest and longest pause after a failure.
const BACK_OFF: (Duration, Duration) = (Duration::from_secs(2), Duration::from_mins(1));
/// Pause between two probes of a ready appliance, behind all events.
const RESYNC: Duration = Duration::from_mins(5);
/// Events that come closer together than this are one.
const GAP: Duration = Duration::from_secs(5);

/// What a step came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Done and probed; what is there now.
    Ready(String),
    /// Something outside must happen first (a state, not an error); tried again after the pause.
    Waiting {
        /// What is waited for and what would unblock it (law 4).
        message: String,
        /// Pause before the next look.
        retry: Duration,
    },
}

/// Why a step failed, and what to do.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure for a reason.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), hint: None }
    }

    /// A failure with the whole chain of an error.
    pub fn of(error: &dyn std::error::Error) -> Self {
        Self::new(chain(error))
    }

    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// One idempotent step.
pub trait Step {
    /// Its name, as in the status.
    fn name(&self) -> &'static str;

    /// Whether an edit of the site file may interrupt it anywhere.
    fn interruptible(&self) -> bool {
        false
    }

    /// Looks at what is there, and changes what differs. Says so by [`Run::working`] before the first change.
    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>>;
}

/// Digest of what the steps carry out. The times of a step are those of the run that installed it for one basis.
pub type Basis = Box<dyn Fn(&SiteConfig) -> String>;

/// One run of a step: its inputs, and how it reports.
pub struct Run {
    /// The site, as it was when the pass began.
    pub site: Arc<SiteConfig>,
    name: &'static str,
    basis: Rc<str>,
    board: Board,
    begun: Timestamp,
    changes: Cell<bool>,
    record: Rc<RefCell<Record>>,
}

impl Run {
    /// Says what is being changed or done at length, and that the step is no longer as it was.
    pub fn working(&self, message: impl AsRef<str>) {
        let message = redact::line(message.as_ref(), 400);
        if !self.changes.replace(true) {
            self.record.borrow_mut().outdate(self.name, &self.basis);
        }
        self.show(StepState::Running, &message);
    }

    /// Whether anything has been changed in this run.
    pub fn is_working(&self) -> bool {
        self.changes.get()
    }

    /// Tells how far it is, in percent.
    pub fn progress(&self, done: u64, all: u64) {
        let percent = (done.saturating_mul(100) / all.max(1)).min(100) as u8;
        self.board.edit_step(self.name, |step| step.progress = Some(percent));
    }

    /// Tells that there is no progress to be told any more.
    pub fn no_progress(&self) {
        self.board.edit_step(self.name, |step| step.progress = None);
    }

    fn show(&self, state: StepState, message: &str) {
        self.board.edit_step(self.name, |step| {
            step.state = state;
            message.clone_into(&mut step.message);
            step.started = Some(self.begun);
            step.finished = None;
            step.hint = None;
        });
    }
}

/// Which steps were ready, durable.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    content: Content,
    /// Whether the file has another content, because the disk was full.
    unsaved: bool,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct Content {
    ready: BTreeMap<String, Times>,
}

/// The run that installed a step, and for which basis.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    started: Timestamp,
    finished: Timestamp,
    attempts: u32,
    #[serde(default)]
    basis: String,
}

impl Record {
    /// A damaged record costs the times of the steps, nothing else: every step probes anyway.
    fn load(path: PathBuf) -> Self {
        let content = durable::read_json(&path).unwrap_or_else(|e| {
            warn!("times of earlier runs are lost: {}", chain(&e));
            None
        });
        Self { path, content: content.unwrap_or_default(), unsaved: false }
    }

    /// Forgets a step that was installed for another basis: it is being installed for this one.
    fn outdate(&mut self, step: &str, basis: &str) {
        if self.content.ready.get(step).is_some_and(|times| times.basis != basis) {
            self.content.ready.remove(step);
            self.unsaved = true;
        }
        self.save();
    }

    fn remember(&mut self, step: &str, times: &Times) {
        if self.content.ready.get(step) != Some(times) {
            self.content.ready.insert(step.to_owned(), times.clone());
            self.unsaved = true;
        }
        self.save();
    }

    fn save(&mut self) {
        if !self.unsaved {
            return;
        }
        match durable::write_json(&self.path, &self.content) {
            Ok(()) => self.unsaved = false,
            Err(e) => error!("{}", chain(&e)),
        }
    }
}

/// What a pass over all steps came to.
#[derive(Debug, Eq, PartialEq)]
enum Pass {
    Ready,
    RetryAfter(Duration),
    Interrupted,
    Cancelled,
}

/// Carries out the steps.
pub struct Engine {
    steps: Vec<Box<dyn Step>>,
    board: Board,
    record: Rc<RefCell<Record>>,
    basis: Basis,
    failures: BTreeMap<&'static str, u32>,
    /// What the log says that steps wait for: every look finds the same.
    waits: BTreeMap<&'static str, String>,
    site: watch::Receiver<Option<Arc<SiteConfig>>>,
    events: mpsc::Receiver<()>,
    settled: Box<dyn Fn()>,
    cancel: CancellationToken,
}

impl Engine {
    /// An engine; `events` asks for a probe soon, a change of `site` for a pass at once.
    pub fn new(
        steps: Vec<Box<dyn Step>>,
        board: Board,
        record: PathBuf,
        basis: Basis,
        site: watch::Receiver<Option<Arc<SiteConfig>>>,
        events: mpsc::Receiver<()>,
        cancel: CancellationToken,
    ) -> Self {
        let record = Rc::new(RefCell::new(Record::load(record)));
        let (failures, waits, settled) = (BTreeMap::new(), BTreeMap::new(), Box::new(|| {}));
        Self { steps, board, record, basis, failures, waits, site, events, settled, cancel }
    }

    /// Has something done whenever every step was ready.
    #[must_use]
    pub fn settled(self, settled: impl Fn() + 'static) -> Self {
        Self { settled: Box::new(settled), ..self }
    }

    /// Runs until cancelled.
    pub async fn run(mut self) {
        loop {
            let site = self.site.borrow_and_update().clone();
            let Some(site) = site else {
                tokio::select! {
                    () = self.cancel.cancelled() => return,
                    changed = self.site.changed() => if changed.is_err() { return },
                }
                continue;
            };
            while self.events.try_recv().is_ok() {}
            let (pause, events_count) = match self.pass(&site).await {
                Pass::Ready => {
                    (self.settled)();
                    (RESYNC, true)
                }
                Pass::RetryAfter(pause) => (pause, false),
                Pass::Interrupted => continue,
                Pass::Cancelled => return,
            };
            let ended = Instant::now();
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = sleep_until(ended + pause) => {}
                changed = self.site.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.failures.clear();
                }
                Some(()) = self.events.recv(), if events_count => {
                    tokio::select! {
                        () = self.cancel.cancelled() => return,
                        () = sleep_until(ended + GAP) => {}
                    }
                }
            }
        }
    }

    async fn pass(&mut self, site: &Arc<SiteConfig>) -> Pass {
        let basis: Rc<str> = (self.basis)(site).into();
        for index in 0..self.steps.len() {
            match self.step(index, site, &basis).await {
                Pass::Ready => {}
                other => return other,
            }
        }
        Pass::Ready
    }

    /// What was ready on the ground of what has just changed is not, until it was probed.
    fn doubt_later(&self, index: usize) {
        self.board.edit(|status| {
            for step in status.steps.iter_mut().skip(index + 1).filter(|s| s.state == StepState::Ready) {
                step.state = StepState::Pending;
            }
        });
    }

    async fn step(&mut self, index: usize, site: &Arc<SiteConfig>, basis: &Rc<str>) -> Pass {
        let step = &self.steps[index];
        let name = step.name();
        let attempts = self.failures.get(name).copied().unwrap_or(0) + 1;
        let begun = Timestamp::now();
        let before = self.record.borrow().content.ready.get(name).cloned();
        self.board.edit_step(name, |step| {
            // A step that was ready is probed in silence.
            if step.state != StepState::Ready {
                if step.state != StepState::Waiting && step.state != StepState::Failed {
                    step.message = if before.is_some() { "is probed".to_owned() } else { "starts".to_owned() };
                }
                step.state = StepState::Running;
                step.started = Some(begun);
                step.finished = None;
                step.attempts = attempts;
            }
        });
        if before.is_none() && attempts == 1 {
            info!(step = name, "starts");
        }
        let run = Run {
            site: Arc::clone(site),
            name,
            basis: Rc::clone(basis),
            board: self.board.clone(),
            begun,
            changes: Cell::new(false),
            record: Rc::clone(&self.record),
        };
        let ended = tokio::select! {
            biased;
            () = self.cancel.cancelled() => {
                info!(step = name, "stopped; it goes on at the next start");
                return Pass::Cancelled;
            }
            _ = self.site.changed(), if step.interruptible() => {
                info!(step = name, "interrupted: the site file or the profile archive has changed");
                self.failures.clear();
                return Pass::Interrupted;
            }
            ended = step.ensure(&run) => ended,
        };
        let finished = Timestamp::now();
        if !matches!(ended, Ok(Verdict::Waiting { .. })) {
            self.waits.remove(name);
        }
        match ended {
            Ok(Verdict::Ready(message)) => {
                let message = redact::line(&message, 400);
                let seconds = finished.duration_since(begun).as_secs_f64();
                let known = before.filter(|times| !run.changes.get() || *times.basis == **basis);
                let mut times = if let Some(times) = known {
                    if run.changes.get() {
                        info!(step = name, "mended in {seconds:.1} s: {message}");
                    }
                    times
                } else {
                    info!(step = name, "ready after {seconds:.1} s: {message}");
                    Times { started: begun, finished, attempts, basis: String::new() }
                };
                basis.as_ref().clone_into(&mut times.basis);
                self.failures.remove(name);
                self.record.borrow_mut().remember(name, &times);
                if run.changes.get() {
                    self.doubt_later(index);
                }
                self.board.edit_step(name, |step| {
                    step.state = StepState::Ready;
                    step.message = message;
                    step.hint = None;
                    step.progress = None;
                    step.started = Some(times.started);
                    step.finished = Some(times.finished);
                    step.attempts = times.attempts;
                });
                Pass::Ready
            }
            Ok(Verdict::Waiting { message, retry }) => {
                let message = redact::line(&message, 400);
                run.show(StepState::Waiting, &message);
                if self.waits.get(name) != Some(&message) {
                    info!(step = name, "waits: {message}");
                    self.waits.insert(name, message);
                }
                Pass::RetryAfter(retry)
            }
            Err(failure) => {
                let reason = redact::line(&failure.reason, 1200);
                let hint = failure.hint.as_deref().map(|h| redact::line(h, 600));
                let pause = back_off(attempts);
                self.failures.insert(name, attempts);
                self.record.borrow_mut().outdate(name, basis);
                let tail = hint.as_deref().map(|h| format!(" — {h}")).unwrap_or_default();
                warn!(step = name, "failed (attempt {attempts}, again in {} s): {reason}{tail}", pause.as_secs());
                self.board.edit_step(name, |step| {
                    step.state = StepState::Failed;
                    step.message = reason;
                    step.hint = hint;
                    step.progress = None;
                    step.started = Some(begun);
                    step.finished = Some(finished);
                    step.attempts = attempts;
                });
                Pass::RetryAfter(pause)
            }
        }
    }
}

/// Pause after the n-th failure in a row.
fn back_off(attempts: u32) -> Duration {
    let (first, last) = BACK_OFF;
    first.saturating_mul(1 << (attempts.saturating_sub(1)).min(10)).min(last)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
