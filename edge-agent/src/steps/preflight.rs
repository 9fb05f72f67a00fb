//! Step `preflight`: whether this host can be an appliance. All findings at once, each with what to do.

mod egress;

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use edge_api::SiteConfig;
use edge_api::agent::Accelerator;
use futures::future::LocalBoxFuture;
use ipnet::Ipv4Net;
use tracing::warn;

use crate::durable;
use crate::engine::{Failure, Run, Step, Verdict, chain};
use crate::world::World;

/// What the system cluster, the operator and the smallest guests need.
const MIN_CPUS: usize = 2;
const MIN_MEMORY_MIB: u64 = 3500;
const MIN_DISK_GIB: u64 = 8;
/// Where libvirt's monolithic daemon listens.
const LIBVIRT_SOCKET: &str = "/run/libvirt/libvirt-sock";

/// See the module.
pub struct Preflight {
    world: Arc<World>,
    noted: RefCell<Vec<String>>,
}

/// One thing that is not as it must be.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Finding {
    message: String,
    hint: String,
}

fn finding(message: impl Into<String>, hint: impl Into<String>) -> Finding {
    Finding { message: message.into(), hint: hint.into() }
}

impl Preflight {
    /// The step.
    pub fn new(world: Arc<World>) -> Self {
        Self { world, noted: RefCell::default() }
    }

    async fn ensure_host(&self, site: &SiteConfig) -> Result<Verdict, Failure> {
        let world = &self.world;
        let mut findings = Vec::new();
        let accelerator = accelerator(
            &std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default(),
            std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").map(drop),
        );
        world.board.set_accelerator(accelerator.clone());

        if let Err(behind) = world.clock.now() {
            let hint = "set the clock (`timedatectl set-ntp true`, or `date -s`); if that happens after each start, \
                        replace the battery";
            findings.push(finding(behind.to_string(), hint));
        }
        if let Err(e) = world.clock.keep() {
            findings.push(finding(chain(&e), "free space there"));
        }
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        if cpus < MIN_CPUS {
            findings.push(finding(format!("{cpus} CPU, {MIN_CPUS} are needed"), "use a host with more CPUs"));
        }
        let memory = memory_mib(&std::fs::read_to_string("/proc/meminfo").unwrap_or_default());
        if memory < MIN_MEMORY_MIB {
            let hint = "use a host with more memory";
            findings.push(finding(format!("{memory} MiB of memory, {MIN_MEMORY_MIB} are needed"), hint));
        }
        // What is installed already has taken its part.
        let installed = world.paths.join("state/cluster.json").exists();
        let need = if installed { MIN_DISK_GIB / 4 } else { MIN_DISK_GIB };
        match durable::free(world.paths.root()).map(|bytes| bytes >> 30) {
            Ok(free) if free < need => findings.push(finding(
                format!("{free} GiB free at {}, {need} are needed", world.paths.root().display()),
                "free space there, or choose another --root",
            )),
            Ok(_) => {}
            Err(e) => {
                findings.push(finding(format!("free space at {}: {e}", world.paths.root().display()), "mount it"));
            }
        }
        if let Err(e) = UnixStream::connect(LIBVIRT_SOCKET) {
            let hint = "start libvirtd (`systemctl start libvirtd`, or `libvirtd -d` without systemd)";
            findings.push(finding(format!("libvirt does not answer on {LIBVIRT_SOCKET}: {e}"), hint));
        }
        let node = world.kind().node();
        if let Err(e) = world.docker.server_version().await {
            let hint = "start docker (`systemctl start docker`, or `dockerd` without systemd)";
            findings.push(finding(format!("docker does not answer: {}", e.tail()), hint));
        } else {
            let container = world.docker.container(&node).await.map_err(|e| Failure::of(&e))?;
            let held = container.filter(|c| c.running).map(|c| c.host_ports).unwrap_or_default();
            findings.extend(self.check_ports(&held));
            findings.extend(self.check_subnet().await?);
        }
        // Once installed, an appliance needs nobody: a line that is cut must not stop what keeps it so.
        if !installed {
            findings.extend(egress::findings(site).await);
        }
        if findings.is_empty() {
            return Ok(Verdict::Ready(format!(
                "{cpus} CPUs, {} GiB of memory, {} ({})",
                memory.div_ceil(1024),
                accelerator.kind.to_uppercase(),
                accelerator.reason
            )));
        }
        let join = |texts: Vec<&str>| texts.join("; ");
        let reason = join(findings.iter().map(|f| f.message.as_str()).collect());
        Err(Failure::new(reason).hint(join(findings.iter().map(|f| f.hint.as_str()).collect())))
    }

    fn check_ports(&self, held: &[u16]) -> Vec<Finding> {
        let wanted = [
            (Ipv4Addr::LOCALHOST, self.world.api_port, "the API server", "--api-port"),
            (Ipv4Addr::UNSPECIFIED, self.world.registry_port, "the registry", "--registry-port"),
        ];
        let free = |address: Ipv4Addr, port| TcpListener::bind(SocketAddr::from((address, port)));
        let taken =
            wanted.iter().filter(|(_, port, ..)| !held.contains(port)).filter_map(|(address, port, what, flag)| {
                let error = free(*address, *port).err()?;
                let hint =
                    format!("`ss -ltnp sport = :{port}` names who holds it; stop that, or choose another {flag}");
                Some(finding(format!("port {port} for {what} cannot be used: {error}"), hint))
            });
        taken.collect()
    }

    /// Neither a route of the host nor another docker network may overlap the subnet that we pin.
    async fn check_subnet(&self) -> Result<Vec<Finding>, Failure> {
        let network = self.world.instance.docker_network();
        let subnet = Ipv4Net::new_assert(self.world.instance.docker_subnet(), 24);
        if let Some(own) = self.world.docker.network_subnet(&network).await.map_err(|e| Failure::of(&e))? {
            if own == subnet.to_string() {
                return Ok(Vec::new());
            }
            let hint = format!("it is not ours: remove it (`docker network rm {network}`)");
            return Ok(vec![finding(format!("docker network {network} exists with subnet {own}, not {subnet}"), hint)]);
        }
        let routes = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
        let overlap = overlapping(&routes, subnet);
        Ok(overlap
            .into_iter()
            .map(|(device, route)| {
                let hint = "choose another --instance, whose subnet differs, or change that route";
                finding(format!("{subnet} of the docker network overlaps the host's route {route} on {device}"), hint)
            })
            .collect())
    }
}

impl Step for Preflight {
    fn name(&self) -> &'static str {
        "preflight"
    }

    fn interruptible(&self) -> bool {
        true
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(async move {
            for note in crate::site::notes(&run.site) {
                if !self.noted.borrow().contains(&note) {
                    warn!(step = "preflight", "{note}");
                    self.noted.borrow_mut().push(note);
                }
            }
            self.ensure_host(&run.site).await
        })
    }
}

/// KVM only where the CPU has it and the device opens: the device alone may be there and hang (`hosts.md`).
fn accelerator(cpuinfo: &str, device: std::io::Result<()>) -> Accelerator {
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags")).unwrap_or_default();
    let extension = ["vmx", "svm"].into_iter().find(|f| flags.split_whitespace().any(|word| word == *f));
    let tcg = |reason: String| Accelerator { kind: "tcg".to_owned(), reason };
    match (extension, device) {
        (None, _) => tcg("the CPU shows neither vmx nor svm; guests are emulated, and slow".to_owned()),
        (Some(flag), Err(e)) => tcg(format!("the CPU has {flag}, but /dev/kvm cannot be opened: {e}; guests are slow")),
        (Some(flag), Ok(())) => {
            Accelerator { kind: "kvm".to_owned(), reason: format!("the CPU has {flag} and /dev/kvm opens") }
        }
    }
}

fn memory_mib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Routes of `/proc/net/route` that overlap `subnet`, with their device; default routes overlap nothing.
fn overlapping(routes: &str, subnet: Ipv4Net) -> Vec<(String, Ipv4Net)> {
    let address = |hex: &str| u32::from_str_radix(hex, 16).ok().map(|n| Ipv4Addr::from(n.swap_bytes()));
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [device, destination, ..] = words[..] else { return None };
        let net = Ipv4Net::with_netmask(address(destination)?, address(words.get(7)?)?).ok()?;
        Some((device.to_owned(), net))
    };
    let overlap = |net: &Ipv4Net| net.contains(&subnet.network()) || subnet.contains(&net.network());
    routes.lines().skip(1).filter_map(parse).filter(|(_, net)| net.prefix_len() > 0 && overlap(net)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_needs_the_cpu_and_the_device() {
        let denied = || Err(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        assert_eq!(accelerator("flags\t\t: fpu vmx sse\n", Ok(())).kind, "kvm");
        assert_eq!(accelerator("flags\t\t: fpu svm sse\n", Ok(())).kind, "kvm");
        let no_cpu = accelerator("flags\t\t: fpu vmxx sse\n", Ok(()));
        assert_eq!(no_cpu.kind, "tcg");
        assert!(no_cpu.reason.contains("neither vmx nor svm"));
        let no_device = accelerator("flags\t\t: vmx\n", denied());
        assert_eq!(no_device.kind, "tcg");
        assert!(no_device.reason.contains("/dev/kvm cannot be opened"));
    }

    #[test]
    fn routes_that_overlap_are_found() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000011AC\t00000000\t0001\t0\t0\t0\t00F0FFFF\t0\t0\t0\n\
            tun0\t00001EAC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            br1\t80631EAC\t00000000\t0001\t0\t0\t0\t80FFFFFF\t0\t0\t0\n";
        let found = overlapping(routes, "172.30.99.0/24".parse().unwrap());
        let names: Vec<_> = found.iter().map(|(device, net)| format!("{device} {net}")).collect();
        assert_eq!(names, ["tun0 172.30.0.0/16", "br1 172.30.99.128/25"]);
        assert!(overlapping(routes, "10.0.0.0/24".parse().unwrap()).is_empty());
    }

    #[test]
    fn memory_is_read() {
        assert_eq!(memory_mib("MemTotal:       24689708 kB\nMemFree: 1 kB\n"), 24111);
    }
}
