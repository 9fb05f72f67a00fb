//! A cluster goes from one Kubernetes minor to the next: every machine is replaced, the API server answers on.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use edge_api::condition;
use edge_image::pins::{CURRENT, PREVIOUS};
use edge_tests::Fault;
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client};

use crate::appliance::Appliance;
use crate::phase;
use crate::requests;
use crate::workload::{self, NAME, PATIENCE};

/// The example's cluster is asked for with the minor before.
pub fn start_with_the_previous_minor(appliance: &Appliance) -> Result<()> {
    let version = PREVIOUS.version().trim_start_matches('v');
    appliance.edit_cluster("\n  virtualIP:", &format!("\n  kubernetesVersion: {version}\n  virtualIP:"))
}

/// All of it, on a cluster that is ready.
pub async fn play(appliance: &Appliance) -> Result<()> {
    let workload = workload::client(appliance).await?;
    has_version(&workload, PREVIOUS.version()).await?;
    let before = appliance.running(NAME)?;
    let fault = Fault::strikes("a cluster goes to the next Kubernetes minor");
    phase("the next minor", async {
        let version = CURRENT.version().trim_start_matches('v');
        let upgrade = async {
            appliance.edgectl(&["cluster", "upgrade", NAME, "--version", version, "--wait"]).await?;
            Ok(())
        };
        let ((), answers) = requests::meanwhile(workload.clone(), upgrade).await?;
        answers.print();
        Ok(())
    })
    .await?;
    phase("every part has the next minor", async {
        let after = appliance.running(NAME)?;
        anyhow::ensure!(after.len() == before.len() && after.is_disjoint(&before), "{before:?}, then {after:?}");
        has_version(&workload, CURRENT.version()).await?;
        kube_proxy_is_out(&workload).await?;
        let status = appliance.clusters().await?.get(NAME).await?.status.context("no status")?;
        anyhow::ensure!(condition::is_true(&status.conditions, "Ready"), "{:?}", status.conditions);
        anyhow::ensure!(status.version.as_deref() == Some(CURRENT.version()), "{:?}", status.version);
        fault.survived();
        Ok(())
    })
    .await
}

/// API server and every kubelet.
async fn has_version(workload: &Client, version: &str) -> Result<()> {
    let server = workload.apiserver_version().await?.git_version;
    let nodes = Api::<Node>::all(workload.clone()).list(&ListParams::default()).await?.items;
    let kubelet = |node: &Node| Some(node.status.as_ref()?.node_info.as_ref()?.kubelet_version.clone());
    let kubelets: BTreeSet<_> = nodes.iter().map(kubelet).collect();
    anyhow::ensure!(
        server == version && kubelets == BTreeSet::from([Some(version.to_owned())]),
        "API server {server}, kubelets {kubelets:?}, expected {version}"
    );
    Ok(())
}

/// Its version is the cluster's, not the node's, so it is the last part to follow.
async fn kube_proxy_is_out(workload: &Client) -> Result<()> {
    let sets = Api::<DaemonSet>::namespaced(workload.clone(), "kube-system");
    eventually("kube-proxy of the next minor on every node", PATIENCE, || async {
        let set = sets.get("kube-proxy").await?;
        let image = set.spec.and_then(|spec| spec.template.spec?.containers.first()?.image.clone());
        let status = set.status.unwrap_or_default();
        let out = image.as_deref().is_some_and(|image| image.ends_with(CURRENT.version()))
            && status.number_ready == status.desired_number_scheduled
            && status.updated_number_scheduled == Some(status.desired_number_scheduled);
        Ok::<_, kube::Error>(Seen::when(out, (image, status)))
    })
    .await?;
    Ok(())
}
