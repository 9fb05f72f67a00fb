//! Follows the agent on its socket: one line per step with its time, until the appliance is ready or cannot become so
//! without somebody.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use edge_api::agent::{Cluster, Phase, SiteFileState, Status, Step, StepState};
use edge_api::edge_cluster::{ClusterPhase, TaskState};
use edge_client::{Client, Event};

use crate::table::human;

/// The agent looks at a change at once: a Ready that lasts this long is about it.
const SETTLE: Duration = Duration::from_secs(5);
/// A cluster that makes sense does not stay pending for this long.
const REFUSED: Duration = Duration::from_mins(1);
/// How often time itself is looked at.
const TICK: Duration = Duration::from_millis(500);

/// Limits of waiting.
#[derive(Clone, Copy)]
pub struct Limits {
    /// For the agent to answer on its socket.
    pub answer: Duration,
    /// For everything.
    pub ready: Duration,
    /// Attempts of one step before it is given up here; the agent goes on.
    pub attempts: u32,
}

impl Limits {
    /// For workload clusters; an emulated host needs a quarter of an hour for a small one.
    pub fn clusters() -> Self {
        Self { ready: Duration::from_hours(1), ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let minute = Duration::from_mins(1);
        Self { answer: minute, ready: 40 * minute, attempts: 6 }
    }
}

/// What a status means for somebody who waits for Ready.
#[derive(Debug, PartialEq)]
enum Verdict {
    Wait,
    Ready,
    /// Why, and what to do.
    GiveUp(String),
}

/// Waits until the appliance is ready. `alive` tells whether the agent still runs. `moving`: something was changed just
/// now, so a Ready from before it does not count at once.
///
/// # Errors
/// A step that failed, with its reason and what to do; a site file that is refused; an agent that ended; time.
pub fn until_ready(socket: &Path, limits: Limits, moving: bool, alive: impl Fn() -> bool) -> Result<Status> {
    follow(socket, limits, moving, &[], alive)
}

/// Waits until workload clusters are ready; prints their tasks.
///
/// # Errors
/// A cluster that is refused; an agent that ended; time, with what is waited for.
pub fn until_clusters_are_ready(
    socket: &Path,
    limits: Limits,
    clusters: &[String],
    alive: impl Fn() -> bool,
) -> Result<Status> {
    follow(socket, limits, false, clusters, alive)
}

fn follow(
    socket: &Path,
    limits: Limits,
    moving: bool,
    clusters: &[String],
    alive: impl Fn() -> bool,
) -> Result<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let mut wait = Wait {
        limits,
        start,
        printer: Printer { start, shown: BTreeMap::new() },
        last: None,
        settle: moving.then_some(SETTLE),
        ready_since: None,
        clusters,
    };
    runtime.block_on(async {
        let client = Client::new(socket);
        let mut answered = start;
        loop {
            match connection(&client, &mut wait, &mut answered).await {
                Ok(Some(outcome)) => return outcome,
                _ if !alive() => return Err(anyhow!("edge-agent ended")),
                Err(error) if answered.elapsed() > limits.answer => return Err(error.into()),
                Ok(None) | Err(_) => tokio::time::sleep(TICK).await,
            }
        }
    })
}

/// Judges every status of one connection, and the last one again at every tick; none where the connection ended.
async fn connection(
    client: &Client,
    wait: &mut Wait<'_>,
    answered: &mut Instant,
) -> Result<Option<Result<Status>>, edge_client::Error> {
    let mut events = client.events().await?;
    loop {
        let status = match tokio::time::timeout(TICK, events.next()).await {
            Err(_) => None,
            Ok(event) => match event? {
                Some(Event::Status(status)) => Some(*status),
                Some(Event::Log(_)) => None,
                None => return Ok(None),
            },
        };
        *answered = Instant::now();
        if let Some(outcome) = wait.judge(status) {
            return Ok(Some(outcome));
        }
    }
}

struct Wait<'w> {
    limits: Limits,
    start: Instant,
    printer: Printer,
    last: Option<Status>,
    /// How long a Ready must last.
    settle: Option<Duration>,
    ready_since: Option<Instant>,
    /// Clusters to wait for; none where the appliance itself is meant.
    clusters: &'w [String],
}

impl Wait<'_> {
    fn judge(&mut self, status: Option<Status>) -> Option<Result<Status>> {
        if let Some(status) = status {
            if self.clusters.is_empty() {
                self.printer.show(&status);
            } else {
                self.printer.show_clusters(&status, self.clusters);
            }
            self.last = Some(status);
        }
        let status = self.last.as_ref()?;
        let verdict = if self.clusters.is_empty() {
            verdict(status, self.start.elapsed(), self.limits)
        } else {
            clusters_verdict(status, self.start.elapsed(), self.clusters)
        };
        match verdict {
            Verdict::Ready => {
                let since = *self.ready_since.get_or_insert_with(Instant::now);
                let settled = self.settle.is_none_or(|settle| since.elapsed() >= settle);
                settled.then(|| Ok(status.clone()))
            }
            Verdict::GiveUp(why) => Some(Err(anyhow!(why))),
            Verdict::Wait => {
                (self.ready_since, self.settle) = (None, None);
                (self.start.elapsed() > self.limits.ready).then(|| Err(late(status, self.limits, self.clusters)))
            }
        }
    }
}

fn verdict(status: &Status, waited: Duration, limits: Limits) -> Verdict {
    use std::fmt::Write as _;
    let settled = waited > Duration::from_secs(10);
    match status.site_file.state {
        SiteFileState::Invalid => {
            let mut text = format!("{} is refused:", status.site_file.path);
            for error in &status.site_file.errors {
                let place = format!("{}:{}", error.line, error.column);
                let (field, found, expected) = (&error.field, &error.found, &error.expected);
                let _ = write!(text, "\n  {place}: {field}: found {found}, expected {expected}");
                if let Some(hint) = &error.hint {
                    let _ = write!(text, " ({hint})");
                }
            }
            return Verdict::GiveUp(text);
        }
        SiteFileState::Absent if settled => {
            return Verdict::GiveUp(format!("edge-agent sees no {}", status.site_file.path));
        }
        SiteFileState::Absent | SiteFileState::Applied => {}
    }
    // What is wrong with the host itself does not pass by waiting; anything else may.
    let hopeless = |step: &&Step| {
        step.state == StepState::Failed && (step.attempts >= limits.attempts || step.name == "preflight")
    };
    if let Some(step) = status.steps.iter().find(hopeless) {
        let hint = step.hint.as_ref().map(|hint| format!("\n  what to do: {hint}")).unwrap_or_default();
        return Verdict::GiveUp(format!("step {} failed: {}{hint}", step.name, step.message));
    }
    if status.phase == Phase::Ready { Verdict::Ready } else { Verdict::Wait }
}

fn clusters_verdict(status: &Status, waited: Duration, names: &[String]) -> Verdict {
    let mut verdict = Verdict::Ready;
    for name in names {
        match status.clusters.iter().find(|cluster| cluster.name == *name) {
            Some(cluster) if cluster.ready => {}
            Some(Cluster { phase: ClusterPhase::Pending, message, .. }) if waited > REFUSED => {
                return Verdict::GiveUp(format!("cluster {name} is not made: {message}"));
            }
            _ => verdict = Verdict::Wait,
        }
    }
    verdict
}

fn late(status: &Status, limits: Limits, clusters: &[String]) -> anyhow::Error {
    let waiting = |cluster: &&Cluster| !cluster.ready && clusters.contains(&cluster.name);
    if let Some(cluster) = status.clusters.iter().find(waiting) {
        return anyhow!("cluster {} is not ready after {}: {}", cluster.name, human(limits.ready), cluster.message);
    }
    let step = status.steps.iter().find(|step| step.state != StepState::Ready);
    let what = step.map_or_else(
        || status.message.clone(),
        |step| {
            let hint = step.hint.as_ref().map(|hint| format!("\n  what to do: {hint}")).unwrap_or_default();
            format!("step {}: {}{hint}", step.name, step.message)
        },
    );
    anyhow!("not ready after {}: {what}", human(limits.ready))
}

/// Prints what has changed.
struct Printer {
    start: Instant,
    shown: BTreeMap<String, String>,
}

impl Printer {
    fn show(&mut self, status: &Status) {
        for step in &status.steps {
            match step.state {
                StepState::Ready => {
                    let time = step.started.zip(step.finished).map(|(from, to)| took(to.duration_since(from)));
                    let time = time.map(|time| format!(" in {time}")).unwrap_or_default();
                    self.line(&step.name, &format!("{}: ready{time}: {}", step.name, step.message));
                }
                StepState::Failed => {
                    let hint = step.hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
                    let text = format!("{}: failed, attempt {}: {}{hint}", step.name, step.attempts, step.message);
                    self.line(&step.name, &text);
                }
                StepState::Running => self.line(&step.name, &format!("{}: started", step.name)),
                StepState::Waiting => self.line(&step.name, &format!("{}: waits: {}", step.name, step.message)),
                StepState::Pending => {}
            }
        }
        for layer in &status.applications {
            if matches!(layer.state, StepState::Ready | StepState::Failed) {
                let verdict = if layer.state == StepState::Ready { "ready".to_owned() } else { layer.message.clone() };
                self.line(
                    &format!("layer/{}", layer.name),
                    &format!("  layer {} ({}): {verdict}", layer.name, layer.kind),
                );
            }
        }
        for machine in &status.machines {
            let addresses = machine.addresses.join(", ");
            let text = format!("  machine {}: {} {addresses}", machine.name, machine.phase);
            self.line(&format!("machine/{}", machine.name), text.trim_end());
        }
    }

    fn show_clusters(&mut self, status: &Status, names: &[String]) {
        for cluster in status.clusters.iter().filter(|cluster| names.contains(&cluster.name)) {
            let name = &cluster.name;
            for task in &cluster.tasks {
                self.task(&format!("{name}/{}", task.name), &task.name, task.state, &task.message);
                for part in &task.parts {
                    let key = format!("{name}/{}/{}", task.name, part.name);
                    self.task(&key, &format!("  {}", part.name), part.state, &part.message);
                }
            }
            let verdict = if cluster.ready { "ready" } else { &cluster.message };
            self.line(name, &format!("cluster {name} ({:?}): {verdict}", cluster.phase));
        }
    }

    /// A task that is waited for tells more and more; one line for each state is enough here.
    fn task(&mut self, key: &str, name: &str, state: TaskState, message: &str) {
        match state {
            TaskState::Pending => {}
            TaskState::Running => self.line(key, &format!("  {name}: started")),
            TaskState::Done => self.line(key, &format!("  {name}: done")),
            TaskState::Failed => self.line(key, &format!("  {name}: failed: {message}")),
        }
    }

    fn line(&mut self, key: &str, text: &str) {
        if self.shown.get(key).is_none_or(|shown| shown != text) {
            println!("[{:>10}] {text}", human(self.start.elapsed()));
            self.shown.insert(key.to_owned(), text.to_owned());
        }
    }
}

fn took(time: jiff::SignedDuration) -> String {
    human(time.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use edge_api::agent::SiteFile;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    fn status(phase: Phase, steps: Vec<Step>) -> Status {
        Status {
            version: "0".into(),
            instance: "edge".into(),
            device_id: None,
            phase,
            message: "m".into(),
            site_file: SiteFile {
                path: "/x".into(),
                state: SiteFileState::Applied,
                errors: vec![],
                needs_reinstall: vec![],
            },
            accelerator: None,
            steps,
            applications: vec![],
            machines: vec![],
            clusters: Vec::new(),
            upgrade: None,
        }
    }

    fn failed(name: &str, attempts: u32) -> Step {
        Step {
            name: name.into(),
            title: name.into(),
            state: StepState::Failed,
            message: "port 10443 is taken".into(),
            hint: Some("free it".into()),
            progress: None,
            started: None,
            finished: None,
            attempts,
        }
    }

    #[test]
    fn a_failure_is_final_when_waiting_cannot_help() {
        let judge = |step| verdict(&status(Phase::Failing, vec![step]), Duration::ZERO, Limits::default());
        assert_eq!(judge(failed("registry", 1)), Verdict::Wait);
        for step in [failed("preflight", 1), failed("registry", 6)] {
            let Verdict::GiveUp(why) = judge(step) else { panic!("goes on") };
            assert!(why.contains("port 10443 is taken") && why.contains("free it"), "{why}");
        }
    }

    #[test]
    fn a_refused_site_file_shows_every_error() {
        let mut status = status(Phase::Ready, vec![]);
        status.site_file.state = SiteFileState::Invalid;
        status.site_file.errors = vec![edge_api::agent::ValidationError {
            line: 3,
            column: 7,
            field: "router.lan_ip".into(),
            found: "x".into(),
            expected: "an address".into(),
            hint: None,
        }];
        let Verdict::GiveUp(why) = verdict(&status, Duration::ZERO, Limits::default()) else { panic!("goes on") };
        assert!(why.contains("3:7: router.lan_ip: found x, expected an address"), "{why}");
    }

    #[test]
    fn events_are_followed_over_a_lost_connection() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = std::thread::spawn(move || {
            for phase in [Phase::Installing, Phase::Ready] {
                let (mut connection, _) = listener.accept().unwrap();
                assert!(connection.read(&mut [0; 4096]).unwrap() > 0);
                let json = serde_json::to_string(&status(phase, vec![])).unwrap();
                let log = r#"{"time": "2026-01-01T00:00:00Z", "level": "info", "step": null, "message": "m"}"#;
                let log = format!("event: log\ndata: {log}\n\n");
                write!(connection, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{log}event: status\ndata: {json}\n\n")
                    .unwrap();
            }
        });
        let ready = until_ready(&socket, Limits::default(), false, || true).unwrap();
        assert_eq!(ready.phase, Phase::Ready);
        server.join().unwrap();
    }

    #[test]
    fn an_agent_that_ended_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let error = until_ready(&dir.path().join("none"), Limits::default(), false, || false).unwrap_err();
        assert!(error.to_string().contains("edge-agent ended"), "{error}");
    }
}
