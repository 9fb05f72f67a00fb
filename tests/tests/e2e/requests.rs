//! A client that asks a cluster's API server all the time, by its virtual address.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};

/// A client gives up on an answer after this.
const TIMEOUT: Duration = Duration::from_secs(5);
/// More often is a load of its own for an emulated API server.
const PAUSE: Duration = Duration::from_secs(1);

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

/// Does the work, and meanwhile reads an object again and again: from etcd, no cache has it.
pub async fn meanwhile<T>(workload: Client, work: impl Future<Output = Result<T>>) -> Result<(T, Answers)> {
    let namespaces = Api::<Namespace>::all(workload);
    let start = Answers { count: 0, longest_outage: Duration::ZERO, last: Instant::now() };
    let answers = Mutex::new(start);
    let ask = async {
        loop {
            if matches!(tokio::time::timeout(TIMEOUT, namespaces.get("default")).await, Ok(Ok(_))) {
                let Ok(mut answers) = answers.lock() else { return };
                answers.note(Instant::now());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    let done = tokio::select! {
        done = work => done?,
        () = ask => anyhow::bail!("nobody asks any more"),
    };
    let mut answers = answers.into_inner()?;
    let count = answers.count;
    // An outage that has not ended counts as well.
    answers.note(Instant::now());
    anyhow::ensure!(count > 0, "the API server never answered");
    Ok((done, Answers { count, ..answers }))
}
