//! Clusters as people read them.

use std::fmt::Write as _;

use edge_api::agent::Cluster;
use edge_api::condition;
use edge_api::edge_cluster::{ClusterPhase, TaskState};
use edge_api::{ConditionStatus, EdgeCluster};
use edge_client::cluster::{forcing, rows};
use jiff::Timestamp;

use super::super::status::since;
use super::super::text::{Cell, Paint, clean, table};

/// A table of clusters.
pub fn list(clusters: &[Cluster], now: Timestamp, paint: Paint) -> String {
    if clusters.is_empty() {
        return "no clusters\n".to_owned();
    }
    let rows = clusters
        .iter()
        .map(|cluster| {
            let ready = if cluster.ready { "yes" } else { "no" };
            vec![
                Cell::from(&cluster.name),
                phase(cluster.phase, paint),
                Cell::painted(ready, if cluster.ready { paint.green(ready) } else { paint.yellow(ready) }),
                Cell::from(cluster.nodes.as_deref().unwrap_or("-")),
                Cell::from(cluster.version.as_deref().unwrap_or("-")),
                Cell::from(&cluster.endpoint),
                Cell::from(since(cluster.since, now)),
                Cell::from(&cluster.message),
            ]
        })
        .collect();
    table(&["CLUSTER", "PHASE", "READY", "NODES", "VERSION", "ENDPOINT", "SINCE", "MESSAGE"], rows, paint)
}

/// One cluster with its tree of tasks.
pub fn detail(object: &EdgeCluster, now: Timestamp, paint: Paint) -> String {
    let (cluster, spec) = (Cluster::from(object), &object.spec);
    let mut out = String::new();
    let mut line = |key: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(out, "{key:<15}{}", clean(value));
        }
    };
    line("name", &cluster.name);
    line("description", spec.description.as_deref().unwrap_or_default());
    line("phase", &format!("{:?}", cluster.phase));
    line("ready", &format!("{}: {}", if cluster.ready { "yes" } else { "no" }, cluster.message));
    line("forcing", &forcing(&cluster, now).unwrap_or_default());
    line("profile", &spec.profile);
    line("version", cluster.version.as_deref().unwrap_or_default());
    line("endpoint", &format!("https://{}:6443", cluster.endpoint));
    line("nodes", cluster.nodes.as_deref().unwrap_or_default());
    line("control plane", &spec.control_plane.size.to_string());
    for pool in &spec.workers {
        line("workers", &format!("{} in pool {}", pool.size, pool.name));
    }
    let balanced = object.status.as_ref().map(|status| status.load_balancer_addresses.join(", "));
    line("load balancer", &balanced.unwrap_or_default());
    for error in errors(object) {
        let _ = writeln!(out, "{}{}", paint.red(&format!("{:<15}", "error")), clean(error));
    }
    if !cluster.tasks.is_empty() {
        let rows = rows(&cluster.tasks)
            .iter()
            .map(|row| {
                vec![
                    Cell::from(row.indented()),
                    state(row.state, paint),
                    Cell::from(since(row.since, now)),
                    Cell::from(row.message),
                ]
            })
            .collect();
        out.push('\n');
        out.push_str(&table(&["TASK", "STATE", "SINCE", "MESSAGE"], rows, paint));
    }
    out
}

/// What makes no sense in the newest spec of a cluster; nothing where it does.
pub fn errors(object: &EdgeCluster) -> Vec<&str> {
    if object.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let Some(status) = object.status.as_ref().filter(|s| s.observed_generation == object.metadata.generation) else {
        return Vec::new();
    };
    let valid = condition::find(&status.conditions, "Valid").filter(|valid| valid.status == ConditionStatus::False);
    valid.map(|valid| valid.message.lines().collect()).unwrap_or_default()
}

fn phase(phase: ClusterPhase, paint: Paint) -> Cell {
    let text = format!("{phase:?}");
    let shown = if phase == ClusterPhase::Running { paint.green(&text) } else { paint.yellow(&text) };
    Cell::painted(&text, shown)
}

fn state(state: TaskState, paint: Paint) -> Cell {
    let text = format!("{state:?}");
    let shown = match state {
        TaskState::Pending => text.clone(),
        TaskState::Running => paint.yellow(&text),
        TaskState::Failed => paint.red(&text),
        TaskState::Done => paint.green(&text),
    };
    Cell::painted(&text, shown)
}
