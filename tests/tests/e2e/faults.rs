//! Parts of the appliance are lost, and all of it returns without hands: the same machines, the same objects, a workload
//! cluster that answered on where its guests lived on.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use edge_api::agent::Phase;
use edge_api::edge_cluster::ClusterPhase;
use edge_api::{VirtualMachine, condition};
use edge_tests::inventory::{run, virsh};
use edge_tests::wait::{Seen, eventually};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::appliance::Appliance;
use crate::phase;
use crate::requests::{self, Answers};
use crate::workload::{self, NAME};

/// The agent looks every 5 min; a node is made within 7, guests boot within 10.
const PATIENCE: Duration = Duration::from_mins(25);
const CERTIFICATE: &str = "pki/apiserver.crt";
const KUBELET_CERTIFICATE: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
/// Kubelet renews by itself what is in the later third of its life, which began with its authority.
const KUBELET_ENDS: &str = "
config=$(mktemp)
kubeadm kubeconfig user --config /kind/kubeadm.conf --validity-period 3m \\
    --client-name system:node:$(hostname) --org system:nodes >$config
for part in certificate key; do
    sed -n \"s/.*client-$part-data: //p\" $config | base64 -d
done >/var/lib/kubelet/pki/kubelet-client-current.pem
rm $config
systemctl restart kubelet";

/// What is lost.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fault {
    NodeRemoved,
    NetworkRemoved,
    CertificatesEnd,
    KubeletEnds,
    DomainsUndefined,
    GuestsCutOff,
    PowerCut,
}

impl Fault {
    const ALL: [Self; 7] = [
        Self::NodeRemoved,
        Self::NetworkRemoved,
        Self::CertificatesEnd,
        Self::KubeletEnds,
        Self::DomainsUndefined,
        Self::GuestsCutOff,
        Self::PowerCut,
    ];

    fn words(self) -> &'static str {
        match self {
            Self::NodeRemoved => "the system cluster's node is removed",
            Self::NetworkRemoved => "so is its docker network",
            Self::CertificatesEnd => "a certificate of the system cluster ends in 100 days",
            Self::KubeletEnds => "the certificate of its kubelet ends in 3 min",
            Self::DomainsUndefined => "every running domain is undefined",
            Self::GuestsCutOff => "every guest is cut off",
            Self::PowerCut => "the host's power is cut",
        }
    }

    fn makes_another_node(self) -> bool {
        matches!(self, Self::NodeRemoved | Self::NetworkRemoved | Self::CertificatesEnd)
    }

    fn guests_live_on(self) -> bool {
        !matches!(self, Self::GuestsCutOff | Self::PowerCut)
    }

    async fn strike(self, appliance: &Appliance) -> Result<()> {
        let node = appliance.node();
        match self {
            Self::NodeRemoved => run("docker", &["rm", "-f", &node]).map(drop),
            Self::NetworkRemoved => {
                run("docker", &["rm", "-f", &node])?;
                run("docker", &["network", "rm", &appliance.instance.docker_network()]).map(drop)
            }
            Self::CertificatesEnd => {
                let mut params = rcgen::CertificateParams::default();
                params.not_after = time::OffsetDateTime::now_utc() + time::Duration::days(100);
                let certificate = params.self_signed(&rcgen::KeyPair::generate()?)?;
                // The running API server has read its own long ago.
                Ok(fs::write(appliance.root.join(CERTIFICATE), certificate.pem())?)
            }
            Self::KubeletEnds => kubelet_ends(appliance).await,
            Self::DomainsUndefined => appliance.processes()?.keys().try_for_each(|domain| undefine(domain)),
            Self::GuestsCutOff => appliance.processes()?.keys().try_for_each(|domain| destroy(domain)),
            Self::PowerCut => {
                kill(Pid::from_raw(appliance.agent_pid()?), Signal::SIGKILL).context("killing the agent")?;
                run("docker", &["kill", &node])?;
                appliance.processes()?.keys().try_for_each(|domain| destroy(domain))?;
                // containerd does not outlive its docker, so it is the first.
                ["docker/containerd/containerd", "docker", "libvirtd", "virtlogd"].into_iter().try_for_each(end)?;
                // What starts with the host.
                let status = appliance.up()?.status().await?;
                anyhow::ensure!(status.success(), "up: {status}");
                Ok(())
            }
        }
    }
}

/// The system cluster's kubelet gets a short certificate of the cluster's authority, and lives on after its end.
async fn kubelet_ends(appliance: &Appliance) -> Result<()> {
    let node = appliance.node();
    let before = run("docker", &["exec", &node, "readlink", KUBELET_CERTIFICATE])?;
    run("docker", &["exec", &node, "sh", "-ec", KUBELET_ENDS])?;
    let end = jiff::Timestamp::now() + Duration::from_mins(3);
    eventually("kubelet to have another certificate", PATIENCE, || async {
        let now = run("docker", &["exec", &node, "readlink", KUBELET_CERTIFICATE])?;
        anyhow::Ok(Seen::when(now != before, now))
    })
    .await?;
    let leases = Api::<Lease>::namespaced(appliance.client().await?, "kube-node-lease");
    eventually("the node to renew its lease after the end of the first", PATIENCE, || async {
        let renewed = leases.get(&node).await?.spec.and_then(|spec| spec.renew_time);
        anyhow::Ok(Seen::when(renewed.as_ref().is_some_and(|time| time.0 > end), renewed))
    })
    .await?;
    Ok(())
}

fn undefine(domain: &str) -> Result<()> {
    virsh(&["undefine", domain]).map(drop)
}

fn destroy(domain: &str) -> Result<()> {
    virsh(&["destroy", domain]).map(drop)
}

/// Ends a service of the host with SIGKILL, by the file with its process ID below `/run`; `up` starts it.
fn end(service: &str) -> Result<()> {
    let file = format!("/run/{service}.pid");
    let process = fs::read_to_string(&file).with_context(|| file.clone())?;
    kill(Pid::from_raw(process.trim().parse()?), Signal::SIGKILL).with_context(|| file.clone())?;
    // As a reboot does, too: docker takes what is left of it for a docker that runs.
    fs::remove_file(&file).with_context(|| file)
}

/// libvirtd ends with a machine half-made: guests do not notice, and the machine is made.
pub async fn libvirtd_ends(appliance: &Appliance) -> Result<()> {
    let before = appliance.processes()?;
    let machines = appliance.machines().await?;
    let mut spec = machines.get("client").await?.spec;
    "00000000-0000-4000-8000-00000000e2e9".clone_into(&mut spec.id);
    machines.create(&PostParams::default(), &VirtualMachine::new("late", spec)).await?;
    appliance.machine("late", "to be begun", PATIENCE, |machine| machine.status.is_some()).await?;
    let fault = edge_tests::Fault::strikes("libvirtd ends while a machine is made");
    end("libvirtd")?;
    let status = appliance.up()?.status().await?;
    anyhow::ensure!(status.success(), "up: {status}");
    appliance.machine("late", "to be ready", PATIENCE, is_ready).await?;
    let after = appliance.processes()?;
    anyhow::ensure!(before.iter().all(|one| after.get(one.0) == Some(one.1)), "{after:?}, they were {before:?}");
    fault.survived();
    machines.delete("late", &DeleteParams::default()).await?;
    eventually("the machine to be gone", PATIENCE, || async {
        let object = machines.get_opt("late").await?;
        Ok::<_, kube::Error>(Seen::when(object.is_none(), object.map(|object| object.status)))
    })
    .await?;
    Ok(())
}

fn is_ready(machine: &VirtualMachine) -> bool {
    machine.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, "Ready"))
}

/// One after the other, on an appliance with a cluster of one node. After one that is not survived the rest would only
/// show the same.
pub async fn are_survived(appliance: &Appliance) -> Result<()> {
    for fault in Fault::ALL {
        phase(fault.words(), async {
            let struck = edge_tests::Fault::strikes(fault.words());
            let answers = Box::pin(survive(appliance, fault)).await?;
            struck.survived();
            answers.print();
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The box becomes what it was in the factory: no key, no site file, nothing in libvirt and docker.
pub async fn reset(appliance: &Appliance) -> Result<()> {
    appliance.edgectl(&["--instance", appliance.instance.as_str(), "reset", "--yes"]).await?;
    for gone in ["state", "ca", "conf", "etcd", "pki", "pools", "registry", "kube"] {
        anyhow::ensure!(!appliance.root.join(gone).exists(), "{gone} is still there");
    }
    let prefix = appliance.instance.libvirt_name("");
    for list in [["list", "--all", "--name"], ["net-list", "--all", "--name"], ["pool-list", "--all", "--name"]] {
        let left = virsh(&list)?;
        anyhow::ensure!(!left.lines().any(|name| name.starts_with(&prefix)), "{left}");
    }
    let containers = run("docker", &["ps", "-a", "--format", "{{.Names}}"])?;
    anyhow::ensure!(!containers.lines().any(|name| name == appliance.node()), "{containers}");
    Ok(())
}

async fn survive(appliance: &Appliance, fault: Fault) -> Result<Answers> {
    let before = State::of(appliance).await?;
    let workload = workload::client(appliance).await?;
    let booted = boots(&workload).await?;
    let back = async {
        fault.strike(appliance).await?;
        // After a cut the API server says for a while what was true before it; only the boot ID tells.
        eventually("the cluster's node to be ready, in the right life", PATIENCE, || async {
            let now = boots(&workload).await?;
            let same = now.keys().eq(booted.keys()) && now.values().all(|node| node.1);
            let lived = now.iter().all(|(name, node)| booted.get(name).is_some_and(|before| before.0 == node.0));
            anyhow::Ok(Seen::when(same && lived == fault.guests_live_on(), now))
        })
        .await?;
        eventually("all of it to be back", PATIENCE, || async {
            let missing = missing(appliance, fault, &before).await?;
            anyhow::Ok(Seen::when(missing.is_none(), missing))
        })
        .await?;
        Ok(())
    };
    let ((), answers) = requests::meanwhile(workload.clone(), back).await?;
    let after = State::of(appliance).await?;
    anyhow::ensure!(after.objects == before.objects, "objects: {:?}, then {:?}", before.objects, after.objects);
    Ok(answers)
}

/// Nodes of the cluster by name: boot ID, and whether it is ready.
async fn boots(workload: &Client) -> Result<BTreeMap<String, (String, bool)>> {
    let nodes = Api::<Node>::all(workload.clone()).list(&ListParams::default()).await?.items;
    let state = |node: &Node| {
        let boot = node.status.as_ref().and_then(|status| Some(status.node_info.as_ref()?.boot_id.clone()));
        (boot.unwrap_or_default(), workload::is_ready(node))
    };
    Ok(nodes.iter().map(|node| (node.name_any(), state(node))).collect())
}

/// The first thing that is not yet as it was.
async fn missing(appliance: &Appliance, fault: Fault, before: &State) -> Result<Option<String>> {
    let status = appliance.status().await?;
    if status.phase != Phase::Ready {
        return Ok(Some(format!("the agent: {:?}: {}", status.phase, status.message)));
    }
    let now = State::of(appliance).await?;
    if (now.node != before.node) != fault.makes_another_node() {
        return Ok(Some(format!("the node is {}, it was {}", now.node, before.node)));
    }
    let (names, lived): (Vec<_>, Vec<_>) =
        before.domains.iter().map(|(name, process)| (name, now.domains.get(name) == Some(process))).unzip();
    if !now.domains.keys().eq(names) || lived.iter().any(|lived| *lived != fault.guests_live_on()) {
        return Ok(Some(format!("processes {:?}, they were {:?}", now.domains, before.domains)));
    }
    let persistent = virsh(&["list", "--all", "--persistent", "--name"])?;
    if let Some(lost) = now.domains.keys().find(|domain| !persistent.lines().any(|line| line == *domain)) {
        return Ok(Some(format!("domain {lost} is not defined")));
    }
    let machines = appliance.machines().await?.list(&ListParams::default()).await?.items;
    if let Some(machine) = machines.iter().find(|machine| !is_ready(machine)) {
        return Ok(Some(format!("machine {}: {:?}", machine.name_any(), machine.status)));
    }
    let cluster = appliance.clusters().await?.get(NAME).await?.status.unwrap_or_default();
    let ready = cluster.phase == ClusterPhase::Running && condition::is_true(&cluster.conditions, "Ready");
    Ok((!ready).then(|| format!("cluster {NAME}: {:?}: {:?}", cluster.phase, cluster.conditions)))
}

/// What must be the same afterwards.
struct State {
    /// The node's container.
    node: String,
    /// Running domains with their processes.
    domains: BTreeMap<String, String>,
    /// Machines and the cluster, by their UIDs.
    objects: BTreeMap<String, Option<String>>,
}

impl State {
    async fn of(appliance: &Appliance) -> Result<Self> {
        let mut objects = BTreeMap::new();
        for machine in appliance.machines().await?.list(&ListParams::default()).await?.items {
            objects.insert(format!("machine {}", machine.name_any()), machine.uid());
        }
        for cluster in appliance.clusters().await?.list(&ListParams::default()).await?.items {
            objects.insert(format!("cluster {}", cluster.name_any()), cluster.uid());
        }
        let node = run("docker", &["inspect", "-f", "{{.Id}}", &appliance.node()])?.trim().to_owned();
        Ok(Self { node, domains: appliance.processes()?, objects })
    }
}
