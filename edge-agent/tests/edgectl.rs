//! `edgectl` against a real agent that waits for its site file, and without one.

// Helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(30);

fn edgectl(root: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_edgectl"))
        .arg("--root")
        .arg(root)
        .args(arguments)
        .env_remove("PCG_EDGE_SOCKET")
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn wait<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "{what} within {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An agent whose bundle is empty: it gets no further than the step `bundle`, so that nothing is made on the host.
struct Agent {
    process: Child,
    root: PathBuf,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        let bundle = folder.path().join("bundle");
        std::fs::create_dir(&bundle).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_edge-agent"))
            .args(["run", "--instance", "ctltest", "--root"])
            .arg(&root)
            .arg("--bundle")
            .arg(&bundle)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let agent = Self { process, root, _folder: folder };
        wait("the agent answers", || agent.try_status());
        agent
    }

    fn try_status(&self) -> Option<Value> {
        serde_json::from_slice(&edgectl(&self.root, &["status", "-o", "json"]).stdout).ok()
    }

    fn status(&self) -> Value {
        self.try_status().unwrap()
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.root.parent().unwrap().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const SITE: &str = "device_id: store-7
router:
  lan_ip: 192.168.200.1/24
  wan_ip: 192.168.150.2/24
  dhcp_range: {start: 192.168.200.100, end: 192.168.200.150}
";

#[test]
fn from_an_empty_box_to_a_site_in_force() {
    let agent = Agent::start();
    let waiting = edgectl(&agent.root, &["status"]);
    assert_eq!(waiting.status.code(), Some(3), "not Ready");
    assert!(text(&waiting.stdout).contains("WaitingForSite"), "{}", text(&waiting.stdout));
    assert!(agent.root.join("conf/unattended.template.yaml").exists());
    let yaml: Value = serde_saphyr::from_slice(&edgectl(&agent.root, &["status", "-o", "yaml"]).stdout).unwrap();
    assert_eq!(yaml["phase"], "WaitingForSite");

    // A bad file is refused here, and changes nothing there.
    let bad = agent.file("bad.yaml", "device_id: Store\nrouters: 1\n");
    let refused = edgectl(&agent.root, &["apply", &bad]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        text(&refused.stdout).contains("bad.yaml:1:12") && text(&refused.stdout).contains("did you mean `router`?")
    );
    assert_eq!(agent.status()["siteFile"]["state"], "Absent");

    // A bad file put there by hand is shown with its errors.
    std::fs::write(agent.root.join("conf/unattended.yaml"), "device_id: Store\n").unwrap();
    let status =
        wait("the bad file is seen", || Some(agent.status()).filter(|status| status["siteFile"]["state"] == "Invalid"));
    assert_eq!(status["siteFile"]["errors"][0]["field"], "device_id");
    assert!(text(&edgectl(&agent.root, &["status"]).stdout).contains("line 1, column 12: device_id"));

    let good = agent.file("good.yaml", SITE);
    let applied = edgectl(&agent.root, &["apply", &good]);
    assert_eq!(applied.status.code(), Some(0), "{}", text(&applied.stderr));
    let status =
        wait("the site is in force", || Some(agent.status()).filter(|status| status["siteFile"]["state"] == "Applied"));
    assert_eq!(status["deviceId"], "store-7");
    let failing = wait("a step fails for want of a bundle", || {
        Some(agent.status()).filter(|status| status["phase"] == "Failing")
    });
    let failed = failing["steps"].as_array().unwrap().iter().find(|step| step["state"] == "Failed").unwrap().clone();
    let shown = text(&edgectl(&agent.root, &["status"]).stdout);
    assert!(shown.contains("Failed") && shown.contains(failed["name"].as_str().unwrap()), "{shown}");

    // An edit of a site in force tells what it touches.
    let edit = agent.file("edit.yaml", &SITE.replace("200.150", "200.140"));
    let edited = edgectl(&agent.root, &["apply", &edit]);
    assert!(text(&edited.stdout).contains("takes effect now:  router.dhcp_range.end"), "{}", text(&edited.stdout));

    let log = text(&edgectl(&agent.root, &["logs", "--lines", "500"]).stdout);
    assert!(log.contains("unattended.yaml"), "{log}");
    let lines = edgectl(&agent.root, &["logs", "-n", "1", "-o", "json"]).stdout;
    let line: edge_api::agent::LogLine = serde_json::from_slice(&lines).unwrap();
    assert!(!line.message.is_empty());

    assert_eq!(text(&edgectl(&agent.root, &["vm", "list"]).stdout), "no virtual machines\n");
    let missing = edgectl(&agent.root, &["vm", "get", "router"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).starts_with("error: "), "{}", text(&missing.stderr));
    let early = edgectl(&agent.root, &["registry", "credentials"]);
    assert!(text(&early.stderr).contains("no pull login yet"), "{}", text(&early.stderr));
}

#[test]
fn following_survives_a_restart_of_the_reader_and_of_nothing_else() {
    let agent = Agent::start();
    let mut follow = Command::new(env!("CARGO_BIN_EXE_edgectl"))
        .arg("--root")
        .arg(&agent.root)
        .args(["status", "--watch", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    let first: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
    assert_eq!(first["phase"], "WaitingForSite");
    std::fs::write(agent.root.join("conf/unattended.yaml"), SITE).unwrap();
    let seen = lines.map_while(Result::ok).find(|line| line.contains("store-7"));
    assert!(seen.is_some(), "a change arrives by itself");
    follow.kill().unwrap();
    follow.wait().unwrap();
    assert_eq!(agent.status()["deviceId"], "store-7");
}

#[test]
fn a_closed_pipe_is_no_failure_and_keeps_the_exit_code() {
    let agent = Agent::start();
    let bad = agent.file("bad.yaml", "device_id: Store\n");
    let good = agent.file("good.yaml", SITE);
    let cases: [(&[&str], i32); 11] = [
        (&["template"], 0),
        (&["schema"], 0),
        (&["--help"], 0),
        (&["help", "apply"], 0),
        (&["validate", &bad], 1),
        (&["validate", &bad, "-o", "json"], 1),
        (&["apply", &bad], 1),
        (&["status"], 3),
        (&["status", "--watch", "-o", "yaml"], 3),
        (&["logs", "-f"], 0),
        (&["apply", &good, "--watch"], 3),
    ];
    for (arguments, code) in cases {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_edgectl"));
        let command = command.arg("--root").arg(&agent.root).args(arguments);
        let output = command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?} {said}");
        assert!(!said.contains("panicked") && !said.contains("cannot write"), "{arguments:?} {said}");
    }
    wait("the site is in force", || Some(agent.status()).filter(|status| status["deviceId"] == "store-7"));
}

#[test]
fn an_upgrade_is_asked_for_over_the_socket_and_once() {
    let agent = Agent::start();
    let index = |version: &str| {
        let index = serde_json::json!({"formatVersion": 1, "version": version, "pinsDigest": "", "artifacts": [],
            "kubernetesVersion": "v1.36.3", "programs": []});
        index.to_string()
    };
    agent.file("bundle/pcg-index.json", &index("1"));
    let upgrade = |version: &str| {
        let new = agent.root.parent().unwrap().join(version);
        std::fs::create_dir_all(&new).unwrap();
        for (name, content) in [("oci-layout", "{}"), ("index.json", "{}"), ("pcg-index.json", &index(version))] {
            std::fs::write(new.join(name), content).unwrap();
        }
        edgectl(&agent.root, &["upgrade", new.to_str().unwrap()])
    };
    // Whoever was interrupted may ask again.
    for asked in [upgrade("2"), upgrade("2")] {
        assert_eq!(text(&asked.stdout), "upgrade from 1 (Kubernetes v1.36.3) to 2 (Kubernetes v1.36.3)\n", "{asked:?}");
        assert_eq!(agent.status()["upgrade"]["state"], "Asked");
    }
    let another = upgrade("3");
    assert_eq!(another.status.code(), Some(1));
    assert!(text(&another.stderr).contains("the upgrade to 2 is not over"), "{another:?}");
}

#[test]
fn the_registry_is_where_the_agent_was_told() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    std::fs::create_dir(root.join("state")).unwrap();
    let credentials = || edgectl(root, &["registry", "credentials"]);
    assert!(text(&credentials().stderr).contains("there is no pull login yet"));
    std::fs::write(root.join("state/registry-pull"), "secret\n").unwrap();
    assert!(text(&credentials().stdout).contains("address      localhost:10443 (HTTPS)\n"));
    let facts = edge_agent::node::Facts {
        cluster: "pcg-edge",
        image: "node",
        root,
        api_port: 6443,
        registry_port: 23456,
        cgroup_v1: false,
    };
    std::fs::write(root.join("state/kind.json"), edge_agent::node::kind_config(&facts).to_string()).unwrap();
    let said = text(&credentials().stdout);
    assert!(said.contains("address      localhost:23456 (HTTPS)\n") && !said.contains("secret"), "{said}");
}

#[test]
fn without_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    for command in [["status"].as_slice(), &["logs"], &["vm", "list"], &["status", "--watch"]] {
        let output = edgectl(folder.path(), command);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.contains("the agent does not run") && said.contains("hint: start it"), "{said}");
    }
    // The template goes through `validate`, which needs no agent; so does a profile's folder.
    let template = folder.path().join("unattended.yaml");
    std::fs::write(&template, edgectl(folder.path(), &["template"]).stdout).unwrap();
    let valid = edgectl(folder.path(), &["validate", template.to_str().unwrap()]);
    assert_eq!(valid.status.code(), Some(0), "{}", text(&valid.stdout));
    let missing = edgectl(folder.path(), &["validate", "/nowhere/unattended.yaml"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(text(&missing.stderr).contains("/nowhere/unattended.yaml"));
    let profile = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site/profile");
    let archive = folder.path().join("site.tar");
    let (profile, archive) = (profile.to_str().unwrap(), archive.to_str().unwrap());
    let built = edgectl(folder.path(), &["profile", "build", profile, "-o", archive]);
    assert_eq!(built.status.code(), Some(0), "{}", text(&built.stderr));
    let digest = text(&built.stdout).split_whitespace().last().unwrap().to_owned();
    let verified = text(&edgectl(folder.path(), &["profile", "verify", archive]).stdout);
    assert!(digest.starts_with("sha256:") && verified.contains(&digest), "{verified}");
    std::fs::write(archive, "no archive").unwrap();
    assert_eq!(edgectl(folder.path(), &["profile", "verify", archive]).status.code(), Some(1));
}
