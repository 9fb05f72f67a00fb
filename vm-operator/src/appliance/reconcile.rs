//! The way of an `Appliance`: validate → observe → plan → apply → status.

use std::convert::Infallible;

use edge_api::{Appliance, Instance};
use kube::ResourceExt as _;
use kube::runtime::controller::Action as Next;
use uuid::Uuid;

use super::status::{self, Findings};
use super::{apply, plan, validate};
use crate::context::Context;
use crate::errors::chain;
use crate::libvirt;
use crate::reconcile::{self, Reconcile};
use crate::status::{Verdict, publish};

type Error = reconcile::Error;

impl Reconcile for Appliance {
    type Failure = Infallible;

    async fn ensure(&self, context: &Context) -> Result<Next, Error> {
        let (findings, outcome) = match validate::validate(&self.spec) {
            Err(invalid) => (Findings::invalid(&chain(&invalid)), Ok(())),
            Ok(wanted) => match bring(self, context, wanted).await {
                Ok(findings) => (findings, Ok(())),
                Err(error @ libvirt::Error::NotConnected { .. }) => (Findings::unreachable(&chain(&error)), Ok(())),
                Err(error) => (Findings::failing(&chain(&error)), Err(error)),
            },
        };
        publish(context, self, |old, generation| status::status(old, generation, &findings)).await?;
        outcome?;
        Ok(Next::requeue(context.times.resync))
    }

    /// Waits for machines and images, then removes what carries the appliance's mark.
    async fn cleanup(&self, context: &Context) -> Result<(), Error> {
        let name = self.name_any();
        wait(self, context, "machines", context.machines(|m| m.spec.appliance == name)).await?;
        let images = context.images();
        let images = images.iter().filter(|i| i.spec.appliance == name).map(kube::ResourceExt::name_any);
        wait(self, context, "images", images.collect()).await?;
        // Without identity nothing can carry its mark.
        if let (Ok(id), Ok(instance)) = (Uuid::try_parse(&self.spec.id), self.spec.instance.parse::<Instance>()) {
            let host = context.hosts.get(&self.spec.libvirt_uri);
            match host.call(move |libvirt| apply::remove(libvirt, id, &instance)).await {
                // Never connected: nothing was ever made, and deleting does not wait for creating (law 1).
                Err(libvirt::Error::NotConnected { .. }) if never_connected(self) => {}
                other => other?,
            }
        }
        let uri = &self.spec.libvirt_uri;
        let others = context.stores.appliances.state();
        if !others.iter().any(|g| g.0.as_ref().is_ok_and(|a| a.name_any() != name && a.spec.libvirt_uri == *uri)) {
            context.hosts.forget(uri);
            context.forget_facts(uri);
        }
        Ok(())
    }
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

fn never_connected(appliance: &Appliance) -> bool {
    appliance.status.as_ref().is_none_or(|status| status.host.is_none())
}

/// Removal waits, and says so, until none are left.
async fn wait(appliance: &Appliance, context: &Context, what: &str, left: Vec<String>) -> Result<(), Error> {
    if left.is_empty() {
        return Ok(());
    }
    let message = format!("waits until these {what} are gone: {}", left.join(", "));
    let verdict = Verdict::no("InUse", message.clone());
    publish(context, appliance, |old, generation| {
        let mut new = old.clone();
        crate::status::set(&mut new.conditions, "Ready", &verdict, generation);
        new
    })
    .await?;
    Err(Error::Waiting(message))
}
