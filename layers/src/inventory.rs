//! What each layer brought: one `ConfigMap` `layer-<name>` per layer, in our namespace.
//!
//! It is written before an object is, with all that the layer had and is about to have, and again after pruning: an
//! object of ours is always in an inventory. `fields` is a digest of the fields that we own in the object, as the API
//! server keeps them (`managedFields`): whoever changes one of them takes it over, and that is how drift is seen
//! without comparing values that the server writes in its own way.

use std::collections::BTreeMap;

use edge_api::names::{LABEL_LAYER, NAMESPACE};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::FIELD_MANAGER;
use crate::cluster::{Cluster, display};
use crate::error::Failure;

/// Label that only inventories carry; they have [`LABEL_LAYER`] as well.
const LABEL_INVENTORY: &str = "pcg-edge.io/inventory";
const OBJECTS: &str = "objects.json";
const RELEASE: &str = "release.json";
const POSITION: &str = "position";

/// Which object, whatever the version it is asked for in.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub group: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
}

/// An object of a layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Item {
    pub api_version: String,
    pub kind: String,
    /// Empty for kinds without namespaces.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    pub name: String,
    /// Digest of our fields after our last write; absent before it, and for objects of a chart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fields: Option<String>,
}

impl Item {
    pub fn key(&self) -> Key {
        let group = self.api_version.split_once('/').map_or("", |(group, _)| group).to_owned();
        Key { group, kind: self.kind.clone(), namespace: self.namespace.clone(), name: self.name.clone() }
    }

    pub fn shown(&self) -> String {
        display(&self.kind, &self.namespace, &self.name)
    }
}

/// The release of a chart layer.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) struct Release {
    pub name: String,
    pub namespace: String,
}

/// What one layer brought.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Inventory {
    pub layer: String,
    /// Place in the install order; layers are taken away in the opposite one.
    pub position: usize,
    pub release: Option<Release>,
    pub items: Vec<Item>,
    /// As it is stored now.
    stored: Option<BTreeMap<String, String>>,
}

impl Inventory {
    pub fn new(layer: &str) -> Self {
        Self { layer: layer.to_owned(), position: 0, release: None, items: Vec::new(), stored: None }
    }

    pub fn find(&self, key: &Key) -> Option<&Item> {
        self.items.iter().find(|item| item.key() == *key)
    }

    /// Puts an item in, in place of the one with its key.
    pub fn put(&mut self, item: Item) {
        let key = item.key();
        match self.items.iter_mut().find(|old| old.key() == key) {
            Some(old) => *old = item,
            None => self.items.push(item),
        }
    }

    /// Writes the inventory where it differs from what is stored.
    pub async fn save(&mut self, cluster: &Cluster) -> Result<(), Failure> {
        let data = self.data();
        if self.stored.as_ref() == Some(&data) {
            return Ok(());
        }
        let name = object_name(&self.layer);
        let body = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": {LABEL_INVENTORY: "layer", LABEL_LAYER: self.layer}},
            "data": data,
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = api(cluster).patch(&name, &params, &Patch::Apply(&body)).await;
        written.map_err(Failure::api("write", display("ConfigMap", NAMESPACE, &name)))?;
        self.stored = Some(data);
        Ok(())
    }

    /// Removes the inventory of a layer that has nothing left.
    pub async fn forget(self, cluster: &Cluster) -> Result<(), Failure> {
        let name = object_name(&self.layer);
        match api(cluster).delete(&name, &DeleteParams::default()).await {
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            result => result.map(drop).map_err(Failure::api("remove", display("ConfigMap", NAMESPACE, &name))),
        }
    }

    fn data(&self) -> BTreeMap<String, String> {
        let text = |value: serde_json::Result<String>| value.unwrap_or_default();
        let mut data = BTreeMap::from([
            (OBJECTS.to_owned(), text(serde_json::to_string_pretty(&self.items))),
            (POSITION.to_owned(), self.position.to_string()),
        ]);
        if let Some(release) = &self.release {
            data.insert(RELEASE.to_owned(), text(serde_json::to_string(release)));
        }
        data
    }

    fn read(map: ConfigMap) -> Result<Self, Failure> {
        let name = map.metadata.name.unwrap_or_default();
        let data = map.data.unwrap_or_default();
        let layer = map.metadata.labels.unwrap_or_default().remove(LABEL_LAYER).unwrap_or_default();
        let malformed = |reason: String| Failure::Malformed { object: display("ConfigMap", NAMESPACE, &name), reason };
        if layer.is_empty() || object_name(&layer) != name {
            return Err(malformed(format!("its label {LABEL_LAYER} is {layer:?}")));
        }
        let items = data.get(OBJECTS).ok_or_else(|| malformed(format!("it has no {OBJECTS}")))?;
        let items = serde_json::from_str(items).map_err(|e| malformed(format!("{OBJECTS}: {e}")))?;
        let release = data.get(RELEASE).map(|text| serde_json::from_str(text)).transpose();
        let release = release.map_err(|e| malformed(format!("{RELEASE}: {e}")))?;
        let position = data.get(POSITION).and_then(|text| text.parse().ok()).unwrap_or_default();
        Ok(Self { layer, position, release, items, stored: Some(data) })
    }
}

/// All inventories. One that cannot be read stops everything: what it lists could not be pruned otherwise.
pub(crate) async fn list(cluster: &Cluster) -> Result<Vec<Inventory>, Failure> {
    let params = ListParams::default().labels(&format!("{LABEL_INVENTORY}=layer"));
    let maps = api(cluster).list(&params).await.map_err(Failure::api("list", "inventories of layers"))?;
    maps.items.into_iter().map(Inventory::read).collect()
}

fn api(cluster: &Cluster) -> Api<ConfigMap> {
    Api::namespaced(cluster.client.clone(), NAMESPACE)
}

fn object_name(layer: &str) -> String {
    format!("layer-{layer}")
}
