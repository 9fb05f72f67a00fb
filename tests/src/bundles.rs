//! Bundles that differ from the one under test as little as an upgrade can notice.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use edge_api::bundle::{ArtifactKind, INDEX_FILE, Index};
use sha2::{Digest as _, Sha256};

/// The agent in a bundle, and below the root of an appliance.
pub const AGENT: &str = "bin/edge-agent";

/// How the name of an artifact begins that no object of the example's appliance names: an image of a layer, of which the
/// cluster profile names the manifests.
pub const UNNAMED: &str = "registry.k8s.io/metrics-server/metrics-server:";

/// The bundle that is under test.
///
/// # Errors
/// `cargo xtask test` did not name one.
pub fn given() -> Result<PathBuf> {
    let given = std::env::var_os("PCG_EDGE_BUNDLE").context("PCG_EDGE_BUNDLE is not set: run `cargo xtask test`")?;
    Ok(given.into())
}

/// Makes a bundle with another node image (one more annotation), this agent with one more byte, without [`UNNAMED`], and
/// with an edited index; its other files are those of `from`.
///
/// # Errors
/// What cannot be read or written, or is missing in `from`.
pub fn variant(from: &Path, to: &Path, agent: &Path, edit: impl FnOnce(&mut Index)) -> Result<()> {
    link(from, to)?;
    let path = to.join(INDEX_FILE);
    let mut index: Index = serde_json::from_slice(&fs::read(&path)?)?;
    index.artifacts.retain(|artifact| !artifact.name.starts_with(UNNAMED));
    edit(&mut index);
    let version = index.version.clone();
    let node = index.artifacts.iter_mut().find(|artifact| artifact.kind == ArtifactKind::Node);
    let node = node.context("the bundle has no node image")?;
    let blob = |digest: &str| to.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let mut manifest: serde_json::Value = serde_json::from_slice(&fs::read(blob(&node.digest))?)?;
    manifest["annotations"]["pcg-edge.io/variant"] = version.into();
    let text = manifest.to_string();
    node.digest = sha256(text.as_bytes());
    fs::write(blob(&node.digest), text)?;
    let program = index.programs.iter_mut().find(|program| Path::new("bin").join(&program.name) == Path::new(AGENT));
    let program = program.context("the bundle has no agent")?;
    let mut content = fs::read(agent).with_context(|| agent.display().to_string())?;
    content.push(0);
    program.digest = sha256(&content);
    program.size = content.len() as u64;
    // Not through the links.
    fs::remove_file(to.join(AGENT))?;
    fs::write(to.join(AGENT), content)?;
    fs::set_permissions(to.join(AGENT), fs::Permissions::from_mode(0o755))?;
    fs::remove_file(&path)?;
    fs::write(&path, serde_json::to_vec(&index)?)?;
    Ok(())
}

fn sha256(content: &[u8]) -> String {
    Sha256::digest(content).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn link(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let place = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link(&entry.path(), &place)?;
        } else if fs::hard_link(entry.path(), &place).is_err() {
            fs::copy(entry.path(), &place)?;
        }
    }
    Ok(())
}
