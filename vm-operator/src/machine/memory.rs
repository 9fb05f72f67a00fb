//! What is remembered of machines between two reconciles. It only times things: losing it costs time, never data.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::space::LOOK_AGAIN;

/// What is remembered of one machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// When the guest was first asked to shut down, in the shutdown under way.
    pub shutdown_since: Option<Instant>,
    /// When it was last asked.
    pub shutdown_asked: Option<Instant>,
    /// When it was last started.
    pub started: Option<Instant>,
    /// Starts in a row that did not last.
    pub short_runs: u32,
    /// When it was last resumed.
    pub resumed: Option<Instant>,
    /// Looks for addresses since it was started or its agent came.
    pub looks: u32,
}

/// A run shorter than this counts as a failed start.
const SHORT: Duration = Duration::from_mins(1);

impl Memory {
    /// How long a start must wait: guests that go down at once are started again ever more slowly.
    pub fn start_wait(&self, now: Instant) -> Duration {
        match (self.started, self.short_runs) {
            (Some(started), runs @ 1..) => {
                crate::errors::delay(runs - 1).saturating_sub(now.saturating_duration_since(started))
            }
            _ => Duration::ZERO,
        }
    }

    /// Notes a start.
    pub fn note_start(&mut self, now: Instant) {
        let short = self.started.is_some_and(|before| now.saturating_duration_since(before) < SHORT * 6);
        self.short_runs = if short { self.short_runs.saturating_add(1) } else { 0 };
        self.started = Some(now);
        self.looks = 0;
        self.shutdown_since = None;
        self.shutdown_asked = None;
    }

    /// How long a resume must wait: where space is short in a way that the pool does not show, the guest is paused again
    /// at once.
    pub fn resume_wait(&self, now: Instant) -> Duration {
        self.resumed.map_or(Duration::ZERO, |at| LOOK_AGAIN.saturating_sub(now.saturating_duration_since(at)))
    }

    /// Notes a resume.
    pub fn note_resume(&mut self, now: Instant) {
        self.resumed = Some(now);
    }

    /// Notes that the guest was asked to shut down.
    pub fn note_shutdown(&mut self, now: Instant) {
        self.shutdown_since.get_or_insert(now);
        self.shutdown_asked = Some(now);
        // A shutdown that was asked for is no failed start.
        self.started = None;
        self.short_runs = 0;
    }

    /// Notes that the machine is as asked, so that no shutdown is under way.
    pub fn note_settled(&mut self) {
        self.shutdown_since = None;
        self.shutdown_asked = None;
    }

    /// Until the next look for addresses, which have no event: 2 s, 4 s, … 30 s.
    pub fn next_look(&mut self) -> Duration {
        let wait = Duration::from_secs((2_u64 << self.looks.min(4)).min(30));
        self.looks = self.looks.saturating_add(1);
        wait
    }
}

/// Memories of all machines.
#[derive(Default)]
pub struct Memories(Mutex<HashMap<Uuid, Memory>>);

impl Memories {
    /// Changes the memory of a machine.
    pub fn with<T>(&self, machine: Uuid, change: impl FnOnce(&mut Memory) -> T) -> T {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(machine).or_default())
    }

    /// Forgets a machine.
    pub fn forget(&self, machine: Uuid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_that_go_down_at_once_are_started_ever_more_slowly() {
        let mut memory = Memory::default();
        let mut now = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..5 {
            waits.push(memory.start_wait(now).as_secs());
            now += memory.start_wait(now) + Duration::from_secs(1);
            memory.note_start(now);
        }
        assert_eq!(waits, [0, 0, 5, 10, 20]);
        memory.note_shutdown(now);
        assert_eq!(memory.start_wait(now), Duration::ZERO);
        let later = now + Duration::from_hours(1);
        memory.note_start(later);
        assert_eq!(memory.short_runs, 0);
    }

    #[test]
    fn a_guest_is_resumed_at_most_twice_a_minute() {
        let mut memory = Memory::default();
        let now = Instant::now();
        assert_eq!(memory.resume_wait(now), Duration::ZERO);
        memory.note_resume(now);
        assert_eq!(memory.resume_wait(now + Duration::from_secs(10)), Duration::from_secs(20));
        assert_eq!(memory.resume_wait(now + Duration::from_secs(40)), Duration::ZERO);
    }

    #[test]
    fn looks_grow_to_half_a_minute() {
        let mut memory = Memory::default();
        let waits: Vec<u64> = (0..6).map(|_| memory.next_look().as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 30, 30]);
    }
}
