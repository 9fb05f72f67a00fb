//! The example's profile on its whole way: folder → archive → store → rendered layers.

#![allow(clippy::panic, clippy::unwrap_used, reason = "this is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use edge_profiles::{
    Content, LayerKind, Limits, RenderContext, RenderedLayer, SiteProperties, build_archive, load, publish_archive,
    render, verify_archive,
};
use serde_json::{Value, json};
use uuid::Uuid;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site/profile")
}

fn context() -> RenderContext {
    let some = |text: &str| Some(text.to_owned());
    let site = SiteProperties {
        device_id: "store-1".to_owned(),
        instance: "edge".to_owned(),
        lan_ip: some("192.168.200.1"),
        lan_prefix: Some(24),
        lan_netmask: some("255.255.255.0"),
        lan_cidr: some("192.168.200.1/24"),
        wan_ip: some("192.168.150.2"),
        wan_prefix: Some(24),
        wan_cidr: some("192.168.150.2/24"),
        wan_gateway: some("192.168.150.1"),
        dhcp_start: some("192.168.200.100"),
        dhcp_end: some("192.168.200.150"),
        ..SiteProperties::default()
    };
    let image = |name: &str, digit: &str| (name.to_owned(), format!("sha256:{}", digit.repeat(64)));
    RenderContext {
        site,
        appliance_id: Uuid::from_u128(7),
        namespace: "pcg-edge-system".to_owned(),
        images: BTreeMap::from([image("pcg-edge.io/vm/router:1", "a"), image("pcg-edge.io/vm/tiny:1", "b")]),
    }
}

fn objects(layer: &RenderedLayer) -> &[Value] {
    match &layer.content {
        Content::Objects(objects) => objects,
        Content::Chart { .. } => panic!("layer {} is a chart", layer.name),
    }
}

fn of_kind<'v>(objects: &'v [Value], kind: &str) -> &'v Value {
    objects.iter().find(|o| o["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"))
}

#[test]
fn the_example_goes_all_the_way() {
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("profile.tar");
    let digest = build_archive(&example(), &archive).unwrap();
    let summary = verify_archive(&archive, &Limits::default()).unwrap();
    assert_eq!(summary.digest, digest);
    assert_eq!(summary.name, "example-store");
    assert_eq!(
        summary.layers.iter().map(|l| l.name.as_str()).collect::<Vec<_>>(),
        ["web", "site-info", "addresses", "router", "client"]
    );
    assert_eq!(summary.layers[0].version.as_deref(), Some("1.0.0"));

    let store = scratch.path().join("store");
    let published = publish_archive(&archive, &store, &Limits::default()).unwrap();
    assert_eq!(published.dir, store.join(digest.hex()));
    // Again: the same, and nothing left beside it.
    assert_eq!(publish_archive(&archive, &store, &Limits::default()).unwrap(), published);
    assert_eq!(fs::read_dir(&store).unwrap().count(), 1);

    let layers = render(&load(&published.dir).unwrap(), &context()).unwrap();
    let kinds: Vec<_> = layers.iter().map(|l| l.kind).collect();
    assert_eq!(kinds, [LayerKind::Chart, LayerKind::Manifest, LayerKind::Manifest, LayerKind::Vm, LayerKind::Vm]);

    let Content::Chart { chart_dir, release, namespace, values } = &layers[0].content else { panic!("no chart") };
    assert!(chart_dir.join("Chart.yaml").is_file());
    assert_eq!((release.as_str(), namespace.as_str()), ("web", "web"));
    assert_eq!(values["page"]["title"], "store-1");

    let info = of_kind(objects(&layers[1]), "ConfigMap");
    assert_eq!(info["data"]["dhcp-range"], "192.168.200.100-192.168.200.150");
    assert_eq!(info["metadata"]["labels"]["pcg-edge.io/layer"], "site-info");
    assert_eq!(info["metadata"]["labels"]["pcg-edge.io/profile"], "example-store");

    assert_eq!(of_kind(objects(&layers[2]), "IPPool")["spec"]["gateway"], context().site.wan_gateway.unwrap());

    let router = objects(&layers[3]);
    let image = of_kind(router, "VirtualMachineImage");
    assert_eq!(image["metadata"]["name"], "router-aaaaaaaaaaaa");
    assert_eq!(image["spec"]["artifact"], format!("pcg-edge.io/vm/router@sha256:{}", "a".repeat(64)));
    let vm = of_kind(router, "VirtualMachine");
    let secret = of_kind(router, "Secret");
    assert!(secret["metadata"]["name"].as_str().unwrap().starts_with("router-files-"));
    let id = Uuid::new_v5(&Uuid::from_u128(7), b"router").to_string();
    let expected = json!({
        "id": id, "appliance": "local", "vcpus": 1, "memoryMiB": 512, "image": "router-aaaaaaaaaaaa",
        "kernelArgs": "root=/dev/vda rw console=ttyS0 net.ifnames=0", "rootDisk": {"pool": "default"},
        "interfaces": [{"network": "wan"}, {"network": "lan"}], "onConfigChange": "Restart", "guestAgent": true,
        "configDisk": {"label": "PCGCONFIG", "secretName": secret["metadata"]["name"]},
    });
    assert_eq!(vm["spec"], expected);
    assert_eq!(vm["metadata"]["labels"]["tag.pcg-edge.io/purpose"], "example");
    assert_eq!(secret["type"], "pcg-edge.io/guest-files");
    let config =
        base64::engine::general_purpose::STANDARD.decode(secret["data"]["config.xml"].as_str().unwrap()).unwrap();
    let config = String::from_utf8(config).unwrap();
    for part in [
        "<hostname>store-1-router</hostname>",
        "<address>192.168.150.2/24</address>",
        "<gateway>192.168.150.1</gateway>",
        "<start>192.168.200.100</start>",
        "<lease-seconds>120</lease-seconds>",
        "<server>192.168.150.1</server>",
    ] {
        assert!(config.contains(part), "{part} is missing in\n{config}");
    }
    assert_eq!(of_kind(objects(&layers[4]), "VirtualMachine")["spec"]["memoryMiB"], 192);
}

#[test]
fn only_what_changed_has_another_digest() {
    let profile = load(&example()).unwrap();
    let digests =
        |ctx: &RenderContext| render(&profile, ctx).unwrap().into_iter().map(|l| l.digest).collect::<Vec<_>>();
    let before = digests(&context());
    assert_eq!(before, digests(&context()));
    let mut changed = context();
    changed.site.dhcp_end = Some("192.168.200.200".to_owned());
    let after = digests(&changed);
    let same: Vec<_> = before.iter().zip(&after).map(|(a, b)| a == b).collect();
    // web, addresses and client do not use the range; site-info and router do.
    assert_eq!(same, [true, false, true, false, true]);
}

#[test]
fn what_a_site_lacks_is_named_with_its_line() {
    let mut ctx = context();
    ctx.site.dhcp_start = None;
    let error = render(&load(&example()).unwrap(), &ctx).unwrap_err().to_string();
    assert!(error.starts_with("site-info/site-info.yaml:11: ") && error.contains("site.dhcp_start"), "{error}");
    let mut ctx = context();
    ctx.images.clear();
    let error = render(&load(&example()).unwrap(), &ctx).unwrap_err().to_string();
    assert!(error.contains("layer router: image pcg-edge.io/vm/router:1 is not in"), "{error}");
}

#[test]
fn the_same_folder_gives_the_same_bytes() {
    let scratch = tempfile::tempdir().unwrap();
    let (one, two) = (scratch.path().join("one.tar"), scratch.path().join("two.tar"));
    build_archive(&example(), &one).unwrap();
    // A copy made in another order, with other times and permissions.
    let copy = scratch.path().join("copy");
    assert!(Command::new("cp").arg("-r").arg(example()).arg(&copy).status().unwrap().success());
    assert!(Command::new("chmod").args(["-R", "g+w,o-r"]).arg(&copy).status().unwrap().success());
    build_archive(&copy, &two).unwrap();
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn skopeo_reads_and_copies_it() {
    let skopeo = Command::new("skopeo").arg("--version").output();
    if skopeo.is_err() {
        eprintln!("skipped: skopeo is not on PATH");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let archive = scratch.path().join("profile.tar");
    let digest = build_archive(&example(), &archive).unwrap();
    let run = |args: &[&str]| {
        let out = Command::new("skopeo").args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        out.stdout
    };
    let raw = run(&["inspect", "--raw", &format!("oci-archive:{}", archive.display())]);
    assert_eq!(edge_profiles::Digest::of(&raw), digest);
    let manifest: Value = serde_json::from_slice(&raw).unwrap();
    assert_eq!(manifest["artifactType"], "application/vnd.pcg-edge.system-profile.v1");
    // What skopeo writes is accepted, and is the same profile.
    let copy = scratch.path().join("copy.tar");
    let (from, to) = (format!("oci-archive:{}", archive.display()), format!("oci-archive:{}", copy.display()));
    run(&["--insecure-policy", "copy", "--preserve-digests", &from, &to]);
    assert_eq!(verify_archive(&copy, &Limits::default()).unwrap().digest, digest);
}
