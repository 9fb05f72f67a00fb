//! The host's clock, as far as it can be believed. A box may start in 1970 because its battery is dead, or run a year
//! ahead until somebody sets it. What is issued for a time must neither come from the past nor begin in the future.
//!
//! So there is a floor, kept on disk: a time that has certainly passed. It rises by how long the agent ran, by a clock
//! that nobody can set, never by what the host's clock says: one that runs ahead would lift it for good.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::durable;
use crate::engine::chain;

/// Nobody had any version before, in seconds since 1970: 2026-01-01.
const RELEASED: i64 = 1_767_225_600;
/// A clock that was set to local time instead of UTC is behind by no more than that.
const TOLERANCE: Duration = Duration::from_hours(24);
/// Pause between two writes of the floor.
const KEEP: Duration = Duration::from_hours(1);

/// The host's clock says a time that has passed already.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("the clock says {says}, but it is later than {floor}")]
pub struct Behind {
    /// What it says.
    pub says: Timestamp,
    /// The floor.
    pub floor: Timestamp,
}

/// See the module.
pub struct Clock {
    path: PathBuf,
    now: fn() -> Timestamp,
    floor: Mutex<Floor>,
}

struct Floor {
    /// A time that had passed ...
    time: Timestamp,
    /// ... when this clock showed that.
    at: Instant,
    /// When it was last written.
    kept: Option<Instant>,
}

#[derive(Deserialize, Serialize)]
struct Kept {
    floor: Timestamp,
}

impl Clock {
    /// A clock with the floor of this file. A damaged one costs the floor, nothing else.
    pub fn open(path: &Path) -> Self {
        Self::with(path, Timestamp::now)
    }

    fn with(path: &Path, now: fn() -> Timestamp) -> Self {
        let released = Timestamp::from_second(RELEASED).unwrap_or_default();
        let kept = durable::read_json::<Kept>(path).unwrap_or_else(|e| {
            warn!("how late it was is lost: {}", chain(&e));
            None
        });
        let time = kept.map_or(released, |kept| kept.floor.max(released));
        Self { path: path.to_owned(), now, floor: Mutex::new(Floor { time, at: Instant::now(), kept: None }) }
    }

    /// A time that has certainly passed.
    pub fn floor(&self) -> Timestamp {
        let floor = self.floor.lock().unwrap_or_else(PoisonError::into_inner);
        floor.time.saturating_add(floor.at.elapsed()).unwrap_or(floor.time)
    }

    /// The time, in UTC.
    ///
    /// # Errors
    /// It is earlier than the floor: the clock is wrong.
    pub fn now(&self) -> Result<Timestamp, Behind> {
        let (says, floor) = ((self.now)(), self.floor());
        if says.saturating_add(TOLERANCE).unwrap_or(says) < floor { Err(Behind { says, floor }) } else { Ok(says) }
    }

    /// Writes the floor, once an hour.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self) -> Result<(), durable::Error> {
        let due = |kept: &Instant| kept.elapsed() >= KEEP;
        if self.floor.lock().unwrap_or_else(PoisonError::into_inner).kept.as_ref().is_none_or(due) {
            durable::write_json(&self.path, &Kept { floor: self.floor() })?;
            self.floor.lock().unwrap_or_else(PoisonError::into_inner).kept = Some(Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A clock that says this, and has seen nothing yet.
    pub(crate) fn saying(folder: &Path, now: fn() -> Timestamp) -> Clock {
        Clock::with(&folder.join("clock.json"), now)
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn a_clock_that_starts_in_1970_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let clock = saying(folder.path(), || Timestamp::UNIX_EPOCH);
        let behind = clock.now().unwrap_err();
        assert_eq!(behind.says, Timestamp::UNIX_EPOCH);
        assert!(
            behind
                .to_string()
                .starts_with("the clock says 1970-01-01T00:00:00Z, but it is later than 2026-01-01T00:00")
        );
    }

    #[test]
    fn a_clock_that_ran_ahead_does_not_lift_the_floor() {
        let folder = tempfile::tempdir().unwrap();
        let ahead = saying(folder.path(), || at("2028-01-01T00:00:00Z"));
        assert!(ahead.now().is_ok(), "it may be true");
        ahead.keep().unwrap();
        let right = saying(folder.path(), || at("2027-01-01T00:00:00Z"));
        assert_eq!(right.now(), Ok(at("2027-01-01T00:00:00Z")));
    }

    #[test]
    fn the_floor_is_what_was_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("clock.json");
        durable::write_json(&path, &Kept { floor: at("2027-05-05T00:00:00Z") }).unwrap();
        assert!(saying(folder.path(), || at("2027-05-03T00:00:00Z")).now().is_err());
        let local_time = saying(folder.path(), || at("2027-05-04T12:00:00Z"));
        assert!(local_time.now().is_ok());
        local_time.keep().unwrap();
        assert!(durable::read_json::<Kept>(&path).unwrap().unwrap().floor >= at("2027-05-05T00:00:00Z"));
        // Damage, or an older time than the version's own, is no floor.
        for content in ["{", r#"{"floor":"1999-01-01T00:00:00Z"}"#] {
            std::fs::write(&path, content).unwrap();
            let clock = saying(folder.path(), Timestamp::now);
            assert!(clock.floor() >= at("2026-01-01T00:00:00Z") && clock.floor() < at("2026-01-01T01:00:00Z"));
        }
    }
}
