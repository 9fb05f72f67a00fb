//! A control plane of one becomes one of three, and heals when it loses a machine; the API server answers on.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use edge_tests::Fault;
use edge_tests::wait::{Seen, eventually};

use crate::appliance::Appliance;
use crate::guest;
use crate::phase;
use crate::requests;
use crate::workload::{self, NAME, PATIENCE};

/// All of it, on a cluster that is ready.
pub async fn play(appliance: &Appliance) -> Result<()> {
    let workload = workload::client(appliance).await?;
    let first = machines(appliance)?;
    phase("three control planes", async {
        let fault = Fault::strikes("a control plane of one becomes one of three");
        let scale = async {
            appliance.edgectl(&["cluster", "scale", NAME, "--control-plane", "3", "--wait"]).await?;
            Ok(())
        };
        let ((), answers) = requests::meanwhile(workload.clone(), scale).await?;
        answers.print();
        workload::nodes_ready(&workload, 3).await?;
        let now = machines(appliance)?;
        anyhow::ensure!(now.len() == 3 && now.is_superset(&first), "{first:?}, then {now:?}");
        fault.survived();
        Ok(())
    })
    .await?;
    phase("a lost control plane is replaced", async {
        let before = machines(appliance)?;
        // The first one: it has the virtual address and etcd's leader, as nothing took them from it.
        let lost = first.first().context("no control plane")?;
        guest::must(lost, "systemctl", &["disable", "--now", "kubelet"]).await?;
        let fault = Fault::strikes("a control plane of three loses a machine");
        let heal = async {
            eventually("another machine in its place", PATIENCE, || async {
                let now = machines(appliance)?;
                anyhow::Ok(Seen::when(now.len() == 3 && !now.contains(lost), now))
            })
            .await?;
            Ok(())
        };
        let ((), answers) = requests::meanwhile(workload.clone(), heal).await?;
        answers.print();
        let now = machines(appliance)?;
        anyhow::ensure!(now.intersection(&before).count() == 2, "{before:?}, then {now:?}");
        workload::nodes_ready(&workload, 3).await?;
        fault.survived();
        Ok(())
    })
    .await
}

/// Domains of the control plane that run.
fn machines(appliance: &Appliance) -> Result<BTreeSet<String>> {
    let worker = appliance.instance.libvirt_name(&format!("{NAME}-general-"));
    Ok(appliance.running(NAME)?.into_iter().filter(|name| !name.starts_with(&worker)).collect())
}
