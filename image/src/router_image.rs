//! The site router's VM image: the guest tree with our units on an ext4 disk, an initial RAM disk that mounts it, and
//! the kernel.

use std::path::Path;

use crate::build::{Context, Result, mkdir};
use crate::cache::Key;
use crate::containers::Built;
use crate::guest::{self, Guest};
use crate::layer::Tree;
use crate::oci::{io_at, sha256_file};
use crate::pins::DEBIAN;

/// Full reference.
pub const NAME: &str = "pcg-edge.io/vm/router:1";

/// Size of the disk; ext4 grows with a larger overlay at boot.
const DISK_BYTES: u64 = 1 << 30;

const UDEV_TRIGGER: &str = include_str!("../site-router/files/udev-trigger.conf");
const UNITS: &[(&str, &str)] = &[
    ("dnsmasq.service", include_str!("../site-router/files/dnsmasq.service")),
    ("grow-root.service", include_str!("../site-router/files/grow-root.service")),
    ("qemu-guest-agent.service", include_str!("../site-router/files/qemu-guest-agent.service")),
    ("site-router.service", include_str!("../site-router/files/site-router.service")),
];
/// Units of Debian's that the router wants, and the target that pulls them in.
const ENABLED: &[(&str, &str)] = &[("systemd-networkd.service", "multi-user.target.wants")];
/// What takes time at boot, writes to the console that the router reports on, or has nothing to do here.
const MASKED: &[&str] = &[
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "dpkg-db-backup.timer",
    "fstrim.timer",
    "getty.target",
    "ldconfig.service",
    "modprobe@configfs.service",
    "modprobe@drm.service",
    "modprobe@efi_pstore.service",
    "modprobe@fuse.service",
    "serial-getty@ttyS0.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-firstboot.service",
    "systemd-hwdb-update.service",
    "systemd-journal-catalog-update.service",
    "systemd-pstore.service",
    "systemd-udev-load-credentials.service",
    "systemd-update-done.service",
    "systemd-user-sessions.service",
];
/// Loaded by the initial RAM disk; the rest is built into Debian's cloud kernel or loaded on use.
const MODULES: &[&str] = &["virtio_blk", "virtio_net", "virtio_balloon", "virtio_rng", "evdev", "button"];
/// Only of use to who builds hardware databases, boots without us, or reads manuals.
const REMOVED: &[&str] = &["boot", "usr/lib/udev/hwdb.d", "usr/lib/udev/hwdb.bin", "usr/share/initramfs-tools"];

/// The router's layout.
pub fn ensure(context: &Context) -> Result<Built> {
    let program = context.own_program("site-router", "site-router")?;
    let (digest, _) = sha256_file(&program)?;
    let key = UNITS.iter().fold(Key::new("router"), |key, (name, text)| key.with(name, text));
    let key = key
        .with("init", guest::INIT)
        .with("udev", UDEV_TRIGGER)
        .with("program", digest)
        .with("recipe", include_str!("router_image.rs"));
    let key = key.with("guest", guest::key()).finish();
    let layout = context.cache.path("router", &key);
    let source = format!("site-router {} on {}", env!("CARGO_PKG_VERSION"), DEBIAN.source(&DEBIAN.guest));
    if layout.is_dir() {
        return Ok(Built { name: NAME.to_owned(), layout, source });
    }
    let guest = guest::ensure(context)?;
    let layout = context.artifact("router", &key, 4, |staging, task| {
        let scratch = staging.join("scratch");
        mkdir(&scratch)?;
        task.step("initial RAM disk");
        let initrd = scratch.join("initrd");
        guest.write_initrd(&initrd, MODULES, &scratch)?;
        task.step("file system");
        let root = fill(&guest, &program, &scratch)?;
        let raw = scratch.join("raw");
        guest::write_ext4(&root, "router", DISK_BYTES, &raw)?;
        task.step("qcow2");
        let disk = scratch.join("disk.qcow2");
        guest::write_qcow2(&raw, &disk)?;
        task.step("layout");
        guest::write_image(staging, NAME, &guest.kernel(), &initrd, Some((&disk, DISK_BYTES)))?;
        std::fs::remove_dir_all(&scratch).map_err(io_at("remove", &scratch))?;
        Ok(())
    })?;
    Ok(Built { name: NAME.to_owned(), layout, source })
}

/// A copy of the guest tree with what makes it a router.
fn fill(guest: &Guest, program: &Path, scratch: &Path) -> Result<std::path::PathBuf> {
    let root = scratch.join("root");
    guest.copy(&root, REMOVED)?;
    let mut tree = Tree::default();
    let units = "etc/systemd/system";
    for (unit, text) in UNITS {
        tree.text(&format!("{units}/{unit}"), text);
        tree.symlink(&format!("{units}/multi-user.target.wants/{unit}"), &format!("/{units}/{unit}"));
    }
    for (unit, target) in ENABLED {
        tree.symlink(&format!("{units}/{target}/{unit}"), &format!("/usr/lib/systemd/system/{unit}"));
    }
    for unit in MASKED {
        tree.symlink(&format!("{units}/{unit}"), "/dev/null");
    }
    tree.program("usr/local/bin/site-router", program.to_owned());
    // Empty, not absent: each machine makes its own at its first boot, without systemd's first-boot work.
    tree.text("etc/machine-id", "");
    tree.symlink("etc/systemd/system/default.target", "/usr/lib/systemd/system/multi-user.target");
    tree.text(&format!("{units}/systemd-udev-trigger.service.d/site-router.conf"), UDEV_TRIGGER);
    tree.text("etc/hostname", "router\n");
    tree.text("etc/hosts", "127.0.0.1 localhost\n");
    // No entry for the root: the initial RAM disk mounts it for good, and an entry makes boot wait for udev.
    tree.text("etc/fstab", "");
    tree.text("etc/systemd/journald.conf.d/volatile.conf", "[Journal]\nStorage=volatile\nRuntimeMaxUse=16M\n");
    tree.write_folder(&root)?;
    Ok(root)
}
