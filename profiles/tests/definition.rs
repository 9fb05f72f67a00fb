//! Mistakes in a profile's folder: each is named with its file and line.

#![allow(clippy::panic, clippy::unwrap_used, reason = "this is a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use base64::Engine;
use edge_profiles::{
    Content, Error, Limits, RenderContext, SiteProperties, build_archive, load, publish_archive, render, verify_archive,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

/// A profile of one layer of each kind; the files can be replaced before it is written.
fn files() -> BTreeMap<&'static str, String> {
    let profile = "name: p\nversion: 1.0.0\ntags: {team: red}\nlayers:\n\
        - {name: last, kind: manifest, path: some/objects.yaml, order: 5}\n\
        - {name: chart, kind: chart, path: chart, namespace: shop, values: {a: {x: 1}, who: '{{ site.device_id }}'}}\n\
        - {name: vm, kind: vm, path: vm, timeout: 90s}\n";
    BTreeMap::from([
        ("profile.yaml", profile.to_owned()),
        ("some/objects.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n".to_owned()),
        ("chart/chart/Chart.yaml", "apiVersion: v2\nname: c\nversion: 3.2.1\n".to_owned()),
        ("chart/chart/templates/x.yaml", "{{ this is Helm's }}\n".to_owned()),
        ("chart/values.yaml", "a: {x: 0, y: 2}\nb: \"{{ site.lan_prefix }}\"\n".to_owned()),
        ("vm/vm.yaml", "image: o/i/router:1\nvcpus: 1\nmemoryMiB: 128\n".to_owned()),
    ])
}

fn write(dir: &Path, files: &BTreeMap<&'static str, String>) {
    for (path, text) in files {
        let place = dir.join(path);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, text).unwrap();
    }
}

fn context() -> RenderContext {
    RenderContext {
        site: SiteProperties { device_id: "store-1".into(), lan_prefix: Some(24), ..SiteProperties::default() },
        appliance_id: Uuid::from_u128(1),
        namespace: "ns".into(),
        images: BTreeMap::from([("o/i/router:1".into(), format!("sha256:{}", "c".repeat(64)))]),
    }
}

/// What loading and rendering of the profile with one file replaced says.
fn outcome(path: &'static str, text: &str) -> Result<Vec<edge_profiles::RenderedLayer>, Error> {
    let dir = tempfile::tempdir().unwrap();
    let mut files = files();
    files.insert(path, text.to_owned());
    write(dir.path(), &files);
    render(&load(dir.path())?, &context())
}

#[track_caller]
fn fails(path: &'static str, text: &str, expected: &str) {
    let error = outcome(path, text).map(|_| ()).unwrap_err().to_string();
    assert!(error.starts_with(expected), "expected {expected:?}: {error}");
}

#[test]
fn order_defaults_and_merging() {
    let layers = outcome("vm/files/plain.txt", "{{ site.device_id }}\n").unwrap();
    let names: Vec<_> = layers.iter().map(|l| (l.name.as_str(), l.timeout.as_secs(), l.version.as_deref())).collect();
    assert_eq!(names, [("chart", 600, Some("3.2.1")), ("vm", 90, None), ("last", 600, None)]);
    let Content::Chart { values, namespace, .. } = &layers[0].content else { panic!() };
    assert_eq!(*values, json!({"a": {"x": 1, "y": 2}, "b": 24, "who": "store-1"}));
    assert_eq!(namespace, "shop");
    let Content::Objects(objects) = &layers[1].content else { panic!() };
    let vm = objects.iter().find(|o| o["kind"] == "VirtualMachine").unwrap();
    let secret = |objects: &[serde_json::Value]| {
        let secret = objects.iter().find(|o| o["kind"] == "Secret").unwrap();
        assert_eq!(secret["immutable"], true);
        secret["metadata"]["name"].as_str().unwrap().to_owned()
    };
    let name = secret(objects);
    assert_eq!(vm["spec"]["configDisk"], json!({"secretName": name}));
    let holding = |text: &str| match &outcome("vm/files/plain.txt", text).unwrap()[1].content {
        Content::Objects(objects) => secret(objects),
        Content::Chart { .. } => panic!(),
    };
    assert_eq!(holding("{{ site.device_id }}\n"), name, "by what it holds, and nothing else");
    assert_ne!(holding("other\n"), name);
    assert_eq!(vm["metadata"]["labels"]["tag.pcg-edge.io/team"], "red");
}

#[test]
fn mistakes_in_profile_yaml() {
    let good = files()["profile.yaml"].clone();
    let with = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replacen(from, to, 1)
    };
    let cases = [
        (with("name: p", "name: P"), "profile.yaml:1: name \"P\": expected lower-case"),
        (with("version: 1.0.0", "version: ''"), "profile.yaml:2: version"),
        (with("version: 1.0.0\n", ""), "profile.yaml:"),
        (with("tags: {team: red}", "tags: {te am: red}"), "profile.yaml:3: tag"),
        (with("tags: {team: red}", "color: red"), "profile.yaml:3: unknown field"),
        (with("kind: manifest", "kind: pack"), "profile.yaml:5: "),
        (with("name: last", "name: chart"), "profile.yaml:6: layer \"chart\" is there twice"),
        (with("name: last", "name: l.ast"), "profile.yaml:5: layer name"),
        (with("path: some/objects.yaml", "path: ../x"), "profile.yaml:5: path \"../x\": expected"),
        (with("path: some/objects.yaml", "path: /x"), "profile.yaml:5: path \"/x\": expected"),
        (with("path: some/objects.yaml", "path: vm/x"), "profile.yaml:7: path \"vm\" overlaps"),
        (with("path: some/objects.yaml", "path: none"), "profile.yaml:5: layer \"last\": none is missing"),
        (with("path: chart", "path: some2"), "profile.yaml:6: layer \"chart\": some2/chart/Chart.yaml is missing"),
        (with("timeout: 90s", "timeout: soon"), "profile.yaml:7: timeout \"soon\""),
        (with("timeout: 90s", "timeout: 25h"), "profile.yaml:7: timeout \"25h\""),
        (with("timeout: 90s", "namespace: x"), "profile.yaml:7: a vm layer has no namespace"),
        (with("timeout: 90s", "values: {}"), "profile.yaml:7: only a chart layer has values"),
        (with("{a: {x: 1}, who: '{{ site.device_id }}'}", "[1]"), "profile.yaml:6: values: expected a mapping"),
        (with("site.device_id", "site.nothing"), "profile.yaml:6: `site.nothing` is undefined"),
        ("name: p\nversion: '1'\nlayers: []\n".to_owned(), "profile.yaml:3: 0 layers"),
        ("name: p\nname: q\n".to_owned(), "profile.yaml:2: key \"name\" is there twice"),
        ("a: *b\n".to_owned(), "profile.yaml:1: "),
    ];
    for (text, expected) in cases {
        fails("profile.yaml", &text, expected);
    }
}

#[test]
fn mistakes_in_layers() {
    fails("some/objects.yaml", "a: 1\n---\nb: 2\n", "some/objects.yaml:1: expected an object with a apiVersion");
    fails("some/objects.yaml", "# none\n", "some/objects.yaml:0: holds no objects");
    fails(
        "some/objects.yaml",
        "apiVersion: v1\nkind: C\nmetadata:\n  name: {{ x }}\n",
        "some/objects.yaml:4: a key has to be",
    );
    fails("chart/values.yaml", "a: 1\nb: '{{ site.lan_ip }}'\n", "chart/values.yaml:2: `site.lan_ip` is undefined");
    fails("chart/values.yaml", "- 1\n", "chart/values.yaml:1: expected a mapping");
    fails("chart/chart/Chart.yaml", "a: [\n", "chart/chart/Chart.yaml:");
    let vm = "image: o/i/router:1\nvcpus: 1\nmemoryMiB: 128\n";
    let cases = [
        ("memoryMB: 3\n", "vm/vm.yaml:4: memoryMB is unknown; known here: appliance, cloudInitSecret,"),
        ("id: x\n", "vm/vm.yaml:4: id is set by the appliance"),
        (
            "interfaces:\n- network: wan\n  speed: 3\n",
            "vm/vm.yaml:6: interfaces[0].speed is unknown; known here: mac, network",
        ),
        ("interfaces: wan\n", "vm/vm.yaml:4: interfaces: expected array"),
        ("rootDisk: 20\n", "vm/vm.yaml:4: rootDisk: expected object"),
        ("rootDisk: {pool: default, sizeGiB: 0}\n", "vm/vm.yaml:4: rootDisk.sizeGiB: expected 1 to 65536"),
        ("guestAgent: yes\n", "vm/vm.yaml:4: guestAgent: expected boolean"),
        ("onConfigChange: Reboot\n", "vm/vm.yaml:4: onConfigChange: expected Restart or Wait"),
        ("configDisk: {label: X}\n", "vm/vm.yaml:4: configDisk without files"),
        ("configDisk: {secretName: X}\n", "vm/vm.yaml:4: configDisk.secretName is set by"),
        ("kernelArgs: '{{ site.nothing }}'\n", "vm/vm.yaml:4: `site.nothing` is undefined"),
    ];
    for (more, expected) in cases {
        fails("vm/vm.yaml", &format!("{vm}{more}"), expected);
    }
    fails("vm/vm.yaml", "image: o/i/router:1\nvcpus: many\nmemoryMiB: 128\n", "vm/vm.yaml:2: vcpus: expected integer");
    fails("vm/vm.yaml", "vcpus: 1\nmemoryMiB: 128\n", "vm/vm.yaml:1: expected an image");
    fails("vm/vm.yaml", "image: o/i/router:2\nvcpus: 1\nmemoryMiB: 128\n", "layer vm: image o/i/router:2 is not in");
    fails("vm/files/a b", "x", "vm/files/a b:0: expected a name of letters");
    fails("vm/files/sub/x", "x", "vm/files/sub/x:0: expected a name of letters");
    fails("vm/files/x.txt", "one\n{{ site.nothing }}\n", "vm/files/x.txt:2: `site.nothing` is undefined");
    fails("vm/files/x.xml", "<a>\n{{ site.nothing }}</a>", "vm/files/x.xml:2: `site.nothing` is undefined");
    fails("vm/cloud-init/other", "x", "vm/cloud-init/other:0: expected user-data, meta-data or network-config");
    fails("vm/cloud-init/user-data", "#cloud-config\na: [\n", "vm/cloud-init/user-data:");
}

#[test]
fn cloud_init_is_typed_and_scripts_are_text() {
    let user_data = |text: &str| {
        let layers = outcome("vm/cloud-init/user-data", text).unwrap();
        let Content::Objects(objects) = &layers[1].content else { panic!() };
        let secret = objects.iter().find(|o| o["kind"] == "Secret").unwrap();
        let vm = objects.iter().find(|o| o["kind"] == "VirtualMachine").unwrap();
        assert_eq!(vm["spec"]["cloudInitSecret"], secret["metadata"]["name"]);
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(secret["data"]["user-data"].as_str().unwrap()).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    let text = user_data("#cloud-config\nhostname: '{{ site.device_id }}'\nprefix: \"{{ site.lan_prefix }}\"\n");
    assert_eq!(text, "#cloud-config\nhostname: \"store-1\"\nprefix: 24\n");
    assert_eq!(user_data("#!/bin/sh\necho {{ site.device_id }}: [\n"), "#!/bin/sh\necho store-1: [\n");
}

#[test]
fn links_and_odd_names_are_not_carried() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &files());
    let out = dir.path().join("out.tar");
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("vm/passwd")).unwrap();
    let error = build_archive(dir.path(), &out).unwrap_err().to_string();
    assert!(error.contains("links are not carried"), "{error}");
    fs::remove_file(dir.path().join("vm/passwd")).unwrap();
    fs::write(dir.path().join("vm/back\\slash"), "").unwrap();
    assert!(build_archive(dir.path(), &out).unwrap_err().to_string().contains("not every tool can carry"));
    assert!(!out.exists());
}

#[test]
fn a_machine_keeps_its_identity_and_two_share_an_image() {
    let dir = tempfile::tempdir().unwrap();
    let mut all = files();
    all.insert("vm2/vm.yaml", files()["vm/vm.yaml"].clone());
    let profile = format!("{}- {{name: vm2, kind: vm, path: vm2}}\n", files()["profile.yaml"]);
    all.insert("profile.yaml", profile);
    write(dir.path(), &all);
    let layers = render(&load(dir.path()).unwrap(), &context()).unwrap();
    let kinds = |index: usize| match &layers[index].content {
        Content::Objects(objects) => objects.iter().map(|o| o["kind"].as_str().unwrap().to_owned()).collect::<Vec<_>>(),
        Content::Chart { .. } => panic!(),
    };
    assert_eq!(kinds(1), ["VirtualMachineImage", "VirtualMachine"]);
    assert_eq!(kinds(2), ["VirtualMachine"]);
    let id = |index: usize| match &layers[index].content {
        Content::Objects(objects) => objects.last().unwrap()["spec"]["id"].clone(),
        Content::Chart { .. } => Value::Null,
    };
    assert_eq!(id(1), json!(Uuid::new_v5(&Uuid::from_u128(1), b"vm").to_string()));
    assert_ne!(id(1), id(2));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever a file of a layer is called and holds, it comes out of the archive as it went in, or building says no.
    #[test]
    fn any_guest_file_makes_the_round_trip(name in "[ -~é]{1,40}", content in prop::collection::vec(any::<u8>(), 0..2000)) {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &files());
        let place = dir.path().join("vm/extra").join(&name);
        fs::create_dir_all(dir.path().join("vm/extra")).unwrap();
        prop_assume!(!name.contains('/') && name != "." && name != "..");
        fs::write(&place, &content).unwrap();
        let archive = dir.path().join("p.tar");
        if let Ok(digest) = build_archive(dir.path(), &archive) {
            prop_assert_eq!(verify_archive(&archive, &Limits::default()).unwrap().digest, digest);
            let published = publish_archive(&archive, &dir.path().join("store"), &Limits::default()).unwrap();
            prop_assert_eq!(fs::read(published.dir.join("vm/extra").join(&name)).unwrap(), content);
        } else {
            prop_assert!(name.contains('\\'));
        }
    }
}
