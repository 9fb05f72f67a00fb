//! A system profile as its folder describes it: `profile.yaml` and one folder per layer (R-5, R-6).
//!
//! ```yaml
//! name: store
//! version: 1.0.0
//! description: What every store runs.      # optional
//! tags: {region: south}                     # optional; they propagate to the machines
//! layers:
//!   - name: web                             # also the Helm release's or the machine's name
//!     kind: chart                           # chart | manifest | vm
//!     path: web                             # folder, or a YAML file for `manifest`
//!     version: 1.2.0                        # optional; a chart's own version where absent
//!     order: 10                             # optional, 0 where absent; then the position in this list counts
//!     namespace: shop                       # optional, chart and manifest only; `default` where absent
//!     timeout: 15m                          # optional; how long to wait until it is healthy, 10m where absent
//!     values: {greeting: "{{ site.device_id }}"}   # optional, chart only; over the layer's values.yaml
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::yaml::{self, Node};

/// File that describes a profile.
pub const PROFILE_FILE: &str = "profile.yaml";
/// Bytes that `profile.yaml`, or any file that is rendered, may have.
pub(crate) const MAX_TEXT: u64 = 4 << 20;
/// Layers that a profile may have.
pub(crate) const MAX_LAYERS: usize = 256;
/// How long to wait for a layer to become healthy where it does not say.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_mins(10);

/// A system profile that was read and found to be well formed.
#[derive(Clone, Debug)]
pub struct SystemProfile {
    /// Name, also the value of the label on everything it brings.
    pub name: String,
    /// For people.
    pub description: Option<String>,
    /// Version of the profile itself.
    pub version: String,
    /// Propagate to the machines that it deploys (R-5).
    pub tags: BTreeMap<String, String>,
    /// Layers in install order.
    pub layers: Vec<Layer>,
}

/// One layer of a profile.
#[derive(Clone)]
pub struct Layer {
    /// Name, unique in the profile: a DNS label of at most 53 characters, because Helm wants that of releases.
    pub name: String,
    /// What it is.
    pub kind: LayerKind,
    /// Path as `profile.yaml` gives it, for messages.
    pub path: String,
    /// The layer's folder or file on this host.
    pub dir: PathBuf,
    /// Version, where it has one.
    pub version: Option<String>,
    /// Place in the install order.
    pub order: i32,
    /// Namespace for what does not name one.
    pub namespace: Option<String>,
    /// How long to wait for it to become healthy.
    pub timeout: Duration,
    /// Values of `profile.yaml`, unrendered, with their lines.
    pub(crate) values: Option<Node>,
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values may hold credentials that somebody wrote into the profile (law 5).
        f.debug_struct("Layer").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// What a layer is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerKind {
    /// A Helm chart with values.
    Chart,
    /// Kubernetes objects.
    Manifest,
    /// A virtual machine with its guest files.
    Vm,
}

impl LayerKind {
    /// The word in `profile.yaml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Chart => "chart",
            Self::Manifest => "manifest",
            Self::Vm => "vm",
        }
    }
}

/// `profile.yaml` as it is written; also the configuration blob of an archive, as JSON.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProfileFile {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub version: String,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    pub layers: Vec<LayerEntry>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerEntry {
    pub name: String,
    pub kind: LayerKind,
    pub path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub order: i32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<serde_json::Value>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(order: &i32) -> bool {
    *order == 0
}

/// Reads a profile from a published folder or a source folder, and checks that every layer has what its kind needs.
pub fn load(dir: &Path) -> Result<SystemProfile, Error> {
    let (file, tree) = read_definition(dir)?;
    let mut layers = Vec::with_capacity(file.layers.len());
    for (index, entry) in file.layers.into_iter().enumerate() {
        let line = entry_line(&tree, index, "path");
        let place = dir.join(&entry.path);
        check_content(&entry, &place, line)?;
        let version = match (entry.version, entry.kind) {
            (None, LayerKind::Chart) => chart_version(&place, &entry.path)?,
            (version, _) => version,
        };
        let timeout = match &entry.timeout {
            Some(text) => parse_duration(text).ok_or_else(|| {
                invalid(
                    entry_line(&tree, index, "timeout"),
                    &format!("timeout {text:?}: expected 1s to 24h, for instance 90s or 15m"),
                )
            })?,
            None => DEFAULT_TIMEOUT,
        };
        layers.push(Layer {
            name: entry.name,
            kind: entry.kind,
            path: entry.path,
            dir: place,
            version,
            order: entry.order,
            namespace: entry.namespace,
            timeout,
            values: tree.get("layers").and_then(|l| l.items().get(index)).and_then(|l| l.get("values")).cloned(),
        });
    }
    // Stable: position decides among equals.
    layers.sort_by_key(|layer| layer.order);
    Ok(SystemProfile { name: file.name, description: file.description, version: file.version, tags: file.tags, layers })
}

/// `profile.yaml` of a folder, typed and as a tree with lines, checked as far as it can be without the layers.
pub(crate) fn read_definition(dir: &Path) -> Result<(ProfileFile, Node), Error> {
    let text = read_text(&dir.join(PROFILE_FILE), PROFILE_FILE)?;
    parse_definition(&text)
}

pub(crate) fn parse_definition(text: &str) -> Result<(ProfileFile, Node), Error> {
    let tree = yaml::parse_one(PROFILE_FILE, text)?;
    let file: ProfileFile = serde_saphyr::from_str(text).map_err(|e| {
        let line = e.location().map_or(0, |l| usize::try_from(l.line()).unwrap_or(0));
        let message = e.without_snippet().to_string();
        invalid(line, message.split(" at line ").next().unwrap_or(&message))
    })?;
    check_definition(&file, &tree)?;
    Ok((file, tree))
}

fn check_definition(file: &ProfileFile, tree: &Node) -> Result<(), Error> {
    let line = |key: &str| tree.get(key).map_or(tree.line, |n| n.line);
    if !is_dns_label(&file.name, 63) {
        return Err(invalid(
            line("name"),
            &format!("name {:?}: expected {DNS_LABEL} of at most 63 characters", file.name),
        ));
    }
    if !is_version(&file.version) {
        return Err(invalid(line("version"), &format!("version {:?}: expected {VERSION}", file.version)));
    }
    for (key, value) in &file.tags {
        if !is_tag(key) || key.is_empty() || !is_tag(value) {
            let expected = "expected at most 63 letters, digits, '-', '_' or '.', a letter or digit at both ends";
            return Err(invalid(line("tags"), &format!("tag {key:?}: {value:?}: {expected}")));
        }
    }
    if file.layers.is_empty() || file.layers.len() > MAX_LAYERS {
        return Err(invalid(line("layers"), &format!("{} layers: expected 1 to {MAX_LAYERS}", file.layers.len())));
    }
    for (index, entry) in file.layers.iter().enumerate() {
        let at = |key: &str| entry_line(tree, index, key);
        if !is_dns_label(&entry.name, 53) {
            return Err(invalid(
                at("name"),
                &format!("layer name {:?}: expected {DNS_LABEL} of at most 53 characters", entry.name),
            ));
        }
        let earlier = &file.layers[..index];
        if earlier.iter().any(|other| other.name == entry.name) {
            return Err(invalid(at("name"), &format!("layer {:?} is there twice", entry.name)));
        }
        if !is_relative(&entry.path) {
            return Err(invalid(
                at("path"),
                &format!("path {:?}: expected a path inside the profile's folder, without '.' or '..'", entry.path),
            ));
        }
        let nested = |a: &str, b: &str| Path::new(a).starts_with(b);
        if let Some(other) = earlier.iter().find(|o| nested(&o.path, &entry.path) || nested(&entry.path, &o.path)) {
            return Err(invalid(at("path"), &format!("path {:?} overlaps that of layer {:?}", entry.path, other.name)));
        }
        if entry.version.as_ref().is_some_and(|v| !is_version(v)) {
            return Err(invalid(
                at("version"),
                &format!("version {:?}: expected {VERSION}", entry.version.as_deref().unwrap_or_default()),
            ));
        }
        if entry.namespace.as_ref().is_some_and(|n| !is_dns_label(n, 63)) {
            return Err(invalid(at("namespace"), &format!("expected {DNS_LABEL} of at most 63 characters")));
        }
        if entry.namespace.is_some() && entry.kind == LayerKind::Vm {
            return Err(invalid(at("namespace"), "a vm layer has no namespace: machines belong to the appliance's"));
        }
        if entry.values.is_some() && entry.kind != LayerKind::Chart {
            return Err(invalid(at("values"), "only a chart layer has values"));
        }
        if entry.values.as_ref().is_some_and(|v| !v.is_object()) {
            return Err(invalid(at("values"), "values: expected a mapping"));
        }
    }
    Ok(())
}

fn check_content(entry: &LayerEntry, place: &Path, line: usize) -> Result<(), Error> {
    let missing = |what: &str| Err(invalid(line, &format!("layer {:?}: {what}", entry.name)));
    match entry.kind {
        LayerKind::Chart if !place.join("chart/Chart.yaml").is_file() => {
            missing(&format!("{}/chart/Chart.yaml is missing: the folder `chart` holds the Helm chart", entry.path))
        }
        LayerKind::Vm if !place.join("vm.yaml").is_file() => missing(&format!("{}/vm.yaml is missing", entry.path)),
        LayerKind::Manifest if !place.exists() => missing(&format!("{} is missing", entry.path)),
        _ => Ok(()),
    }
}

fn chart_version(place: &Path, path: &str) -> Result<Option<String>, Error> {
    let shown = format!("{path}/chart/Chart.yaml");
    let chart = yaml::parse_one(&shown, &read_text(&place.join("chart/Chart.yaml"), &shown)?)?;
    Ok(chart.get("version").and_then(|v| v.to_json().as_str().map(str::to_owned)))
}

/// A UTF-8 file of bounded size; `shown` is its name in messages.
pub(crate) fn read_text(path: &Path, shown: &str) -> Result<String, Error> {
    let size = fs::metadata(path).map_err(Error::io("read", path))?.len();
    if size > MAX_TEXT {
        return Err(Error::invalid(shown, 0, format!("has {size} bytes; at most {MAX_TEXT} are allowed here")));
    }
    let bytes = fs::read(path).map_err(Error::io("read", path))?;
    String::from_utf8(bytes).map_err(|e| {
        let valid = e.utf8_error().valid_up_to();
        let line = e.as_bytes()[..valid].split(|b| *b == b'\n').count();
        Error::invalid(shown, line, "is not UTF-8 text")
    })
}

fn invalid(line: usize, message: &str) -> Error {
    Error::invalid(PROFILE_FILE, line, message)
}

fn entry_line(tree: &Node, index: usize, key: &str) -> usize {
    let entry = tree.get("layers").and_then(|layers| layers.items().get(index));
    entry.map_or(tree.line, |entry| entry.get(key).map_or(entry.line, |node| node.line))
}

const DNS_LABEL: &str = "lower-case letters, digits and '-', a letter first and no '-' last";
const VERSION: &str = "1 to 63 letters, digits, '.', '_', '-' or '+', a letter or digit first";

pub(crate) fn is_dns_label(text: &str, max: usize) -> bool {
    text.len() <= max
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_version(text: &str) -> bool {
    text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || ".-_+".contains(c))
}

/// A valid Kubernetes label value.
fn is_tag(text: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric();
    text.is_empty()
        || (text.len() <= 63
            && text.starts_with(edge)
            && text.ends_with(edge)
            && text.chars().all(|c| edge(c) || "-_.".contains(c)))
}

/// A path that stays inside: normal components only, in one spelling, of characters that every tool can carry.
pub(crate) fn is_relative(path: &str) -> bool {
    !path.is_empty()
        && path.len() <= 240
        && !path.chars().any(|c| c.is_control() || c == '\\')
        && path.split('/').all(|part| !part.is_empty() && part.len() <= 100)
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
        && path.split('/').all(|part| part != "." && part != "..")
}

fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return None,
    };
    let plain = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
    let seconds = plain.then(|| number.parse::<u64>().ok()?.checked_mul(factor)).flatten()?;
    (1..=86_400).contains(&seconds).then(|| Duration::from_secs(seconds))
}
