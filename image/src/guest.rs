//! What the guests share: a Debian tree with a kernel, its modules, and the artifact that a VM image is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use edge_api::bundle::{ANNOTATION_VIRTUAL_SIZE, VM_DISK_QCOW2, VM_IMAGE_ARTIFACT, VM_INITRD, VM_KERNEL};

use crate::build::{Context, Error, Result};
use crate::debian;
use crate::layer::Tree;
use crate::oci::{Layout, io_at};
use crate::pins::DEBIAN;
use crate::process::Tool;

/// The kernel package would build an initial RAM disk of its own for a minute; ours are made here.
const NO_INITRD: &str = "path-exclude=/etc/kernel/postinst.d/initramfs-tools";

/// Key of the tree.
pub fn key() -> String {
    debian::key("guest-tree", &DEBIAN.guest).with("exclude", NO_INITRD).finish()
}

/// The Debian tree of all guests.
#[derive(Debug)]
pub struct Guest {
    /// Root of the tree.
    pub root: PathBuf,
    /// Kernel release, as in `/lib/modules`.
    pub release: String,
}

/// The tree, in the cache.
pub fn ensure(context: &Context) -> Result<Guest> {
    let dir = context.artifact("guest-tree", &key(), 1, |staging, task| {
        task.step("mmdebstrap");
        let root = staging.join("tree");
        debian::mmdebstrap(&DEBIAN.guest).arg(format!("--dpkgopt={NO_INITRD}")).arg(&DEBIAN.suite).arg(&root).run()?;
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
            tree.file(&format!("mod/{name}.ko"), 0o644, crate::layer::Source::Path(plain));
            loaded.push(name);
        }
        Ok(loaded)
    }
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
