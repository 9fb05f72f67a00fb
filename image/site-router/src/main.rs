//! Runs once at boot in the site router's guest, before the network: finds the disk labelled `PCGCONFIG`, checks
//! `config.xml`, writes the network's files, loads the packet filter, and turns forwarding on last. Whatever is wrong
//! is said on the console, and then nothing is configured: no network, no DHCP, no forwarding.
//!
//! The label is read from the disks themselves: under emulation udev takes seconds to make its links.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use site_router::config::{self, Config};
use site_router::render;

const LABEL: &str = "PCGCONFIG";
const MOUNT_POINT: &str = "/run/site-router/config";
/// How long the disk may take to appear.
const DISK_DEADLINE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    match run() {
        Ok(config) => {
            let (start, end) = config.dhcp;
            println!(
                "site-router: WAN {} via {}, LAN {}, DHCP {start} to {end} for {} s",
                config.wan, config.gateway, config.lan, config.lease_seconds
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("site-router: NOT CONFIGURED: {error:#}");
            println!("site-router: correct the configuration and start this machine again");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<Config> {
    fs::create_dir_all(MOUNT_POINT).context("cannot make the mount point")?;
    let config = config::parse(&read_config()?)?;
    let files = render::files(&config);
    let written = apply(&config, &files);
    if written.is_err() {
        for (path, _) in &files {
            let _ = fs::remove_file(path);
        }
    }
    written.map(|()| config)
}

fn read_config() -> Result<String> {
    let deadline = Instant::now() + DISK_DEADLINE;
    let disk = loop {
        if let Some(disk) = config_disk() {
            break disk;
        }
        if Instant::now() > deadline {
            bail!("no disk labelled {LABEL} after {} s", DISK_DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some(&disk), MOUNT_POINT, Some("vfat"), flags, None::<&str>)
        .with_context(|| format!("cannot mount the disk {LABEL}"))?;
    let text = fs::read_to_string(Path::new(MOUNT_POINT).join("config.xml"));
    let _ = umount2(MOUNT_POINT, MntFlags::empty());
    text.with_context(|| format!("cannot read config.xml on the disk {LABEL}"))
}

/// The first disk with our label in its FAT boot sector.
fn config_disk() -> Option<PathBuf> {
    let mut disks: Vec<_> = fs::read_dir("/sys/block").ok()?.flatten().map(|entry| entry.file_name()).collect();
    disks.sort();
    let labelled = |disk: &PathBuf| {
        let mut sector = [0; 512];
        let read = fs::File::open(disk).and_then(|mut file| file.read_exact(&mut sector));
        read.is_ok() && config::fat_label(&sector).is_some_and(|label| label == LABEL)
    };
    disks.into_iter().map(|name| Path::new("/dev").join(name)).find(labelled)
}

fn apply(config: &Config, files: &[(&'static str, String)]) -> Result<()> {
    for (path, text) in files {
        if let Some(parent) = Path::new(path).parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        }
        fs::write(path, text).with_context(|| format!("cannot write {path}"))?;
    }
    nix::unistd::sethostname(&config.hostname).context("cannot set the host name")?;
    let output = Command::new("/usr/sbin/nft").args(["-f", render::RULES]).output().context("cannot run nft")?;
    if !output.status.success() {
        bail!("nft refuses the rules: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("cannot turn forwarding on")
}
