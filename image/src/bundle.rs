//! The bundle: every artifact of an appliance in one OCI image layout, with `pcg-index.json` and the host's programs.

use std::path::{Path, PathBuf};

use edge_api::bundle::{Artifact, ArtifactKind, INDEX_FILE, Index, Program};

use crate::build::{Context, Error, Result, mkdir, read_json, write_json};
use crate::cache::Key;
use crate::containers::{self, Built};
use crate::oci::{Layout, link, sha256_file, verify_blob};
use crate::pins::{CLUSTER_GROUPS, CURRENT, DEBIAN, Group, Release, groups, source_of};
use crate::{add_ons, cluster_images, kubernetes_guest, manifests, node, process, programs, router_image, tiny};

/// Our own programs on the host, and the packages that have them.
const OWN_PROGRAMS: &[(&str, &str)] =
    &[("edge-agent", "edge-agent"), ("edgectl", "edge-agent"), ("edge-tui", "edge-tui")];
/// Programs that the agent, or who looks after it, runs on the host.
const HOST_PROGRAMS: &[&str] = &["clusterctl", "helm", "kind", "kubectl"];

/// A program for the host.
struct HostProgram {
    name: &'static str,
    path: PathBuf,
    source: String,
}

/// What goes into the layout.
struct Part {
    kind: ArtifactKind,
    /// Whether it goes into the local registry.
    registry: bool,
    built: Built,
}

impl Part {
    /// For the local registry.
    fn published(kind: ArtifactKind, built: Built) -> Self {
        Self { kind, registry: true, built }
    }

    /// For the agent alone.
    fn kept(kind: ArtifactKind, built: Built) -> Self {
        Self { kind, registry: false, built }
    }
}

/// The release of the system cluster.
fn system_release(releases: &[&'static Release]) -> &'static Release {
    releases.first().copied().unwrap_or(&CURRENT)
}

/// The groups that go into a bundle.
fn groups_of(releases: &[&'static Release]) -> Vec<&'static Group> {
    let kubernetes = releases.iter().map(|release| &release.kubernetes);
    groups().filter(|group| group.name != CURRENT.kubernetes.name).chain(kubernetes).collect()
}

/// Digest over all pins, hexadecimal SHA-256.
fn pins_digest(releases: &[&'static Release]) -> String {
    let mut text = format!("{:?}", *DEBIAN);
    for group in groups_of(releases) {
        text += group.name;
        text += group.go_mod;
        text += group.go_sum;
        text += &group.ldflags();
    }
    crate::cache::hex(&<sha2::Sha256 as sha2::Digest>::digest(text))
}

/// The bundle's folder. The system cluster is of the first release; there is a guest of each.
pub fn ensure(context: &Context, releases: &[&'static Release]) -> Result<PathBuf> {
    let ours = own_programs(context)?;
    // Go on one lane, Debian and cargo on the other: never more than two heavy jobs at once.
    let ((mut programs, mut parts), debian) = two_lanes(|| go_lane(context, releases), || debian_lane(context))?;
    parts.extend(debian);
    parts.push(Part::published(ArtifactKind::Container, containers::registry(context)?));
    parts.push(Part::kept(ArtifactKind::Node, node::ensure(context, system_release(releases))?));
    for release in releases {
        parts.push(Part::published(ArtifactKind::Vm, kubernetes_guest::ensure(context, release)?));
        parts.extend(
            containers::of_clusters(context, release)?.map(|one| Part::published(ArtifactKind::Container, one)),
        );
    }
    programs.extend(OWN_PROGRAMS.iter().map(|(name, package)| HostProgram {
        name,
        path: ours.join(name),
        source: format!("{package} {}", env!("CARGO_PKG_VERSION")),
    }));
    programs.sort_by_key(|program| program.name);
    let layout = |built: &Built| format!("{}={:?}", built.name, built.layout.file_name());
    let mut layouts: Vec<_> = parts.iter().map(|part| layout(&part.built)).collect();
    layouts.sort();
    let key = Key::new("bundle")
        .with("recipe", include_str!("bundle.rs"))
        .with("layouts", layouts.join("\n"))
        .with("programs", groups_of(releases).into_iter().map(programs::group_key).collect::<String>())
        .with("own programs", format!("{:?}", ours.file_name()))
        .finish();
    context.artifact("bundle", &key, 2, |staging, task| {
        task.step("linking");
        let index = assemble(staging, &parts, &programs, releases)?;
        write_json(&staging.join(INDEX_FILE), &index)?;
        task.step("verifying");
        verify(staging)
    })
}

/// Our own programs for the host: copies, because cargo writes to its own again.
fn own_programs(context: &Context) -> Result<PathBuf> {
    let find = |(name, package): &(&'static str, &str)| Ok((*name, context.own_program(package, name)?));
    let found: Vec<_> = OWN_PROGRAMS.iter().map(find).collect::<Result<_>>()?;
    let mut key = Key::new("own-programs");
    for (name, path) in &found {
        key = key.with(name, sha256_file(path)?.0);
    }
    context.artifact("own-programs", &key.finish(), 1, |staging, task| {
        task.step("copying");
        for (name, path) in &found {
            std::fs::copy(path, staging.join(name)).map_err(crate::oci::io_at("copy", path))?;
        }
        Ok(())
    })
}

/// The host's programs, and what is made of Go programs alone.
fn go_lane(context: &Context, releases: &[&'static Release]) -> Result<(Vec<HostProgram>, Vec<Part>)> {
    // The first is the current one: of two programs of one name, the host has that one's.
    let mut folders = releases.iter().map(|release| programs::ensure(context, release)).collect::<Result<Vec<_>>>()?;
    for group in CLUSTER_GROUPS {
        folders.push(programs::ensure_group(context, group)?);
    }
    let find = |name: &&'static str| {
        let path = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        let path = path.ok_or_else(|| Error::Mismatch(format!("no group of the pins has {name}")))?;
        Ok(HostProgram { name, path, source: source_of(name) })
    };
    let programs = HOST_PROGRAMS.iter().map(find).collect::<Result<_>>()?;
    let mut parts = vec![Part::kept(ArtifactKind::Manifests, manifests::ensure(context)?)];
    let published = |kind| move |built| Part::published(kind, built);
    parts.extend(add_ons::ensure(context)?.into_iter().map(published(ArtifactKind::Manifests)));
    parts.extend(cluster_images::ensure(context)?.into_iter().map(published(ArtifactKind::Container)));
    Ok((programs, parts))
}

/// What needs no Go program.
fn debian_lane(context: &Context) -> Result<Vec<Part>> {
    let operator = containers::operator(context)?;
    let host_gateway = cluster_images::host_gateway(context)?;
    let router = router_image::ensure(context)?;
    let tiny = tiny::ensure(context)?;
    let web = containers::web(context)?;
    let busybox = cluster_images::busybox(context)?;
    node::ensure_base_layer(context)?;
    kubernetes_guest::ensure_tree(context)?;
    let containers =
        [operator, host_gateway, web, busybox].map(|built| Part::published(ArtifactKind::Container, built));
    let machines = [router, tiny].map(|built| Part::published(ArtifactKind::Vm, built));
    Ok(containers.into_iter().chain(machines).collect())
}

/// Runs both at once. When one fails the other is stopped, and the failure that came first is reported.
fn two_lanes<A: Send, B: Send>(
    one: impl FnOnce() -> Result<A> + Send,
    two: impl FnOnce() -> Result<B> + Send,
) -> Result<(A, B)> {
    fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
        let done = work();
        if done.is_err() {
            process::cancel();
        }
        done
    }
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(|| guarded(two));
        let one = guarded(one);
        let gone = || Err(Error::Mismatch("a thread of the build ended early".to_owned()));
        (one, other.join().unwrap_or_else(|_| gone()))
    });
    match (one, two) {
        (Ok(one), Ok(two)) => Ok((one, two)),
        // The lane that was stopped says only that.
        (Err(Error::Tool(process::Error::Interrupted)) | Ok(_), Err(error)) | (Err(error), _) => Err(error),
    }
}

fn assemble(staging: &Path, parts: &[Part], programs: &[HostProgram], releases: &[&'static Release]) -> Result<Index> {
    let mut layout = Layout::create(staging)?;
    let mut artifacts = Vec::new();
    for Part { kind, registry, built } in parts {
        let from = Layout::open(&built.layout)?;
        let image = from.image(&built.name)?.clone();
        layout.adopt(&from, &image)?;
        artifacts.push(Artifact {
            name: built.name.clone(),
            digest: image.digest.clone(),
            size: from.parts(&image)?.iter().map(|part| part.size).sum(),
            kind: *kind,
            registry: *registry,
            source: built.source.clone(),
        });
    }
    layout.finish()?;
    artifacts.sort_by(|a, b| a.name.cmp(&b.name));

    let bin = staging.join("bin");
    mkdir(&bin)?;
    let mut listed = Vec::new();
    for HostProgram { name, path, source } in programs {
        link(path, &bin.join(name))?;
        let (digest, size) = sha256_file(&bin.join(name))?;
        listed.push(Program {
            name: (*name).to_owned(),
            digest: format!("sha256:{digest}"),
            size,
            source: source.clone(),
        });
    }
    Ok(Index {
        format_version: 1,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pins_digest: pins_digest(releases),
        kubernetes_version: system_release(releases).version().to_owned(),
        artifacts,
        programs: listed,
    })
}

/// Checks a bundle: every artifact of the index is in the layout, every blob and program has its digest and size.
pub fn verify(bundle: &Path) -> Result<()> {
    let index: Index = read_json(&bundle.join(INDEX_FILE))?;
    let layout = Layout::open(bundle)?;
    let mut checked = std::collections::BTreeSet::new();
    for artifact in &index.artifacts {
        let image = layout.image(&artifact.name)?;
        if image.digest != artifact.digest {
            let text = format!("{}: the layout has {}, the index {}", artifact.name, image.digest, artifact.digest);
            return Err(Error::Mismatch(text));
        }
        let parts = layout.parts(image)?;
        for part in &parts {
            crate::process::check_interrupt()?;
            if checked.insert(part.digest.clone()) {
                verify_blob(&layout, part)?;
            }
        }
        let size: u64 = parts.iter().map(|part| part.size).sum();
        if size != artifact.size {
            let text = format!("{}: {size} bytes, the index says {}", artifact.name, artifact.size);
            return Err(Error::Mismatch(text));
        }
    }
    for program in &index.programs {
        let path = bundle.join("bin").join(&program.name);
        let (found, size) = sha256_file(&path)?;
        if format!("sha256:{found}") != program.digest || size != program.size {
            let expected = format!("{} of {} bytes", program.digest, program.size);
            return Err(crate::oci::Error::Digest { path, found, expected }.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::Tree;
    use serde_json::json;

    #[test]
    fn every_flipped_byte_of_a_bundle_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let (from, programs, bundle) = (dir.path().join("from"), dir.path().join("bin"), dir.path().join("bundle"));
        for folder in [&from, &programs, &bundle] {
            std::fs::create_dir(folder).unwrap();
        }
        let program = |name: &&'static str| HostProgram { name, path: programs.join(name), source: "test".into() };
        let host: Vec<_> = HOST_PROGRAMS.iter().map(program).collect();
        for program in &host {
            std::fs::write(&program.path, format!("program {}", program.name)).unwrap();
        }
        let mut layout = Layout::create(&from).unwrap();
        let mut tree = Tree::default();
        tree.text("etc/motd", "hello");
        let layer = containers::put_layer(&layout, &tree).unwrap();
        layout.put_image("example.io/a:1", &[layer], &json!({})).unwrap();
        layout.finish().unwrap();
        let built = Built { name: "example.io/a:1".into(), layout: from, source: "test".into() };
        let index = assemble(&bundle, &[Part::published(ArtifactKind::Container, built)], &host, &[&CURRENT]).unwrap();
        write_json(&bundle.join(INDEX_FILE), &index).unwrap();
        verify(&bundle).unwrap();

        let blobs = std::fs::read_dir(bundle.join("blobs/sha256")).unwrap();
        let bins = std::fs::read_dir(bundle.join("bin")).unwrap();
        let files: Vec<_> = blobs.chain(bins).map(|entry| entry.unwrap().path()).collect();
        assert_eq!(files.len(), 7);
        for file in files {
            let whole = std::fs::read(&file).unwrap();
            let mut broken = whole.clone();
            broken[0] ^= 1;
            std::fs::write(&file, &broken).unwrap();
            assert!(verify(&bundle).is_err(), "{}", file.display());
            std::fs::write(&file, &whole).unwrap();
        }
        verify(&bundle).unwrap();
        let mut other = index.clone();
        other.artifacts[0].name = "example.io/b:1".into();
        write_json(&bundle.join(INDEX_FILE), &other).unwrap();
        assert!(verify(&bundle).is_err());
    }
}
