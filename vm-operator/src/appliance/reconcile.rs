//! The way of an `Appliance`: validate → observe → plan → apply → status.

use std::sync::Arc;

use edge_api::names::FINALIZER;
use edge_api::{Appliance, Instance};
use kube::core::DeserializeGuard;
use kube::runtime::controller::Action as Next;
use kube::runtime::finalizer::{self, finalizer};
use kube::{Resource as _, ResourceExt as _};
use uuid::Uuid;

use super::status::{self, Findings};
use super::{apply, plan, validate};
use crate::context::Context;
use crate::errors::chain;
use crate::libvirt;
use crate::status::{Verdict, write};

/// Why an appliance could not be reconciled; tried again with back-off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused.
    #[error("API server")]
    Kube(#[from] kube::Error),
    /// libvirt refused.
    #[error("libvirt")]
    Libvirt(#[from] libvirt::Error),
    /// Finalizer.
    #[error("finalizer")]
    Finalizer(#[source] Box<finalizer::Error<Error>>),
    /// Something must go first.
    #[error("{0}")]
    InUse(String),
}

/// Brings one appliance to what its specification says.
pub async fn reconcile(guard: Arc<DeserializeGuard<Appliance>>, context: Arc<Context>) -> Result<Next, Error> {
    let Ok(appliance) = &guard.0 else { return Ok(Next::await_change()) };
    context.synced().await;
    let api = context.api::<Appliance>();
    let key = ("Appliance", appliance.name_any());
    let next = finalizer(&api, FINALIZER, Arc::new(appliance.clone()), |event| async {
        match event {
            finalizer::Event::Apply(appliance) => ensure(&appliance, &context).await,
            finalizer::Event::Cleanup(appliance) => cleanup(&appliance, &context).await,
        }
    })
    .await
    .map_err(|error| Error::Finalizer(Box::new(error)))?;
    context.backoff.reset(&key);
    Ok(next)
}

async fn ensure(appliance: &Appliance, context: &Context) -> Result<Next, Error> {
    let (findings, outcome) = match validate::validate(&appliance.spec) {
        Err(invalid) => (Findings::invalid(&chain(&invalid)), Ok(())),
        Ok(wanted) => match bring(appliance, context, wanted).await {
            Ok(findings) => (findings, Ok(())),
            Err(error @ libvirt::Error::NotConnected { .. }) => (Findings::unreachable(&chain(&error)), Ok(())),
            Err(error) => (Findings::failing(&chain(&error)), Err(error)),
        },
    };
    publish(appliance, context, &findings).await?;
    outcome?;
    Ok(Next::requeue(context.times.resync))
}

async fn bring(
    appliance: &Appliance,
    context: &Context,
    wanted: validate::ValidatedAppliance,
) -> Result<Findings, libvirt::Error> {
    let uri = &appliance.spec.libvirt_uri;
    let host = context.hosts.get(uri);
    let facts = context.facts(uri).await?;
    host.call(move |libvirt| {
        let plan = plan::plan(&wanted, &libvirt.networks()?, &libvirt.pools()?);
        let applied = apply::apply(libvirt, &plan.actions);
        let mut networks = status::verdict(&plan.networks, "all networks are there");
        let mut pools = status::verdict(&plan.pools, "all storage pools are there");
        if let Err(error) = applied {
            let failed = Verdict::no("LibvirtError", chain(&error));
            if plan.actions.iter().any(is_about_pools) && networks.holds() && !is_network_error(&error) {
                pools = failed;
            } else {
                networks = failed;
            }
        }
        let findings = Findings {
            connected: Verdict::yes("Connected", "libvirt answers"),
            networks,
            pools,
            host: Some(status::host(&facts)),
            storage_pools: Some(status::storage_pools(&wanted, &libvirt.pools()?)),
        };
        Ok(findings)
    })
    .await
}

fn is_about_pools(action: &plan::Action) -> bool {
    matches!(
        action,
        plan::Action::DefinePool(_)
            | plan::Action::StartPool(_)
            | plan::Action::AutostartPool(_)
            | plan::Action::RemovePool(_)
    )
}

fn is_network_error(error: &libvirt::Error) -> bool {
    error.to_string().contains("network")
}

async fn publish(appliance: &Appliance, context: &Context, findings: &Findings) -> Result<(), Error> {
    let own = appliance.status.clone().unwrap_or_default();
    let uid = appliance.uid();
    let old = context.written.newest(uid.as_deref(), appliance.resource_version().as_deref(), own);
    let new = status::status(&old, appliance.meta().generation, findings);
    let api = context.api::<Appliance>();
    write(context, &api, appliance, &old, &new, (&old.conditions, &new.conditions)).await?;
    Ok(())
}

fn never_connected(appliance: &Appliance) -> bool {
    appliance.status.as_ref().is_none_or(|status| status.host.is_none())
}

/// Says what removal waits for.
async fn wait(appliance: &Appliance, context: &Context, message: String) -> Error {
    let mut new = appliance.status.clone().unwrap_or_default();
    let old = new.clone();
    let generation = appliance.meta().generation;
    crate::status::set(&mut new.conditions, "Ready", &Verdict::no("InUse", message.clone()), generation);
    let api = context.api::<Appliance>();
    match write(context, &api, appliance, &old, &new, (&old.conditions, &new.conditions)).await {
        Ok(()) => Error::InUse(message),
        Err(error) => Error::Kube(error),
    }
}

/// Waits for machines and images, then removes what carries the appliance's mark. Looks at identity only, never at
/// whether the specification is valid.
async fn cleanup(appliance: &Appliance, context: &Context) -> Result<Next, Error> {
    let name = appliance.name_any();
    let machines = context.machines();
    let left: Vec<String> =
        machines.iter().filter(|m| m.spec.appliance == name).map(kube::ResourceExt::name_any).collect();
    if !left.is_empty() {
        return Err(wait(appliance, context, format!("waits until these machines are gone: {}", left.join(", "))).await);
    }
    let images = context.images();
    let left: Vec<String> =
        images.iter().filter(|i| i.spec.appliance == name).map(kube::ResourceExt::name_any).collect();
    if !left.is_empty() {
        return Err(wait(appliance, context, format!("waits until these images are gone: {}", left.join(", "))).await);
    }
    // Without identity nothing can carry its mark.
    if let (Ok(id), Ok(instance)) = (Uuid::try_parse(&appliance.spec.id), appliance.spec.instance.parse::<Instance>()) {
        let host = context.hosts.get(&appliance.spec.libvirt_uri);
        match host.call(move |libvirt| apply::remove(libvirt, id, &instance)).await {
            // Never connected: nothing was ever made, and deleting does not wait for creating (law 1).
            Err(libvirt::Error::NotConnected { .. }) if never_connected(appliance) => {}
            other => other?,
        }
    }
    let uri = &appliance.spec.libvirt_uri;
    let others = context.stores.appliances.state();
    if !others.iter().any(|g| g.0.as_ref().is_ok_and(|a| a.name_any() != name && a.spec.libvirt_uri == *uri)) {
        context.hosts.forget(uri);
        context.forget_facts(uri);
    }
    if let Some(uid) = appliance.uid() {
        context.written.forget(&uid);
    }
    Ok(Next::await_change())
}
