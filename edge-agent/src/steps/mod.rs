//! The steps of the site installation, in order.

pub mod bundle;
pub mod cluster_api;
pub mod operator;
pub mod preflight;
pub mod registry;
pub mod system_applications;
pub mod system_cluster;

use std::fmt::Write as _;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use edge_api::SiteConfig;
use edge_api::bundle::INDEX_FILE;

use crate::bundle::sha256;
use crate::engine::{Basis, Step};
use crate::world::World;

/// All steps in order; the names are those of [`crate::status::STEPS`].
pub fn all(world: &Arc<World>) -> Vec<Box<dyn Step>> {
    vec![
        Box::new(preflight::Preflight::new(Arc::clone(world))),
        Box::new(bundle::Bundle::new(Arc::clone(world))),
        Box::new(system_cluster::SystemCluster::new(Arc::clone(world))),
        Box::new(registry::Registry::new(Arc::clone(world))),
        Box::new(operator::Operator::new(Arc::clone(world))),
        Box::new(cluster_api::ClusterApi::new(Arc::clone(world))),
        Box::new(system_applications::SystemApplications::new(Arc::clone(world))),
    ]
}

/// What the steps carry out: the site, the bundle, and the profile archive by its size and time of change.
pub fn basis(world: &Arc<World>) -> Basis {
    let world = Arc::clone(world);
    Box::new(move |site: &SiteConfig| {
        // Secrets show as `***`, so that no digest of one is ever written.
        let mut text = format!("{site:?}\n{}\n", world.bundle().display());
        if let Ok(index) = std::fs::read(world.bundle().join(INDEX_FILE)) {
            text.push_str(&sha256(&index));
        }
        let archive = system_applications::archive_path(&world.paths.conf(), site);
        if let Some(metadata) = archive.and_then(|path| std::fs::metadata(path).ok()) {
            let _ = write!(text, "\n{} {}.{}", metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        }
        sha256(text.as_bytes())
    })
}
