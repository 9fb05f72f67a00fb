//! Objects of manifest and VM layers: compared first, written by server-side apply only where they differ (D14).

use edge_api::agent::StepState;
use edge_api::names::{ANNOTATION_DIGEST, LABEL_LAYER};
use edge_profiles::digest::{Digest, HashingWriter, hash_json};
use edge_profiles::{Content, RenderedLayer};
use kube::ResourceExt;
use kube::api::{DynamicObject, Patch, PatchParams, ValidationDirective};
use kube::core::TypeMeta;
use serde_json::Value;

use crate::cluster::{Kind, shown};
use crate::error::Failure;
use crate::inventory::{Inventory, Item, Key};
use crate::{FIELD_MANAGER, Pass, wait};

/// An object as the API server has it, with its kind.
#[derive(Clone)]
pub(crate) struct Live {
    pub kind: Kind,
    pub object: DynamicObject,
    pub item: Item,
}

/// Keys of a layer's objects, without asking the cluster; see [`same`] for what that means.
pub(crate) fn keys(layer: &RenderedLayer) -> Vec<Key> {
    let Content::Objects(objects) = &layer.content else { return Vec::new() };
    objects.iter().map(|object| item(object, &layer.namespace).key()).collect()
}

/// Whether an object of an inventory is one that a profile asks for. A kind without namespaces has none in an
/// inventory, but the layer's default in a key that was made without asking the cluster.
pub(crate) fn same(wanted: &Key, listed: &Key) -> bool {
    wanted.group == listed.group
        && wanted.kind == listed.kind
        && wanted.name == listed.name
        && (wanted.namespace == listed.namespace || listed.namespace.is_empty())
}

fn item(object: &Value, default_namespace: &str) -> Item {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let namespace = text("/metadata/namespace");
    Item {
        api_version: text("/apiVersion"),
        kind: text("/kind"),
        namespace: if namespace.is_empty() { default_namespace.to_owned() } else { namespace },
        name: text("/metadata/name"),
        fields: None,
    }
}

/// Sees to it that every object is as wanted.
pub(crate) async fn ensure(
    pass: &mut Pass<'_>,
    inventory: &mut Inventory,
    wanted: &[Value],
) -> Result<Vec<Live>, Failure> {
    // What others need comes first; otherwise the order of the files counts.
    let rank = |object: &Value| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("CustomResourceDefinition") => 1,
        _ => 2,
    };
    let mut ordered: Vec<_> = wanted.iter().collect();
    ordered.sort_by_key(|object| rank(object));
    write_down(pass, inventory, &ordered).await?;
    let rest = ordered.partition_point(|object| rank(object) < 2);
    let mut live = Vec::with_capacity(ordered.len());
    for (position, object) in ordered.into_iter().enumerate() {
        if position == rest {
            // For all kinds at once, which the API server takes up side by side.
            wait::healthy(pass, &live).await?;
        }
        live.push(ensure_object(pass, inventory, object).await?);
    }
    // Our fields are known now; a pass that fails while waiting need not write them again.
    inventory.save(pass.cluster).await?;
    Ok(live)
}

/// Intent is durable before the act (law 1): what will be there is in the inventory before it is.
async fn write_down(pass: &mut Pass<'_>, inventory: &mut Inventory, wanted: &[&Value]) -> Result<(), Failure> {
    for object in wanted {
        let mut item = item(object, &pass.layer.namespace);
        match pass.cluster.kind(&item.api_version, &item.kind).await {
            Ok(kind) if !kind.namespaced => item.namespace.clear(),
            // A kind that this layer brings itself is asked for again when its turn comes.
            Ok(_) | Err(Failure::UnknownKind { .. }) => {}
            Err(other) => return Err(other),
        }
        if inventory.find(&item.key()).is_none() {
            inventory.put(item);
        }
    }
    inventory.save(pass.cluster).await
}

async fn ensure_object(pass: &mut Pass<'_>, inventory: &mut Inventory, wanted: &Value) -> Result<Live, Failure> {
    let mut item = item(wanted, &pass.layer.namespace);
    let kind = pass.cluster.kind(&item.api_version, &item.kind).await?;
    if !kind.namespaced && !item.namespace.is_empty() {
        // Written down before its kind was known.
        let guessed = item.key();
        item.namespace.clear();
        inventory.items.retain(|other| other.key() != guessed);
    }
    let shown = item.shown();
    let (desired, digest) =
        desired(wanted, &item).map_err(|reason| Failure::Malformed { object: shown.clone(), reason })?;
    let api = kind.api(&pass.cluster.client, &item.namespace);
    let live = api.get_opt(&item.name).await.map_err(Failure::api("read", &shown))?;
    if let Some(live) = &live {
        if !live.labels().contains_key(LABEL_LAYER) {
            return Err(Failure::NotOurs { object: shown });
        }
        let recorded = inventory.find(&item.key()).and_then(|item| item.fields.clone());
        let same = live.annotations().get(ANNOTATION_DIGEST) == Some(&digest);
        if same && recorded.is_some() && recorded == our_fields(live) {
            item.fields = recorded;
            return Ok(Live { kind, object: with_types(live.clone(), &item), item });
        }
    }
    pass.tell(StepState::Running, &format!("writes {shown}"));
    let params = PatchParams {
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::apply(FIELD_MANAGER).force()
    };
    let write =
        async || api.patch(&item.name, &params, &Patch::Apply(&desired)).await.map_err(Failure::api("write", &shown));
    let object = wait::for_webhook(pass, write).await?;
    tracing::info!(object = shown, layer = pass.layer.name, "written");
    pass.report.written.push(shown);
    item.fields = our_fields(&object);
    inventory.put(item.clone());
    Ok(Live { kind, object: with_types(object, &item), item })
}

/// The object to apply, with its namespace and the digest of all the rest.
fn desired(wanted: &Value, item: &Item) -> Result<(Value, String), String> {
    let mut desired = wanted.clone();
    let metadata = desired.get_mut("metadata").and_then(Value::as_object_mut).ok_or("it has no metadata")?;
    if item.namespace.is_empty() {
        metadata.remove("namespace");
    } else {
        metadata.insert("namespace".to_owned(), item.namespace.as_str().into());
    }
    let digest = digest_of(&desired);
    let annotations = &mut desired["metadata"]["annotations"];
    if annotations.is_null() {
        *annotations = Value::Object(serde_json::Map::new());
    }
    let annotations = annotations.as_object_mut().ok_or("its annotations are no mapping")?;
    annotations.insert(ANNOTATION_DIGEST.to_owned(), digest.as_str().into());
    Ok((desired, digest))
}

fn digest_of(value: &Value) -> String {
    let mut hash = HashingWriter::new(std::io::sink());
    // Writing to nowhere does not fail; a digest of half an object would only mean one more write.
    let _ = hash_json(value, &mut hash);
    hash.finish().1.to_string()
}

/// Digest of the fields that we own in a live object.
fn our_fields(live: &DynamicObject) -> Option<String> {
    let ours = live.metadata.managed_fields.iter().flatten().find(|entry| {
        entry.manager.as_deref() == Some(FIELD_MANAGER)
            && entry.operation.as_deref() == Some("Apply")
            && entry.subresource.is_none()
    })?;
    let fields = ours.fields_v1.as_ref().map(|fields| &fields.0)?;
    let digest: Digest = digest_of(fields).parse().ok()?;
    // Enough to notice a change by accident; an inventory holds many.
    Some(digest.hex()[..16].to_owned())
}

/// Answers of some API servers lack the type.
pub(crate) fn with_types(mut object: DynamicObject, item: &Item) -> DynamicObject {
    object.types = Some(TypeMeta { api_version: item.api_version.clone(), kind: item.kind.clone() });
    object
}

impl Live {
    pub fn shown(&self) -> String {
        shown(&self.object)
    }
}
