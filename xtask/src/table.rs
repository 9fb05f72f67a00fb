//! Times of the parts of a long task, printed at its end, also when a part failed.

use std::time::{Duration, Instant};

use anyhow::Result;

/// Parts and their times.
pub struct Table {
    title: &'static str,
    start: Instant,
    rows: Vec<(String, Duration, bool)>,
}

impl Table {
    /// An empty table.
    pub fn new(title: &'static str) -> Self {
        Self { title, start: Instant::now(), rows: Vec::new() }
    }

    /// Runs one part and notes its time.
    pub fn part<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        eprintln!("==> {name}");
        let start = Instant::now();
        let outcome = work();
        self.rows.push((name.to_owned(), start.elapsed(), outcome.is_ok()));
        outcome
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        let width = self.rows.iter().map(|(name, ..)| name.chars().count()).max().unwrap_or(0).max(5);
        eprintln!("\n{}", self.title);
        for (name, time, ok) in &self.rows {
            let verdict = if *ok { "" } else { "  FAILED" };
            eprintln!("  {name:width$}  {:>8}{verdict}", human(*time));
        }
        eprintln!("  {:width$}  {:>8}", "total", human(self.start.elapsed()));
    }
}

/// A time for people: `850 ms`, `12.3 s`, `4 min 05 s`.
pub fn human(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1.0 {
        format!("{} ms", time.as_millis())
    } else if seconds < 60.0 {
        format!("{seconds:.1} s")
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_readable() {
        let shown = [850, 12_340, 245_000].map(|ms| human(Duration::from_millis(ms)));
        assert_eq!(shown, ["850 ms", "12.3 s", "4 min 05 s"]);
    }
}
