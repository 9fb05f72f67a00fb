//! From a `ClusterProfile` and what an `EdgeCluster` says of it to the layers of that cluster. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use edge_api::cluster_profile::{
    ClusterLayer, ClusterLayerKind, ClusterProfile, KubernetesLayer, LayerManifest, OsLayer, Preset, ProfileType,
};
use edge_api::edge_cluster::EdgeClusterSpec;
use kube::ResourceExt as _;
use serde_json::{Map, Value};

use super::FieldError;
use super::artifact::Artifact;

/// Seconds that a layer has to become healthy where it does not say otherwise.
const DEFAULT_TIMEOUT: u32 = 600;
/// The longest value of a label, which the profile's name becomes.
const LONGEST_LABEL: usize = 63;

/// A profile as one cluster has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Resolved {
    /// Name of the profile.
    pub profile: String,
    /// The machines' operating system.
    pub os: OsLayer,
    /// Addresses of pods and services.
    pub kubernetes: KubernetesLayer,
    /// Kubernetes version without `v`, for instance `1.36.3`: that of the cluster, else that of the profile.
    pub version: String,
    /// Layers of kind `Network`, `Storage` and `AddOn`, in install order.
    pub layers: Vec<ResolvedLayer>,
    /// Workers that the cluster must have, and the `layer/preset` that wants the most.
    pub minimum_workers: Option<(u32, String)>,
}

/// A layer with the values of one cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedLayer {
    /// Unique in the profile.
    pub name: String,
    /// What it is.
    pub kind: ClusterLayerKind,
    /// Version, where it has one.
    pub version: Option<String>,
    /// Its objects.
    pub manifests: Vec<LayerManifest>,
    /// Value of every parameter.
    pub parameters: Map<String, Value>,
    /// How long it may take to become healthy.
    pub timeout: Duration,
}

/// Resolves a profile for a cluster.
///
/// A value is taken from the cluster, else from the last of the presets in force that has it, else it is the default.
///
/// # Errors
/// Everything that is wrong, at once; a field is one of the cluster, the message says where in the profile.
pub fn resolve(profile: &ClusterProfile, cluster: &EdgeClusterSpec) -> Result<Resolved, Vec<FieldError>> {
    let name = profile.name_any();
    let layers = &profile.spec.layers;
    let mut faults = Faults { profile: &name, found: Vec::new() };
    if name.len() > LONGEST_LABEL {
        faults.profile("metadata.name", format!("has {} characters; at most {LONGEST_LABEL} fit a label", name.len()));
    }
    check_kinds(profile, &mut faults);
    let mut names = BTreeSet::new();
    for (index, layer) in layers.iter().enumerate() {
        if !names.insert(layer.name.as_str()) {
            faults.layer(index, "name", format!("{:?} is there twice; names of layers are unique", layer.name));
        }
        check_layer(index, layer, &mut faults);
    }
    for (field, named) in [
        ("spec.parameters", cluster.parameters.keys().collect::<Vec<_>>()),
        ("spec.presets", cluster.presets.keys().collect()),
    ] {
        for unknown in named.into_iter().filter(|named| !names.contains(named.as_str())) {
            let message = format!("profile {name} has no such layer; it has {}", list(names.iter().copied()));
            faults.cluster(format!("{field}.{unknown}"), message);
        }
    }
    let version = version(layers, cluster, &mut faults);
    let mut minimum_workers: Option<(u32, String)> = None;
    let mut resolved = Vec::new();
    for layer in layers {
        let presets = presets(layer, cluster, &mut faults);
        for preset in &presets {
            if let Some(minimum) = preset.minimum_workers
                && minimum_workers.as_ref().is_none_or(|(most, _)| *most < minimum)
            {
                minimum_workers = Some((minimum, format!("{}/{}", layer.name, preset.name)));
            }
        }
        let parameters = parameters(layer, &presets, cluster, &mut faults);
        if !matches!(layer.kind, ClusterLayerKind::Os | ClusterLayerKind::Kubernetes) {
            resolved.push(ResolvedLayer {
                name: layer.name.clone(),
                kind: layer.kind,
                version: layer.version.clone(),
                manifests: layer.manifests.clone(),
                parameters,
                timeout: Duration::from_secs(layer.timeout_seconds.unwrap_or(DEFAULT_TIMEOUT).into()),
            });
        }
    }
    let os = layers.iter().find_map(|layer| layer.os.clone());
    let kubernetes = layers.iter().find_map(|layer| layer.kubernetes.clone());
    match (os, kubernetes, version, faults.found) {
        (Some(os), Some(kubernetes), Some(version), found) if found.is_empty() => {
            Ok(Resolved { profile: name, os, kubernetes, version, layers: resolved, minimum_workers })
        }
        (.., found) => Err(found),
    }
}

/// What was found wrong so far.
struct Faults<'p> {
    profile: &'p str,
    found: Vec<FieldError>,
}

impl Faults<'_> {
    /// In the cluster.
    fn cluster(&mut self, field: String, message: String) {
        self.found.push(FieldError { field, message });
    }

    /// In the profile.
    fn profile(&mut self, place: &str, message: impl AsRef<str>) {
        let message = format!("ClusterProfile {}, {place}: {}", self.profile, message.as_ref());
        self.cluster("spec.profile".to_owned(), message);
    }

    /// In a layer of the profile.
    fn layer(&mut self, index: usize, place: &str, message: impl AsRef<str>) {
        self.profile(&format!("spec.layers[{index}].{place}"), message);
    }
}

/// Which layers a profile of its type has.
fn check_kinds(profile: &ClusterProfile, faults: &mut Faults<'_>) {
    let spec = &profile.spec;
    let of_kind = |kind| {
        let named = spec.layers.iter().filter(move |layer| layer.kind == kind);
        named.map(|layer| layer.name.as_str()).collect::<Vec<_>>()
    };
    if spec.type_ == ProfileType::AddOn {
        faults.profile("spec.type", "is AddOn; a cluster takes a profile of type Full or Infra");
    }
    for kind in
        [ClusterLayerKind::Os, ClusterLayerKind::Kubernetes, ClusterLayerKind::Network, ClusterLayerKind::Storage]
    {
        let (found, kind) = (of_kind(kind), shown(kind));
        let names = list(found.iter().copied());
        match (spec.type_, found.len()) {
            (ProfileType::AddOn, 0) | (ProfileType::Full | ProfileType::Infra, 1) => {}
            (ProfileType::AddOn, _) => {
                faults.profile("spec.layers", format!("has {kind} ({names}); a profile of type AddOn has none"));
            }
            (_, 0) => faults.profile("spec.layers", format!("has no layer of kind {kind}; exactly one is needed")),
            (_, count) => {
                let message = format!("has {count} layers of kind {kind} ({names}); exactly one is needed");
                faults.profile("spec.layers", message);
            }
        }
    }
    let add_ons = of_kind(ClusterLayerKind::AddOn);
    if spec.type_ == ProfileType::Infra && !add_ons.is_empty() {
        let message = format!("has AddOn ({}); only profiles of type Full and AddOn have such layers", list(add_ons));
        faults.profile("spec.layers", message);
    }
}

/// A layer by itself.
fn check_layer(index: usize, layer: &ClusterLayer, faults: &mut Faults<'_>) {
    let kind = shown(layer.kind);
    for (of, section, is_there) in [
        (ClusterLayerKind::Os, "os", layer.os.is_some()),
        (ClusterLayerKind::Kubernetes, "kubernetes", layer.kubernetes.is_some()),
    ] {
        match (layer.kind == of, is_there) {
            (true, false) => faults.layer(index, section, format!("is missing; a layer of kind {kind} needs it")),
            (false, true) => {
                let message = format!("belongs to a layer of kind {} only; this one is of kind {kind}", shown(of));
                faults.layer(index, section, message);
            }
            _ => {}
        }
    }
    if matches!(layer.kind, ClusterLayerKind::Os | ClusterLayerKind::Kubernetes) && !layer.manifests.is_empty() {
        faults.layer(
            index,
            "manifests",
            format!("a layer of kind {kind} has no objects; put them into an AddOn layer"),
        );
    }
    for (position, manifest) in layer.manifests.iter().enumerate() {
        let place = format!("manifests[{position}]");
        match (&manifest.artifact, &manifest.inline) {
            (Some(artifact), None) => {
                if let Err(error) = artifact.parse::<Artifact>() {
                    faults.layer(index, &format!("{place}.artifact"), error.to_string());
                }
            }
            (None, Some(_)) => {}
            _ => faults.layer(index, &place, "give either artifact or inline"),
        }
    }
    for (name, parameter) in &layer.parameters {
        if parameter.default.is_null() {
            faults.layer(index, &format!("parameters.{name}.default"), "is null, which has no type; give a value");
        }
    }
    let mut names = BTreeSet::new();
    for (position, preset) in layer.presets.iter().enumerate() {
        let place = format!("presets[{position}]");
        if !names.insert(&preset.name) {
            faults.layer(index, &format!("{place}.name"), format!("{:?} is there twice in this layer", preset.name));
        }
        for (name, value) in &preset.parameters {
            if let Err(message) = check_value(layer, name, value) {
                faults.layer(index, &format!("{place}.parameters.{name}"), message);
            }
        }
    }
}

/// Whether a layer has a parameter, and the value is of its type. Values are not repeated: some are secret.
fn check_value(layer: &ClusterLayer, name: &str, value: &Value) -> Result<(), String> {
    let Some(parameter) = layer.parameters.get(name) else {
        let known = list(layer.parameters.keys().map(String::as_str));
        return Err(format!("layer {} has no such parameter; it has {known}", layer.name));
    };
    let (wanted, found) = (json_type(&parameter.default), json_type(value));
    // A default without a type is an error of its own.
    if wanted == found || parameter.default.is_null() { Ok(()) } else { Err(format!("is {found}, not {wanted}")) }
}

/// The presets in force: those that the cluster chose in its order, else those that are enabled.
fn presets<'l>(layer: &'l ClusterLayer, cluster: &EdgeClusterSpec, faults: &mut Faults<'_>) -> Vec<&'l Preset> {
    let Some(chosen) = cluster.presets.get(&layer.name) else {
        return layer.presets.iter().filter(|preset| preset.enabled).collect();
    };
    let mut found = Vec::with_capacity(chosen.len());
    for (index, name) in chosen.iter().enumerate() {
        if let Some(preset) = layer.presets.iter().find(|preset| preset.name == *name) {
            found.push(preset);
        } else {
            let known = list(layer.presets.iter().map(|preset| preset.name.as_str()));
            let message = format!("layer {} has no preset {name:?}; it has {known}", layer.name);
            faults.cluster(format!("spec.presets.{}[{index}]", layer.name), message);
        }
    }
    found
}

fn parameters(
    layer: &ClusterLayer,
    presets: &[&Preset],
    cluster: &EdgeClusterSpec,
    faults: &mut Faults<'_>,
) -> Map<String, Value> {
    let mut values: Map<_, _> =
        layer.parameters.iter().map(|(name, parameter)| (name.clone(), parameter.default.clone())).collect();
    let mut set = |from: &BTreeMap<String, Value>| {
        values.extend(from.iter().map(|(name, value)| (name.clone(), value.clone())));
    };
    for preset in presets {
        set(&preset.parameters);
    }
    if let Some(own) = cluster.parameters.get(&layer.name) {
        for (name, value) in own {
            if let Err(message) = check_value(layer, name, value) {
                faults.cluster(format!("spec.parameters.{}.{name}", layer.name), message);
            }
        }
        set(own);
    }
    values
}

/// Kubernetes version of the cluster.
fn version(layers: &[ClusterLayer], cluster: &EdgeClusterSpec, faults: &mut Faults<'_>) -> Option<String> {
    let expected = "expected <major>.<minor>.<patch>, for instance 1.36.3";
    let of_profile = layers.iter().position(|layer| layer.kind == ClusterLayerKind::Kubernetes);
    let own = of_profile.and_then(|index| layers[index].version.as_ref().map(|version| (index, version)));
    if let Some((index, version)) = own
        && !is_version(version)
    {
        faults.layer(index, "version", format!("{version:?}; {expected}"));
    }
    match (&cluster.kubernetes_version, own, of_profile) {
        (Some(version), ..) if is_version(version) => Some(version.clone()),
        (Some(version), ..) => {
            faults.cluster("spec.kubernetesVersion".to_owned(), format!("{version:?}; {expected}"));
            None
        }
        (None, Some((_, version)), _) => Some(version.clone()),
        (None, None, Some(index)) => {
            faults.layer(index, "version", format!("is missing, and so is spec.kubernetesVersion; {expected}"));
            None
        }
        // That the layer itself is missing is said already.
        (None, None, None) => None,
    }
}

fn is_version(text: &str) -> bool {
    let parts: Vec<_> = text.split('.').collect();
    parts.len() == 3 && parts.iter().all(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
}

fn shown(kind: ClusterLayerKind) -> &'static str {
    match kind {
        ClusterLayerKind::Os => "OS",
        ClusterLayerKind::Kubernetes => "Kubernetes",
        ClusterLayerKind::Network => "Network",
        ClusterLayerKind::Storage => "Storage",
        ClusterLayerKind::AddOn => "AddOn",
    }
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a mapping",
    }
}

fn list<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.into_iter().collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests;
