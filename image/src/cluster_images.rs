//! Container images of workload clusters: Cluster API's managers for the system cluster, and what layers run in the
//! clusters themselves. Each is one static program under the name that upstream's manifests have for it, but for two of
//! our own: busybox, and the pod network.

use serde_json::json;

use crate::build::{Context, Error, Result};
use crate::cache::Key;
use crate::containers::{Built, ensure_container_base, put_layer};
use crate::debian::{self, link_base};
use crate::layer::Tree;
use crate::oci::{Layout, io_at, sha256_file};
use crate::pins::{DEBIAN, Group, group};
use crate::process::Tool;
use crate::programs;

/// Part of every key; goes up when the recipe changes.
const FORMAT: &str = "1";

/// An image of one static program.
struct Image {
    /// Name without tag; the tag is the group's version.
    repository: &'static str,
    /// Group of the pins.
    group: &'static str,
    /// Program of the group.
    program: &'static str,
    /// Where it lies in the image, without leading slash.
    path: &'static str,
    /// User and group, as numbers.
    user: &'static str,
}

const IMAGES: &[Image] = &[
    Image {
        repository: "registry.k8s.io/cluster-api/cluster-api-controller",
        group: "cluster-api",
        program: "cluster-api-controller",
        path: "manager",
        user: "65532:65532",
    },
    Image {
        repository: "registry.k8s.io/cluster-api/kubeadm-bootstrap-controller",
        group: "cluster-api",
        program: "kubeadm-bootstrap-controller",
        path: "manager",
        user: "65532:65532",
    },
    Image {
        repository: "registry.k8s.io/cluster-api/kubeadm-control-plane-controller",
        group: "cluster-api",
        program: "kubeadm-control-plane-controller",
        path: "manager",
        user: "65532:65532",
    },
    Image {
        repository: "docker.io/rancher/local-path-provisioner",
        group: "local-path-provisioner",
        program: "local-path-provisioner",
        path: "usr/bin/local-path-provisioner",
        user: "0:0",
    },
    Image {
        repository: "registry.k8s.io/metrics-server/metrics-server",
        group: "metrics-server",
        program: "metrics-server",
        path: "metrics-server",
        user: "65534:65534",
    },
    Image {
        repository: "quay.io/metallb/controller",
        group: "metallb",
        program: "metallb-controller",
        path: "controller",
        user: "0:0",
    },
    Image {
        repository: "quay.io/metallb/speaker",
        group: "metallb",
        program: "metallb-speaker",
        path: "speaker",
        user: "0:0",
    },
];

/// Name of the image of busybox: `/bin/sh` and every applet, for instance for local-path-provisioner's helper pods.
pub const BUSYBOX: &str = "pcg-edge.io/busybox:1";

/// Name of the image of the pod network.
pub const HOST_GATEWAY: &str = "pcg-edge.io/host-gateway:1";

/// Full references of all that is in this module.
pub fn names() -> Vec<String> {
    let tagged =
        |image: &Image| format!("{}:{}", image.repository, group(image.group).map_or("unknown", Group::version));
    IMAGES.iter().map(tagged).chain([BUSYBOX, HOST_GATEWAY].map(str::to_owned)).collect()
}

/// The images of foreign programs.
pub fn ensure(context: &Context) -> Result<Vec<Built>> {
    IMAGES.iter().map(|image| ensure_image(context, image)).collect()
}

fn ensure_image(context: &Context, image: &Image) -> Result<Built> {
    let Image { repository, group: group_name, program, path, user } = image;
    let unknown = || Error::Mismatch(format!("{repository} is of {group_name}, which is no group of the pins"));
    let group: &Group = group(group_name).ok_or_else(unknown)?;
    let name = format!("{repository}:{}", group.version());
    let key = Key::new(program)
        .with("format", FORMAT)
        .with("name", &name)
        .with("path", path)
        .with("user", user)
        .with("group", programs::group_key(group))
        .finish();
    let artifact = format!("image-{program}");
    let built = |layout| Built { name: name.clone(), layout, source: group.source() };
    let layout = context.cache.path(&artifact, &key);
    if layout.is_dir() {
        return Ok(built(layout));
    }
    let programs = programs::ensure_group(context, group)?;
    let layout = context.artifact(&artifact, &key, 1, |staging, task| {
        task.step("layer");
        let mut tree = Tree::default();
        let parents: Vec<_> = path.match_indices('/').map(|(at, _)| &path[..at]).collect();
        for dir in parents {
            tree.dir(dir, 0o755);
        }
        tree.program(path, programs.join(program));
        tree.dir("tmp", 0o1777);
        let config = json!({
            "Entrypoint": [format!("/{path}")], "Env": ["PATH=/usr/bin:/"], "User": user, "WorkingDir": "/",
        });
        let mut layout = Layout::create(staging)?;
        let layer = put_layer(&layout, &tree)?;
        layout.put_image(&name, &[layer], &config)?;
        Ok(layout.finish()?)
    })?;
    Ok(built(layout))
}

/// The image of busybox.
pub fn busybox(context: &Context) -> Result<Built> {
    let base_key = debian::key("base-container", &DEBIAN.container).finish();
    let key = Key::new("busybox").with("format", FORMAT).with("name", BUSYBOX).with("base", base_key).finish();
    let base = ensure_container_base(context)?;
    let layout = context.artifact("image-busybox", &key, 1, |staging, task| {
        task.step("layer");
        // Under its own name: it takes any other for that of an applet.
        let program = debian::extract(&base, "usr/bin/busybox", &staging.join("busybox"))?;
        Tool::new("chmod", "coreutils").arg("755").arg(&program).run()?;
        let applets = Tool::new(program.display().to_string(), "").arg("--list").output()?;
        let mut tree = Tree::default();
        tree.dir("bin", 0o755);
        for applet in applets.lines() {
            tree.symlink(&format!("bin/{applet}"), "busybox");
        }
        tree.program("bin/busybox", program.clone());
        tree.dir("tmp", 0o1777);
        let mut layout = Layout::create(staging)?;
        let layer = put_layer(&layout, &tree)?;
        layout.put_image(BUSYBOX, &[layer], &json!({"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"]}))?;
        layout.finish()?;
        std::fs::remove_file(&program).map_err(io_at("remove", &program))?;
        Ok(())
    })?;
    Ok(Built { name: BUSYBOX.to_owned(), layout, source: format!("Debian {}: busybox-static", DEBIAN.suite) })
}

/// The image of the pod network, from the binary that cargo builds now. On the Debian layer for its `nft`; kube-proxy's
/// image has the same layer, so a node has it already.
pub fn host_gateway(context: &Context) -> Result<Built> {
    let binary = context.own_program("host-gateway", "host-gateway")?;
    let base_key = debian::key("base-container", &DEBIAN.container).finish();
    let (digest, _) = sha256_file(&binary)?;
    let key = Key::new("host-gateway").with("binary", digest).with("format", FORMAT).with("base", base_key).finish();
    let base = ensure_container_base(context)?;
    let layout = context.artifact("host-gateway", &key, 1, |staging, task| {
        task.step("layer");
        let mut tree = Tree::default();
        tree.program("usr/local/bin/host-gateway", binary.clone());
        let mut layout = Layout::create(staging)?;
        link_base(&base, &layout)?;
        let layer = put_layer(&layout, &tree)?;
        let config = json!({"Entrypoint": ["/usr/local/bin/host-gateway"], "Env": ["PATH=/usr/sbin:/usr/bin"]});
        layout.put_image(HOST_GATEWAY, &[base.layer.clone(), layer], &config)?;
        Ok(layout.finish()?)
    })?;
    let source = format!("host-gateway {} on {}", env!("CARGO_PKG_VERSION"), DEBIAN.source(&DEBIAN.container));
    Ok(Built { name: HOST_GATEWAY.to_owned(), layout, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_is_of_a_program_that_its_group_has() {
        for image in IMAGES {
            let group = group(image.group).unwrap();
            assert!(group.programs.iter().any(|(name, _)| *name == image.program), "{}", image.program);
            assert!(!image.path.starts_with('/') && image.user.contains(':'), "{}", image.repository);
        }
    }
}
