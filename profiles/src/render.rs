//! From a profile and a site to what is put into the cluster.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use edge_api::names::{LABEL_LAYER, LABEL_PROFILE};
use serde::Serialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use crate::digest::{HashingWriter, hash_json};
use crate::error::Error;
use crate::model::{Layer, LayerKind, SystemProfile, read_text};
use crate::site::SiteProperties;
use crate::template::Renderer;
use crate::{vm, yaml};

/// Namespace of charts and manifests that name none.
const DEFAULT_NAMESPACE: &str = "default";

/// What rendering needs to know of an appliance.
#[derive(Clone, Debug)]
pub struct RenderContext {
    /// What templates see as `site`.
    pub site: SiteProperties,
    /// Identity of the appliance; that of its machines derives from it (D10).
    pub appliance_id: Uuid,
    /// Namespace of machines and images.
    pub namespace: String,
    /// Images in the appliance's registry: name with tag, for instance `pcg-edge.io/vm/router:1`, to `sha256:…`.
    pub images: BTreeMap<String, String>,
}

/// A layer, ready to be put into a cluster.
#[derive(Clone)]
pub struct RenderedLayer {
    /// Name of the layer.
    pub name: String,
    /// Name of the profile.
    pub profile: String,
    /// What it is.
    pub kind: LayerKind,
    /// Version, where it has one.
    pub version: Option<String>,
    /// Namespace of objects that name none.
    pub namespace: String,
    /// How long to wait for it to become healthy.
    pub timeout: Duration,
    /// Digest of all that follows, `sha256:…`.
    pub digest: String,
    /// The content.
    pub content: Content,
}

/// Content of a rendered layer.
#[derive(Clone)]
pub enum Content {
    /// A Helm release.
    Chart {
        /// Folder of the chart.
        chart_dir: PathBuf,
        /// Name of the release: that of the layer.
        release: String,
        /// Its namespace.
        namespace: String,
        /// Its values.
        values: Value,
    },
    /// Objects in the order of the files; each has `apiVersion`, `kind`, `metadata.name` and our labels.
    Objects(Vec<Value>),
}

impl RenderedLayer {
    /// A layer of objects; they get our labels, and those that name no namespace are in `default`.
    pub fn of_objects(
        name: &str,
        profile: &str,
        version: Option<String>,
        timeout: Duration,
        objects: Vec<Value>,
    ) -> Result<Self, Error> {
        let content = mark(Content::Objects(objects), name, profile);
        let namespace = DEFAULT_NAMESPACE.to_owned();
        let digest = digest(&content, &namespace).map_err(Error::io("hash", Path::new(name)))?;
        let (name, profile) = (name.to_owned(), profile.to_owned());
        Ok(Self { name, profile, kind: LayerKind::Manifest, version, namespace, timeout, digest, content })
    }
}

// By hand: values and objects may hold credentials (law 5).
impl fmt::Debug for RenderedLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("RenderedLayer");
        shown.field("name", &self.name).field("kind", &self.kind).field("digest", &self.digest).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Root<'a> {
    site: &'a SiteProperties,
}

/// Renders all layers, in install order.
pub fn render(profile: &SystemProfile, ctx: &RenderContext) -> Result<Vec<RenderedLayer>, Error> {
    let renderer = Renderer::new(&Root { site: &ctx.site });
    let mut images = vm::Images::default();
    let mut layers = Vec::with_capacity(profile.layers.len());
    for layer in &profile.layers {
        let content = match layer.kind {
            LayerKind::Chart => chart(layer, &renderer)?,
            LayerKind::Manifest => Content::Objects(manifest(layer, &renderer)?),
            LayerKind::Vm => Content::Objects(vm::objects(layer, profile, ctx, &renderer, &mut images)?),
        };
        let content = mark(content, &layer.name, &profile.name);
        let namespace = match layer.kind {
            LayerKind::Vm => ctx.namespace.clone(),
            _ => layer.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        };
        layers.push(RenderedLayer {
            name: layer.name.clone(),
            profile: profile.name.clone(),
            kind: layer.kind,
            version: layer.version.clone(),
            digest: digest(&content, &namespace).map_err(Error::io("read", &layer.dir))?,
            namespace,
            timeout: layer.timeout,
            content,
        });
    }
    Ok(layers)
}

fn chart(layer: &Layer, renderer: &Renderer) -> Result<Content, Error> {
    let mut values = Value::Object(Map::new());
    let file = layer.dir.join("values.yaml");
    if file.exists() {
        let shown = format!("{}/values.yaml", layer.path);
        for document in yaml::parse(&shown, &read_text(&file, &shown)?)? {
            let own = document.render(&shown, renderer)?.to_json();
            if !own.is_object() {
                return Err(Error::invalid(shown, document.line, "expected a mapping"));
            }
            merge(&mut values, own);
        }
    }
    if let Some(own) = &layer.values {
        merge(&mut values, own.render(crate::PROFILE_FILE, renderer)?.to_json());
    }
    Ok(Content::Chart {
        chart_dir: layer.dir.join("chart"),
        release: layer.name.clone(),
        namespace: layer.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned()),
        values,
    })
}

/// Mappings are merged key by key, as Helm merges several value files; anything else is replaced.
fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

fn manifest(layer: &Layer, renderer: &Renderer) -> Result<Vec<Value>, Error> {
    let mut found = Vec::new();
    for (path, place) in yaml_files(layer)? {
        found.extend(objects(&path, &read_text(&place, &path)?, Some(renderer))?);
    }
    if found.is_empty() {
        return Err(Error::invalid(layer.path.clone(), 0, "holds no objects in .yaml, .yml or .json files"));
    }
    Ok(found)
}

/// Objects of a YAML text in their order, lists taken apart; `file` is what errors call it.
///
/// Every key and text is a template that sees `values` at its root. As in a system profile, each is rendered by itself,
/// so that no value ends the place it is put in, and a name that is not defined is an error with its line.
pub fn render_objects(file: &str, text: &str, values: &impl Serialize) -> Result<Vec<Value>, Error> {
    objects(file, text, Some(&Renderer::new(values)))
}

/// As [`render_objects`], with every text taken as it is.
pub fn parse_objects(file: &str, text: &str) -> Result<Vec<Value>, Error> {
    objects(file, text, None)
}

fn objects(file: &str, text: &str, renderer: Option<&Renderer>) -> Result<Vec<Value>, Error> {
    let mut objects = Vec::new();
    for document in yaml::parse(file, text)? {
        let object = renderer.map(|renderer| document.render(file, renderer)).transpose()?.unwrap_or(document);
        let line = object.line;
        let mut add = |value: Value| {
            let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).is_some_and(|t| !t.is_empty());
            for (pointer, name) in
                [("/apiVersion", "apiVersion"), ("/kind", "kind"), ("/metadata/name", "metadata.name")]
            {
                if !text(pointer) {
                    return Err(Error::invalid(file, line, format!("expected an object with a {name}")));
                }
            }
            objects.push(value);
            Ok(())
        };
        match object.to_json() {
            Value::Object(mut list) if list.get("kind").and_then(Value::as_str) == Some("List") => {
                let items = list.remove("items").and_then(|v| match v {
                    Value::Array(items) => Some(items),
                    _ => None,
                });
                items.unwrap_or_default().into_iter().try_for_each(&mut add)?;
            }
            value => add(value)?,
        }
    }
    Ok(objects)
}

/// YAML files of a manifest layer by path, with the path to show.
fn yaml_files(layer: &Layer) -> Result<BTreeMap<String, PathBuf>, Error> {
    if layer.dir.is_file() {
        return Ok(BTreeMap::from([(layer.path.clone(), layer.dir.clone())]));
    }
    let mut files = BTreeMap::new();
    for (path, place) in all_files(&layer.dir)? {
        let extension = place.extension().and_then(|e| e.to_str()).unwrap_or_default();
        if matches!(extension, "yaml" | "yml" | "json") {
            files.insert(format!("{}/{path}", layer.path), place);
        }
    }
    Ok(files)
}

/// Files below a folder by their path in it.
pub(crate) fn all_files(dir: &Path) -> Result<BTreeMap<String, PathBuf>, Error> {
    fn walk(dir: &Path, below: &str, into: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
        for item in fs::read_dir(dir).map_err(Error::io("list", dir))? {
            let item = item.map_err(Error::io("list", dir))?;
            let name = item.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if item.file_type().map_err(Error::io("look at", &item.path()))?.is_dir() {
                walk(&item.path(), &path, into)?;
            } else {
                into.insert(path, item.path());
            }
        }
        Ok(())
    }
    let mut files = BTreeMap::new();
    walk(dir, "", &mut files)?;
    Ok(files)
}

/// Puts our labels on every object.
fn mark(content: Content, layer: &str, profile: &str) -> Content {
    let Content::Objects(mut objects) = content else { return content };
    for object in &mut objects {
        let labels = child(child(object, "metadata"), "labels");
        labels[LABEL_LAYER] = layer.into();
        labels[LABEL_PROFILE] = profile.into();
    }
    Content::Objects(objects)
}

/// The mapping below a key, made where there is none.
pub(crate) fn child<'v>(value: &'v mut Value, key: &str) -> &'v mut Value {
    if !value[key].is_object() {
        value[key] = Value::Object(Map::new());
    }
    &mut value[key]
}

fn digest(content: &Content, namespace: &str) -> io::Result<String> {
    let mut hash = HashingWriter::new(io::sink());
    hash_json(&Value::from(namespace), &mut hash)?;
    match content {
        Content::Objects(objects) => objects.iter().try_for_each(|object| hash_json(object, &mut hash))?,
        Content::Chart { chart_dir, release, namespace, values } => {
            hash_json(&serde_json::json!([release, namespace, values]), &mut hash)?;
            let files = all_files(chart_dir).map_err(io::Error::other)?;
            for (path, place) in files {
                let mut file = fs::File::open(&place)?;
                let meta = file.metadata()?;
                let executable = meta.permissions().mode() & 0o111 != 0;
                // The size goes first, so that no content can look like the next file's header.
                writeln!(hash, "\n{path:?} {} {executable}", meta.len())?;
                io::copy(&mut file, &mut hash)?;
            }
        }
    }
    Ok(hash.finish().1.to_string())
}
