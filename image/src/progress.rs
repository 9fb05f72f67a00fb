//! Progress on standard error: a bar per artifact on a terminal, otherwise one line per finished artifact.

use std::cell::Cell;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Where progress goes.
#[derive(Clone, Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
}

impl Progress {
    /// Bars when standard error is a terminal and `plain` is false.
    pub fn new(plain: bool) -> Self {
        Self { bars: (!plain && stderr().is_terminal()).then(MultiProgress::new) }
    }

    /// Begins an artifact of so many steps.
    pub fn artifact(&self, name: &str, steps: usize) -> Task {
        let bar = self.bars.as_ref().map(|bars| {
            let template = "{prefix:<18} {bar:20.cyan/dim} {elapsed:>4} {wide_msg}";
            let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = bars.add(ProgressBar::new(steps as u64).with_style(style).with_prefix(name.to_owned()));
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Task {
            name: name.to_owned(),
            started: Instant::now(),
            bar,
            begun: Cell::new(0),
            quiet: Duration::ZERO,
            done: false,
        }
    }

    /// A line of its own.
    pub fn line(&self, text: &str) {
        match &self.bars {
            Some(bars) => {
                let _ = bars.println(text);
            }
            None => eprintln!("{text}"),
        }
    }
}

/// One artifact being built. Dropped before [`Task::done`], it counts as failed.
#[derive(Debug)]
pub struct Task {
    name: String,
    started: Instant,
    bar: Option<ProgressBar>,
    begun: Cell<u64>,
    quiet: Duration,
    done: bool,
}

impl Task {
    /// Begins the next step.
    pub fn step(&self, what: &str) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.begun.get());
            bar.set_message(what.to_owned());
        }
        self.begun.set(self.begun.get() + 1);
    }

    /// Says nothing when it is done sooner than this.
    #[must_use]
    pub fn quiet_below(mut self, limit: Duration) -> Self {
        self.quiet = limit;
        self
    }

    /// The artifact is finished.
    pub fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let verdict = if self.done { "" } else { "failed after " };
        let seconds = self.started.elapsed().as_secs_f64();
        let quiet = self.done && self.started.elapsed() < self.quiet;
        match &self.bar {
            Some(bar) if quiet => bar.finish_and_clear(),
            None if quiet => {}
            Some(bar) if self.done => {
                bar.set_position(bar.length().unwrap_or_default());
                bar.finish_with_message("done");
            }
            Some(bar) => bar.abandon_with_message("failed"),
            None => eprintln!("{} … {verdict}{seconds:.1} s", self.name),
        }
    }
}
