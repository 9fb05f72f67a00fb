//! From an archive to a folder of the store, whole or not at all.
//!
//! ```text
//! archive ──one pass──► store/.staging-<random>/blobs/<hex> ──resolve, unpack──► …/profile/ ──rename──► store/<hex>
//! ```

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::build::open;
use super::strict_tar::StrictTar;
use super::unpack::{Budget, Compression, make_dir, sync_tree, unpack_layer};
use super::{ARTIFACT_TYPE, CONFIG_TYPE, Limits, MANIFEST_TYPE, Refusal, TITLE, layer_type};
use crate::digest::{Digest, HashingWriter};
use crate::error::Error;
use crate::model::{LayerKind, MAX_LAYERS, PROFILE_FILE, ProfileFile, load, parse_definition};

const STAGING: &str = ".staging-";

/// What an archive holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProfileSummary {
    /// Digest of its manifest, which identifies it.
    pub digest: Digest,
    /// Name of the profile.
    pub name: String,
    /// Its version.
    pub version: String,
    /// For people.
    pub description: Option<String>,
    /// Layers in install order.
    pub layers: Vec<LayerSummary>,
}

/// A layer of an archive.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LayerSummary {
    /// Name.
    pub name: String,
    /// Kind.
    pub kind: LayerKind,
    /// Version, where it has one.
    pub version: Option<String>,
}

/// A profile in the store.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Published {
    /// Digest of its manifest.
    pub digest: Digest,
    /// Its folder, for [`load`].
    pub dir: PathBuf,
    /// What it holds.
    pub summary: ProfileSummary,
}

/// Checks an archive as [`publish_archive`] does, and keeps nothing of it.
pub fn verify_archive(path: &Path, limits: &Limits) -> Result<ProfileSummary, Error> {
    let scratch = tempfile::Builder::new()
        .prefix("pcg-edge-verify-")
        .tempdir()
        .map_err(Error::io("write to", &std::env::temp_dir()))?;
    stage(path, scratch.path(), limits)
}

/// Verifies an archive and publishes it as `store/<hexadecimal digest>`; one that is there already stays as it is.
///
/// One publisher works in a store at a time; another one waits. What a killed one left is removed first.
pub fn publish_archive(path: &Path, store: &Path, limits: &Limits) -> Result<Published, Error> {
    fs::create_dir_all(store).map_err(Error::io("make", store))?;
    // A lock on the folder itself, so that no lock file is needed; it ends with this function.
    let lock = File::open(store).map_err(Error::io("open", store))?;
    lock.lock().map_err(Error::io("lock", store))?;
    remove_leftovers(store)?;
    let staging = tempfile::Builder::new().prefix(STAGING).tempdir_in(store).map_err(Error::io("write to", store))?;
    let summary = stage(path, staging.path(), limits)?;
    let dir = store.join(summary.digest.hex());
    if !dir.exists() {
        let ready = staging.path().join("profile");
        sync_tree(&ready)
            .and_then(|()| fs::rename(&ready, &dir))
            .and_then(|()| lock.sync_all())
            .map_err(Error::io("publish", &dir))?;
    }
    Ok(Published { digest: summary.digest, dir, summary })
}

/// Removes every profile of the store but this one; returns their digests.
pub fn keep_only(store: &Path, kept: Digest) -> Result<Vec<Digest>, Error> {
    let lock = File::open(store).map_err(Error::io("open", store))?;
    lock.lock().map_err(Error::io("lock", store))?;
    let mut removed = Vec::new();
    for item in fs::read_dir(store).map_err(Error::io("list", store))? {
        let item = item.map_err(Error::io("list", store))?;
        let Some(digest) = item.file_name().to_str().and_then(Digest::from_hex).filter(|digest| *digest != kept) else {
            continue;
        };
        // Away at once: half a folder must not be taken for a profile.
        let leaving = store.join(format!("{STAGING}{}", digest.hex()));
        fs::rename(item.path(), &leaving).map_err(Error::io("remove", &item.path()))?;
        fs::remove_dir_all(&leaving).map_err(Error::io("remove", &leaving))?;
        removed.push(digest);
    }
    Ok(removed)
}

fn remove_leftovers(store: &Path) -> Result<(), Error> {
    for item in fs::read_dir(store).map_err(Error::io("list", store))? {
        let item = item.map_err(Error::io("list", store))?;
        if item.file_name().to_string_lossy().starts_with(STAGING) {
            fs::remove_dir_all(item.path()).map_err(Error::io("remove", &item.path()))?;
        }
    }
    Ok(())
}

/// Spools, resolves and unpacks into `staging/profile`.
fn stage(path: &Path, staging: &Path, limits: &Limits) -> Result<ProfileSummary, Error> {
    let file = open(path)?;
    let refused = |reason| match reason {
        // That is not the archive's fault.
        Refusal::Staging { path, source } => Error::Io { action: "write to", path, source },
        reason => Error::Refused { path: path.to_owned(), reason },
    };
    let size = file.metadata().map_err(Error::io("look at", path))?.len();
    if size > limits.archive_bytes {
        let what = "the archive".to_owned();
        return Err(refused(Refusal::TooLarge { what, found: size, limit: limits.archive_bytes }));
    }
    // The limit holds for what is read as well: a path may be a pipe, or a file that still grows.
    let input = BufReader::with_capacity(64 << 10, file.take(limits.archive_bytes));
    let spool = Spool::read(input, staging, limits).map_err(refused)?;
    let (digest, summary) = resolve(&spool, staging, limits).map_err(refused)?;
    fs::remove_dir_all(&spool.dir).map_err(Error::io("remove", &spool.dir))?;
    // Whether every layer has what its kind needs, by the same code that will read it later.
    let profile = load(&staging.join("profile")).map_err(|e| refused(Refusal::BadProfile(Box::new(e))))?;
    let layers = profile.layers.iter().map(|layer| LayerSummary {
        name: layer.name.clone(),
        kind: layer.kind,
        version: layer.version.clone(),
    });
    let layers = layers.collect();
    Ok(ProfileSummary {
        digest,
        name: summary.name,
        version: summary.version,
        description: summary.description,
        layers,
    })
}

/// What one pass over an archive leaves: small documents in memory, blobs with right digests in a folder.
struct Spool {
    dir: PathBuf,
    index: Vec<u8>,
    blobs: HashMap<Digest, u64>,
}

impl Spool {
    fn read(input: impl Read, staging: &Path, limits: &Limits) -> Result<Self, Refusal> {
        let dir = staging.join("blobs");
        make_dir(&dir).map_err(|source| Refusal::Staging { path: dir.clone(), source })?;
        let mut tar = StrictTar::new(input, "the archive");
        let mut seen = HashSet::new();
        let (mut layout, mut index) = (None, None);
        let mut blobs = HashMap::new();
        while let Some(entry) = tar.next_entry()? {
            if seen.len() as u64 >= limits.archive_entries {
                return Err(Refusal::TooManyEntries { what: "the archive".to_owned(), limit: limits.archive_entries });
            }
            if entry.is_dir {
                if !matches!(entry.path.as_str(), "blobs" | "blobs/sha256") {
                    return Err(Refusal::UnexpectedEntry(entry.path));
                }
            } else if let Some(hex) = entry.path.strip_prefix("blobs/sha256/") {
                let digest = Digest::from_hex(hex).ok_or_else(|| Refusal::UnexpectedEntry(entry.path.clone()))?;
                within(&entry.path, entry.size, limits.blob_bytes)?;
                if blobs.insert(digest, entry.size).is_none() {
                    spool_blob(&mut tar, &dir, digest)?;
                }
            } else {
                let document = match entry.path.as_str() {
                    "oci-layout" => &mut layout,
                    "index.json" => &mut index,
                    _ => return Err(Refusal::UnexpectedEntry(entry.path)),
                };
                within(&entry.path, entry.size, limits.document_bytes)?;
                let mut content = Vec::new();
                tar.copy_file(&mut content)?;
                document.get_or_insert(content);
            }
            if !seen.insert(entry.path.clone()) {
                return Err(Refusal::Duplicate(entry.path));
            }
        }
        let layout = layout.ok_or_else(|| Refusal::BadLayout("oci-layout is missing".to_owned()))?;
        let layout: Layout = json("oci-layout", &layout)?;
        if layout.image_layout_version != "1.0.0" {
            return Err(Refusal::BadLayout(format!(
                "oci-layout: version {:?}; expected 1.0.0",
                layout.image_layout_version
            )));
        }
        let index = index.ok_or_else(|| Refusal::BadLayout("index.json is missing".to_owned()))?;
        Ok(Self { dir, index, blobs })
    }

    fn path(&self, digest: Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// A blob that a descriptor names, with the size that it names.
    fn blob(&self, what: &str, descriptor: &Descriptor) -> Result<PathBuf, Refusal> {
        match self.blobs.get(&descriptor.digest) {
            None => Err(Refusal::BadLayout(format!("{what} {} is not in the archive", descriptor.digest))),
            Some(size) if *size != descriptor.size => {
                let (named, found) = (descriptor.size, size);
                Err(Refusal::BadLayout(format!("{what} has {found} bytes; its descriptor says {named}")))
            }
            Some(_) => Ok(self.path(descriptor.digest)),
        }
    }

    fn document(&self, what: &str, descriptor: &Descriptor, limits: &Limits) -> Result<Vec<u8>, Refusal> {
        let path = self.blob(what, descriptor)?;
        within(what, descriptor.size, limits.document_bytes)?;
        fs::read(&path).map_err(|source| Refusal::Staging { path, source })
    }
}

fn spool_blob<R: Read>(tar: &mut StrictTar<R>, dir: &Path, digest: Digest) -> Result<(), Refusal> {
    let path = dir.join(digest.hex());
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Refusal::Staging { path, source }
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed(&path))?;
    let mut writer = HashingWriter::new(file);
    tar.copy_file(&mut writer).map_err(|refusal| refusal.at(&path))?;
    writer.flush().map_err(failed(&path))?;
    let (_, found, _) = writer.finish();
    if found == digest { Ok(()) } else { Err(Refusal::WrongDigest { what: format!("blob {digest}"), found }) }
}

/// Follows index → manifest → configuration and layers, and unpacks.
fn resolve(spool: &Spool, staging: &Path, limits: &Limits) -> Result<(Digest, ProfileFile), Refusal> {
    let bad = |text: String| Refusal::BadLayout(text);
    let index: Index = json("index.json", &spool.index)?;
    let [descriptor] = index.manifests.as_slice() else {
        return Err(bad(format!("index.json names {} manifests; expected one", index.manifests.len())));
    };
    if descriptor.media_type != MANIFEST_TYPE {
        return Err(bad(format!("index.json names a {:?}; expected {MANIFEST_TYPE}", descriptor.media_type)));
    }
    let manifest: Manifest = json("the manifest", &spool.document("manifest", descriptor, limits)?)?;
    if manifest.artifact_type.as_deref() != Some(ARTIFACT_TYPE) {
        let found = manifest.artifact_type.unwrap_or_else(|| "no artifact type".to_owned());
        return Err(bad(format!("the manifest is of {found}; expected {ARTIFACT_TYPE}: this is no profile archive")));
    }
    if manifest.config.media_type != CONFIG_TYPE {
        return Err(bad(format!("the configuration is a {:?}; expected {CONFIG_TYPE}", manifest.config.media_type)));
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(bad(format!("{} layers; at most {MAX_LAYERS} are allowed", manifest.layers.len())));
    }
    let config = spool.document("configuration", &manifest.config, limits)?;
    let text = String::from_utf8(config).map_err(|_| bad("the configuration is not UTF-8".to_owned()))?;
    let _: ProfileFile = json("the configuration", text.as_bytes())?;
    let (profile, _) = parse_definition(&text).map_err(|e| Refusal::BadProfile(Box::new(e)))?;
    if profile.layers.len() != manifest.layers.len() {
        let (named, found) = (profile.layers.len(), manifest.layers.len());
        return Err(bad(format!("the profile has {named} layers, the manifest {found}")));
    }
    let mut expected: HashSet<Digest> = manifest.layers.iter().map(|layer| layer.digest).collect();
    expected.extend([descriptor.digest, manifest.config.digest]);
    if let Some(stray) = spool.blobs.keys().find(|digest| !expected.contains(digest)) {
        return Err(bad(format!("blob {stray} belongs to nothing")));
    }

    let out = staging.join("profile");
    let failed = |path: PathBuf| move |source| Refusal::Staging { path, source };
    make_dir(&out).map_err(failed(out.clone()))?;
    let mut budget = Budget::new(limits);
    for (entry, layer) in profile.layers.iter().zip(&manifest.layers) {
        let what = format!("layer {}", entry.name);
        if entry.path != entry.name || layer.annotations.get(TITLE) != Some(&entry.name) {
            return Err(bad(format!("{what}: manifest and profile name it differently")));
        }
        let compression = match layer.media_type.strip_prefix(layer_type(entry.kind)) {
            Some("+gzip") => Compression::Gzip,
            Some("+zstd") => Compression::Zstd,
            _ => {
                let found = &layer.media_type;
                return Err(bad(format!("{what}: is a {found:?}; expected {}+gzip", layer_type(entry.kind))));
            }
        };
        let blob = spool.blob(&what, layer)?;
        unpack_layer(&blob, compression, &out.join(&entry.name), &what, limits, &mut budget)?;
    }
    let place = out.join(PROFILE_FILE);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&place);
    file.and_then(|mut f| f.write_all(text.as_bytes())).map_err(failed(place))?;
    Ok((descriptor.digest, profile))
}

fn within(what: &str, found: u64, limit: u64) -> Result<(), Refusal> {
    if found > limit { Err(Refusal::TooLarge { what: what.to_owned(), found, limit }) } else { Ok(()) }
}

fn json<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|e| Refusal::BadLayout(format!("{what}: {e}")))
}

// Unknown fields are allowed in these: the OCI specification says so, and tools add their own.

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    artifact_type: Option<String>,
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: HashMap<String, String>,
}
