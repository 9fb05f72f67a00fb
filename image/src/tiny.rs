//! The tiny guest: kernel and initial RAM disk only. busybox with a DHCP client that never gives up, a web server on
//! port 80, and qemu-guest-agent.

use crate::build::{Context, Result, mkdir};
use crate::cache::Key;
use crate::containers::Built;
use crate::guest;
use crate::layer::{Source, Tree};
use crate::oci::io_at;
use crate::pins::DEBIAN;
use crate::process::Tool;

const INIT: &str = include_str!("../files/tiny/init");
const FILES: &[(&str, u32, &str)] = &[
    ("etc/inittab", 0o644, include_str!("../files/tiny/inittab")),
    ("etc/tiny/agent", 0o755, include_str!("../files/tiny/agent")),
    ("etc/tiny/dhcp", 0o755, include_str!("../files/tiny/dhcp")),
    ("etc/tiny/lease", 0o755, include_str!("../files/tiny/lease")),
    // The guest agent calls shutdown; busybox acpid reports the power button's long name.
    ("sbin/shutdown", 0o755, "#!/bin/sh\ncase \" $* \" in *\" -r \"*) exec reboot ;; *) exec poweroff ;; esac\n"),
    ("etc/acpi/PWRF/00000080", 0o755, "#!/bin/sh\nexec poweroff\n"),
    ("etc/passwd", 0o644, "root::0:0:root:/:/bin/sh\n"),
    ("etc/group", 0o644, "root:x:0:\n"),
    ("www/index.html", 0o644, "tiny guest\n"),
];
/// Network, disks, power button and its event device; the rest is built into Debian's cloud kernel.
const MODULES: &[&str] = &["virtio_net", "virtio_blk", "evdev", "button"];

/// Full reference.
pub const NAME: &str = "pcg-edge.io/vm/tiny:1";

/// The tiny guest's layout.
pub fn ensure(context: &Context) -> Result<Built> {
    let key = FILES.iter().fold(Key::new("tiny"), |key, (path, _, text)| key.with(path, text));
    let key = key.with("init", INIT).with("recipe", include_str!("tiny.rs")).with("guest", guest::key()).finish();
    let layout = context.cache.path("tiny", &key);
    let source = format!("{} (kernel, modules, busybox, guest agent)", DEBIAN.source(&DEBIAN.guest));
    if layout.is_dir() {
        return Ok(Built { name: NAME.to_owned(), layout, source });
    }
    let guest = guest::ensure(context)?;
    let layout = context.artifact("tiny", &key, 1, |staging, task| {
        task.step("initial RAM disk");
        let scratch = staging.join("scratch");
        mkdir(&scratch)?;
        let mut tree = Tree::default();
        let dirs = ["bin", "dev", "etc", "etc/acpi", "etc/acpi/PWRF", "etc/tiny", "sbin", "usr", "usr/sbin", "www"];
        for dir in dirs {
            tree.dir(dir, 0o755);
        }
        tree.program("bin/busybox", guest.root.join("usr/bin/busybox"));
        let modules = guest.add_modules(&mut tree, MODULES, &scratch)?;
        let init = INIT.replace("@MODULES@", &modules.join(" "));
        tree.file("init", 0o755, Source::Bytes(init.into()));
        for (path, mode, text) in FILES {
            tree.file(path, *mode, Source::Bytes((*text).into()));
        }
        tree.program("usr/sbin/qemu-ga", guest.root.join("usr/sbin/qemu-ga"));
        let listed = Tool::new("chroot", "coreutils").arg(&guest.root).args(["ldd", "/usr/sbin/qemu-ga"]).output()?;
        for library in libraries(&listed) {
            let inside = library.trim_start_matches('/');
            let mut at = std::path::PathBuf::new();
            for part in std::path::Path::new(inside).parent().into_iter().flat_map(std::path::Path::components) {
                at.push(part);
                tree.dir(&at.to_string_lossy(), 0o755);
            }
            tree.program(inside, guest.root.join(inside));
        }
        let initrd = scratch.join("initrd");
        tree.write_initrd(&initrd)?;
        guest::write_image(staging, NAME, &guest.kernel(), &initrd, None)?;
        std::fs::remove_dir_all(&scratch).map_err(io_at("remove", &scratch))?;
        Ok(())
    })?;
    Ok(Built { name: NAME.to_owned(), layout, source })
}

/// Absolute paths in ldd's output: the libraries and the loader.
fn libraries(ldd: &str) -> Vec<&str> {
    ldd.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/'))).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn libraries_are_taken_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld-linux.so.2 (0x3)\n";
        assert_eq!(super::libraries(text), ["/lib/x/libc.so.6", "/lib64/ld-linux.so.2"]);
    }
}
