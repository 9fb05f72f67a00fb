//! Host services: virtlogd, libvirtd and docker. One that runs already is left alone, also by the last `down`.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::{command, quiet, succeeds, tail};
use crate::host::{self, Handle, Holder, Host, Service};
use crate::process::Process;

/// How long a service may take to answer on its socket.
const START_DEADLINE: Duration = Duration::from_secs(90);
/// How long one may take to end; docker stops its containers first.
const END_DEADLINE: Duration = Duration::from_mins(1);
/// Both docker and libvirt turn it on.
const FORWARDING: &str = "net.ipv4.ip_forward";
/// Bit of `CAP_SYS_RESOURCE` in a capability set.
const SYS_RESOURCE: u64 = 1 << 24;

struct Spec {
    name: &'static str,
    socket: &'static str,
    unit: &'static str,
    program: &'static str,
}

const SERVICES: &[Spec] = &[
    // First: it holds the consoles of machines, also while libvirtd restarts.
    Spec { name: "virtlogd", socket: "/run/libvirt/virtlogd-sock", unit: "virtlogd.socket", program: "virtlogd" },
    Spec { name: "libvirtd", socket: "/run/libvirt/libvirt-sock", unit: "libvirtd.socket", program: "libvirtd" },
    Spec { name: "docker", socket: "/run/docker.sock", unit: "docker.service", program: "dockerd" },
];

/// Whether systemd runs this host.
pub fn systemd() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Starts what does not run, and records it.
pub fn ensure(host: &mut Host, edge_runc: &Path) -> Result<()> {
    for spec in SERVICES {
        if answers(spec.socket) {
            continue;
        }
        // Services that have ended by themselves left it on.
        if !host.state.sysctls.contains_key(FORWARDING) {
            let value = quiet(command("sysctl").args(["-n", FORWARDING]))?;
            host.state.sysctls.insert(FORWARDING.to_owned(), value.trim().to_owned());
            host.save()?;
        }
        eprintln!("    starting {}", spec.name);
        let (handle, log) = if systemd() { start_unit(spec)? } else { start_process(spec, edge_runc)? };
        // Recorded before it is waited for: this run may be interrupted.
        host.state.services.push(Service { name: spec.name.to_owned(), handle: handle.clone() });
        host.save()?;
        wait(spec, &handle, log.as_deref())?;
    }
    check_docker(edge_runc)
}

/// Ends what was started here, where nobody needs it any more. Returns the names of those ended.
pub fn release(host: &mut Host, holder: &str) -> Result<Vec<String>> {
    host.state.holders.remove(holder);
    host.save()?;
    let mut ended = Vec::new();
    if !host.state.holders.is_empty() {
        return Ok(ended);
    }
    while let Some(service) = host.state.services.last().cloned() {
        match &service.handle {
            Handle::Process(process) => process.end(END_DEADLINE).with_context(|| service.name.clone())?,
            Handle::Unit(unit) => drop(quiet(command("systemctl").args(["stop", unit]))?),
        }
        ended.push(service.name);
        host.state.services.pop();
        host.save()?;
    }
    while let Some((name, value)) = host.state.sysctls.pop_first() {
        if !ended.is_empty() {
            quiet(command("sysctl").args(["-q", "-w", &format!("{name}={value}")]))?;
        }
        host.save()?;
    }
    Ok(ended)
}

/// Notes a run of the tests as a holder, and lets go when dropped.
pub struct Hold(String);

impl Hold {
    /// Holds until dropped.
    pub fn new(host: &mut Host, name: &str) -> Result<Self> {
        let own = Process::own().context("/proc")?;
        host.hold(name, Holder::Run(own))?;
        Ok(Self(name.to_owned()))
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let outcome = Host::lock().and_then(|mut host| release(&mut host, &self.0));
        match outcome {
            Ok(ended) if ended.is_empty() => {}
            Ok(ended) => eprintln!("stopped {}", ended.join(", ")),
            Err(error) => eprintln!("warning: services: {error:#}"),
        }
    }
}

/// Whether this process, and so all that it starts, can never have `CAP_SYS_RESOURCE`.
fn bounded() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    is_bounded(&status)
}

fn is_bounded(status: &str) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & SYS_RESOURCE == 0)
}

fn answers(socket: &str) -> bool {
    UnixStream::connect(socket).is_ok()
}

fn start_unit(spec: &Spec) -> Result<(Handle, Option<PathBuf>)> {
    quiet(command("systemctl").args(["start", spec.unit]))?;
    Ok((Handle::Unit(spec.unit.to_owned()), None))
}

fn start_process(spec: &Spec, edge_runc: &Path) -> Result<(Handle, Option<PathBuf>)> {
    let mut arguments = Vec::new();
    if spec.name == "docker" && bounded() {
        let runtime = install_runtime(edge_runc)?;
        arguments.push(format!("--add-runtime=edge-runc={}", runtime.display()));
        arguments.push("--default-runtime=edge-runc".to_owned());
    }
    let log = Path::new(host::LOG_DIR).join(format!("{}.log", spec.name));
    let process = detach(Path::new(spec.program), &arguments, &log)?;
    Ok((Handle::Process(process), Some(log)))
}

/// docker keeps the path of its runtime, so it must not point into a target folder.
fn install_runtime(edge_runc: &Path) -> Result<PathBuf> {
    let stable = runtime();
    crate::build::install(edge_runc, &stable)?;
    Ok(stable)
}

/// Where docker has its runtime from, whatever becomes of the checkout.
pub fn runtime() -> PathBuf {
    Path::new(host::DIR).join("bin/edge-runc")
}

/// Starts a program that outlives this one and its terminal.
pub fn detach(program: &Path, arguments: &[String], log: &Path) -> Result<Process> {
    if let Some(dir) = log.parent() {
        fs::create_dir_all(dir)?;
    }
    let output = File::options().create(true).append(true).open(log).with_context(|| log.display().to_string())?;
    let child = command("setsid")
        .arg(program)
        .args(arguments)
        .current_dir("/")
        .stdout(output.try_clone()?)
        .stderr(output)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    // This process leads no group in its session for the child, so setsid does not fork and the ID is the program's.
    Process::of(i32::try_from(child.id())?).with_context(|| failure(program, log))
}

fn failure(program: &Path, log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    format!("{} ended at once; {}:\n{}", program.display(), log.display(), tail(&text))
}

fn wait(spec: &Spec, handle: &Handle, log: Option<&Path>) -> Result<()> {
    let until = Instant::now() + START_DEADLINE;
    while !answers(spec.socket) {
        let ended = matches!(handle, Handle::Process(process) if !process.alive());
        if ended || Instant::now() > until {
            let what = if ended { "ended" } else { "does not answer" };
            let output = log.map(|log| fs::read_to_string(log).unwrap_or_default()).unwrap_or_default();
            bail!("{} {what} ({}):\n{}", spec.name, spec.socket, tail(&output));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A docker that somebody else started may lack the runtime that such a host needs; kind would fail much later.
fn check_docker(edge_runc: &Path) -> Result<()> {
    let mut info = command("docker");
    info.args(["info", "--format", "{{.DefaultRuntime}}"]);
    let runtime = quiet(&mut info)?;
    if bounded() && runtime.trim() == "runc" {
        bail!(
            "docker runs with its own runtime, which cannot start privileged containers here: CAP_SYS_RESOURCE is \
             missing from the bounding set. Stop docker and let `cargo xtask up` start it, or start it with \
             --add-runtime=edge-runc={} --default-runtime=edge-runc",
            edge_runc.display()
        );
    }
    // Sockets of libvirt answer before it can work.
    anyhow::ensure!(
        succeeds(command("virsh").args(["-c", "qemu:///system", "version"])),
        "libvirtd does not answer `virsh -c qemu:///system version`"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bounded_host_is_told_by_its_bounding_set() {
        assert!(is_bounded("Name:\tx\nCapBnd:\t000001fffeffffff\nCapAmb:\t0\n"));
        assert!(!is_bounded("Name:\tx\nCapBnd:\t000001ffffffffff\n"));
        assert!(!is_bounded("Name:\tx\n"));
    }

    #[test]
    fn a_detached_program_lives_in_a_session_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let process = detach(Path::new("sleep"), &["60".to_owned()], &dir.path().join("log")).unwrap();
        let session = || nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(process.pid))).unwrap().as_raw();
        let until = Instant::now() + Duration::from_secs(5);
        while session() != process.pid && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(session(), process.pid);
        process.end(Duration::from_secs(5)).unwrap();
    }
}
