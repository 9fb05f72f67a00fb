//! The node image: from the bundle into docker, and out of it when no node is made of it any more.

use edge_api::Instance;
use edge_api::bundle::ArtifactKind;
use serde::{Deserialize, Serialize};
use tracing::info;

use crate::durable;
use crate::engine::{Failure, Run};
use crate::image_load::Archive;
use crate::ports::docker::Docker;
use crate::ports::process;
use crate::world::World;

/// The node image in docker.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadedImage {
    manifest: String,
    id: String,
    /// ID of the one before, which goes when no node is made of it any more.
    #[serde(default)]
    replaced: Option<String>,
}

/// Repository of node images in docker.
const NODE_IMAGES: &str = "pcg-edge.io/node";

/// Its reference in docker; it carries the instance, so that removing it touches no other.
fn reference_of(world: &World, kubernetes_version: &str) -> String {
    format!("{NODE_IMAGES}:{kubernetes_version}-{}", world.instance)
}

/// References of the node images that docker has of an instance.
pub async fn all(docker: &Docker, instance: &Instance) -> Result<Vec<String>, process::Error> {
    let mut images = docker.images(NODE_IMAGES).await?;
    // No instance has a dash in its name.
    images.retain(|image| image.ends_with(&format!("-{instance}")));
    Ok(images)
}

/// Has docker load the image of the bundle, unless it has it. Returns its reference in docker and the digest of its manifest.
pub async fn ensure(world: &World, run: &Run) -> Result<(String, String), Failure> {
    let index = world.index()?;
    let artifact = index.artifacts.iter().find(|a| a.kind == ArtifactKind::Node);
    let artifact = artifact.ok_or_else(|| Failure::new("the bundle has no node image"))?;
    let reference = reference_of(world, &index.kubernetes_version);
    let record = world.paths.join("state/node-image.json");
    let loaded: Option<LoadedImage> = durable::read_json(&record).unwrap_or_default();
    let id = world.docker.image_id(&reference).await.map_err(|e| Failure::of(&e))?;
    if loaded.as_ref().is_some_and(|loaded| loaded.manifest == artifact.digest && id.as_ref() == Some(&loaded.id)) {
        return Ok((reference, artifact.digest.clone()));
    }
    run.working("loads the node image into docker");
    let archive = Archive::plan(&world.bundle(), &artifact.digest, &reference).map_err(|e| Failure::of(&e))?;
    let all = archive.size();
    let load = world.docker.load(async |stdin| archive.write(stdin, |done| run.progress(done, all)).await);
    load.await.map_err(|e| Failure::of(&e).hint("`docker info` and `df` show whether docker has room"))?;
    run.no_progress();
    let id = world.docker.image_id(&reference).await.map_err(|e| Failure::of(&e))?;
    let id = id.ok_or_else(|| Failure::new(format!("docker loaded the node image, but not as {reference}")))?;
    let replaced = loaded.map(|before| before.id).filter(|before| *before != id);
    let now = LoadedImage { manifest: artifact.digest.clone(), id, replaced };
    durable::write_json(&record, &now).map_err(|e| Failure::of(&e))?;
    Ok((reference, artifact.digest.clone()))
}

/// Removes node images of this instance that the node is not made of, unless another instance has them too.
pub async fn forget_replaced(world: &World, present: &str) -> Result<(), Failure> {
    let docker = &world.docker;
    for image in all(docker, &world.instance).await.map_err(|e| Failure::of(&e))? {
        if image != present {
            docker.remove_image(&image).await.map_err(|e| Failure::of(&e))?;
            info!(step = "system-cluster", "removed {image}, which is not used any more");
        }
    }
    let record = world.paths.join("state/node-image.json");
    let loaded: Option<LoadedImage> = durable::read_json(&record).unwrap_or_default();
    let Some(LoadedImage { manifest, id, replaced: Some(replaced) }) = loaded else { return Ok(()) };
    docker.remove_untagged_image(&replaced).await.map_err(|e| Failure::of(&e))?;
    durable::write_json(&record, &LoadedImage { manifest, id, replaced: None }).map_err(|e| Failure::of(&e))
}
