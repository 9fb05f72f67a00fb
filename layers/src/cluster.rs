//! The API server as this crate needs it: any kind by its name, with discovery asked once per kind and pass.

use std::collections::HashMap;

use edge_api::names::NAMESPACE;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Api, DynamicObject, GroupVersionKind, PostParams};
use kube::core::ApiResource;
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, ResourceExt};

use crate::FIELD_MANAGER;
use crate::error::Failure;

/// A client with what it learned of kinds during a pass.
pub(crate) struct Cluster {
    pub client: Client,
    kinds: HashMap<(String, String), Kind>,
}

/// A kind as the cluster serves it.
#[derive(Clone)]
pub(crate) struct Kind {
    pub resource: ApiResource,
    pub namespaced: bool,
}

impl Kind {
    /// The API of this kind; `namespace` is left out where the kind has none.
    pub fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }
}

impl Cluster {
    pub fn new(client: Client) -> Self {
        Self { client, kinds: HashMap::new() }
    }

    /// Looks a kind up; only what was found is remembered, because a layer may bring a kind.
    pub async fn kind(&mut self, api_version: &str, kind: &str) -> Result<Kind, Failure> {
        let key = (api_version.to_owned(), kind.to_owned());
        if let Some(known) = self.kinds.get(&key) {
            return Ok(known.clone());
        }
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let unknown = || Failure::UnknownKind { kind: kind.to_owned(), api_version: api_version.to_owned() };
        let found = pinned_kind(&self.client, &GroupVersionKind::gvk(group, version, kind)).await;
        let (resource, capabilities) = found.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 404 => unknown(),
            kube::Error::Discovery(_) => unknown(),
            _ => Failure::api("look up", format!("{kind} in {api_version}"))(error),
        })?;
        let kind = Kind { resource, namespaced: matches!(capabilities.scope, Scope::Namespaced) };
        self.kinds.insert(key, kind.clone());
        Ok(kind)
    }

    /// Whether a group and version is meant to be served, be it served now or not.
    pub async fn is_registered(&self, api_version: &str) -> Result<bool, Failure> {
        let Some((group, version)) = api_version.split_once('/') else { return Ok(true) };
        let api: Api<APIService> = Api::all(self.client.clone());
        let name = format!("{version}.{group}");
        let found = api.get_metadata_opt(&name).await.map_err(Failure::api("read", format!("APIService {name}")))?;
        Ok(found.is_some())
    }

    /// The namespace of our own objects.
    pub async fn ensure_namespace(&self) -> Result<(), Failure> {
        let api: Api<Namespace> = Api::all(self.client.clone());
        let shown = format!("Namespace {NAMESPACE}");
        if api.get_opt(NAMESPACE).await.map_err(Failure::api("read", &shown))?.is_some() {
            return Ok(());
        }
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(NAMESPACE.to_owned());
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match api.create(&params, &namespace).await {
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            result => result.map(drop).map_err(Failure::api("write", shown)),
        }
    }
}

/// `Kind namespace/name`, or `Kind name`.
pub(crate) fn shown(object: &DynamicObject) -> String {
    let kind = object.types.as_ref().map_or("object", |types| types.kind.as_str());
    display(kind, &object.namespace().unwrap_or_default(), &object.name_any())
}

/// `Kind namespace/name`, or `Kind name`.
pub(crate) fn display(kind: &str, namespace: &str, name: &str) -> String {
    if namespace.is_empty() { format!("{kind} {name}") } else { format!("{kind} {namespace}/{name}") }
}
