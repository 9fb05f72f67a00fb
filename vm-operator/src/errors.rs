//! Errors for people, and how long to wait after one.

use std::collections::HashMap;
use std::error::Error;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The whole chain of an error in one line: each Display says its own part only (style rule 8).
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Foreign errors often repeat their source.
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    // Conditions hold one line of bounded length.
    let mut text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(1000).collect();
    text.truncate(text.trim_end().len());
    text
}

/// Back-off per object: 5 s, doubling to 5 min, forgotten on success.
#[derive(Debug)]
pub struct Backoff<K> {
    failures: Mutex<HashMap<K, u32>>,
}

impl<K> Default for Backoff<K> {
    fn default() -> Self {
        Self { failures: Mutex::default() }
    }
}

impl<K: Eq + Hash> Backoff<K> {
    /// Counts a failure and says how long to wait.
    pub fn fail(&self, key: K) -> Duration {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key).or_insert(0);
        let wait = delay(*count);
        *count = count.saturating_add(1);
        wait
    }

    /// Forgets the failures of an object.
    pub fn reset(&self, key: &K) {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// 5 s · 2ⁿ, at most 5 min.
pub fn delay(failures: u32) -> Duration {
    Duration::from_secs((5_u64 << failures.min(6)).min(300))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_minutes_and_start_again() {
        let backoff = Backoff::default();
        let waits: Vec<u64> = (0..8).map(|_| backoff.fail("a").as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 80, 160, 300, 300]);
        assert_eq!(backoff.fail("b").as_secs(), 5);
        backoff.reset(&"a");
        assert_eq!(backoff.fail("a").as_secs(), 5);
    }
}
