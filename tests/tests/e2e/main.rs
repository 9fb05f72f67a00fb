//! Everything end to end, on an instance of its own, with the commands that people use.
//!
//! Needs a prepared host: `cargo xtask test` runs it. Nothing of it may stay behind, whether it passes or fails; set
//! `PCG_EDGE_KEEP` to look at what a failure left, and remove it with `cargo xtask down --instance NAME`.

mod abort;
mod appliance;
mod appliance_upgrade;
mod backup;
mod bad_input;
mod control_planes;
mod faults;
mod floor;
mod guest;
mod lean;
mod network;
mod preflight;
mod registry;
mod requests;
mod restart;
mod secrets;
mod site;
mod steady;
mod upgrade;
mod workers;
mod workload;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edge_api::agent::{Phase, StepState};
use edge_tests::Inventory;
use edge_tests::inventory::virsh;

use appliance::Appliance;

/// Prints a phase and the time it took.
async fn phase<T>(name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    println!("--- {name}");
    let start = Instant::now();
    let outcome = work.await.with_context(|| name.to_owned());
    let verdict = if outcome.is_ok() { "done" } else { "FAILED" };
    println!("--- {name}: {verdict} after {:.1} s", start.elapsed().as_secs_f64());
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_is_named_before_anything_is_made() -> Result<()> {
    preflight::a_taken_port_is_named().await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_nothing_to_ready_and_back() -> Result<()> {
    let appliance = Appliance::new("e2e", 151, 201)?;
    secrets::plant(&appliance)?;
    and_back(&appliance, Box::pin(scenario(&appliance))).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workload_cluster_from_nothing_and_back() -> Result<()> {
    let appliance = Appliance::new("e2ewl", 152, 202)?;
    let scenario = async {
        appliance.site.without_machines()?;
        up_without_the_cluster(&appliance).await?;
        workload_cluster(&appliance).await?;
        // On the same appliance: an installation less to wait for.
        backup::play(&appliance).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a system cluster of one Kubernetes minor, then of the next"]
async fn an_appliance_goes_to_the_next_minor_or_stays() -> Result<()> {
    let appliance = Appliance { minors: Some("--only-previous-minor"), ..Appliance::new("e2ebn", 160, 210)? };
    let scenario = async {
        up_without_the_cluster(&appliance).await?;
        let left = Box::pin(appliance_upgrade::is_left(&appliance));
        phase("a bundle of the next minor that does not become ready", left).await?;
        phase("the next minor", appliance_upgrade::next_minor(&appliance)).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: makes most of a cluster, five times"]
async fn a_cluster_is_aborted_and_leaves_nothing() -> Result<()> {
    let appliance = Appliance::new("e2eab", 154, 204)?;
    let scenario = async {
        up_without_the_cluster(&appliance).await?;
        abort::at_five_moments(&appliance).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a control plane of one Kubernetes minor, then of the next"]
async fn a_cluster_is_upgraded() -> Result<()> {
    let appliance = Appliance { minors: Some("--previous-minor"), ..Appliance::new("e2eup", 155, 205)? };
    let scenario = async {
        appliance.site.without_machines()?;
        upgrade::start_with_the_previous_minor(&appliance)?;
        lean_cluster(&appliance).await?;
        Box::pin(upgrade::play(&appliance)).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: a worker is made five times"]
async fn workers_are_scaled_and_replaced() -> Result<()> {
    let appliance = Appliance::new("e2ewk", 156, 206)?;
    let scenario = async {
        appliance.site.without_machines()?;
        lean_cluster(&appliance).await?;
        Box::pin(workers::play(&appliance)).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: four machines of a control plane"]
async fn a_control_plane_grows_and_heals() -> Result<()> {
    let appliance = Appliance::new("e2ecp", 157, 207)?;
    let scenario = async {
        appliance.site.without_machines()?;
        lean_cluster(&appliance).await?;
        Box::pin(control_planes::play(&appliance)).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: guests start anew several times"]
async fn an_appliance_survives() -> Result<()> {
    let appliance = Appliance::new("e2efl", 158, 208)?;
    let scenario = async {
        lean_cluster(&appliance).await?;
        Box::pin(faults::are_survived(&appliance)).await?;
        phase("reset", faults::reset(&appliance)).await
    };
    and_back(&appliance, Box::pin(scenario)).await
}

/// Plays a scenario on an appliance, then takes it down: the host is as it was before.
async fn and_back(appliance: &Appliance, scenario: impl Future<Output = Result<()>>) -> Result<()> {
    // The first one that asks is heard.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let baseline = phase("baseline", async { baseline() }).await?;
    let outcome = scenario.await;
    if outcome.is_err() {
        appliance.print_state();
    }
    if outcome.is_err() && std::env::var_os("PCG_EDGE_KEEP").is_some() {
        return outcome;
    }
    let down = phase("down leaves the host as it was", async {
        appliance.down().await?;
        anyhow::ensure!(!appliance.root.exists(), "{} is still there", appliance.root.display());
        let difference = baseline.difference(&Inventory::take()?);
        anyhow::ensure!(difference.is_empty(), "the host differs:\n{difference}");
        Ok(())
    })
    .await;
    outcome.and(down)
}

/// The host before, with its services running.
fn baseline() -> Result<Inventory> {
    // libvirt sets up firewall chains of its own with its first network, whoever's it is, and keeps them.
    let xml = std::env::temp_dir().join("edge-tests-primer.xml");
    std::fs::write(
        &xml,
        "<network><name>edge-tests-primer</name><forward mode='nat'/><bridge name='edgeprimer'/>\
         <ip address='192.168.153.1' prefix='24'/></network>",
    )?;
    virsh(&["net-create", &xml.to_string_lossy()])?;
    virsh(&["net-destroy", "edge-tests-primer"])?;
    std::fs::remove_file(xml)?;
    Inventory::take()
}

async fn scenario(appliance: &Appliance) -> Result<()> {
    phase("up, with the agent and the operator killed on the way", restart::up_through_kills(appliance)).await?;
    phase("every step is ready", async { every_step_is_ready(appliance).await }).await?;
    phase("the registry asks for a login and serves the bundle", registry::check(appliance)).await?;
    phase("a pod runs from the registry", registry::a_pod_was_pulled(appliance)).await?;
    phase("the client has an address from the router", network::lease_in_range(appliance, 100..=150)).await?;
    phase("the client reaches the WAN through the router", network::through_the_router(appliance)).await?;
    phase("up again writes nothing", steady::up_again(appliance)).await?;
    phase("bad machines have a reason and no domain", bad_input::check(appliance)).await?;
    phase("libvirtd ends while a machine is made", faults::libvirtd_ends(appliance)).await?;
    phase("another bundle, while machines run on", appliance_upgrade::is_taken_on(appliance)).await?;
    phase("an edited range is followed", network::range_is_followed(appliance)).await?;
    phase("no lease without the router", network::no_lease_without_the_router(appliance)).await?;
    phase("secrets stay secret", secrets::stay_secret(appliance)).await
}

async fn workload_cluster(appliance: &Appliance) -> Result<()> {
    let before = Inventory::libvirt()?;
    let ours = phase("a workload cluster", workload::up(appliance, 2)).await?;
    phase("every task of the cluster is done", workload::every_task_is_done(appliance)).await?;
    phase("a pod answers, with a volume of its own", Box::pin(workload::a_pod_answers(appliance))).await?;
    phase("every image is the bundle's", workload::images_are_the_bundles(appliance)).await?;
    phase("secrets stay secret", secrets::stay_secret(appliance)).await?;
    let delete = ["delete", workload::NAME, "--yes", "--wait"];
    phase("the cluster is deleted", workload::gone_without_a_trace(appliance, &delete, &before)).await?;
    let bare = phase("a bare script makes the same", floor::measure(appliance)).await?;
    for (stage, ours, bare) in [
        ("first QEMU process", ours.first_process, bare.first_process),
        ("API server answers", ours.api_server, bare.api_server),
        ("all nodes ready", ours.nodes, bare.nodes),
    ] {
        let (ours, bare) = (ours.as_secs_f64(), bare.as_secs_f64());
        println!("    {stage:20} EdgeCluster {ours:6.1} s, bare script {bare:6.1} s, ratio {:.2}", ours / bare);
    }
    Ok(())
}

async fn up_without_the_cluster(appliance: &Appliance) -> Result<()> {
    phase("up, without the cluster", async {
        let status = appliance.up()?.status().await?;
        anyhow::ensure!(status.success(), "up: {status}");
        Ok(())
    })
    .await
}

/// An appliance with a cluster of one control plane, as small as can be.
async fn lean_cluster(appliance: &Appliance) -> Result<()> {
    lean::ask_for_it(appliance)?;
    up_without_the_cluster(appliance).await?;
    lean::make_its_profile(appliance).await?;
    phase("a lean workload cluster", workload::up(appliance, 1)).await?;
    Ok(())
}

async fn every_step_is_ready(appliance: &Appliance) -> Result<()> {
    let status = appliance.status().await?;
    anyhow::ensure!(status.phase == Phase::Ready, "{status:?}");
    let names: Vec<_> = status.steps.iter().map(|step| step.name.as_str()).collect();
    anyhow::ensure!(
        names
            == ["preflight", "bundle", "system-cluster", "registry", "operator", "cluster-api", "system-applications"],
        "{names:?}"
    );
    for step in &status.steps {
        anyhow::ensure!(step.state == StepState::Ready, "{step:?}");
        let (started, finished) = step.started.zip(step.finished).with_context(|| format!("{step:?}"))?;
        println!("    {:20} {:.1} s", step.name, finished.duration_since(started).as_secs_f64());
    }
    let layers: Vec<_> = status.applications.iter().map(|layer| (layer.name.as_str(), layer.state)).collect();
    let ready = ["web", "site-info", "addresses", "router", "client"].map(|name| (name, StepState::Ready));
    anyhow::ensure!(layers == ready, "{layers:?}");
    let since: Vec<_> = status.applications.iter().map(|layer| layer.since).collect();
    anyhow::ensure!(since.is_sorted(), "layers became ready out of order: {since:?}");

    let accelerator = status.accelerator.context("no accelerator")?;
    if lean::guests_are_emulated()? {
        anyhow::ensure!(accelerator.kind == "tcg" && !accelerator.reason.is_empty(), "{accelerator:?}");
    }
    println!("    {}: {}", accelerator.kind, accelerator.reason);
    Ok(())
}

/// Most states come within seconds; guests under TCG on two busy cores need minutes.
const PATIENCE: Duration = Duration::from_mins(10);
