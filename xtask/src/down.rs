//! `down`: removes all that `up` made for one instance and, with the last one, stops the services started for it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use edge_api::Instance;

use crate::agent::Agent;
use crate::command::{command, quiet, run as show};
use crate::host::{Holder, Host};
use crate::{services, workspace};

/// Runs the task.
pub fn run(instance: &Instance) -> Result<()> {
    workspace::require_root()?;
    let mut host = Host::lock()?;
    let agent = Agent::of(instance);
    let known = host.state.holders.contains_key(instance.as_str());
    if !known && !agent.root.exists() {
        println!("there is no instance {instance}");
        return Ok(());
    }
    agent.stop()?;
    agent.forget()?;
    if agent.root.exists() {
        if known && agent.root.join("state").exists() {
            // What the agent made is docker's and libvirt's to remove, and the host may have been started anew.
            services::ensure(&mut host, &services::runtime())?;
        }
        remove(&agent)?;
    }
    let ended = services::release(&mut host, instance.as_str())?;
    println!("instance {instance} is gone");
    if !ended.is_empty() {
        println!("stopped {}", ended.join(", "));
    }
    print_what_stays(&host)
}

/// Has the agent take away what it made on the host, then removes its root.
fn remove(agent: &Agent) -> Result<()> {
    let installed = agent.program("edge-agent");
    let built = workspace::target()?.join("release/edge-agent");
    if let Some(program) = [installed, built].into_iter().find(|program| program.exists()) {
        let mut remove = command(program);
        remove.arg("remove").arg("--root").arg(&agent.root).args(["--instance", agent.instance.as_str()]);
        show(&mut remove)?;
    } else {
        // A root without programs and nothing built: nothing was ever started from it.
        anyhow::ensure!(
            !agent.root.join("state").exists(),
            "{} holds an appliance, and there is no edge-agent to remove it: run `cargo build --release -p edge-agent`",
            agent.root.display()
        );
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if let Some(mount) = mount_below(&mounts, &agent.root) {
        anyhow::bail!("{} is still mounted; nothing below {} was removed", mount.display(), agent.root.display());
    }
    match fs::remove_dir_all(&agent.root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| agent.root.display().to_string())
        }
        _ => Ok(()),
    }
}

/// A mount point below a folder: removing files there would reach into something else.
fn mount_below(mountinfo: &str, dir: &Path) -> Option<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(point.replace("\\040", " "))).find(|point| point.starts_with(dir))
}

fn print_what_stays(host: &Host) -> Result<()> {
    println!("what stays:");
    if !host.state.packages.is_empty() {
        let names: Vec<_> = host.state.packages.iter().map(String::as_str).collect();
        println!("  Debian packages: {}", names.join(" "));
    }
    let mut caches = vec![("artifacts", workspace::cache()?), ("cargo's target folder", workspace::target()?)];
    for (what, variable) in [("Go's build cache", "GOCACHE"), ("Go's module cache", "GOMODCACHE")] {
        if let Ok(path) = quiet(command("go").args(["env", variable])) {
            caches.push((what, PathBuf::from(path.trim())));
        }
    }
    for (what, path) in caches {
        if path.exists() {
            println!("  {what}: {} ({:.1} GiB)", path.display(), disk_use(&path) as f64 / f64::from(1 << 30));
        }
    }
    for (name, holder) in &host.state.holders {
        match holder {
            Holder::Instance => println!("  instance {name}"),
            Holder::Run(process) => println!("  services, for the tests of process {}", process.pid),
        }
    }
    Ok(())
}

/// Bytes on disk below a folder; a file with several names counts once.
fn disk_use(path: &Path) -> u64 {
    fn walk(path: &Path, seen: &mut BTreeSet<(u64, u64)>) -> u64 {
        let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
        let first = meta.nlink() < 2 || meta.is_dir() || seen.insert((meta.dev(), meta.ino()));
        let own = if first { meta.blocks() * 512 } else { 0 };
        if !meta.is_dir() {
            return own;
        }
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        own + entries.map(|entry| walk(&entry.path(), seen)).sum::<u64>()
    }
    walk(path, &mut BTreeSet::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_folder_are_found() {
        let info = "36 35 98:0 / / rw - ext4 /dev/a rw\n37 36 0:5 / /opt/a\\040b/etcd rw - tmpfs tmpfs rw\n";
        assert_eq!(mount_below(info, Path::new("/opt/a b")), Some(PathBuf::from("/opt/a b/etcd")));
        assert_eq!(mount_below(info, Path::new("/opt/a")), None);
    }

    #[test]
    fn a_file_with_two_names_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("one"), vec![1; 1 << 20]).unwrap();
        let alone = disk_use(dir.path());
        fs::hard_link(dir.path().join("one"), dir.path().join("two")).unwrap();
        assert_eq!(disk_use(dir.path()), alone);
    }
}
