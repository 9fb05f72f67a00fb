//! The daemon as a process: lock, socket, site file, preflight, signals, kills.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at once where something is not as it must be")]

mod support;

use std::fs::Permissions;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use edge_api::agent::{Phase, SiteFileState, StepState};
use edge_tests::Fault;
use support::{Agent, command, write_site};

const DEADLINE: Duration = Duration::from_secs(30);

const SITE: &str = "device_id: store-1\nproxy:\n  http: http://bob:hunter2@proxy.example.com:3128\n  \
                    https: http://bob:hunter2@proxy.example.com:3128\n";

fn run(root: &Path, extra: &[&str]) -> Output {
    command(root, extra).output().unwrap()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn it_waits_follows_edits_and_ends_cleanly() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let agent = Agent::start(root, &[]);
    agent.until("waits for the site", |s| s.phase == Phase::WaitingForSite).await;
    assert_eq!(mode(&root.join("run/agent.sock")), 0o600);
    assert!(root.join("conf/unattended.template.yaml").exists());
    assert!(root.join("conf/unattended.schema.json").exists());

    write_site(root, "device_id: [\n");
    let status = agent.until("refuses", |s| s.site_file.state == SiteFileState::Invalid).await;
    assert_eq!(status.phase, Phase::WaitingForSite);
    assert!(status.site_file.errors[0].line > 0);

    write_site(root, SITE);
    let status = agent.until("applies", |s| s.site_file.state == SiteFileState::Applied).await;
    assert_eq!(status.device_id.as_deref(), Some("store-1"));
    assert_eq!(mode(&root.join("state/site.yaml")), 0o600);

    let report = agent.client().apply(b"device_id: store-2\n".to_vec()).await.unwrap();
    assert_eq!(report.needs_reinstall, [""; 0], "nothing is installed yet");
    agent.until("follows", |s| s.device_id.as_deref() == Some("store-2")).await;
    assert_eq!(mode(&root.join("conf/unattended.yaml")), 0o600);

    let lines = agent.client().logs(100).await.unwrap();
    assert!(lines.iter().any(|l| l.message.contains("unattended.yaml was replaced over the socket")));
    let log = std::fs::read_to_string(root.join("edge.log")).unwrap();
    assert!(!log.contains("hunter2"), "{log}");
    assert!(agent.end(), "a signal is a clean end");
    assert!(!root.join("run/agent.sock").exists() && !root.join("run/agent.pid").exists());
}

#[tokio::test]
async fn a_killed_agent_goes_on_and_a_second_one_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let agent = Agent::start(root, &[]);
    agent.until("starts", |s| s.phase == Phase::WaitingForSite).await;
    write_site(root, SITE);
    agent.until("applies", |s| s.device_id.is_some()).await;

    let second = run(root, &[]);
    assert!(!second.status.success());
    let text = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(text.contains("is in use by another agent"), "{text}");

    agent.kill();
    assert!(root.join("run/agent.sock").exists(), "what a kill leaves");
    std::fs::write(root.join("conf/unattended.yaml"), "device_id: [\n").unwrap();
    let agent = Agent::start(root, &[]);
    let status = agent.until("goes on", |s| s.site_file.state == SiteFileState::Invalid).await;
    assert_eq!(status.device_id.as_deref(), Some("store-1"), "the last valid site stays in force");
    drop(agent);

    let other = Command::new(env!("CARGO_BIN_EXE_edge-agent"))
        .args(["run", "--instance", "other", "--bundle", "/nonexistent", "--root"])
        .arg(root)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&other.stderr).contains("belongs to instance agtest, not other"));
}

#[tokio::test]
async fn a_taken_port_is_found_by_preflight_and_said_with_a_hint() {
    let folder = tempfile::tempdir().unwrap();
    let holder = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = holder.local_addr().unwrap().port().to_string();
    let agent = Agent::start(folder.path(), &["--registry-port", &port]);
    agent.until("starts", |s| s.phase == Phase::WaitingForSite).await;
    write_site(folder.path(), SITE);
    let status = agent.until("fails", |s| s.steps[0].state == StepState::Failed).await;
    assert_eq!(status.phase, Phase::Failing);
    let accelerator = status.accelerator.unwrap();
    assert!(["kvm", "tcg"].contains(&accelerator.kind.as_str()) && !accelerator.reason.is_empty());
    let step = &status.steps[0];
    // Where docker is not running, that is found first, and ports are not looked at.
    if !step.message.contains("docker does not answer") {
        assert!(step.message.contains(&format!("port {port} for the registry cannot be used")), "{}", step.message);
        assert!(step.hint.as_deref().unwrap().contains("--registry-port"), "{:?}", step.hint);
    }
    drop(holder);
    let status = agent.until("goes on", |s| s.steps[0].state != StepState::Failed || s.steps[0].attempts > 1).await;
    assert!(status.steps[2].state == StepState::Pending);
}

#[test]
fn removing_what_is_not_there_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let removed = Command::new(env!("CARGO_BIN_EXE_edge-agent"))
        .args(["remove", "--instance", "nosuch", "--root"])
        .arg(folder.path().join("none"))
        .output()
        .unwrap();
    assert!(removed.status.success(), "{}", String::from_utf8_lossy(&removed.stderr));
}

#[test]
fn removing_goes_to_its_end_where_nobody_reads() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    edge_agent::paths::Paths::new(&root).ensure().unwrap();
    let remove = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_edge-agent"));
        command.args(["remove", "--force", "--instance", "pipetest", "--root"]).arg(&root);
        command
    };
    let closed = || std::io::pipe().unwrap().1;
    let removed = remove().stdout(closed()).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&removed.stderr).into_owned();
    assert!(!root.exists(), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    // Where docker does not run, its part is left, which is told.
    let code = i32::from(said.contains("left: "));
    assert_eq!(removed.status.code(), Some(code), "{said}");

    edge_agent::paths::Paths::new(&root).ensure().unwrap();
    let removed = remove().stdout(closed()).stderr(closed()).status().unwrap();
    assert_eq!(removed.code(), Some(code));
    assert!(!root.exists());
}

/// An agent that an upgrade has brought ends again and again: the agent before gets its place back.
#[test]
fn a_new_agent_that_keeps_ending_gives_its_place_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for made in ["bin/.before", "state"] {
        std::fs::create_dir_all(root.join(made)).unwrap();
    }
    let program = root.join("bin/edge-agent");
    std::fs::copy(env!("CARGO_BIN_EXE_edge-agent"), &program).unwrap();
    let before = root.join("bin/.before/edge-agent");
    std::fs::write(&before, format!("#!/bin/sh\necho \"$@\" >{}\n", root.join("said").display())).unwrap();
    std::fs::set_permissions(&before, Permissions::from_mode(0o755)).unwrap();
    let side = |version| serde_json::json!({"bundle": "/nowhere", "version": version, "kubernetesVersion": "v1.36.3"});
    let record = serde_json::json!({"given": "/nonexistent", "from": side("1"), "to": side("2"), "state": "Running",
        "deadline": 60, "kept": null, "message": "the new agent takes over"});
    std::fs::write(root.join("state/upgrade.json"), record.to_string()).unwrap();
    let state =
        || serde_json::from_slice::<serde_json::Value>(&std::fs::read(root.join("state/upgrade.json")).unwrap());

    let fault = Fault::strikes("the agent that an upgrade brought keeps ending");
    for start in 1..=5 {
        let mut agent = support::command_of(&program, root, &[]).spawn().unwrap();
        let socket = root.join("run/agent.sock");
        let begun = Instant::now();
        while !socket.exists() && begun.elapsed() < DEADLINE {
            std::thread::sleep(Duration::from_millis(20));
        }
        agent.kill().unwrap();
        agent.wait().unwrap();
        std::fs::remove_file(socket).unwrap();
        assert_eq!(state().unwrap()["starts"], start);
    }
    // The process is the same: it becomes the agent before, with its arguments.
    assert!(support::command_of(&program, root, &[]).status().unwrap().success());
    let said = std::fs::read_to_string(root.join("said")).unwrap();
    assert_eq!(said.trim(), format!("run --instance agtest --bundle /nonexistent --root {}", root.display()));
    assert_eq!(state().unwrap()["state"], "Returning");
    assert!(!root.join("bin/.before").exists());
    fault.survived();
}
