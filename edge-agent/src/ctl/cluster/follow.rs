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
use super::super::{NOT_READY, logs, patiently, telling};
use super::show;

/// Pause before an agent or a system cluster that was away is asked again.
const AWAY: Duration = Duration::from_secs(2);

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
    follow(client, name, timeout, async |shown| {
        let Some(object) = object(client, name).await? else {
            return Ok(Verdict::GiveUp(vec![format!("cluster {name} was removed")]));
        };
        if object.metadata.deletion_timestamp.is_some() {
            return Ok(Verdict::GiveUp(vec![format!("cluster {name} is being removed")]));
        }
        let errors = show::errors(&object);
        if !errors.is_empty() {
            return Ok(Verdict::GiveUp(errors.into_iter().map(str::to_owned).collect()));
        }
        // The object may be ahead of the status: what was not shown yet is not what it ends with.
        let ready = shown.is_some_and(|shown| shown.ready) && Cluster::from(&object).ready;
        Ok(if ready && observed(&object) >= generation { Verdict::Done } else { Verdict::Wait })
    })
    .await
    .map(|(code, _)| code)
}

/// The object; none where the system cluster says that there is none. Waits while the agent or that cluster is away.
async fn object(client: &Client, name: &str) -> Result<Option<EdgeCluster>, Error> {
    let answer = async {
        loop {
            match client.cluster(name).await {
                Ok(object) => return Ok(Some(object)),
                Err(edge_client::Error::Refused { status: 404, .. }) => return Ok(None),
                Err(edge_client::Error::Refused { status: 500.., .. }) => {}
                Err(error) if error.may_pass() => {}
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(AWAY).await;
        }
    };
    telling("waiting for the system cluster to answer", answer).await
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
    follow(client, name, timeout, async |_| {
        // Another one of the same name may be there by now.
        let same = object(client, name).await?.is_some_and(|object| object.metadata.uid.as_deref() == uid);
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
        let judged = async {
            let mut status = next(&mut events, client).await?;
            let place = status.clusters.iter().position(|cluster| cluster.name == name);
            if let Some(place) = place {
                let cluster = last.insert(status.clusters.swap_remove(place));
                progress.show(cluster);
            }
            judge(last.as_ref().filter(|_| place.is_some())).await
        };
        match tokio::time::timeout_at(end, judged).await {
            Err(_) => {
                complain(&format!("error: {}", late(name, last.as_ref(), timeout)));
                complain("hint: it goes on by itself; `edgectl cluster get` shows how far it is");
                return Ok((ExitCode::from(NOT_READY), last));
            }
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Verdict::Wait)) => {}
            Ok(Ok(Verdict::Done)) => return Ok((ExitCode::SUCCESS, last)),
            Ok(Ok(Verdict::GiveUp(reasons))) => {
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
