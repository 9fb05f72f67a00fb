//! Container images: a static program alone, or a program on the Debian base layer.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::build::{Context, Error, Result};
use crate::cache::Key;
use crate::debian::{self, Base, ensure_base, link_base};
use crate::layer::{Source, Tree};
use crate::oci::{Layout, link, sha256_file};
use crate::pins::{CURRENT, DEBIAN, Release, group, source_of};
use crate::process::Tool;
use crate::programs;

/// Version of the example's web server image.
const WEB_VERSION: &str = "1";
const RECIPE: &str = include_str!("containers.rs");

/// Name of the registry image.
pub fn registry_name() -> String {
    let version = group("registry").map_or("unknown", |group| group.version());
    format!("pcg-edge.io/registry:{}", version.trim_start_matches('v'))
}

/// Name of the example's web server image.
pub fn web_name() -> String {
    format!("pcg-edge.io/example-web:{WEB_VERSION}")
}

/// Name of the operator's image.
pub fn operator_name() -> String {
    format!("pcg-edge.io/vm-operator:{}", env!("CARGO_PKG_VERSION"))
}

/// An image of a finished layout, for the bundle's index.
#[derive(Clone, Debug)]
pub struct Built {
    /// Full reference.
    pub name: String,
    /// Layout that has it.
    pub layout: PathBuf,
    /// Where it came from.
    pub source: String,
}

/// The base layer of container images.
pub fn ensure_container_base(context: &Context) -> Result<Base> {
    ensure_base(context, "base-container", &DEBIAN.container)
}

/// Key of [`ensure_kubernetes`].
pub fn kubernetes_key(release: &'static Release) -> String {
    Key::new("kubernetes-images")
        .with("recipe", RECIPE)
        .with("programs", programs::key(release))
        .with("names", [release.etcd, release.coredns, release.pause].join("\n"))
        .with("base", debian::key("base-container", &DEBIAN.container).finish())
        .finish()
}

/// The images that a node has in its store: those that its kubeadm expects, and the registry.
pub fn ensure_kubernetes(context: &Context, release: &'static Release) -> Result<PathBuf> {
    let key = kubernetes_key(release);
    let path = context.cache.path("kubernetes-images", &key);
    if path.is_dir() {
        return Ok(path);
    }
    let programs = programs::ensure(context, release)?;
    let base = ensure_container_base(context)?;
    context.artifact("kubernetes-images", &key, 9, |staging, task| {
        let mut layout = Layout::create(staging)?;
        let version = release.version();
        let program = |name: &str| (programs.join(name), format!("usr/local/bin/{name}"));
        for name in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            task.step(name);
            let image = format!("registry.k8s.io/{name}:{version}");
            let config = json!({"Entrypoint": [format!("/usr/local/bin/{name}")]});
            static_image(&mut layout, &image, &[program(name)], &config)?;
        }
        task.step("etcd");
        let programs_of_etcd = [program("etcd"), program("etcdctl")];
        static_image(&mut layout, release.etcd, &programs_of_etcd, &json!({}))?;
        task.step("coredns");
        let coredns = [(programs.join("coredns"), "coredns".to_owned())];
        let config = json!({"Entrypoint": ["/coredns"], "WorkingDir": "/"});
        static_image(&mut layout, release.coredns, &coredns, &config)?;
        task.step("pause");
        let catatonit = debian::extract(&base, "usr/bin/catatonit", &staging.join(".catatonit"))?;
        // catatonit -P neither runs a program nor ends before a signal: what a pod's sandbox needs.
        let config = json!({"Entrypoint": ["/pause", "-P"]});
        static_image(&mut layout, release.pause, &[(catatonit.clone(), "pause".to_owned())], &config)?;
        std::fs::remove_file(&catatonit).map_err(crate::oci::io_at("remove", &catatonit))?;
        task.step("kube-proxy");
        let config = json!({"Entrypoint": ["/usr/local/bin/kube-proxy"]});
        debian_image(&mut layout, &kube_proxy_name(release), &base, &[program("kube-proxy")], &config)?;
        task.step("registry");
        registry_image(&mut layout, &programs)?;
        layout.finish()?;
        task.step("comparing with kubeadm");
        let kubeadm = Tool::new(programs.join("kubeadm").display().to_string(), "");
        let wanted = kubeadm.args(["config", "images", "list", "--kubernetes-version", version]).output()?;
        let layout = Layout::open(staging)?;
        for image in wanted.lines() {
            layout.image(image).map_err(|_| {
                Error::Mismatch(format!("kubeadm {version} wants {image}: adapt the release in pins.rs"))
            })?;
        }
        Ok(())
    })
}

/// The registry's image, in a layout of the images for the node.
pub fn registry(context: &Context) -> Result<Built> {
    let layout = ensure_kubernetes(context, &CURRENT)?;
    Ok(Built { name: registry_name(), layout, source: source_of("registry") })
}

/// The images of which a cluster, not a node, has the version: during an upgrade they run on nodes whose store has
/// other ones.
pub fn of_clusters(context: &Context, release: &'static Release) -> Result<[Built; 2]> {
    let layout = ensure_kubernetes(context, release)?;
    let built = |name: &str, program| Built {
        name: name.to_owned(),
        layout: layout.clone(),
        source: release.sources(&[program]),
    };
    Ok([built(&kube_proxy_name(release), "kube-proxy"), built(release.coredns, "coredns")])
}

fn kube_proxy_name(release: &Release) -> String {
    format!("registry.k8s.io/kube-proxy:{}", release.version())
}

/// The example's web server: busybox httpd and one page.
pub fn web(context: &Context) -> Result<Built> {
    let base_key = debian::key("base-container", &DEBIAN.container).finish();
    let key = Key::new("example-web").with("recipe", RECIPE).with("base", base_key).finish();
    let base = ensure_container_base(context)?;
    let layout = context.artifact("example-web", &key, 1, |staging, task| {
        task.step("busybox");
        let busybox = debian::extract(&base, "usr/bin/busybox", &staging.join(".busybox"))?;
        let mut tree = Tree::default();
        for dir in ["usr", "usr/bin", "srv", "srv/www"] {
            tree.dir(dir, 0o755);
        }
        tree.program("usr/bin/busybox", busybox.clone());
        for applet in ["cat", "ls", "sh", "sleep", "wget"] {
            tree.symlink(&format!("usr/bin/{applet}"), "busybox");
        }
        tree.text("srv/www/index.html", "<!doctype html>\n<title>PCG-Edge</title>\n<p>It works.</p>\n");
        let mut layout = Layout::create(staging)?;
        let config = json!({
            "Entrypoint": ["/usr/bin/busybox"], "Cmd": ["httpd", "-f", "-v", "-p", "8080", "-h", "/srv/www"],
            "Env": ["PATH=/usr/bin"], "ExposedPorts": {"8080/tcp": {}}, "User": "65532:65532",
        });
        tree_image(&mut layout, &web_name(), &tree, &config)?;
        layout.finish()?;
        std::fs::remove_file(&busybox).map_err(crate::oci::io_at("remove", &busybox))?;
        Ok(())
    })?;
    Ok(Built { name: web_name(), layout, source: format!("Debian {}: busybox-static", DEBIAN.suite) })
}

/// The operator's image, from the binary that cargo builds now.
pub fn operator(context: &Context) -> Result<Built> {
    let binary = context.own_program("vm-operator", "vm-operator")?;
    let base_key = debian::key("base-container", &DEBIAN.container).finish();
    let (digest, _) = sha256_file(&binary)?;
    let key = Key::new("vm-operator").with("binary", digest).with("recipe", RECIPE).with("base", base_key).finish();
    let base = ensure_container_base(context)?;
    let layout = context.artifact("vm-operator", &key, 1, |staging, task| {
        task.step("layer");
        let mut layout = Layout::create(staging)?;
        let config = json!({
            "Entrypoint": ["/usr/local/bin/vm-operator"], "Cmd": ["run"],
            "Env": ["PATH=/usr/local/bin:/usr/bin:/usr/sbin"],
        });
        let program = (binary.clone(), "usr/local/bin/vm-operator".to_owned());
        debian_image(&mut layout, &operator_name(), &base, &[program], &config)?;
        layout.finish()?;
        Ok(())
    })?;
    let source = format!("vm-operator {} on {}", env!("CARGO_PKG_VERSION"), DEBIAN.source(&DEBIAN.container));
    Ok(Built { name: operator_name(), layout, source })
}

/// All container images of the bundle.
pub fn ensure(context: &Context) -> Result<Vec<Built>> {
    Ok(vec![web(context)?, registry(context)?, operator(context)?])
}

fn registry_image(layout: &mut Layout, programs: &Path) -> Result<()> {
    let mut tree = Tree::default();
    for dir in ["usr", "usr/local", "usr/local/bin", "etc", "etc/distribution", "var", "var/lib", "var/lib/registry"] {
        tree.dir(dir, 0o755);
    }
    tree.program("usr/local/bin/registry", programs.join("registry"));
    tree.text("etc/distribution/config.yml", include_str!("../files/registry.yml"));
    let config = json!({
        "Entrypoint": ["/usr/local/bin/registry"], "Cmd": ["serve", "/etc/distribution/config.yml"],
        "Env": ["OTEL_TRACES_EXPORTER=none"], "ExposedPorts": {"5000/tcp": {}},
    });
    tree_image(layout, &registry_name(), &tree, &config)
}

/// An image of static programs, each with the path it has inside.
fn static_image(layout: &mut Layout, name: &str, programs: &[(PathBuf, String)], config: &Value) -> Result<()> {
    let mut tree = Tree::default();
    for (from, to) in programs {
        tree.program(to, from.clone());
    }
    tree_image(layout, name, &tree, config)
}

fn tree_image(layout: &mut Layout, name: &str, tree: &Tree, config: &Value) -> Result<()> {
    let layer = put_layer(layout, tree)?;
    layout.put_image(name, &[layer], config)?;
    Ok(())
}

/// An image of programs on the Debian base layer.
fn debian_image(
    layout: &mut Layout,
    name: &str,
    base: &Base,
    programs: &[(PathBuf, String)],
    config: &Value,
) -> Result<()> {
    link_base(base, layout)?;
    let mut tree = Tree::default();
    for (from, to) in programs {
        tree.file(to, 0o755, Source::Path(from.clone()));
    }
    let layer = put_layer(layout, &tree)?;
    layout.put_image(name, &[base.layer.clone(), layer], config)?;
    Ok(())
}

/// Writes a tree as a layer into a layout.
pub fn put_layer(layout: &Layout, tree: &Tree) -> Result<crate::oci::Layer> {
    let scratch = layout.blob(".layer");
    let layer = tree.write_layer(&scratch)?;
    link(&scratch, &layout.blob(&layer.descriptor.digest))?;
    std::fs::remove_file(&scratch).map_err(crate::oci::io_at("remove", &scratch))?;
    Ok(layer)
}
