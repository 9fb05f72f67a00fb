//! The library's profiles against the bundle's recipes: what they name is there.

#![allow(clippy::unwrap_used, reason = "this is a test")]

use std::path::Path;

use edge_api::ClusterProfile;
use edge_api::cluster_profile::ClusterLayerKind;
use edge_image::pins::CURRENT;
use edge_image::{add_ons, cluster_images, kubernetes_guest};
use edge_profiles::render_objects;
use serde_json::{Value, json};

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

/// Objects that a profile has inline, for a cluster with these addresses of load balancers.
fn rendered(profile: &ClusterProfile, load_balancer_addresses: &[&str]) -> Vec<Value> {
    let values = json!({"cluster": {
        "name": "c", "namespace": "n", "version": "1.2.3", "pod_cidr": "10.1.0.0/16", "service_cidr": "10.2.0.0/16",
        "virtual_ip": "192.0.2.9", "load_balancer_addresses": load_balancer_addresses,
    }});
    let inline = profile.spec.layers.iter().flat_map(|layer| &layer.manifests).filter_map(|m| m.inline.as_ref());
    inline.flat_map(|text| render_objects("inline", text, &values).unwrap()).collect()
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
        assert_eq!(format!("{}:{version}", os.image), kubernetes_guest::name(&CURRENT));

        let manifests: Vec<_> = layers.iter().flat_map(|layer| &layer.manifests).collect();
        for artifact in manifests.iter().filter_map(|manifest| manifest.artifact.as_ref()) {
            assert!(add_ons::names().contains(artifact), "{artifact}");
        }
        let mut named = Vec::new();
        images(&rendered(&profile, &[]).into(), &mut named);
        assert!(!named.is_empty());
        for image in named {
            assert!(cluster_images::names().contains(&image), "{image}");
        }
    }
}

#[test]
fn the_edge_profile_is_rendered_for_clusters_with_addresses_and_without() {
    let (_, edge) =
        profiles().into_iter().find(|(_, profile)| profile.metadata.name.as_deref() == Some("edge")).unwrap();
    let of_metallb = |addresses: &[&str]| {
        let objects = rendered(&edge, addresses).into_iter();
        objects.filter(|object| object["apiVersion"] == "metallb.io/v1beta1").collect::<Vec<_>>()
    };
    assert_eq!(of_metallb(&[]), Vec::<Value>::new());
    let [pool, advertisement] = of_metallb(&["192.0.2.20/32", "192.0.2.21/32"]).try_into().unwrap();
    assert_eq!(pool["spec"]["addresses"], json!(["192.0.2.20/32", "192.0.2.21/32"]));
    assert_eq!(advertisement["spec"]["ipAddressPools"], json!([pool["metadata"]["name"]]));

    let objects = rendered(&edge, &[]);
    let network = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let env = network.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap();
    let value = |name: &str| env.iter().find(|one| one["name"] == name).unwrap()["value"].as_str().unwrap();
    assert_eq!(value("POD_NETWORK"), "10.1.0.0/16");
    assert_eq!(value("KUBERNETES_SERVICE_HOST"), "192.0.2.9");
    assert_eq!(value("KUBERNETES_SERVICE_PORT"), "6443");
}
