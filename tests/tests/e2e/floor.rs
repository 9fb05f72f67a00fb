//! What the workload cluster is measured against: a bare script with virsh that boots the same image, runs kubeadm on one
//! machine and joins the other, with everything known beforehand, and with the same kernel arguments, keys, probes,
//! leases and settings of etcd.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use edge_api::bundle::Artifact;
use edge_api::virtual_machine_image::{VirtualMachineImageSpec, VolumeRole};
use edge_api::{VirtualMachineImage, condition, names};
use edge_tests::inventory::{run, virsh};
use edge_tests::wait::{Seen, eventually};
use kube::Api;
use kube::api::{DeleteParams, PostParams};

use crate::appliance::Appliance;
use crate::guest;
use crate::workload::{Times, api_server, bundle, client_of, nodes_ready};

/// Name of the object of the image.
const IMAGE: &str = "e2e-floor";
/// Twice of what it takes on two emulated cores, and more.
const DEADLINE: Duration = Duration::from_mins(15);
const TOKEN: &str = "floor0.0123456789abcdef";
const DOMAINS: [&str; 2] = ["edge-e2e-floor-0", "edge-e2e-floor-1"];

/// Files of the image's volumes.
struct Image {
    disk: String,
    kernel: String,
    initrd: String,
}

async fn images(appliance: &Appliance) -> Result<Api<VirtualMachineImage>> {
    Ok(Api::namespaced(appliance.client().await?, names::NAMESPACE))
}

/// Boots both machines and waits until both nodes are ready; removes what it made.
pub async fn measure(appliance: &Appliance) -> Result<Times> {
    let images = images(appliance).await?;
    let index = bundle()?;
    let artifact = index.artifacts.iter().find(|artifact| artifact.name.starts_with("pcg-edge.io/vm/kubernetes-node:"));
    let Artifact { name, digest, .. } = artifact.context("no image of a Kubernetes node in the bundle")?;
    let repository = name.rsplit_once(':').map_or(name.as_str(), |(repository, _)| repository);
    let spec = VirtualMachineImageSpec { appliance: "local".into(), artifact: format!("{repository}@{digest}") };
    images.create(&PostParams::default(), &VirtualMachineImage::new(IMAGE, spec)).await?;
    let outcome = tokio::time::timeout(DEADLINE, with_image(appliance)).await;
    for domain in DOMAINS {
        // Not there where it was never made.
        let _ = virsh(&["destroy", domain]);
    }
    images.delete(IMAGE, &DeleteParams::default()).await?;
    eventually("the image to be gone", Duration::from_mins(2), || async {
        let object = images.get_opt(IMAGE).await?;
        Ok::<_, kube::Error>(Seen::when(object.is_none(), object.map(|object| object.status)))
    })
    .await?;
    outcome.with_context(|| format!("not done after {} s", DEADLINE.as_secs()))?
}

async fn with_image(appliance: &Appliance) -> Result<Times> {
    let image = image(appliance).await?;
    // Below the pools, where QEMU may read.
    let dir = tempfile::Builder::new().prefix("floor-").tempdir_in(appliance.root.join("pools"))?;
    run("chmod", &["0755", &dir.path().to_string_lossy()])?;
    boot(appliance, &image, dir.path()).await
}

async fn boot(appliance: &Appliance, image: &Image, dir: &Path) -> Result<Times> {
    let wan = appliance.wan;
    let (first, second) = (Ipv4Addr::new(192, 168, wan, 80), Ipv4Addr::new(192, 168, wan, 81));
    let init = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\nbootstrapTokens: [{{token: {TOKEN}}}]\n\
         localAPIEndpoint: {{advertiseAddress: {first}}}\n{TIMEOUTS}---\n\
         apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\nkubernetesVersion: v{version}\n\
         encryptionAlgorithm: ECDSA-P256\n\
         controllerManager: {{extraArgs: {PATIENT}}}\nscheduler: {{extraArgs: {PATIENT}}}\n\
         etcd: {{local: {{extraArgs: {ETCD}}}}}\n\
         networking: {{podSubnet: 10.240.0.0/16, serviceSubnet: 10.112.0.0/16}}\n",
        version = bundle()?.kubernetes_version.trim_start_matches('v'),
    );
    let join = format!(
        "apiVersion: kubeadm.k8s.io/v1beta4\nkind: JoinConfiguration\n{TIMEOUTS}discovery:\n  \
         bootstrapToken: {{token: {TOKEN}, apiServerEndpoint: \"{first}:6443\", unsafeSkipCAVerification: true}}\n",
    );
    let start = Instant::now();
    machine(appliance, image, dir, 0, first, 2560, "init", &init)?;
    let first_process = start.elapsed();
    api_server(first).await?;
    let api_time = start.elapsed();
    // As with Cluster API: the worker is made when there is something to join.
    machine(appliance, image, dir, 1, second, 2048, "join", &join)?;
    let kubeconfig = guest::must(DOMAINS[0], "cat", &["/etc/kubernetes/admin.conf"]).await?;
    nodes_ready(&client_of(&kubeconfig).await?, 2).await?;
    Ok(Times { first_process, api_server: api_time, nodes: start.elapsed() })
}

const ETCD: &str = "[{name: heartbeat-interval, value: '500'}, {name: election-timeout, value: '5000'}, \
                    {name: log-level, value: warn}, {name: warning-apply-duration, value: 1s}, \
                    {name: warning-unary-request-duration, value: 1s}]";
const PATIENT: &str = "[{name: leader-elect-lease-duration, value: 60s}, \
                       {name: leader-elect-renew-deadline, value: 45s}, {name: leader-elect-retry-period, value: 5s}]";
const TIMEOUTS: &str = "patches: {directory: /etc/kubernetes/patches}\n\
                        timeouts: {controlPlaneComponentHealthCheck: 20m, kubeletHealthCheck: 20m, \
                        kubernetesAPICall: 10m, tlsBootstrap: 20m, discovery: 20m}\n";

/// Overlay, seed, domain: started.
#[allow(clippy::too_many_arguments, reason = "a script's arguments")]
fn machine(
    appliance: &Appliance,
    image: &Image,
    dir: &Path,
    number: usize,
    address: Ipv4Addr,
    memory: u32,
    verb: &str,
    config: &str,
) -> Result<()> {
    let disk = dir.join(format!("{number}.qcow2"));
    let (disk_text, backing) = (disk.to_string_lossy(), &image.disk);
    run("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, &disk_text, "12G"])?;
    let seed = seed(appliance, dir, number, address, verb, config)?;
    let network = appliance.instance.libvirt_name("wan");
    let domain = DOMAINS[number];
    // The device alone says nothing: some hosts have it, and guests hang on it.
    let flags = fs::read_to_string("/proc/cpuinfo")?;
    let (accelerator, cpu, clock) = if flags.contains("vmx") || flags.contains("svm") {
        ("kvm", "<cpu mode='host-passthrough'/>", "")
    } else {
        let cpu = "<cpu mode='maximum'><feature policy='disable' name='erms'/><feature policy='disable' name='fsrm'/>\
                   <feature policy='disable' name='la57'/></cpu>";
        ("qemu", cpu, "tsc=reliable mitigations=off ")
    };
    let xml = format!(
        "<domain type='{accelerator}'><name>{domain}</name><memory unit='MiB'>{memory}</memory><vcpu>2</vcpu>\
         <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel><initrd>{}</initrd>\
         <cmdline>{clock}root=/dev/vda rw console=ttyS0 net.ifnames=0</cmdline></os><features><acpi/></features>{cpu}<devices>\
         <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk_text}'/>\
         <target dev='vda' bus='virtio'/></disk>\
         <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='{}'/>\
         <target dev='vdb' bus='virtio'/><readonly/></disk>\
         <interface type='network'><source network='{network}'/><model type='virtio'/></interface>\
         <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>\
         <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>\
         <serial type='pty'/></devices></domain>",
        image.kernel,
        image.initrd,
        seed.display(),
    );
    let file = dir.join(format!("{number}.xml"));
    fs::write(&file, xml)?;
    virsh(&["create", &file.to_string_lossy()])?;
    Ok(())
}

/// A `NoCloud` seed: network, kubeadm's configuration, a bridge for pods, and kubeadm.
fn seed(
    appliance: &Appliance,
    dir: &Path,
    number: usize,
    address: Ipv4Addr,
    verb: &str,
    config: &str,
) -> Result<PathBuf> {
    let gateway = Ipv4Addr::new(192, 168, appliance.wan, 1);
    let bridge = format!(
        "{{\"cniVersion\":\"1.0.0\",\"name\":\"floor\",\"plugins\":[{{\"type\":\"bridge\",\"bridge\":\"cni0\",\
         \"isGateway\":true,\"ipMasq\":true,\"ipam\":{{\"type\":\"host-local\",\"ranges\":[[{{\"subnet\":\
         \"10.240.{number}.0/24\"}}]],\"routes\":[{{\"dst\":\"0.0.0.0/0\"}}]}}}}]}}"
    );
    let mut user = String::from("#cloud-config\nwrite_files:\n");
    for (path, content) in [("/run/kubeadm.yaml", config), ("/etc/cni/net.d/10-floor.conflist", &bridge)] {
        let _ = write!(user, "  - path: {path}\n    content: |\n");
        content.lines().for_each(|line| {
            let _ = writeln!(user, "      {line}");
        });
    }
    let _ = write!(user, "runcmd:\n  - kubeadm {verb} --config /run/kubeadm.yaml\n");
    let meta = format!("instance-id: floor-{number}\nlocal-hostname: floor-{number}\n");
    let network = format!(
        "version: 2\nethernets:\n  eth0:\n    addresses: [{address}/24]\n    \
         routes: [{{to: 0.0.0.0/0, via: {gateway}}}]\n"
    );
    let seed = dir.join(format!("{number}.seed"));
    let mut volume = fs::File::options().create_new(true).read(true).write(true).open(&seed)?;
    volume.set_len(2 << 20)?;
    fatfs::format_volume(&mut volume, fatfs::FormatVolumeOptions::new().volume_label(*b"CIDATA     "))?;
    let system = fatfs::FileSystem::new(volume, fatfs::FsOptions::new())?;
    for (name, content) in [("user-data", user), ("meta-data", meta), ("network-config", network)] {
        let mut file = system.root_dir().create_file(name)?;
        file.write_all(content.as_bytes())?;
        file.flush()?;
    }
    system.unmount()?;
    Ok(seed)
}

/// The image that the appliance's machines boot from, as files.
async fn image(appliance: &Appliance) -> Result<Image> {
    let images = images(appliance).await?;
    let ready = eventually("the image", Duration::from_mins(5), || async {
        let image = images.get(IMAGE).await?;
        let ready = image.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, "Ready"));
        Ok::<_, kube::Error>(Seen::when(ready, image))
    });
    let volumes = ready.await?.status.context("no status")?.volumes;
    let pool = appliance.instance.libvirt_name("default");
    let file = |role: VolumeRole| -> Result<String> {
        let volume = volumes.iter().find(|volume| volume.role == role).with_context(|| format!("no {role:?}"))?;
        Ok(virsh(&["vol-path", "--pool", &pool, &volume.name])?.trim().to_owned())
    };
    Ok(Image { disk: file(VolumeRole::Disk)?, kernel: file(VolumeRole::Kernel)?, initrd: file(VolumeRole::Initrd)? })
}
