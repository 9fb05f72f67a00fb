//! Workload clusters in words, the same ones on the command line and on the console.

use edge_api::agent::{Cluster, FORCE_AFTER_SECONDS};
use edge_api::edge_cluster::{ClusterPhase, ClusterTask, TaskState};
use jiff::{SignedDuration, Timestamp};

use crate::span;

/// One line of a cluster's tree of tasks.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TaskRow<'a> {
    /// Name of the task that this is a part of; none for a task itself.
    pub task: Option<&'a str>,
    /// Name of the task or part.
    pub name: &'a str,
    /// Where it stands.
    pub state: TaskState,
    /// What it waits for, or why it failed; may be empty.
    pub message: &'a str,
    /// When it came into this state.
    pub since: Option<Timestamp>,
}

impl TaskRow<'_> {
    /// The name, indented below the task that it is a part of.
    pub fn indented(&self) -> String {
        format!("{}{}", if self.task.is_some() { "  " } else { "" }, self.name)
    }
}

/// All tasks with their parts, in order.
pub fn rows(tasks: &[ClusterTask]) -> Vec<TaskRow<'_>> {
    let mut rows = Vec::new();
    for ClusterTask { name, state, message, since, parts } in tasks {
        rows.push(TaskRow { task: None, name, state: *state, message, since: *since });
        rows.extend(parts.iter().map(|part| TaskRow {
            task: Some(name),
            name: &part.name,
            state: part.state,
            message: &part.message,
            since: part.since,
        }));
    }
    rows
}

/// The tasks that are at work or have failed now. Their messages name the part.
pub fn current(tasks: &[ClusterTask]) -> Vec<TaskRow<'_>> {
    let is_current = |row: &TaskRow<'_>| matches!(row.state, TaskState::Running | TaskState::Failed);
    rows(tasks).into_iter().filter(|row| row.task.is_none() && is_current(row)).collect()
}

/// One sentence about a cluster: what it waits for, with how much is done; of one that is ready, what it offers.
pub fn summary(cluster: &Cluster) -> String {
    if cluster.ready {
        let version = cluster.version.as_deref().unwrap_or("Kubernetes");
        let nodes = cluster.nodes.as_deref().map(|nodes| format!(", {nodes} nodes")).unwrap_or_default();
        return format!("{version} at {}{nodes}", cluster.endpoint);
    }
    match tally(cluster) {
        Some(tally) => format!("{tally}: {}", cluster.message),
        None => cluster.message.clone(),
    }
}

/// How many tasks are done, for instance `3 of 12 tasks`; none where there are no tasks.
pub fn tally(cluster: &Cluster) -> Option<String> {
    let done = cluster.tasks.iter().filter(|task| task.state == TaskState::Done).count();
    (!cluster.tasks.is_empty()).then(|| format!("{done} of {} tasks", cluster.tasks.len()))
}

/// Time until a deletion may be forced; zero where it may be now.
pub fn until_force(deleting_since: Timestamp, now: Timestamp) -> SignedDuration {
    let due = deleting_since + SignedDuration::from_secs(FORCE_AFTER_SECONDS);
    due.duration_since(now).max(SignedDuration::ZERO)
}

/// What a person should know about forcing the deletion of a cluster; none while it is not being deleted.
pub fn forcing(cluster: &Cluster, now: Timestamp) -> Option<String> {
    let since = cluster.deleting_since?;
    let left = until_force(since, now);
    Some(if left.is_zero() {
        format!("it may be forced now: `edgectl cluster delete {} --force`", cluster.name)
    } else {
        format!("it may be forced in {}", span(now, now + left))
    })
}

/// Whether a cluster was never ready, so that it is aborted and not deleted.
pub fn never_ready(phase: ClusterPhase) -> bool {
    matches!(phase, ClusterPhase::Pending | ClusterPhase::Provisioning)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cluster() -> Cluster {
        serde_json::from_value(serde_json::json!({
            "name": "shop", "phase": "Provisioning", "ready": false, "message": "waits for machine shop-cp-1",
            "nodes": "0/2", "version": null, "endpoint": "192.168.150.40", "since": null,
            "deletingSince": "2026-01-01T00:00:00Z",
            "tasks": [
                {"name": "image", "state": "Done"},
                {"name": "machine shop-cp-1", "state": "Running", "parts": [
                    {"name": "virtual machine", "state": "Done"},
                    {"name": "bootstrap", "state": "Running", "message": "kubeadm runs"},
                ]},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn what_is_done_and_what_is_at_work() {
        let mut cluster = cluster();
        let names: Vec<_> = rows(&cluster.tasks).iter().map(TaskRow::indented).collect();
        assert_eq!(names, ["image", "machine shop-cp-1", "  virtual machine", "  bootstrap"]);
        let now: Vec<_> = current(&cluster.tasks).iter().map(|row| row.name).collect();
        assert_eq!(now, ["machine shop-cp-1"]);
        assert_eq!(summary(&cluster), "1 of 2 tasks: waits for machine shop-cp-1");
        cluster.tasks.clear();
        assert_eq!(summary(&cluster), "waits for machine shop-cp-1");
        (cluster.ready, cluster.nodes, cluster.version) = (true, Some("2/2".to_owned()), Some("v1.36.3".to_owned()));
        assert_eq!(summary(&cluster), "v1.36.3 at 192.168.150.40, 2/2 nodes");
    }

    #[test]
    fn a_deletion_may_be_forced_after_a_while() {
        let mut cluster = cluster();
        let asked = cluster.deleting_since.unwrap();
        let at = |seconds| forcing(&cluster, asked + SignedDuration::from_secs(seconds)).unwrap();
        assert_eq!(at(30), "it may be forced in 14m30s");
        assert_eq!(at(FORCE_AFTER_SECONDS - 1), "it may be forced in 1s");
        assert_eq!(at(FORCE_AFTER_SECONDS), "it may be forced now: `edgectl cluster delete shop --force`");
        cluster.deleting_since = None;
        assert_eq!(forcing(&cluster, asked), None);
    }
}
