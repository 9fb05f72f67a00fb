//! The steps of the site installation, in order.

pub mod bundle;
pub mod operator;
pub mod preflight;
pub mod registry;
pub mod system_applications;
pub mod system_cluster;

use std::sync::Arc;

use crate::engine::Step;
use crate::world::World;

/// All steps in order; the names are those of [`crate::status::STEPS`].
pub fn all(world: &Arc<World>) -> Vec<Box<dyn Step>> {
    vec![
        Box::new(preflight::Preflight::new(Arc::clone(world))),
        Box::new(bundle::Bundle::new(Arc::clone(world))),
        Box::new(system_cluster::SystemCluster::new(Arc::clone(world))),
        Box::new(registry::Registry::new(Arc::clone(world))),
        Box::new(operator::Operator::new(Arc::clone(world))),
        Box::new(system_applications::SystemApplications::new(Arc::clone(world))),
    ]
}
