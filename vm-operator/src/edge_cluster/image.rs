//! The image that a cluster's machines boot from: one per Kubernetes version, shared by all clusters of that version,
//! made from the appliance's registry and gone with the last that uses it.

use std::collections::BTreeSet;

use edge_api::edge_cluster::ClusterPhase;
use edge_api::names::CLUSTER_IMAGE_PREFIX;
use edge_api::{Appliance, EdgeCluster, VirtualMachineImage, VirtualMachineImageSpec};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::{DeleteParams, ListParams, PostParams};

use super::profile::Resolved;
use crate::cluster_api::provider::{Finding, Provider, list, outdated};
use crate::errors::chain;
use crate::image::registry::Registry;
use crate::reconcile::Error;
use crate::status::FIELD_MANAGER;

/// Label of the images that are made here; only they are removed.
const LABEL_MANAGED_BY: &str = "app.kubernetes.io/managed-by";

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
    Ok(registry.tags(&resolved.os.image).await.map_err(|error| Finding::no("RegistryError", chain(&error))))
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
        Err(error) => return Ok(Err(Finding::no("RegistryError", chain(&error)))),
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
    Ok(registry.map_err(|error| Finding::no("RegistryError", chain(&error))))
}

/// Removes the images of ours that nobody uses. A cluster that goes uses none; while one rolls from one version to
/// another, all stay.
pub async fn remove_unused(provider: &Provider, going: Option<&EdgeCluster>) -> Result<(), Error> {
    let context = &provider.context;
    let is_ours = |image: &VirtualMachineImage| {
        image.labels().get(LABEL_MANAGED_BY).is_some_and(|by| by == FIELD_MANAGER)
            && image.name_any().starts_with(CLUSTER_IMAGE_PREFIX)
            && image.metadata.deletion_timestamp.is_none()
    };
    let ours: Vec<String> = context.images().iter().filter(|i| is_ours(i)).map(kube::ResourceExt::name_any).collect();
    if ours.is_empty() {
        return Ok(());
    }
    let _nobody_makes = provider.images.lock().await;
    let Some(wanted) = wanted(provider, going).await? else { return Ok(()) };
    for name in ours.iter().filter(|name| !wanted.contains(*name)) {
        // A machine that is still there keeps its image: the image's own controller waits for it.
        if context.machines(|vm| vm.spec.image.as_deref() == Some(name)).is_empty() {
            match context.api::<VirtualMachineImage>().delete(name, &DeleteParams::default()).await {
                Ok(_) => tracing::info!(image = name, "no cluster uses it any more"),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

/// Names of the images that clusters use; `None` where that cannot be told.
async fn wanted(provider: &Provider, going: Option<&EdgeCluster>) -> Result<Option<BTreeSet<String>>, Error> {
    let mut wanted = BTreeSet::new();
    let clusters = provider.context.api::<EdgeCluster>().list(&ListParams::default()).await?;
    for cluster in clusters.items.iter().filter(|c| going.is_none_or(|going| going.uid() != c.uid())) {
        let status = cluster.status.as_ref();
        if status.is_some_and(|status| status.phase == ClusterPhase::Updating) {
            return Ok(None);
        }
        wanted.extend(status.and_then(|s| s.version.as_deref()).map(|v| name(v.trim_start_matches('v'))));
        let current = provider.get(&provider.stores.owner_clusters, &cluster.name_any());
        wanted.extend(current.and_then(|c| c.spec.version().map(|v| name(v.trim_start_matches('v')))));
        let profile = provider.get(&provider.stores.profiles, &cluster.spec.profile);
        let resolved = profile.and_then(|profile| super::profile::resolve(&profile, &cluster.spec).ok());
        wanted.extend(resolved.map(|resolved| name(&resolved.version)));
    }
    wanted.extend(list(&provider.stores.machines, |_| true).into_iter().map(|machine| machine.spec.image));
    Ok(Some(wanted))
}
