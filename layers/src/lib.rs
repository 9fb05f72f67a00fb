//! Puts the rendered layers of a profile into a cluster and keeps them so: order, health, pruning.
//!
//! ```text
//! for each layer in install order:
//!   inventory ──► compare with what is live ──► write what differs ──► wait until healthy ──► prune what it lost
//! then: layers that the profile no longer has are taken away, last installed first
//! ```
//!
//! - A pass that finds everything as it should be only reads (D14).
//! - What a layer brings is written down before it is brought (`inventory`), so that a pass that is killed anywhere is
//!   finished by the next one.
//! - Only what carries our mark is changed or removed (law 2): objects by the label
//!   [`LABEL_LAYER`](edge_api::names::LABEL_LAYER), releases by the same label on Helm's record, and what is in a
//!   release by Helm's own annotations.

mod chart;
mod cluster;
mod error;
mod health;
mod helm;
mod inventory;
mod objects;
mod prune;
mod release;
mod wait;

use std::collections::BTreeSet;

use edge_api::agent::{Application, StepState};
use edge_profiles::{Content, RenderedLayer};
use jiff::Timestamp;
use kube::Client;

use crate::cluster::Cluster;
use crate::inventory::{Inventory, Key};

pub use crate::error::{Error, Failure, chain};
pub use crate::health::{Health, health};
pub use crate::helm::{Effect, Helm, HelmError};

/// Field manager of everything that is written here.
pub const FIELD_MANAGER: &str = "pcg-edge";

/// The cluster to work on.
#[derive(Clone)]
pub struct Context {
    /// Client with every right.
    pub client: Client,
    /// Helm for the same cluster; where there is none, no layer may be a chart.
    pub helm: Option<Helm>,
}

impl Context {
    fn helm(&self) -> Result<&Helm, Failure> {
        self.helm.as_ref().ok_or(Failure::NoHelm)
    }
}

/// Is told of every change of a layer's state. `since` is the time of the call: whoever keeps the states keeps the
/// older time where `state` is the same as before.
pub type Observer<'o> = &'o (dyn Fn(Application) + Send + Sync);

/// What a pass did. All lists are empty for a pass that found everything as it should be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Report {
    /// Objects and releases that were written, as `Kind namespace/name`.
    pub written: Vec<String>,
    /// Objects and releases that were removed.
    pub pruned: Vec<String>,
}

/// Applies all layers of a profile, in the order given, and removes what the profile no longer has.
///
/// Stops at the first layer that fails or does not become healthy in its time; later layers and the removal of vanished
/// ones wait for the next pass. The future may be dropped at any point: the next pass goes on from there.
pub async fn apply(ctx: &Context, layers: &[RenderedLayer], observer: Observer<'_>) -> Result<Report, Error> {
    let mut cluster = Cluster::new(ctx.client.clone());
    // Nothing at all is no newer revision that lacks something (law 2).
    let first = layers.first().ok_or(Error { layer: "(none)".to_owned(), failure: Failure::NoLayers })?;
    let at_first = |failure| Error { layer: first.name.clone(), failure };
    cluster.ensure_namespace().await.map_err(at_first)?;
    let inventories = inventory::list(&cluster).await.map_err(at_first)?;
    let wanted: BTreeSet<Key> = layers.iter().flat_map(objects::keys).collect();

    let mut report = Report::default();
    for (position, layer) in layers.iter().enumerate() {
        let old = inventories.iter().find(|inventory| inventory.layer == layer.name);
        let mut pass =
            Pass { ctx, cluster: &mut cluster, layer, position, wanted: &wanted, observer, report: &mut report };
        if let Err(failure) = pass.run(old.cloned()).await {
            pass.tell(StepState::Failed, &failure.to_string());
            return Err(Error { layer: layer.name.clone(), failure });
        }
    }
    let mut vanished: Vec<_> = inventories.into_iter().filter(|i| layers.iter().all(|l| l.name != i.layer)).collect();
    vanished.sort_by_key(|inventory| std::cmp::Reverse(inventory.position));
    for inventory in vanished {
        let layer = inventory.layer.clone();
        prune::layer(ctx, &mut cluster, inventory, &wanted, &mut report)
            .await
            .map_err(|failure| Error { layer, failure })?;
    }
    Ok(report)
}

/// What to show before a layer's turn has come.
pub fn pending(layers: &[RenderedLayer]) -> Vec<Application> {
    let mut earlier: Option<&str> = None;
    let mut applications = Vec::with_capacity(layers.len());
    for layer in layers {
        let message = earlier.map_or_else(|| "is next".to_owned(), |name| format!("waits for {name}"));
        applications.push(application(layer, StepState::Pending, &message));
        earlier = Some(&layer.name);
    }
    applications
}

fn application(layer: &RenderedLayer, state: StepState, message: &str) -> Application {
    Application {
        name: layer.name.clone(),
        kind: layer.kind.as_str().to_owned(),
        state,
        message: message.to_owned(),
        version: layer.version.clone(),
        since: Some(Timestamp::now()),
    }
}

/// One layer's turn.
struct Pass<'p> {
    ctx: &'p Context,
    cluster: &'p mut Cluster,
    layer: &'p RenderedLayer,
    position: usize,
    wanted: &'p BTreeSet<Key>,
    observer: Observer<'p>,
    report: &'p mut Report,
}

impl Pass<'_> {
    async fn run(&mut self, old: Option<Inventory>) -> Result<(), Failure> {
        let mut inventory = old.unwrap_or_else(|| Inventory::new(&self.layer.name));
        inventory.position = self.position;
        self.leave_former_release(&mut inventory).await?;
        let layer = self.layer;
        let live = match &layer.content {
            Content::Objects(wanted) => objects::ensure(self, &mut inventory, wanted).await?,
            Content::Chart { chart_dir, release, namespace, values } => {
                chart::ensure(self, &mut inventory, chart_dir, release, namespace, values).await?
            }
        };
        wait::healthy(self, &live).await?;
        prune::objects(self.cluster, &mut inventory, &live, self.wanted, self.report).await?;
        inventory.save(self.cluster).await?;
        self.tell(StepState::Ready, "");
        Ok(())
    }

    /// A layer that was a chart, or a chart elsewhere, gives its old release up first: names would collide.
    async fn leave_former_release(&mut self, inventory: &mut Inventory) -> Result<(), Failure> {
        let Some(former) = &inventory.release else { return Ok(()) };
        if let Content::Chart { release, namespace, .. } = &self.layer.content
            && former.name == *release
            && former.namespace == *namespace
        {
            return Ok(());
        }
        self.tell(StepState::Running, &format!("removes the release {} in {}", former.name, former.namespace));
        prune::release(self.ctx, self.cluster, inventory, self.report).await?;
        inventory.save(self.cluster).await
    }

    fn tell(&self, state: StepState, message: &str) {
        (self.observer)(application(self.layer, state, message));
    }
}
