#![allow(clippy::needless_pass_by_value, reason = "values are written where they are used")]

use serde_json::json;

use super::*;

fn layers() -> Value {
    json!([
        {"name": "debian", "kind": "OS", "os": {"image": "pcg-edge.io/vm/kubernetes"}},
        {"name": "kubernetes", "kind": "Kubernetes", "version": "1.36.3",
            "kubernetes": {"podCIDR": "10.244.0.0/16", "serviceCIDR": "10.96.0.0/12"}},
        {"name": "network", "kind": "Network", "version": "0.28.0",
            "manifests": [{"artifact": "pcg-edge.io/manifests/network:0.28.0"}, {"inline": "kind: x"}],
            "parameters": {"mtu": {"default": 1500}, "backend": {"default": "vxlan"}, "ports": {"default": [1]}}},
        {"name": "storage", "kind": "Storage", "timeoutSeconds": 900,
            "parameters": {"replicas": {"default": 1}, "class": {"default": "standard"}, "wipe": {"default": false}},
            "presets": [
                {"name": "replicated", "enabled": true, "parameters": {"replicas": 3, "class": "safe"}, "minimumWorkers": 3},
                {"name": "wiped", "enabled": true, "parameters": {"wipe": true}},
                {"name": "five", "parameters": {"replicas": 5}, "minimumWorkers": 5},
                {"name": "single", "parameters": {"replicas": 1}},
            ]},
        {"name": "metrics", "kind": "AddOn"},
    ])
}

fn profile(type_: &str, layers: Value) -> ClusterProfile {
    serde_json::from_value(json!({
        "apiVersion": "pcg-edge.io/v1alpha1", "kind": "ClusterProfile", "metadata": {"name": "shop"},
        "spec": {"version": "1", "type": type_, "layers": layers},
    }))
    .unwrap()
}

fn cluster(more: Value) -> EdgeClusterSpec {
    let mut spec = json!({
        "profile": "shop", "virtualIP": "10.0.0.5", "placements": [],
        "controlPlane": {"size": 1, "hardware": {"vcpus": 2, "memoryMiB": 2048, "rootDiskGiB": 10}},
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    serde_json::from_value(spec).unwrap()
}

/// The errors as lines, with the profile's name left out.
fn errors(profile: &ClusterProfile, more: Value) -> Vec<String> {
    let found = resolve(profile, &cluster(more)).unwrap_err();
    found.iter().map(|e| e.to_string().replace("spec.profile: ClusterProfile shop, ", "profile ")).collect()
}

#[test]
fn what_a_profile_gives() {
    let resolved = resolve(&profile("Full", layers()), &cluster(json!({}))).unwrap();
    assert_eq!(resolved.profile, "shop");
    assert_eq!(resolved.os.image, "pcg-edge.io/vm/kubernetes");
    assert_eq!(resolved.kubernetes.pod_cidr, "10.244.0.0/16");
    assert_eq!(resolved.version, "1.36.3");
    assert_eq!(resolved.minimum_workers, Some((3, "storage/replicated".to_owned())));
    let shown: Vec<_> =
        resolved.layers.iter().map(|l| (l.name.as_str(), l.kind, l.version.as_deref(), l.timeout.as_secs())).collect();
    let expected = [
        ("network", ClusterLayerKind::Network, Some("0.28.0"), 600),
        ("storage", ClusterLayerKind::Storage, None, 900),
        ("metrics", ClusterLayerKind::AddOn, None, 600),
    ];
    assert_eq!(shown, expected);
    assert_eq!(resolved.layers[0].manifests.len(), 2);
    assert_eq!(
        Value::from(resolved.layers[1].parameters.clone()),
        json!({"replicas": 3, "class": "safe", "wipe": true})
    );
}

#[test]
fn a_value_of_the_cluster_beats_a_preset_which_beats_a_default() {
    let profile = profile("Full", layers());
    for (more, expected, minimum) in [
        (json!({"presets": {"storage": []}}), json!({"replicas": 1, "class": "standard", "wipe": false}), None),
        (json!({"presets": {"storage": ["single"]}}), json!({"replicas": 1, "class": "standard", "wipe": false}), None),
        // The last one that is chosen has the last word; the most workers count.
        (
            json!({"presets": {"storage": ["five", "replicated"]}}),
            json!({"replicas": 3, "class": "safe", "wipe": false}),
            Some((5, "storage/five".to_owned())),
        ),
        (
            json!({"parameters": {"storage": {"replicas": 7}}}),
            json!({"replicas": 7, "class": "safe", "wipe": true}),
            Some((3, "storage/replicated".to_owned())),
        ),
    ] {
        let resolved = resolve(&profile, &cluster(more.clone())).unwrap();
        assert_eq!(Value::from(resolved.layers[1].parameters.clone()), expected, "{more}");
        assert_eq!(resolved.minimum_workers, minimum, "{more}");
    }
    let resolved = resolve(&profile, &cluster(json!({"kubernetesVersion": "1.37.0"}))).unwrap();
    assert_eq!(resolved.version, "1.37.0");
}

#[test]
fn every_error_of_a_cluster_at_once() {
    let more = json!({
        "kubernetesVersion": "v1.36",
        "parameters": {"network": {"mtu": "1400", "speed": 1, "ports": {}}, "nothing": {}},
        "presets": {"storage": ["single", "triple"], "absent": [], "metrics": ["x"]},
    });
    let expected = [
        "spec.parameters.nothing: profile shop has no such layer; it has debian, kubernetes, metrics, network, storage",
        "spec.presets.absent: profile shop has no such layer; it has debian, kubernetes, metrics, network, storage",
        "spec.kubernetesVersion: \"v1.36\"; expected <major>.<minor>.<patch>, for instance 1.36.3",
        "spec.parameters.network.mtu: is a text, not a number",
        "spec.parameters.network.ports: is a mapping, not a list",
        "spec.parameters.network.speed: layer network has no such parameter; it has backend, mtu, ports",
        "spec.presets.storage[1]: layer storage has no preset \"triple\"; it has replicated, wiped, five, single",
        "spec.presets.metrics[0]: layer metrics has no preset \"x\"; it has none",
    ];
    assert_eq!(errors(&profile("Full", layers()), more), expected);
}

#[test]
fn every_kind_that_is_missing_or_there_twice_is_named() {
    let found = errors(&profile("Full", json!([{"name": "a", "kind": "AddOn"}])), json!({}));
    let missing = |kind| format!("profile spec.layers: has no layer of kind {kind}; exactly one is needed");
    assert_eq!(found, ["OS", "Kubernetes", "Network", "Storage"].map(missing));

    let mut twice = layers();
    for (index, name) in [(0, "debian2"), (2, "network2")] {
        let mut layer = twice[index].clone();
        layer["name"] = name.into();
        twice.as_array_mut().unwrap().push(layer);
    }
    let expected = [
        "profile spec.layers: has 2 layers of kind OS (debian, debian2); exactly one is needed",
        "profile spec.layers: has 2 layers of kind Network (network, network2); exactly one is needed",
    ];
    assert_eq!(errors(&profile("Full", twice), json!({})), expected);

    let infra = errors(&profile("Infra", layers()), json!({}));
    assert_eq!(
        infra,
        ["profile spec.layers: has AddOn (metrics); only profiles of type Full and AddOn have such layers"]
    );
    let mut without = layers();
    without.as_array_mut().unwrap().pop();
    resolve(&profile("Infra", without), &cluster(json!({}))).unwrap();

    let add_on = errors(&profile("AddOn", json!([layers()[2], layers()[4]])), json!({}));
    let expected = [
        "profile spec.type: is AddOn; a cluster takes a profile of type Full or Infra",
        "profile spec.layers: has Network (network); a profile of type AddOn has none",
    ];
    assert_eq!(add_on, expected);
}

#[test]
fn faults_of_a_layer_have_their_place_in_the_profile() {
    for (change, expected) in [
        (("/4/name", json!("network")), "layers[4].name: \"network\" is there twice; names of layers are unique"),
        (("/0/os", json!(null)), "layers[0].os: is missing; a layer of kind OS needs it"),
        (("/1/kubernetes", json!(null)), "layers[1].kubernetes: is missing; a layer of kind Kubernetes needs it"),
        (
            ("/4/os", json!({"image": "x"})),
            "layers[4].os: belongs to a layer of kind OS only; this one is of kind AddOn",
        ),
        (
            ("/0/manifests", json!([{"inline": "x"}])),
            "layers[0].manifests: a layer of kind OS has no objects; put them into an AddOn layer",
        ),
        (
            ("/2/manifests/0/artifact", json!("network")),
            "layers[2].manifests[0].artifact: \"network\" is not of the form <origin host>/<path>:<tag>",
        ),
        (("/2/manifests/1/inline", json!(null)), "layers[2].manifests[1]: give either artifact or inline"),
        (
            ("/2/parameters/mtu/default", json!(null)),
            "layers[2].parameters.mtu.default: is null, which has no type; give a value",
        ),
        (("/3/presets/1/name", json!("five")), "layers[3].presets[2].name: \"five\" is there twice in this layer"),
        (
            ("/3/presets/3/parameters", json!({"replicas": null})),
            "layers[3].presets[3].parameters.replicas: is null, not a number",
        ),
        (
            ("/3/presets/3/parameters", json!({"size": 1})),
            "layers[3].presets[3].parameters.size: layer storage has no such parameter; it has class, replicas, wipe",
        ),
        (
            ("/1/version", json!("1.x")),
            "layers[1].version: \"1.x\"; expected <major>.<minor>.<patch>, for instance 1.36.3",
        ),
        (
            ("/1/version", json!(null)),
            "layers[1].version: is missing, and so is spec.kubernetesVersion; expected <major>.<minor>.<patch>, for \
             instance 1.36.3",
        ),
    ] {
        let (place, value) = change;
        let mut layers = layers();
        let (parent, key) = place.rsplit_once('/').unwrap();
        layers.pointer_mut(parent).unwrap()[key] = value;
        assert_eq!(errors(&profile("Full", layers), json!({})), [format!("profile spec.{expected}")], "{place}");
    }
    let mut long = profile("Full", layers());
    long.metadata.name = Some("a".repeat(64));
    let found = resolve(&long, &cluster(json!({}))).unwrap_err();
    assert_eq!(found.len(), 1);
    assert!(found[0].message.ends_with("metadata.name: has 64 characters; at most 63 fit a label"), "{found:?}");
}
