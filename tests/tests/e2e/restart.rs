//! Crash-only (law 1): `up` through a killed agent and a killed operator.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use edge_api::agent::StepState;
use edge_tests::Fault;
use edge_tests::inventory::run;
use edge_tests::wait::{Seen, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::PATIENCE;
use crate::appliance::Appliance;

/// Builds the appliance while its agent dies in the middle of making the cluster, and its operator while it makes
/// machines; ends with `up` succeeding.
pub async fn up_through_kills(appliance: &Appliance) -> Result<()> {
    // The first run dies with the agent, and says so.
    let mut first = appliance.up()?.stderr(std::process::Stdio::piped()).spawn()?;
    let agent = Fault::strikes("the agent ends while it makes the system cluster");
    kill_agent_in(appliance, "system-cluster").await?;
    let output = first_output(&mut first).await?;
    anyhow::ensure!(output.contains("edge-agent ended"), "up did not say that the agent ended:\n{output}");
    println!("    agent killed while it made the cluster");

    let kills = AtomicU32::new(0);
    let operator = Fault::strikes("the operator ends while it makes machines");
    let killing = async {
        loop {
            if let Err(error) = kill_operator_at_work(appliance, &kills).await {
                break Err::<std::convert::Infallible, _>(error);
            }
        }
    };
    let up = async {
        let status = appliance.up()?.status().await?;
        anyhow::ensure!(status.success(), "up: {status}");
        Ok(())
    };
    tokio::select! {
        ended = up => ended?,
        Err(error) = killing => return Err(error),
    }
    let kills = kills.load(Ordering::Relaxed);
    anyhow::ensure!(kills > 0, "the operator was never seen at work, so it was not killed");
    agent.survived();
    operator.times(kills as usize).survived();
    println!("    operator killed {kills} times while it made machines");
    Ok(())
}

async fn kill_agent_in(appliance: &Appliance, step: &str) -> Result<()> {
    eventually(&format!("the agent to be at {step}"), PATIENCE, || async {
        let status = appliance.status().await?;
        let at_work = status.steps.iter().any(|s| s.name == step && s.state == StepState::Running);
        // Not at its first breath: the container must be there and the cluster must not.
        let node = run("docker", &["ps", "-q", "-f", &format!("name=^{}$", appliance.node())])?;
        anyhow::Ok(Seen::when(at_work && !node.trim().is_empty(), status.message))
    })
    .await?;
    kill(Pid::from_raw(appliance.agent_pid()?), Signal::SIGKILL).context("killing the agent")
}

/// What the first `up` printed on standard error; it must fail.
async fn first_output(child: &mut tokio::process::Child) -> Result<String> {
    use tokio::io::AsyncReadExt as _;
    let mut text = String::new();
    let mut pipe = child.stderr.take().context("no pipe")?;
    tokio::time::timeout(PATIENCE, pipe.read_to_string(&mut text)).await.context("up goes on without an agent")??;
    let status = child.wait().await?;
    anyhow::ensure!(!status.success(), "up succeeded without an agent");
    Ok(text)
}

/// Waits until a machine is wanted and not ready, and kills the operator then; twice in all, and never again.
async fn kill_operator_at_work(appliance: &Appliance, kills: &AtomicU32) -> Result<()> {
    if kills.load(Ordering::Relaxed) >= 2 {
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let Ok(machines) = appliance.machines().await else { return Ok(()) };
    // The cluster is not there yet for most of the time: that is no error here.
    let Ok(list) = machines.list(&kube::api::ListParams::default()).await else { return Ok(()) };
    let wanted = if kills.load(Ordering::Relaxed) == 0 { "router" } else { "client" };
    let at_work = list.items.iter().any(|machine| {
        let ready = machine.status.as_ref().is_some_and(|s| edge_api::condition::is_true(&s.conditions, "Ready"));
        machine.metadata.name.as_deref() == Some(wanted) && !ready
    });
    if at_work && let Some(operator) = operator(appliance)? {
        kill(operator, Signal::SIGKILL).context("killing the operator")?;
        kills.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// The operator's process in this appliance's node, seen from the host.
fn operator(appliance: &Appliance) -> Result<Option<Pid>> {
    let node = run("docker", &["inspect", "-f", "{{.Id}}", &appliance.node()])?;
    let read = |pid: i32, file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let pids = std::fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let found = pids
        .into_iter()
        .find(|&pid| read(pid, "comm").trim() == "vm-operator" && read(pid, "cgroup").contains(node.trim()));
    Ok(found.map(Pid::from_raw))
}
