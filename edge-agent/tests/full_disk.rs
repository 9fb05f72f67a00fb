//! The agent's root on a disk that is full: what is written is whole or stays as it was, the error says what is short,
//! nothing torn is left, and all goes on when space returns.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at once where something is not as it must be")]

mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use edge_agent::ca::Authority;
use edge_agent::clock::Clock;
use edge_agent::engine::chain;
use edge_agent::paths::Paths;
use edge_agent::registry::login::Login;
use edge_agent::site_follow::{self, Follower};
use edge_agent::status::{Board, STEPS};
use edge_agent::world::Identity;
use edge_agent::{daemon, durable};
use edge_api::Instance;
use edge_api::agent::{Phase, StepState};
use edge_profiles::{Limits, build_archive, keep_only, publish_archive};
use edge_tests::{Fault, SmallDisk};
use support::{Agent, write_site};

const SIZE: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// What an agent is given, the first time or later: all of it differs.
struct Given {
    paths: Paths,
    instance: Instance,
    site: String,
    archive: PathBuf,
    names: Vec<String>,
    certificates: BTreeMap<String, String>,
}

type Outcome = Result<(), Box<dyn Error>>;
type Write = fn(&Given) -> Outcome;

/// Every write of the agent itself, in the order of a start.
const WRITES: [(&str, Write); 13] = [
    ("folders", |given| Ok(given.paths.ensure()?)),
    ("instance", |given| Ok(daemon::claim(&given.paths, &given.instance)?)),
    ("template and schema", |given| Ok(site_follow::write_examples(&given.paths)?)),
    ("identity", |given| Ok(Identity::ensure(&given.paths).map(drop)?)),
    ("site file over the socket", |given| {
        durable::write_if_changed(&given.paths.site_file(), given.site.as_bytes(), 0o600)?;
        Ok(())
    }),
    ("site in force", |given| {
        let board = Board::new(&given.instance, String::new(), &STEPS);
        Ok(Follower::new(given.paths.clone(), board)?.look()?)
    }),
    ("clock", |given| Ok(Clock::open(&given.paths.clock()).keep()?)),
    ("authority", |given| {
        let clock = Clock::open(&given.paths.clock());
        Ok(Authority::ensure(&given.paths.join("ca"), "test", &clock).map(drop)?)
    }),
    ("certificate", |given| {
        let clock = Clock::open(&given.paths.clock());
        let authority = Authority::ensure(&given.paths.join("ca"), "test", &clock)?;
        Ok(authority.ensure_leaf(&given.paths.join("ca"), "registry", &given.names).map(drop)?)
    }),
    ("login", |given| Ok(Login::ensure(&given.paths).map(drop)?)),
    ("files of the node", |given| {
        let folder = given.paths.join("node/ca-certificates");
        Ok(durable::only_files(&folder, &given.certificates, 0o644)?)
    }),
    ("record of a step", |given| Ok(durable::write_json(&given.paths.join("state/bundle.json"), &given.names)?)),
    ("profile", |given| {
        let store = given.paths.join("profiles");
        let published = publish_archive(&given.archive, &store, &Limits::default())?;
        keep_only(&store, published.digest)?;
        Ok(())
    }),
];

#[test]
fn every_write_is_whole_or_did_not_happen() {
    let archives = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(SIZE).unwrap();
    let paths = Paths::new(disk.path().join("root"));
    let [first, later] = ["1", "2"].map(|version| Given {
        paths: paths.clone(),
        instance: "agtest".parse().unwrap(),
        site: format!("# {}\ndevice_id: store-{version}\n", version.repeat(5000)),
        archive: archive(archives.path(), version),
        names: vec![format!("registry-{version}.internal")],
        certificates: BTreeMap::from([(format!("proxy-{version}.crt"), "-----\n".repeat(1000))]),
    });
    for (title, before) in [("the first start", None), ("a later one", Some(&first))] {
        let given = before.map_or(&first, |_| &later);
        let mut failures = BTreeMap::<&str, u32>::new();
        let fault = Fault::strikes("the agent's root is full at one of its writes");
        for pages in 0.. {
            disk.leave(SIZE).unwrap();
            durable::remove_folder(paths.root()).unwrap();
            for (what, write) in WRITES.iter().filter(|_| before.is_some()) {
                write(&first).unwrap_or_else(|e| panic!("{what}: {}", chain(&*e)));
            }
            let old = files(paths.root());
            disk.leave(pages * PAGE).unwrap();
            let mut failed = false;
            for (what, write) in WRITES {
                let Err(error) = write(given) else { continue };
                failed = true;
                *failures.entry(what).or_default() += 1;
                let text = chain(&*error);
                let root = paths.root().to_str().unwrap();
                assert!(text.contains(root) && text.contains("No space left on device"), "{what}: {text}");
            }
            for (path, content) in files(paths.root()) {
                assert!(old.get(&path) == Some(&content) || is_whole(&path, &content, given), "{}", path.display());
            }
            disk.leave(SIZE).unwrap();
            for (what, write) in WRITES {
                write(given).unwrap_or_else(|e| panic!("{what}, with space again: {}", chain(&*e)));
            }
            assert_eq!(fs::read_dir(paths.join("profiles")).unwrap().count(), 1, "the earlier profile is gone");
            if !failed {
                println!("{title}: all is written with {pages} pages; failures with fewer: {failures:?}");
                fault.times(usize::try_from(pages).unwrap()).survived();
                break;
            }
        }
        assert!(failures.len() >= 4, "{failures:?}");
    }
}

fn archive(folder: &Path, version: &str) -> PathBuf {
    let (source, archive) = (folder.join(version), folder.join(format!("{version}.tar")));
    fs::create_dir_all(source.join("one")).unwrap();
    let layers = "layers:\n  - name: one\n    kind: manifest\n    path: one\n";
    fs::write(source.join("profile.yaml"), format!("name: store\nversion: \"{version}\"\n{layers}")).unwrap();
    let object =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\ndata:\n  a: \"{}\"\n", version.repeat(9000));
    fs::write(source.join("one/a.yaml"), object).unwrap();
    build_archive(&source, &archive).unwrap();
    archive
}

/// Content of all files below a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                all.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// Whether a file is one that the agent keeps, to its end.
fn is_whole(path: &Path, content: &[u8], given: &Given) -> bool {
    let below = path.strip_prefix(given.paths.root()).unwrap();
    if let Ok(below) = below.strip_prefix("profiles") {
        let profile = below.components().next().unwrap();
        return edge_profiles::load(&given.paths.join("profiles").join(profile)).is_ok();
    }
    let name = path.file_name().unwrap().to_str().unwrap();
    match path.extension().and_then(|e| e.to_str()) {
        _ if name.starts_with('.') => false,
        _ if name == "unattended.template.yaml" => content == edge_agent::site::TEMPLATE.as_bytes(),
        Some("json") => serde_json::from_slice::<serde_json::Value>(content).is_ok(),
        Some("yaml") => content == given.site.as_bytes(),
        Some("crt" | "pem" | "key") => content.ends_with(b"-----\n"),
        _ => name == "instance" || content.ends_with(b"\n"),
    }
}

/// The daemon starts and stays, says what is short, and goes on by itself.
#[tokio::test]
async fn the_agent_outlives_a_full_disk() {
    let disk = SmallDisk::new(SIZE).unwrap();
    let root = disk.path().join("root");
    let agent = Agent::start(&root, &[]);
    agent.until("starts", |s| s.phase == Phase::WaitingForSite).await;
    let fault = Fault::strikes("the agent runs on a full disk");
    // Enough for the site file, and not for what is kept of it.
    disk.leave(PAGE).unwrap();
    write_site(&root, "device_id: store-1\n");
    agent.until_logged("state/site.yaml: 19 bytes are needed, and 0 are free; free space there").await;
    disk.leave(SIZE).unwrap();
    agent.until("goes on", |s| s.device_id.as_deref() == Some("store-1")).await;
    fault.survived();
    assert!(agent.end());

    let fault = Fault::strikes("the agent starts on a full disk");
    disk.leave(0).unwrap();
    let agent = Agent::start(&root, &[]);
    let status = agent.until("fails", |s| s.steps[0].state == StepState::Failed).await;
    let message = &status.steps[0].message;
    println!("preflight: {message}");
    for short in ["state/clock.json: ", "bytes are needed, and 0 are free", "0 GiB free at ", "8 are needed"] {
        assert!(message.contains(short), "{short}: {message}");
    }
    agent.until_logged("run/agent.pid: ").await;
    let refused = agent.client().apply(b"device_id: store-2\n".to_vec()).await.unwrap_err();
    println!("an edit: {}", chain(&refused));
    assert!(chain(&refused).contains("unattended.yaml: 19 bytes are needed, and 0 are free"), "{}", chain(&refused));
    disk.leave(SIZE).unwrap();
    agent.client().apply(b"device_id: store-2\n".to_vec()).await.unwrap();
    let status = agent.until("goes on", |s| s.device_id.as_deref() == Some("store-2")).await;
    assert!(status.steps[0].state != StepState::Ready, "there are never 8 GiB");
    fault.survived();
    assert!(agent.end());
}
