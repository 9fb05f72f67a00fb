//! From the creation of a `VirtualMachine` object to QEMU running, against a bare script that makes the same machine with
//! `qemu-img` and `virsh` (law 7: at most 1.5 times). Rounds are interleaved: absolute times mean little on shared hosts.
//!
//! Needs an appliance of the example site that is ready: `cargo xtask bench` runs this on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edge_api::virtual_machine::RootDisk;
use edge_api::{Instance, VirtualMachine, VirtualMachineSpec, names};
use edge_tests::inventory::{run, virsh};
use edge_tests::wait::{Seen, eventually};
use kube::api::{DeleteParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};

const ROUNDS: usize = 10;
const NAME: &str = "bench";
const BARE: &str = "edge-bench-bare";
const PATIENCE: Duration = Duration::from_mins(2);

#[tokio::main]
async fn main() -> Result<()> {
    let instance: Instance = std::env::args().nth(1).unwrap_or_else(|| "edge".to_owned()).parse()?;
    let file = Kubeconfig::read_from(instance.default_root().join("kube/admin.conf"))?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
    let machines = Api::<VirtualMachine>::namespaced(Client::try_from(config)?, names::NAMESPACE);
    let mut spec = machines.get("client").await.context("the example's client")?.spec;
    spec.root_disk = Some(RootDisk { pool: "default".to_owned(), size_gib: Some(1) });

    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let (time, xml) = through_the_operator(&machines, &instance, &spec, round).await?;
        let floor = bare_script(&xml, &instance).await?;
        println!("round {round}: object {:.0} ms, script {:.0} ms", millis(time), millis(floor));
        // The first one warms caches up.
        if round > 0 {
            ours.push(time);
            bare.push(floor);
        }
    }
    let (ours, bare) = (median(ours), median(bare));
    let ratio = ours.as_secs_f64() / bare.as_secs_f64();
    println!(
        "median: object {:.0} ms, script {:.0} ms, ratio {ratio:.2} (at most 1.5 wanted)",
        millis(ours),
        millis(bare)
    );
    Ok(())
}

/// Creates the object, waits for QEMU, deletes it again. Returns the time and the domain's XML.
async fn through_the_operator(
    machines: &Api<VirtualMachine>,
    instance: &Instance,
    spec: &VirtualMachineSpec,
    round: usize,
) -> Result<(Duration, String)> {
    let mut spec = spec.clone();
    spec.id = edge_api::instance::derive(&format!("bench/{instance}/{round}")).to_string();
    let domain = instance.libvirt_name(NAME);
    let start = Instant::now();
    machines.create(&PostParams::default(), &VirtualMachine::new(NAME, spec)).await?;
    running(&domain).await?;
    let time = start.elapsed();
    let xml = virsh(&["dumpxml", "--inactive", &domain])?;
    machines.delete(NAME, &DeleteParams::default()).await?;
    eventually("the machine to be gone", PATIENCE, || async {
        let object = machines.get_opt(NAME).await?;
        Ok::<_, kube::Error>(Seen::when(object.is_none(), object.map(|object| object.status)))
    })
    .await?;
    Ok((time, xml))
}

/// The same domain by hand: a disk, a definition, a start.
async fn bare_script(xml: &str, instance: &Instance) -> Result<Duration> {
    let disk = instance.default_root().join(format!("pools/default/{BARE}.qcow2"));
    let xml = by_hand(xml, &instance.libvirt_name(NAME), &disk)?;
    let file = std::env::temp_dir().join(format!("{BARE}.xml"));
    fs::write(&file, xml)?;
    let start = Instant::now();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &disk.to_string_lossy(), "1G"])?;
    virsh(&["define", &file.to_string_lossy()])?;
    virsh(&["start", BARE])?;
    running(BARE).await?;
    let time = start.elapsed();
    virsh(&["destroy", BARE])?;
    virsh(&["undefine", BARE])?;
    fs::remove_file(disk)?;
    fs::remove_file(file)?;
    Ok(time)
}

/// The domain's XML under another name, with another disk, and without what must be unique.
fn by_hand(xml: &str, domain: &str, disk: &Path) -> Result<String> {
    let mut lines = Vec::new();
    for line in xml.lines() {
        let text = line.trim();
        if text.starts_with("<uuid>") || text.starts_with("<mac ") {
            continue;
        }
        if text.starts_with("<source ") && text.contains("pcg-") {
            lines.push(format!("<source file='{}'/>", disk.display()));
        } else if text.starts_with("<source ") && text.contains(".log") {
            lines.push("<source path='/dev/null'/>".to_owned());
        } else {
            lines.push(line.replace(domain, BARE));
        }
    }
    let xml = lines.join("\n");
    anyhow::ensure!(xml.contains(&*disk.to_string_lossy()), "the domain has no disk of ours:\n{xml}");
    Ok(xml)
}

/// Waits until libvirt says that QEMU runs. Its state file tells so without asking, which would cost time of its own.
async fn running(domain: &str) -> Result<()> {
    let file = PathBuf::from(format!("/run/libvirt/qemu/{domain}.xml"));
    let until = Instant::now() + PATIENCE;
    while !fs::read_to_string(&file).is_ok_and(|text| text.contains("state='running'")) {
        anyhow::ensure!(Instant::now() < until, "{domain} does not run");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
