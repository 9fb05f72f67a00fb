//! Tests of the command line as a whole, and of what people read.

use clap::CommandFactory;
use edge_api::EdgeCluster;
use edge_api::agent::{Accelerator, Application, Cluster, LogLine, Machine, Phase, SiteFileState, Status, StepState};
use insta::assert_snapshot;
use jiff::{SignedDuration, Timestamp};

use super::text::Paint;
use super::*;
use crate::status::{Board, STEPS};
use crate::{clusters, site};

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
}

#[test]
fn the_command_line_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn help_fits_and_has_examples() {
    let mut command = Cli::command().term_width(100);
    assert_snapshot!("help", command.render_long_help());
    for sub in command.get_subcommands_mut() {
        assert!(sub.get_about().is_some(), "{}", sub.get_name());
    }
}

#[test]
fn errors_of_a_site_file_as_a_compiler_shows_them() {
    let text = "device_id: Store_1\nmode: ha\nproxy:\n  http: http://user:s3cret@proxy\nrouter:\n  lan_ip: 192.168.200.1\n  lanip: 3 # typo\n";
    let errors = site::load(text).unwrap_err();
    let shown = check::report("unattended.yaml", text.as_bytes(), &errors, Paint::none());
    assert!(!shown.contains("s3cret"));
    assert_snapshot!("validate", shown);
    let tab = "router:\n\tlan_ip: 1\n";
    let errors = site::load(tab).unwrap_err();
    assert_snapshot!("validate_tab", check::report("<stdin>", tab.as_bytes(), &errors, Paint::none()));
}

fn status() -> Status {
    let board = Board::new(&Instance::default(), "/opt/spectrocloud/conf/unattended.yaml".to_owned(), &STEPS);
    let mut status = board.get();
    status.version = "0.1.0".to_owned();
    status.device_id = Some("store-1".to_owned());
    status.phase = Phase::Failing;
    status.message = "step registry failed; tried again in 20 s".to_owned();
    status.site_file.state = SiteFileState::Invalid;
    status.site_file.errors = site::load("device_id: Store_1\n").unwrap_err();
    status.site_file.needs_reinstall = vec!["device_id".to_owned()];
    status.accelerator = Some(Accelerator { kind: "tcg".to_owned(), reason: "no vmx or svm".to_owned() });
    for (index, step) in status.steps.iter_mut().enumerate() {
        step.started = Some(at(index as i64 * 60));
        step.finished = Some(at(index as i64 * 65));
        let first = [StepState::Ready, StepState::Ready, StepState::Running, StepState::Failed, StepState::Waiting];
        step.state = first.get(index).copied().unwrap_or(StepState::Pending);
        step.message = format!("message of {}\x1b[31m", step.name);
        step.attempts = 1;
    }
    status.steps[2].progress = Some(7);
    status.steps[2].finished = None;
    status.steps[3].hint = Some("free the port".to_owned());
    status.steps[3].attempts = 3;
    status.applications = vec![Application {
        name: "web".to_owned(),
        kind: "chart".to_owned(),
        state: StepState::Ready,
        message: "healthy".to_owned(),
        version: Some("1.0.0".to_owned()),
        since: Some(at(100)),
    }];
    status.machines = vec![Machine {
        name: "router".to_owned(),
        phase: "Running".to_owned(),
        ready: true,
        message: "guest agent answers".to_owned(),
        vcpus: 1,
        memory_mib: 512,
        addresses: vec!["wan 192.168.150.2/24".to_owned(), "lan 192.168.200.1/24".to_owned()],
        since: Some(at(0)),
        cluster: None,
    }];
    status.clusters = vec![Cluster::from(&shop())];
    status
}

#[test]
fn status_as_a_table() {
    assert_snapshot!("status", status::render(&status(), at(4000), Paint::none()));
}

/// A cluster on its way, as `vm-operator` reports it.
fn shop() -> EdgeCluster {
    let mut shop = clusters::file::load(include_bytes!("../../../examples/site/clusters/shop.yaml")).unwrap();
    shop.metadata.generation = Some(1);
    let status = serde_json::json!({
        "observedGeneration": 1, "phase": "Provisioning", "nodes": "0/2",
        "conditions": [{"type": "Ready", "status": "False", "reason": "Provisioning",
            "message": "waits for machine shop-x7k2p", "lastTransitionTime": at(100)}],
        "tasks": [
            {"name": "virtual address 192.168.150.40", "state": "Done", "since": at(120)},
            {"name": "machine shop-x7k2p", "state": "Running", "since": at(130), "parts": [
                {"name": "virtual machine", "state": "Done", "since": at(180)},
                {"name": "bootstrap", "state": "Running", "since": at(180), "message": "kubeadm has not ended"},
                {"name": "join", "state": "Pending"},
            ]},
            {"name": "layer network", "state": "Failed", "since": at(190), "message": "the API server\u{1b}[31m does not answer"},
            {"name": "layer storage", "state": "Pending"},
        ],
    });
    shop.status = Some(serde_json::from_value(status).unwrap());
    shop
}

#[test]
fn a_cluster_with_its_tasks() {
    let mut shop = shop();
    assert_snapshot!("cluster", cluster::detail(&shop, at(4000), Paint::none()));
    let status = shop.status.as_mut().unwrap();
    status.tasks.clear();
    status.phase = edge_api::edge_cluster::ClusterPhase::Pending;
    status.conditions.push(
        serde_json::from_value(serde_json::json!({"type": "Valid", "status": "False", "reason": "Invalid",
            "message": "spec.profile: there is no ClusterProfile `edge`\nspec.virtualIP: 192.168.150.40 is in pool `nodes`",
            "lastTransitionTime": at(100)}))
        .unwrap(),
    );
    assert_snapshot!("cluster_invalid", cluster::detail(&shop, at(4000), Paint::none()));
    shop.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(3900)));
    assert_snapshot!("cluster_deleting", cluster::detail(&shop, at(4000), Paint::none()));
    assert_eq!(cluster::list(&[], at(0), Paint::none()), "no clusters\n");
}

#[test]
fn log_lines_cannot_move_the_cursor() {
    let line = LogLine { time: at(0), level: "warn".to_owned(), step: None, message: "a\x1b[2Jb\nc".to_owned() };
    let shown = logs::render(&line, Paint::none());
    assert!(shown.ends_with("warn   a\u{fffd}[2Jb c\n"), "{shown:?}");
}
