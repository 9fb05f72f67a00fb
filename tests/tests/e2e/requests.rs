//! A client that asks a cluster's API server all the time, by its virtual address.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

/// A client gives up on an answer after this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More often is a load of its own for an emulated API server.
const PAUSE: Duration = Duration::from_secs(1);
/// An answer must come so soon after the work.
const LAST_ANSWER: Duration = Duration::from_mins(5);

/// What the client got.
#[derive(Clone, Copy, Debug)]
pub struct Answers {
    /// How many answers.
    pub count: u32,
    /// Longest time from one answer to the next.
    pub longest_outage: Duration,
    last: Instant,
}

impl Answers {
    /// For who runs the test.
    pub fn print(&self) {
        println!("    {} answers, longest outage {:.1} s", self.count, self.longest_outage.as_secs_f64());
    }

    fn note(&mut self, now: Instant) {
        self.count += 1;
        self.longest_outage = self.longest_outage.max(now - self.last);
        self.last = now;
    }
}

/// Does the work, and meanwhile reads an object again and again: from etcd, no cache has it. The last answer is to a
/// question after the work: an outage has ended, and work of a second has one too.
pub async fn meanwhile<T>(workload: Client, work: impl Future<Output = Result<T>>) -> Result<(T, Answers)> {
    let namespaces = Api::<Namespace>::all(workload);
    let done_at = OnceLock::new();
    let work = async {
        let done = work.await?;
        done_at.get_or_init(Instant::now);
        Ok(done)
    };
    let ask = async {
        let mut answers = Answers { count: 0, longest_outage: Duration::ZERO, last: Instant::now() };
        loop {
            let done_for = done_at.get().map(Instant::elapsed);
            if matches!(tokio::time::timeout(TIMEOUT, namespaces.get("default")).await, Ok(Ok(_))) {
                answers.note(Instant::now());
                if done_for.is_some() {
                    return Ok(answers);
                }
            }
            anyhow::ensure!(done_for.is_none_or(|since| since < LAST_ANSWER), "the API server answers no more");
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::try_join!(work, ask)
}
