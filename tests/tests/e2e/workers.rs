//! The workers of a cluster become more and fewer, and are replaced in both orders and when one is lost.

use std::collections::BTreeSet;
use std::sync::Mutex;

use anyhow::{Context, Result};
use edge_api::condition;
use edge_api::edge_cluster::{ClusterPhase, Rollout};
use edge_tests::Fault;
use edge_tests::wait::{Seen, eventually};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use crate::appliance::Appliance;
use crate::guest;
use crate::phase;
use crate::workload::{NAME, PATIENCE};

/// All of it, on a cluster that is ready.
pub async fn play(appliance: &Appliance) -> Result<()> {
    for size in [1, 2, 1] {
        phase(&format!("workers: {size}"), async {
            let pool = format!("general={size}");
            appliance.edgectl(&["cluster", "scale", NAME, "--pool", &pool, "--wait"]).await?;
            let workers = workers(appliance)?;
            anyhow::ensure!(workers.len() == size, "{workers:?}");
            Ok(())
        })
        .await?;
    }
    phase("a change of hardware, Expand First", async {
        let seen = roll_out(appliance, Rollout::ExpandFirst, 2112).await?;
        anyhow::ensure!(seen == BTreeSet::from([1, 2]), "so many workers ran: {seen:?}");
        Ok(())
    })
    .await?;
    phase("a change of hardware, Contract First", async {
        let seen = roll_out(appliance, Rollout::ContractFirst, 2048).await?;
        anyhow::ensure!(seen == BTreeSet::from([0, 1]), "so many workers ran: {seen:?}");
        Ok(())
    })
    .await?;
    phase("a worker that is lost is replaced", async {
        let before = workers(appliance)?;
        let lost = before.first().context("no worker")?;
        // Its domain would only be started again: what is lost here is the node.
        guest::must(lost, "systemctl", &["disable", "--now", "kubelet"]).await?;
        let fault = Fault::strikes("a worker of a workload cluster is lost");
        settled(appliance, &before, || Ok(())).await?;
        fault.survived();
        Ok(())
    })
    .await
}

/// Domains of the workers that run.
fn workers(appliance: &Appliance) -> Result<BTreeSet<String>> {
    appliance.running(&format!("{NAME}-general-"))
}

/// Gives the workers other memory, and waits until all are new. Returns how many ran meanwhile.
async fn roll_out(appliance: &Appliance, rollout: Rollout, memory: u64) -> Result<BTreeSet<usize>> {
    let (before, clusters) = (workers(appliance)?, appliance.clusters().await?);
    let mut pools = clusters.get(NAME).await?.spec.workers;
    for pool in &mut pools {
        pool.rollout = rollout;
        pool.hardware.memory_mib = memory;
    }
    let patch = json!({ "spec": { "workers": pools } });
    clusters.patch(NAME, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let seen = Mutex::new(BTreeSet::new());
    settled(appliance, &before, || {
        let count = workers(appliance)?.len();
        seen.lock().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(count);
        Ok(())
    })
    .await?;
    Ok(seen.into_inner()?)
}

/// Waits until none of these machines is there and the cluster is ready again; `look` is called all the time.
async fn settled(appliance: &Appliance, before: &BTreeSet<String>, look: impl Fn() -> Result<()>) -> Result<()> {
    let clusters = appliance.clusters().await?;
    eventually("other machines, and a cluster that is ready", PATIENCE, || async {
        look()?;
        let now = workers(appliance)?;
        if now.is_empty() || !now.is_disjoint(before) {
            return anyhow::Ok(Seen::NotYet(format!("{now:?}")));
        }
        let cluster = clusters.get(NAME).await?;
        let status = cluster.status.unwrap_or_default();
        let ready = status.observed_generation == cluster.metadata.generation
            && status.phase == ClusterPhase::Running
            && condition::is_true(&status.conditions, "Ready");
        Ok(Seen::when(ready, status))
    })
    .await?;
    Ok(())
}
