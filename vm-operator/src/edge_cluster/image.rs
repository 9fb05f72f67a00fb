//! The image that a cluster's machines boot from: one per Kubernetes version, shared by all clusters of that version,
//! made from the appliance's registry and gone with the last that uses it.

use std::collections::BTreeSet;
use std::fmt::Debug;

use edge_api::edge_cluster::ClusterPhase;
use edge_api::names::CLUSTER_IMAGE_PREFIX;
use edge_api::{Appliance, ClusterProfile, EdgeCluster, LibvirtMachine, VirtualMachineImage, VirtualMachineImageSpec};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use super::profile::Resolved;
use super::remove::delete;
use crate::cluster_api::provider::{Finding, Provider, outdated};
use crate::cluster_api::upstream::Cluster;
use crate::context::Context;
use crate::errors::chain;
use crate::image::registry::Registry;
use crate::reconcile::Error;
use crate::status::FIELD_MANAGER;

/// Label of the images that are made here; only they are removed.
const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";

/// Reason of a wait for the registry.
pub const REGISTRY_ERROR: &str = "RegistryError";

/// Name of the image of a version, for instance `kubernetes-v1.36.3`; the version is without `v`.
pub fn name(version: &str) -> String {
    format!("{CLUSTER_IMAGE_PREFIX}v{version}")
}

/// Kubernetes versions that the appliance's registry has images of. The inner error is a state to wait in.
pub async fn versions(
    appliance: &Appliance,
    resolved: &Resolved,
    provider: &Provider,
) -> Result<Result<Vec<String>, Finding>, Error> {
    let registry = match registry(appliance, provider).await? {
        Ok(registry) => registry,
        Err(waiting) => return Ok(Err(waiting)),
    };
    Ok(registry.tags(&resolved.os.image).await.map_err(|error| Finding::no(REGISTRY_ERROR, chain(&error))))
}

/// Makes the image where it is not there yet. The inner error is a state to wait in.
pub async fn ensure(
    appliance: &Appliance,
    resolved: &Resolved,
    provider: &Provider,
) -> Result<Result<(), Finding>, Error> {
    let context = &provider.context;
    let name = name(&resolved.version);
    let _nobody_removes = provider.images.lock().await;
    let api = context.api::<VirtualMachineImage>();
    let found = match context.image(&name).filter(|image| image.metadata.deletion_timestamp.is_none()) {
        Some(found) => Some(found),
        None => api.get_opt(&name).await?,
    };
    if let Some(found) = found {
        return Ok(if found.metadata.deletion_timestamp.is_none() {
            Ok(())
        } else {
            Err(Finding::no("WaitingForImage", format!("waits for an earlier VirtualMachineImage {name} to go")))
        });
    }
    let registry = match registry(appliance, provider).await? {
        Ok(registry) => registry,
        Err(waiting) => return Ok(Err(waiting)),
    };
    let repository = &resolved.os.image;
    let digest = match registry.tagged(repository, &resolved.version).await {
        Ok((image, _)) => image.digest,
        Err(error) => return Ok(Err(Finding::no(REGISTRY_ERROR, chain(&error)))),
    };
    let spec = VirtualMachineImageSpec { appliance: appliance.name_any(), artifact: format!("{repository}@{digest}") };
    let mut image = VirtualMachineImage::new(&name, spec);
    image.labels_mut().insert(LABEL_MANAGED_BY.to_owned(), FIELD_MANAGER.to_owned());
    api.create(&PostParams::default(), &image).await.map_err(outdated)?;
    Ok(Ok(()))
}

async fn registry(appliance: &Appliance, provider: &Provider) -> Result<Result<Registry, Finding>, Error> {
    let login = &appliance.spec.registry;
    let Some(secret) = provider.context.api::<Secret>().get_opt(&login.secret_name).await? else {
        let message = format!("waits for Secret {} with the registry's login", login.secret_name);
        return Ok(Err(Finding::no("WaitingForSecret", message)));
    };
    let registry = Registry::new(&login.host, &login.secret_name, &secret);
    Ok(registry.map_err(|error| Finding::no(REGISTRY_ERROR, chain(&error))))
}

/// Removes the images of ours that nobody uses, `keep` not being looked at. A cluster that goes uses none; while one
/// rolls from one version to another, all stay. Nobody may make one meanwhile ([`Provider::images`]).
pub async fn remove_unused(context: &Context, keep: Option<&str>, going: Option<&EdgeCluster>) -> Result<(), Error> {
    let is_ours = |image: &VirtualMachineImage| {
        image.labels().get(LABEL_MANAGED_BY).is_some_and(|by| by == FIELD_MANAGER)
            && image.name_any().starts_with(CLUSTER_IMAGE_PREFIX)
            && image.metadata.deletion_timestamp.is_none()
    };
    let mut ours: Vec<String> =
        context.images().iter().filter(|image| is_ours(image)).map(kube::ResourceExt::name_any).collect();
    ours.retain(|name| Some(name.as_str()) != keep);
    if ours.is_empty() {
        return Ok(());
    }
    let Some(wanted) = wanted(context, going).await? else { return Ok(()) };
    for name in ours.iter().filter(|name| !wanted.contains(*name)) {
        if context.machines(|vm| vm.spec.image.as_deref() == Some(name)).is_empty() {
            delete::<VirtualMachineImage>(context, name).await?;
            tracing::info!(image = name, "no cluster uses it any more");
        }
    }
    Ok(())
}

/// Names of the images that clusters use; `None` where that cannot be told.
async fn wanted(context: &Context, going: Option<&EdgeCluster>) -> Result<Option<BTreeSet<String>>, Error> {
    let mut wanted = BTreeSet::new();
    let (profiles, currents) = (all::<ClusterProfile>(context).await?, all::<Cluster>(context).await?);
    for cluster in all::<EdgeCluster>(context).await?.iter().filter(|c| going.is_none_or(|g| g.uid() != c.uid())) {
        let status = cluster.status.as_ref();
        if status.is_some_and(|status| status.phase == ClusterPhase::Updating) {
            return Ok(None);
        }
        let current = currents.iter().find(|current| current.name_any() == cluster.name_any());
        let versions = [status.and_then(|s| s.version.as_deref()), current.and_then(|c| c.spec.version())];
        wanted.extend(versions.into_iter().flatten().map(|version| name(version.trim_start_matches('v'))));
        let profile = profiles.iter().find(|profile| profile.name_any() == cluster.spec.profile);
        let resolved = profile.and_then(|profile| super::profile::resolve(profile, &cluster.spec).ok());
        wanted.extend(resolved.map(|resolved| name(&resolved.version)));
    }
    wanted.extend(all::<LibvirtMachine>(context).await?.into_iter().map(|machine| machine.spec.image));
    Ok(Some(wanted))
}

/// Every object of a kind; none where it is not served.
pub async fn all<K>(context: &Context) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    match context.api::<K>().list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}
