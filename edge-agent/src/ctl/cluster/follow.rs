//! Waits for a cluster: a line on standard error for every task that begins, fails or is done.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use edge_api::EdgeCluster;
use edge_api::agent::{Cluster, Status};
use edge_api::edge_cluster::TaskState;
use edge_client::cluster::{forcing, rows, summary};
use edge_client::{Client, Event, Events};
use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::super::error::Error;
use super::super::text::complain;
use super::super::{NOT_READY, logs, patiently};
use super::show;

/// What a cluster, as it is now, means for somebody who waits for it.
enum Verdict {
    Wait,
    Done,
    /// Somebody has to do something first.
    GiveUp(Vec<String>),
}

/// Until a cluster is ready with all that its spec of this generation, or a later one, asks for.
pub async fn until_running(
    client: &Client,
    name: &str,
    generation: Option<i64>,
    timeout: SignedDuration,
) -> Result<ExitCode, Error> {
    let mut seen = false;
    follow(client, name, timeout, async |cluster| {
        let Some(cluster) = cluster else {
            // Not followed yet, or gone before it was ready.
            return Ok(if seen { Verdict::GiveUp(vec![format!("cluster {name} was removed")]) } else { Verdict::Wait });
        };
        seen = true;
        if cluster.deleting_since.is_some() {
            return Ok(Verdict::GiveUp(vec![format!("cluster {name} is being removed")]));
        }
        let object = client.cluster(name).await?;
        let errors = show::errors(&object);
        if !errors.is_empty() {
            return Ok(Verdict::GiveUp(errors.into_iter().map(str::to_owned).collect()));
        }
        // The object may be ahead of the status: what was not shown yet is not what it ends with.
        let ready = cluster.ready && Cluster::from(&object).ready;
        Ok(if ready && observed(&object) >= generation { Verdict::Done } else { Verdict::Wait })
    })
    .await
    .map(|(code, _)| code)
}

fn observed(object: &EdgeCluster) -> Option<i64> {
    object.status.as_ref().and_then(|status| status.observed_generation)
}

/// Until a cluster is not there any more; also what was last known of it.
pub async fn until_gone(
    client: &Client,
    name: &str,
    uid: Option<&str>,
    timeout: SignedDuration,
) -> Result<(ExitCode, Option<Cluster>), Error> {
    follow(client, name, timeout, async |cluster| {
        if cluster.is_none() {
            return Ok(Verdict::Done);
        }
        // Another one of the same name may be there by now.
        let same = match client.cluster(name).await {
            Ok(object) => object.metadata.uid.as_deref() == uid,
            Err(edge_client::Error::Refused { status: 404, .. }) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(if same { Verdict::Wait } else { Verdict::Done })
    })
    .await
}

/// Judges every status until there is a verdict, or the time is over.
async fn follow(
    client: &Client,
    name: &str,
    timeout: SignedDuration,
    mut judge: impl AsyncFnMut(Option<&Cluster>) -> Result<Verdict, Error>,
) -> Result<(ExitCode, Option<Cluster>), Error> {
    let end = Instant::now() + Duration::try_from(timeout).unwrap_or_default();
    let mut events = patiently(client.events()).await?;
    let mut progress = Progress::default();
    let mut last = None;
    loop {
        let Ok(event) = tokio::time::timeout_at(end, next(&mut events, client)).await else {
            complain(&format!("error: {}", late(name, last.as_ref(), timeout)));
            complain("hint: it goes on by itself; `edgectl cluster get` shows how far it is");
            return Ok((ExitCode::from(NOT_READY), last));
        };
        let mut status = event?;
        let place = status.clusters.iter().position(|cluster| cluster.name == name);
        let cluster = place.map(|place| status.clusters.swap_remove(place));
        if let Some(cluster) = &cluster {
            progress.show(cluster);
        }
        match judge(cluster.as_ref()).await? {
            Verdict::Wait => last = cluster.or(last),
            Verdict::Done => return Ok((ExitCode::SUCCESS, last)),
            Verdict::GiveUp(reasons) => {
                for reason in reasons {
                    complain(&format!("error: {reason}"));
                }
                return Ok((ExitCode::FAILURE, last));
            }
        }
    }
}

/// The next status, also of an agent that was restarted meanwhile.
async fn next(events: &mut Events, client: &Client) -> Result<Status, Error> {
    loop {
        match logs::next(events).await? {
            Some(Event::Status(status)) => return Ok(*status),
            Some(Event::Log(_)) => {}
            None => *events = logs::reconnect(client).await?,
        }
    }
}

fn late(name: &str, last: Option<&Cluster>, timeout: SignedDuration) -> String {
    let waited = format!("after {timeout:#} cluster {name}");
    let Some(cluster) = last else { return format!("{waited} has not been seen") };
    let force = forcing(cluster, Timestamp::now()).map(|force| format!("; {force}")).unwrap_or_default();
    format!("{waited} is still {:?}: {}{force}", cluster.phase, summary(cluster))
}

/// What was said so far, by task and part.
#[derive(Default)]
struct Progress {
    shown: BTreeMap<(Option<String>, String), (TaskState, String)>,
    phase: Option<String>,
}

impl Progress {
    fn show(&mut self, cluster: &Cluster) {
        let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
        for line in self.lines(cluster) {
            complain(&format!("{time}  {line}"));
        }
    }

    /// What is new. Messages of what runs follow its progress: a line for each would be noise.
    fn lines(&mut self, cluster: &Cluster) -> Vec<String> {
        let mut lines = Vec::new();
        let phase = format!("{:?}", cluster.phase);
        if self.phase.as_ref() != Some(&phase) {
            let message = if cluster.ready { String::new() } else { format!(": {}", cluster.message) };
            lines.push(format!("cluster {} {phase}{message}", cluster.name));
            self.phase = Some(phase);
        }
        for row in rows(&cluster.tasks) {
            let key = (row.task.map(str::to_owned), row.name.to_owned());
            let failed = row.state == TaskState::Failed;
            let now = (row.state, if failed { row.message.to_owned() } else { String::new() });
            let first = !self.shown.contains_key(&key);
            if self.shown.insert(key, now.clone()).as_ref() == Some(&now) || (first && row.state == TaskState::Pending)
            {
                continue;
            }
            let message = if row.message.is_empty() { String::new() } else { format!(": {}", row.message) };
            lines.push(format!("  {:<36} {:?}{message}", row.indented(), row.state));
        }
        lines
    }
}
