//! The Kubernetes guest's VM image, one for each release: Debian with cloud-init, containerd, kubelet and kubeadm on an ext4 disk, every image
//! that kubeadm wants already in containerd's store; the initial RAM disk that mounts the disk, and the kernel.
//!
//! What a machine needs to become a node comes as a NoCloud seed (`user-data`, `meta-data` and, where DHCP is not
//! enough, `network-config` on a VFAT disk labelled `cidata`), as Cluster API's kubeadm bootstrap provider writes it.
//! The network of pods is for the cluster's layers: `/etc/cni/net.d` is empty, a few plugins are in `/opt/cni/bin`.
//! The appliance adds its registry and, for a control plane, keepalived on a disk labelled `PCGNODE` (see
//! `files/kubernetes-guest/node-setup`). Machine ID and SSH host keys are made at the first boot; the root file system
//! grows to its disk at every boot.

use std::path::{Path, PathBuf};

use crate::build::{Context, Result, mkdir};
use crate::cache::Key;
use crate::containers::Built;
use crate::debian::Base;
use crate::guest::{self, Guest};
use crate::layer::{Source, Tree};
use crate::node;
use crate::oci::io_at;
use crate::pins::{DEBIAN, Release};
use crate::process::Tool;

/// Size of the disk; ext4 grows with a larger overlay at boot. A machine that runs anything needs 10 GiB.
const DISK_BYTES: u64 = 4 << 30;

const TREE: &str = "kubernetes-guest-tree";

const FILES: &[(&str, &str)] = &[
    ("etc/cloud/cloud.cfg.d/90_pcg-edge.cfg", include_str!("../files/kubernetes-guest/cloud.cfg")),
    ("etc/containerd/config.toml", include_str!("../files/kubernetes-guest/containerd.toml")),
    // Empty, not absent: each machine makes its own at its first boot, without systemd's first-boot work.
    ("etc/machine-id", ""),
    // No entry for the root: the initial RAM disk mounts it for good, and an entry makes boot wait for udev.
    ("etc/fstab", ""),
    ("etc/hostname", "localhost\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"),
    ("etc/modules-load.d/kubernetes.conf", "overlay\nbr_netfilter\n"),
    (
        "etc/sysctl.d/90-kubernetes.conf",
        "net.bridge.bridge-nf-call-iptables = 1\nnet.bridge.bridge-nf-call-ip6tables = 1\nnet.ipv4.ip_forward = 1\n",
    ),
    // The cluster class names the folder; kubeadm applies what is in it to the manifests of its static pods.
    ("etc/kubernetes/patches/etcd.yaml", include_str!("../files/kubernetes-guest/patches/etcd.yaml")),
    (
        "etc/kubernetes/patches/kube-apiserver.yaml",
        include_str!("../files/kubernetes-guest/patches/kube-apiserver.yaml"),
    ),
    (
        "etc/kubernetes/patches/kube-controller-manager.yaml",
        include_str!("../files/kubernetes-guest/patches/kube-controller-manager.yaml"),
    ),
    (
        "etc/kubernetes/patches/kube-scheduler.yaml",
        include_str!("../files/kubernetes-guest/patches/kube-scheduler.yaml"),
    ),
    ("etc/systemd/journald.conf.d/size.conf", "[Journal]\nSystemMaxUse=128M\n"),
    ("etc/systemd/system/containerd.service", include_str!("../files/node/containerd.service")),
    ("etc/systemd/system/containerd.service.d/go.conf", "[Service]\nEnvironmentFile=-/run/pcg-edge/go.env\n"),
    ("etc/systemd/system/etcd-first.service", include_str!("../files/kubernetes-guest/etcd-first.service")),
    ("etc/systemd/system/kubelet.service", include_str!("../files/kubernetes-guest/kubelet.service")),
    ("etc/systemd/system/node-setup.service", include_str!("../files/kubernetes-guest/node-setup.service")),
    ("etc/systemd/system/kubelet.service.d/10-kubeadm.conf", include_str!("../files/kubernetes-guest/10-kubeadm.conf")),
];
/// Programs: what keepalived asks, what puts etcd first on emulated CPUs, what carries a control plane's join on (the
/// cluster class names it), which address is the node's, and what runs first (with the disk of the appliance, labelled
/// `PCGNODE`).
const PROGRAMS: &[(&str, &str)] = &[
    ("usr/local/bin/pcg-check-apiserver", include_str!("../files/kubernetes-guest/check-apiserver")),
    ("usr/local/lib/pcg-edge/etcd-first", include_str!("../files/kubernetes-guest/etcd-first")),
    ("usr/local/lib/pcg-edge/finish-join", include_str!("../files/kubernetes-guest/finish-join")),
    ("usr/local/lib/pcg-edge/node-address", include_str!("../files/kubernetes-guest/node-address")),
    ("usr/local/lib/pcg-edge/node-setup", include_str!("../files/kubernetes-guest/node-setup")),
];
/// Links below `etc`.
const LINKS: &[(&str, &str)] = &[
    ("resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
    ("systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target"),
    ("systemd/system/multi-user.target.wants/containerd.service", "/etc/systemd/system/containerd.service"),
    ("systemd/system/multi-user.target.wants/etcd-first.service", "/etc/systemd/system/etcd-first.service"),
    ("systemd/system/multi-user.target.wants/kubelet.service", "/etc/systemd/system/kubelet.service"),
    ("systemd/system/multi-user.target.wants/node-setup.service", "/etc/systemd/system/node-setup.service"),
    (
        "systemd/system/multi-user.target.wants/systemd-networkd.service",
        "/usr/lib/systemd/system/systemd-networkd.service",
    ),
    (
        "systemd/system/network-online.target.wants/systemd-networkd-wait-online.service",
        "/usr/lib/systemd/system/systemd-networkd-wait-online.service",
    ),
];
/// Folders that must be there.
const FOLDERS: &[&str] =
    &["usr/local/lib/pcg-edge", "etc/cni/net.d", "etc/containerd/certs.d", "etc/kubernetes/manifests"];
/// Of use to who logs in at a console, which nobody does, or who updates packages.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "getty.target",
    "serial-getty@ttyS0.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-pstore.service",
];
/// Loaded by the initial RAM disk; the rest is built into Debian's cloud kernel or loaded by udev and on use.
const MODULES: &[&str] = &["virtio_blk"];
/// The kernel lies beside the disk. Of use to who builds hardware databases, initial RAM disks or locales, or runs more
/// of Perl than Debian's own scripts (keepalived's SNMP brings it).
const REMOVED: &[&str] = &[
    "initrd.img",
    "initrd.img.old",
    "usr/lib/udev/hwdb.d",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/share/i18n",
    "usr/share/initramfs-tools",
    "usr/share/perl",
    "vmlinuz",
    "vmlinuz.old",
];

/// Full reference.
pub fn name(release: &Release) -> String {
    format!("pcg-edge.io/vm/kubernetes-node:{}", release.version().trim_start_matches('v'))
}

/// The guest's Debian tree.
pub fn ensure_tree(context: &Context) -> Result<Guest> {
    guest::ensure_tree(context, TREE, &DEBIAN.kubernetes_guest)
}

/// The guest's layout.
pub fn ensure(context: &Context, release: &'static Release) -> Result<Built> {
    let key = FILES
        .iter()
        .chain(PROGRAMS)
        .fold(Key::new("kubernetes-guest"), |key, (name, text)| key.with(name, text))
        .with("init", guest::INIT)
        .with("recipe", include_str!("kubernetes_guest.rs"))
        .with("store", node::store_key(release))
        .with("tree", guest::tree_key(TREE, &DEBIAN.kubernetes_guest))
        .finish();
    let source = format!("{} on {}", release.sources(node::PARTS), DEBIAN.source(&DEBIAN.kubernetes_guest));
    let built = |layout| Built { name: name(release), layout, source };
    let layout = context.cache.path("kubernetes-guest", &key);
    if layout.is_dir() {
        return Ok(built(layout));
    }
    let guest = ensure_tree(context)?;
    let store = node::ensure_store(context, release)?;
    let layout = context.artifact("kubernetes-guest", &key, 4, |staging, task| {
        let scratch = staging.join("scratch");
        mkdir(&scratch)?;
        task.step("initial RAM disk");
        let initrd = scratch.join("initrd");
        guest.write_initrd(&initrd, MODULES, &scratch)?;
        task.step("file system");
        let root = fill(&guest, &store, release.pause, &scratch)?;
        let raw = scratch.join("raw");
        guest::write_ext4(&root, "kubernetes", DISK_BYTES, &raw)?;
        task.step("qcow2");
        let disk = scratch.join("disk.qcow2");
        guest::write_qcow2(&raw, &disk)?;
        task.step("layout");
        guest::write_image(staging, &name(release), &guest.kernel(), &initrd, Some((&disk, DISK_BYTES)))?;
        Ok(std::fs::remove_dir_all(&scratch).map_err(io_at("remove", &scratch))?)
    })?;
    Ok(built(layout))
}

/// A copy of the tree with programs, containerd's store, and what makes it a node.
fn fill(guest: &Guest, store: &Base, pause: &str, scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("root");
    guest.copy(&root, REMOVED)?;
    for file in [format!("boot/vmlinuz-{}", guest.release), format!("boot/System.map-{}", guest.release)] {
        let file = root.join(file);
        std::fs::remove_file(&file).map_err(io_at("remove", &file))?;
    }
    let keys = root.join("etc/ssh");
    for entry in std::fs::read_dir(&keys).map_err(io_at("list", &keys))? {
        let entry = entry.map_err(io_at("list", &keys))?;
        if entry.file_name().to_string_lossy().starts_with("ssh_host_") {
            std::fs::remove_file(entry.path()).map_err(io_at("remove", &entry.path()))?;
        }
    }
    Tool::new("tar", "tar")
        .args(["--extract", "--numeric-owner", "--same-permissions", "--gzip", "--file"])
        .arg(store.blob())
        .arg("--directory")
        .arg(&root)
        .run()?;
    let mut tree = Tree::default();
    for folder in FOLDERS {
        tree.dir(folder, 0o755);
    }
    for (path, text) in FILES {
        tree.text(path, &text.replace("@PAUSE@", pause));
    }
    for (path, text) in PROGRAMS {
        tree.file(path, 0o755, Source::Bytes(text.as_bytes().to_vec()));
    }
    for (path, target) in LINKS {
        tree.symlink(&format!("etc/{path}"), target);
    }
    for unit in MASKED {
        tree.symlink(&format!("etc/systemd/system/{unit}"), "/dev/null");
    }
    // kubeadm looks there.
    tree.symlink("usr/bin/kubelet", "/usr/local/bin/kubelet");
    tree.write_folder(&root)?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pins::CURRENT;

    #[test]
    fn containerd_is_told_what_kubelet_expects() {
        let (_, text) = FILES.iter().find(|(path, _)| *path == "etc/containerd/config.toml").unwrap();
        let config: toml::Table = toml::from_str(&text.replace("@PAUSE@", CURRENT.pause)).unwrap();
        let plugins = &config["plugins"];
        let images = &plugins["io.containerd.cri.v1.images"];
        assert_eq!(images["pinned_images"]["sandbox"].as_str(), Some(CURRENT.pause));
        let registries = images["registry"]["config_path"].as_str().unwrap();
        assert!(FOLDERS.iter().any(|folder| format!("/{folder}") == registries));
        let runc = &plugins["io.containerd.cri.v1.runtime"]["containerd"]["runtimes"]["runc"];
        assert_eq!(runc["options"]["SystemdCgroup"].as_bool(), Some(true));
    }
}
