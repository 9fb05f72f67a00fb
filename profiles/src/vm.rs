//! A VM layer: `vm.yaml`, and guest files beside it, become a `VirtualMachine`, its image and its Secrets.
//!
//! | path | content |
//! |---|---|
//! | `vm.yaml` | spec of the `VirtualMachine` without `id` and `appliance`; `image` is an artifact's name with tag |
//! | `files/` | files for the configuration disk: `.xml` and `.yaml` rendered as such, others as plain text |
//! | `cloud-init/` | `user-data`, `meta-data`, `network-config`, each optional and rendered as YAML |

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use edge_api::names::{GROUP, LOCAL_APPLIANCE, VERSION};
use edge_api::{VirtualMachineImageSpec, VirtualMachineSpec};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::digest::Digest;
use crate::error::Error;
use crate::model::{Layer, SystemProfile, read_text};
use crate::render::{RenderContext, all_files};
use crate::template::Renderer;
use crate::xml;
use crate::yaml::{self, Kind, Node};

/// Type of the Secrets that hold files for a guest.
const SECRET_TYPE: &str = "pcg-edge.io/guest-files";
/// Prefix of the labels that carry the profile's tags on a machine.
const TAG_PREFIX: &str = "tag.pcg-edge.io/";
/// What a Secret may hold.
const MAX_SECRET: usize = 1 << 20;

/// Images that earlier layers of the profile brought: two machines may share one, and an object belongs to one layer.
#[derive(Default)]
pub(crate) struct Images(BTreeSet<String>);

/// Objects of a VM layer: image (unless an earlier layer has it), Secrets, machine.
pub(crate) fn objects(
    layer: &Layer,
    profile: &SystemProfile,
    ctx: &RenderContext,
    renderer: &Renderer,
    images: &mut Images,
) -> Result<Vec<Value>, Error> {
    let shown = format!("{}/vm.yaml", layer.path);
    let tree = yaml::parse_one(&shown, &read_text(&layer.dir.join("vm.yaml"), &shown)?)?.render(&shown, renderer)?;
    let invalid = |key: &str, message: &str| {
        let line = tree.get(key).map_or(tree.line, |n| n.line);
        Err(Error::invalid(&*shown, line, message))
    };
    for key in ["id", "appliance", "cloudInitSecret"] {
        if tree.get(key).is_some() {
            return invalid(key, &format!("{key} is set by the appliance"));
        }
    }
    if tree.get("configDisk").is_some_and(|disk| disk.get("secretName").is_some()) {
        return invalid("configDisk", "configDisk.secretName is set by the appliance; put the files into `files/`");
    }
    let mut spec = match tree.to_json() {
        Value::Object(map) => Value::Object(map),
        _ => return invalid("", "expected a mapping"),
    };
    let mut objects = Vec::new();
    if let Some(image) = spec["image"].as_str() {
        let (name, object) = image_object(layer, image, ctx)?;
        if images.0.insert(name.clone()) {
            objects.push(object);
        }
        spec["image"] = name.into();
    }
    let guest = |folder: &str, cloud_init: bool| -> Result<Option<Value>, Error> {
        let files = guest_files(layer, folder, cloud_init, renderer)?;
        Ok((!files.is_empty()).then(|| secret(&format!("{}-{folder}", layer.name), &ctx.namespace, &files)))
    };
    match guest("files", false)? {
        Some(secret) => {
            let disk = crate::render::child(&mut spec, "configDisk");
            disk["secretName"] = secret["metadata"]["name"].clone();
            objects.push(secret);
        }
        None if !spec["configDisk"].is_null() => {
            return invalid("configDisk", "configDisk without files: `files/` is missing or empty");
        }
        None => {}
    }
    if let Some(secret) = guest("cloud-init", true)? {
        spec["cloudInitSecret"] = secret["metadata"]["name"].clone();
        objects.push(secret);
    }
    spec["id"] = Uuid::new_v5(&ctx.appliance_id, layer.name.as_bytes()).to_string().into();
    spec["appliance"] = LOCAL_APPLIANCE.into();
    // Absent and null are the same in Kubernetes; the second would be another digest.
    if let Value::Object(map) = &mut spec {
        map.retain(|_, value| !value.is_null());
    }
    check(&shown, &tree, &spec)?;
    let labels: Map<_, _> = profile.tags.iter().map(|(k, v)| (format!("{TAG_PREFIX}{k}"), v.as_str().into())).collect();
    objects.push(json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "VirtualMachine",
        "metadata": {"name": layer.name, "namespace": ctx.namespace, "labels": labels},
        "spec": spec,
    }));
    Ok(objects)
}

/// `<origin host>/<path>:<tag>` to the object that fetches it by digest.
fn image_object(layer: &Layer, image: &str, ctx: &RenderContext) -> Result<(String, Value), Error> {
    let unknown = || Error::UnknownImage {
        layer: layer.name.clone(),
        image: image.to_owned(),
        available: ctx.images.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
    };
    let digest = ctx.images.get(image).ok_or_else(unknown)?;
    let digest: Digest = digest.parse().map_err(|_| unknown())?;
    // A colon after the last slash begins the tag; one before it, a port.
    let repository = match image.rfind(':') {
        Some(colon) if !image[colon..].contains('/') => &image[..colon],
        _ => image,
    };
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let last = last.to_ascii_lowercase().replace(['_', '.'], "-");
    let name = format!("{}-{}", last.trim_matches('-'), &digest.hex()[..12]);
    let spec =
        VirtualMachineImageSpec { appliance: LOCAL_APPLIANCE.to_owned(), artifact: format!("{repository}@{digest}") };
    let object = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "VirtualMachineImage",
        "metadata": {"name": name, "namespace": ctx.namespace},
        "spec": spec,
    });
    Ok((name, object))
}

/// Rendered guest files by name.
fn guest_files(
    layer: &Layer,
    folder: &str,
    cloud_init: bool,
    renderer: &Renderer,
) -> Result<BTreeMap<String, String>, Error> {
    let dir = layer.dir.join(folder);
    if !dir.is_dir() {
        return Ok(BTreeMap::new());
    }
    let mut files = BTreeMap::new();
    let mut total = 0;
    for (name, place) in all_files(&dir)? {
        let shown = format!("{}/{folder}/{name}", layer.path);
        let key = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if name.is_empty() || name.len() > 253 || !name.chars().all(key) {
            return Err(Error::invalid(
                shown,
                0,
                "expected a name of letters, digits, '-', '_' and '.', without folders",
            ));
        }
        if cloud_init && !matches!(name.as_str(), "user-data" | "meta-data" | "network-config") {
            return Err(Error::invalid(shown, 0, "expected user-data, meta-data or network-config"));
        }
        let text = read_text(&place, &shown)?;
        let content = render_file(&shown, &name, &text, cloud_init, renderer)?;
        total += content.len();
        if total > MAX_SECRET {
            return Err(Error::invalid(
                shown,
                0,
                format!("the files of `{folder}/` have more than {MAX_SECRET} bytes together"),
            ));
        }
        files.insert(name, content);
    }
    Ok(files)
}

fn render_file(shown: &str, name: &str, text: &str, cloud_init: bool, renderer: &Renderer) -> Result<String, Error> {
    let extension = Path::new(name).extension().and_then(|e| e.to_str()).unwrap_or_default();
    // user-data may also be a script; its first line says what it is.
    let cloud_config = text.lines().next().is_some_and(|line| line.trim_end() == "#cloud-config");
    let yaml = matches!(extension, "yaml" | "yml") || (cloud_init && (name != "user-data" || cloud_config));
    if extension == "xml" {
        xml::render(shown, text, renderer)
    } else if yaml {
        let mut out = String::new();
        for (index, document) in yaml::parse(shown, text)?.iter().enumerate() {
            match index {
                0 if cloud_config => out.push_str("#cloud-config\n"),
                0 => {}
                _ => out.push_str("---\n"),
            }
            out.push_str(&yaml::write(&document.render(shown, renderer)?));
        }
        Ok(out)
    } else {
        renderer.text(text).map_err(|e| Error::invalid(shown, e.line_offset + 1, e.message))
    }
}

/// Named by what it holds, and fixed: so another content is a change of the machine, and whoever has looked at that
/// has looked at the content.
fn secret(name: &str, namespace: &str, files: &BTreeMap<String, String>) -> Value {
    let data: Map<_, _> = files.iter().map(|(name, text)| (name.clone(), STANDARD.encode(text).into())).collect();
    let data = Value::Object(data);
    let digest = Digest::of(data.to_string().as_bytes());
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": SECRET_TYPE,
        "metadata": {"name": format!("{name}-{}", &digest.hex()[..10]), "namespace": namespace},
        "immutable": true,
        "data": data,
    })
}

/// Checks a spec against the schema of `VirtualMachineSpec`, so that a mistake is shown with its line, before the
/// API server says the same without one.
fn check(shown: &str, tree: &Node, spec: &Value) -> Result<(), Error> {
    let schema = schemars::schema_for!(VirtualMachineSpec).to_value();
    check_node(shown, tree, &schema, &schema, "")?;
    let typed: Result<VirtualMachineSpec, _> = serde_json::from_value(spec.clone());
    match typed {
        Err(e) => Err(Error::invalid(shown, tree.line, e.to_string())),
        Ok(spec) if spec.image.is_none() && spec.root_disk.is_none() => {
            Err(Error::invalid(shown, tree.line, "expected an image to boot from, or a rootDisk"))
        }
        Ok(_) => Ok(()),
    }
}

fn check_node(shown: &str, node: &Node, schema: &Value, root: &Value, path: &str) -> Result<(), Error> {
    let schema = resolve(schema, root);
    let wrong = |expected: &str| {
        let field = if path.is_empty() { "the file" } else { path };
        Err(Error::invalid(shown, node.line, format!("{field}: expected {expected}")))
    };
    match &node.kind {
        Kind::Map(entries) => {
            let Some(properties) = schema["properties"].as_object() else { return wrong(&type_of(schema)) };
            for (key, child) in entries {
                let below = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
                let Some(property) = properties.get(&key.text) else {
                    let mut known: Vec<_> = properties.keys().map(String::as_str).collect();
                    known.sort_unstable();
                    let message = format!("{below} is unknown; known here: {}", known.join(", "));
                    return Err(Error::invalid(shown, key.line, message));
                };
                check_node(shown, child, property, root, &below)?;
            }
            Ok(())
        }
        Kind::List(items) => {
            if schema["items"].is_null() {
                return wrong(&type_of(schema));
            }
            let mut each = items.iter().enumerate();
            each.try_for_each(|(i, item)| check_node(shown, item, &schema["items"], root, &format!("{path}[{i}]")))
        }
        // What an expression gave is checked by the types.
        Kind::Scalar(Value::Null | Value::Array(_) | Value::Object(_)) => Ok(()),
        Kind::Scalar(value) => {
            let expected = type_of(schema);
            let number = |key: &str| schema[key].as_f64();
            let fits = match value {
                Value::String(_) => expected.contains("string"),
                Value::Bool(_) => expected.contains("boolean"),
                Value::Number(n) if expected.contains("integer") => {
                    let n = n.as_f64().unwrap_or(f64::NAN);
                    if let (Some(min), Some(max)) = (number("minimum"), number("maximum"))
                        && !(min..=max).contains(&n)
                    {
                        return wrong(&format!("{min} to {max}"));
                    }
                    n.fract() == 0.0
                }
                _ => false,
            };
            if !fits {
                return wrong(&expected);
            }
            match words(schema) {
                Some(words) if !words.iter().any(|word| Some(*word) == value.as_str()) => wrong(&words.join(" or ")),
                _ => Ok(()),
            }
        }
    }
}

/// Follows references, and takes what an optional field is when it is there.
fn resolve<'s>(schema: &'s Value, root: &'s Value) -> &'s Value {
    if let Some(target) = schema["$ref"].as_str().and_then(|r| r.strip_prefix('#')).and_then(|p| root.pointer(p)) {
        return resolve(target, root);
    }
    let some = schema["anyOf"].as_array().and_then(|any| any.iter().find(|s| s["type"] != "null"));
    some.map_or(schema, |schema| resolve(schema, root))
}

fn type_of(schema: &Value) -> String {
    if words(schema).is_some() {
        return "string".to_owned();
    }
    match &schema["type"] {
        Value::String(name) => name.clone(),
        Value::Array(names) => {
            let names: Vec<_> = names.iter().filter_map(Value::as_str).filter(|n| *n != "null").collect();
            names.join(" or ")
        }
        _ => "something else".to_owned(),
    }
}

/// The words of an enumeration.
fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(words) = schema["enum"].as_array() {
        return Some(words.iter().filter_map(Value::as_str).collect());
    }
    schema["oneOf"].as_array().map(|all| all.iter().filter_map(|s| s["const"].as_str()).collect())
}
