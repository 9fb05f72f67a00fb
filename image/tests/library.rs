//! The library's profiles against the bundle's recipes: what they name is there.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::path::Path;

use edge_api::ClusterProfile;
use edge_api::cluster_profile::ClusterLayerKind;
use edge_image::{add_ons, cluster_images, kubernetes_guest};
use serde_json::Value;

fn profiles() -> Vec<(String, ClusterProfile)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../profiles/library");
    let read = |path: std::path::PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        let profile: ClusterProfile = serde_saphyr::from_str(&text).unwrap();
        (text, profile)
    };
    std::fs::read_dir(dir).unwrap().map(|entry| read(entry.unwrap().path())).collect()
}

/// Images named anywhere in an object.
fn images(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("image").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|field| images(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| images(item, found)),
        _ => {}
    }
}

#[test]
fn nothing_in_a_profile_is_left_unread() {
    assert!(!profiles().is_empty());
    for (text, profile) in profiles() {
        let written: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(serde_json::to_value(&profile).unwrap(), written);
    }
}

#[test]
fn what_profiles_name_is_in_the_bundle() {
    for (_, profile) in profiles() {
        let layers = &profile.spec.layers;
        let the = |kind: ClusterLayerKind| layers.iter().find(|layer| layer.kind == kind).unwrap();
        let os = the(ClusterLayerKind::Os).os.as_ref().unwrap();
        let version = the(ClusterLayerKind::Kubernetes).version.as_ref().unwrap();
        assert_eq!(format!("{}:{version}", os.image), kubernetes_guest::name());

        let manifests: Vec<_> = layers.iter().flat_map(|layer| &layer.manifests).collect();
        for artifact in manifests.iter().filter_map(|manifest| manifest.artifact.as_ref()) {
            assert!(add_ons::names().contains(artifact), "{artifact}");
        }
        let mut named = Vec::new();
        for inline in manifests.iter().filter_map(|manifest| manifest.inline.as_ref()) {
            let objects: Vec<Value> = serde_saphyr::from_multiple(inline).unwrap();
            images(&Value::Array(objects), &mut named);
        }
        assert!(!named.is_empty());
        for image in named {
            assert!(cluster_images::names().contains(&image), "{image}");
        }
    }
}
