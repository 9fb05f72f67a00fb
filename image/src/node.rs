//! The kind node image: Debian with systemd, runc, containerd, kubelet and kubeadm, and in containerd's store every
//! image that the cluster needs before it has a registry.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::build::{Context, Error, Result, mkdir, write, write_json};
use crate::cache::Key;
use crate::containers::{self, Built, put_layer};
use crate::debian::{self, Base, ensure_base, link_base};
use crate::layer::{Source, Tree};
use crate::oci::{Layout, io_at};
use crate::pins::{DEBIAN, Release};
use crate::process::{Running, Tool, check_interrupt};
use crate::programs;

const RECIPE: &[&str] = &[
    include_str!("node.rs"),
    include_str!("../files/node/10-bridge.conflist"),
    include_str!("../files/node/containerd.service"),
    include_str!("../files/node/containerd.toml"),
    include_str!("../files/node/default-storage.yaml"),
    include_str!("../files/node/entrypoint"),
    include_str!("../files/node/kubelet-cgroup"),
    include_str!("../files/node/kubelet.service"),
];

/// Units that find nothing to do in a container, or harm there.
const MASKED: &[&str] = &[
    "console-getty.service",
    "getty.target",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-firstboot.service",
    "systemd-logind.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
];

/// Programs whose sources an image of a node names.
pub const PARTS: &[&str] = &["kubelet", "containerd", "etcd", "coredns"];

/// How long containerd may take to open its socket.
const SOCKET_DEADLINE: Duration = Duration::from_mins(1);

/// Name of the node image.
pub fn name(release: &Release) -> String {
    format!("pcg-edge.io/node:{}", release.version())
}

fn key(release: &'static Release) -> String {
    Key::new("node")
        .with("recipe", RECIPE.concat())
        .with("programs", programs::key(release))
        .with("images", containers::kubernetes_key(release))
        .with("base", debian::key("base-node", &DEBIAN.node).finish())
        .finish()
}

/// The node image's layout.
pub fn ensure(context: &Context, release: &'static Release) -> Result<Built> {
    let built = |layout| Built {
        name: name(release),
        layout,
        source: format!("{} on {}", release.sources(PARTS), DEBIAN.source(&DEBIAN.node)),
    };
    let key = key(release);
    let path = context.cache.path("node", &key);
    if path.is_dir() {
        return Ok(built(path));
    }
    let base = ensure_base_layer(context)?;
    let store = ensure_store(context, release)?;
    let programs = programs::ensure(context, release)?;
    let path = context.artifact("node", &key, 1, |staging, task| {
        task.step("layer");
        let mut layout = Layout::create(staging)?;
        link_base(&base, &layout)?;
        link_base(&store, &layout)?;
        let layer = put_layer(&layout, &tree(&programs, release))?;
        let config = json!({
            "Entrypoint": ["/usr/local/bin/entrypoint"],
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=docker"],
            "StopSignal": "SIGRTMIN+3",
        });
        layout.put_image(&name(release), &[base.layer.clone(), store.layer.clone(), layer], &config)?;
        layout.finish()?;
        Ok(())
    })?;
    Ok(built(path))
}

/// The node's Debian layer.
pub fn ensure_base_layer(context: &Context) -> Result<Base> {
    ensure_base(context, "base-node", &DEBIAN.node)
}

/// Key of [`ensure_store`].
pub fn store_key(release: &'static Release) -> String {
    Key::new("node-store")
        .with("programs", programs::key(release))
        .with("images", containers::kubernetes_key(release))
        .with("format", "1")
        .finish()
}

/// The big layer: programs and containerd's store. Apart, so that a changed unit file rebuilds in a second; the
/// Kubernetes guest has it too.
pub fn ensure_store(context: &Context, release: &'static Release) -> Result<Base> {
    let key = store_key(release);
    let path = context.cache.path("node-store", &key);
    if path.is_dir() {
        return Base::open(path);
    }
    let programs = programs::ensure(context, release)?;
    let images = containers::ensure_kubernetes(context, release)?;
    let dir = context.artifact("node-store", &key, 2, |staging, task| {
        task.step("filling containerd's store");
        let scratch = staging.join("scratch");
        mkdir(&scratch)?;
        let store = fill_store(&programs, &images, release.pause, &scratch)?;
        task.step("compressing");
        let mut tree = Tree::default();
        for name in ["containerd", "containerd-shim-runc-v2", "ctr", "kubeadm", "kubectl", "kubelet"] {
            tree.program(&format!("usr/local/bin/{name}"), programs.join(name));
        }
        for dir in ["opt/cni", "opt/cni/bin"] {
            tree.dir(dir, 0o755);
        }
        for name in ["bridge", "host-local", "loopback", "portmap", "ptp"] {
            tree.program(&format!("opt/cni/bin/{name}"), programs.join(name));
        }
        tree.dir("var/lib/containerd", 0o711);
        tree.folder("var/lib/containerd", &store)?;
        let layer = tree.write_layer(&staging.join("layer.tar.gz"))?;
        std::fs::remove_dir_all(&scratch).map_err(io_at("remove", &scratch))?;
        write_json(&staging.join("layer.json"), &layer)
    })?;
    Base::open(dir)
}

/// Files of our own: units, configuration, scripts; and what a backup of the system cluster is made and restored with.
fn tree(programs: &Path, release: &Release) -> Tree {
    let mut tree = Tree::default();
    for name in ["etcdctl", "etcdutl"] {
        tree.program(&format!("usr/local/bin/{name}"), programs.join(name));
    }
    for dir in ["etc/cni", "etc/cni/net.d", "etc/containerd", "etc/containerd/certs.d", "kind"] {
        tree.dir(dir, 0o755);
    }
    let script = |text: &str| Source::Bytes(text.into());
    tree.file("usr/local/bin/entrypoint", 0o755, script(include_str!("../files/node/entrypoint")));
    tree.file("usr/local/bin/kubelet-cgroup", 0o755, script(include_str!("../files/node/kubelet-cgroup")));
    tree.text("etc/cni/net.d/10-bridge.conflist", include_str!("../files/node/10-bridge.conflist"));
    tree.text(
        "etc/containerd/config.toml",
        &include_str!("../files/node/containerd.toml").replace("@PAUSE@", release.pause),
    );
    let units = "etc/systemd/system";
    tree.dir(&format!("{units}/multi-user.target.wants"), 0o755);
    for (unit, text) in [
        ("containerd.service", include_str!("../files/node/containerd.service")),
        ("kubelet.service", include_str!("../files/node/kubelet.service")),
    ] {
        tree.text(&format!("{units}/{unit}"), text);
        tree.symlink(&format!("{units}/multi-user.target.wants/{unit}"), &format!("../{unit}"));
    }
    for unit in MASKED {
        tree.symlink(&format!("{units}/{unit}"), "/dev/null");
    }
    tree.text("kind/version", release.version());
    tree.dir("kind/manifests", 0o755);
    tree.text("kind/manifests/default-storage.yaml", include_str!("../files/node/default-storage.yaml"));
    tree
}

/// Imports the images with the containerd that the node will run, its root in `scratch`; returns that root.
///
/// It runs in a mount namespace of its own, so that no mount can outlive it. Layers are unpacked and their blobs
/// dropped, as the node itself does on a pull.
fn fill_store(programs: &Path, images: &Path, pause: &str, scratch: &Path) -> Result<PathBuf> {
    let root = scratch.join("root");
    let archive = scratch.join("images.tar");
    let mut tree = Tree::default();
    tree.folder("", images)?;
    let out = File::create(&archive).map_err(io_at("create", &archive))?;
    tree.write_tar(std::io::BufWriter::new(out)).map_err(io_at("write", &archive))?;

    // A socket's path has at most 107 bytes: a short folder of its own.
    let state =
        tempfile::Builder::new().prefix("pcg-image-").tempdir().map_err(io_at("create", &std::env::temp_dir()))?;
    let socket = state.path().join("c.sock");
    let config = scratch.join("containerd.toml");
    let quoted = |path: &Path| serde_json::Value::from(path.to_string_lossy()).to_string();
    let (root_text, state_text, socket_text) = (quoted(&root), quoted(&state.path().join("state")), quoted(&socket));
    // Of CRI nothing is needed to import.
    let text = format!(
        "version = 3\nroot = {root_text}\nstate = {state_text}\n\
         disabled_plugins = [\"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\", \
         \"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\", \"io.containerd.nri.v1.nri\"]\n\
         [grpc]\n  address = {socket_text}\n"
    );
    write(&config, text)?;
    let hint = "containerd needs root and a cache folder on a file system that overlayfs can use as upper layer \
                (ext4, xfs): set PCG_EDGE_CACHE to one";
    let log = scratch.join("containerd.log");
    let script = "exec \"$0\" --config \"$1\" --log-level warn > \"$2\" 2>&1";
    let daemon = Tool::new("unshare", "util-linux")
        .args(["--mount", "sh", "-c", script])
        .arg(programs.join("containerd"))
        .arg(&config)
        .arg(&log)
        .start()?;
    let imported = import(&programs.join("ctr"), &socket, &archive, pause, daemon);
    imported.map_err(|error| {
        let log = std::fs::read_to_string(&log).unwrap_or_default();
        Error::Mismatch(format!("{error}\ncontainerd said:\n{log}{hint}"))
    })?;
    for leftover in ["io.containerd.grpc.v1.introspection", "tmpmounts", "lost+found"] {
        let path = root.join(leftover);
        if path.exists() {
            std::fs::remove_dir_all(&path).map_err(io_at("remove", &path))?;
        }
    }
    Ok(root)
}

fn import(ctr: &Path, socket: &Path, archive: &Path, pause: &str, mut daemon: Running) -> Result<()> {
    let deadline = Instant::now() + SOCKET_DEADLINE;
    while !socket.exists() {
        check_interrupt()?;
        let ended = daemon.0.try_wait().map_err(io_at("wait for", socket))?;
        if ended.is_some() || Instant::now() > deadline {
            return Err(Error::Mismatch(format!("containerd did not open {}", socket.display())));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let ctr = || Tool::new(ctr.display().to_string(), "").arg("--address").arg(socket).args(["-n", "k8s.io"]);
    ctr()
        .args(["images", "import", "--local", "--discard-unpacked-layers", "--snapshotter", "overlayfs"])
        .arg(archive)
        .run()?;
    // Collects garbage now, the blobs of the unpacked layers among it: deleting a name is the only way to wait for it.
    ctr().args(["images", "tag", pause, "pcg-edge.io/none:1"]).run()?;
    ctr().args(["images", "rm", "--sync", "pcg-edge.io/none:1"]).run()?;
    daemon.stop().map_err(io_at("stop containerd at", socket))?;
    Ok(())
}
