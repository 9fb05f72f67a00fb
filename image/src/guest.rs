//! What the guests share: a Debian tree with a kernel, its modules, an initial RAM disk that mounts a disk, the disk,
//! and the artifact that a VM image is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edge_api::bundle::{ANNOTATION_VIRTUAL_SIZE, VM_DISK_QCOW2, VM_IMAGE_ARTIFACT, VM_INITRD, VM_KERNEL};

use crate::build::{Context, Error, Result};
use crate::debian;
use crate::layer::{Source, Tree};
use crate::oci::{Layout, io_at};
use crate::pins::{DEBIAN, Packages};
use crate::process::Tool;

/// The kernel package would build an initial RAM disk of its own for a minute; ours are made here.
const NO_INITRD: &str = "path-exclude=/etc/kernel/postinst.d/initramfs-tools";

/// First process of the initial RAM disk of guests with a disk.
pub const INIT: &str = include_str!("../files/guest/init");

/// Key of the tree of the router and the tiny guest.
pub fn key() -> String {
    tree_key("guest-tree", &DEBIAN.guest)
}

/// Key of a tree of these packages.
pub fn tree_key(name: &str, packages: &Packages) -> String {
    debian::key(name, packages).with("exclude", NO_INITRD).finish()
}

/// A Debian tree with a kernel.
#[derive(Debug)]
pub struct Guest {
    /// Root of the tree.
    pub root: PathBuf,
    /// Kernel release, as in `/lib/modules`.
    pub release: String,
}

/// The tree of the router and the tiny guest.
pub fn ensure(context: &Context) -> Result<Guest> {
    ensure_tree(context, "guest-tree", &DEBIAN.guest)
}

/// A tree of these packages.
pub fn ensure_tree(context: &Context, name: &str, packages: &Packages) -> Result<Guest> {
    let dir = context.artifact(name, &tree_key(name, packages), 1, |staging, task| {
        task.step("mmdebstrap");
        let root = staging.join("tree");
        debian::mmdebstrap(packages).arg(format!("--dpkgopt={NO_INITRD}")).arg(&DEBIAN.suite).arg(&root).run()?;
        Ok(())
    })?;
    let root = dir.join("tree");
    let modules = root.join("usr/lib/modules");
    let first = std::fs::read_dir(&modules).map_err(io_at("list", &modules))?.next();
    let release = first.and_then(std::result::Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned());
    let release = release.ok_or_else(|| Error::Mismatch(format!("{} is empty", modules.display())))?;
    Ok(Guest { root, release })
}

impl Guest {
    /// The kernel's file.
    pub fn kernel(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// Adds these modules and what they need to an initial RAM disk, uncompressed in `/mod`; returns their file names
    /// in the order of loading. `scratch` keeps the files until the disk is written.
    pub fn add_modules(&self, tree: &mut Tree, names: &[&str], scratch: &Path) -> Result<Vec<String>> {
        let base = self.root.join("usr/lib/modules").join(&self.release);
        let file = base.join("modules.dep");
        let dep = std::fs::read_to_string(&file).map_err(io_at("read", &file))?;
        tree.dir("mod", 0o755);
        let mut loaded = Vec::new();
        for path in load_order(&dep, names).map_err(Error::Mismatch)? {
            let name = module_name(&path);
            let plain = scratch.join(format!("{name}.ko"));
            let script = "xz -dc \"$0\" > \"$1\"";
            Tool::new("sh", "")
                .args(["-c", script])
                .arg(base.join(&path))
                .arg(&plain)
                .hint("install xz-utils")
                .run()?;
            tree.file(&format!("mod/{name}.ko"), 0o644, Source::Path(plain));
            loaded.push(name);
        }
        Ok(loaded)
    }

    /// Writes an initial RAM disk that loads these modules, mounts the disk of `root=` and hands over to its init.
    pub fn write_initrd(&self, to: &Path, modules: &[&str], scratch: &Path) -> Result<()> {
        let mut tree = Tree::default();
        for dir in ["bin", "dev"] {
            tree.dir(dir, 0o755);
        }
        tree.program("bin/busybox", self.root.join("usr/bin/busybox"));
        tree.symlink("bin/sh", "busybox");
        let modules = self.add_modules(&mut tree, modules, scratch)?;
        tree.file("init", 0o755, Source::Bytes(INIT.replace("@MODULES@", &modules.join(" ")).into()));
        Ok(tree.write_initrd(to)?)
    }

    /// A copy of the tree without these paths, to be filled.
    pub fn copy(&self, to: &Path, without: &[&str]) -> Result<()> {
        Tool::new("cp", "coreutils").args(["-a", "--reflink=auto"]).arg(&self.root).arg(to).run()?;
        for path in without {
            let path = to.join(path);
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            match removed {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_at("remove", &path)(error).into());
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Writes an ext4 file system of this size with a root's content; `raw` is that file.
pub fn write_ext4(root: &Path, label: &str, bytes: u64, raw: &Path) -> Result<()> {
    Tool::new("truncate", "coreutils").args(["-s", &bytes.to_string()]).arg(raw).run()?;
    // No reserved blocks; inode tables and journal made now, so that no thread does it at the guest's first boot.
    Tool::new("mke2fs", "e2fsprogs")
        .args(["-q", "-t", "ext4", "-m", "0", "-L", label, "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d"])
        .args([root, raw])
        .run()?;
    Ok(())
}

/// Writes a raw disk as compressed qcow2.
pub fn write_qcow2(raw: &Path, to: &Path) -> Result<()> {
    Tool::new("qemu-img", "qemu-utils")
        .args(["convert", "-O", "qcow2", "-c", "-o", "compression_type=zstd"])
        .args([raw, to])
        .run()?;
    Ok(())
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

/// Paths of the modules and their dependencies, dependencies first, from the text of `modules.dep`.
fn load_order(dep: &str, names: &[&str]) -> std::result::Result<Vec<String>, String> {
    let lines = dep.lines().filter_map(|line| line.split_once(':'));
    let known: BTreeMap<_, _> = lines.map(|(path, needs)| (module_name(path), (path, needs))).collect();
    let mut order = Vec::new();
    for name in names {
        let (path, needs) = known.get(*name).ok_or_else(|| format!("the kernel has no module {name}"))?;
        // modules.dep lists the whole closure, the nearest first.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.iter().any(|done| done == path) {
                order.push(path.to_owned());
            }
        }
    }
    Ok(order)
}

/// Writes a VM image's layout: kernel, initial RAM disk and, where there is one, a qcow2 disk with its virtual size.
pub fn write_image(staging: &Path, name: &str, kernel: &Path, initrd: &Path, disk: Option<(&Path, u64)>) -> Result<()> {
    let mut layout = Layout::create(staging)?;
    let mut layers = Vec::new();
    if let Some((disk, size)) = disk {
        let layer = layout.put_file(VM_DISK_QCOW2, disk)?;
        layers.push(layer.annotated(ANNOTATION_VIRTUAL_SIZE, &size.to_string()));
    }
    layers.push(layout.put_file(VM_KERNEL, kernel)?);
    layers.push(layout.put_file(VM_INITRD, initrd)?);
    layout.put_artifact(name, VM_IMAGE_ARTIFACT, &layers)?;
    Ok(layout.finish()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_load_after_what_they_need() {
        let dep = "kernel/drivers/net/virtio_net.ko.xz: kernel/drivers/net/net_failover.ko.xz kernel/net/failover.ko.xz\n\
                   kernel/drivers/net/net_failover.ko.xz: kernel/net/failover.ko.xz\n\
                   kernel/net/failover.ko.xz:\nkernel/drivers/block/virtio-blk.ko.xz:\n";
        let order = load_order(dep, &["virtio_net", "net_failover", "virtio_blk"]).unwrap();
        let names: Vec<_> = order.iter().map(|path| module_name(path)).collect();
        assert_eq!(names, ["failover", "net_failover", "virtio_net", "virtio_blk"]);
        assert_eq!(load_order(dep, &["none"]).unwrap_err(), "the kernel has no module none");
    }
}
