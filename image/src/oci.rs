//! Writes OCI image layouts: blobs, manifests, `index.json`. Blobs are hard-linked between layouts where they can be.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::cache::hex;

/// Media type of an image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a container image's configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Media type of a gzip layer.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Annotation with a reference's name; the full name here, which skopeo and containerd both take.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// Verb.
        what: &'static str,
        /// File.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is not valid", path.display())]
    Json {
        /// File.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A blob's content is not what its name says.
    #[error("{}: found sha256:{found}, expected {expected}", path.display())]
    Digest {
        /// File.
        path: PathBuf,
        /// Digest of what is there.
        found: String,
        /// Digest that was promised.
        expected: String,
    },
    /// A layout lacks an image.
    #[error("{} has no image {name}", path.display())]
    NoImage {
        /// The layout.
        path: PathBuf,
        /// Name looked for.
        name: String,
    },
}

pub(crate) fn io_at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { what, path: path.to_owned(), source }
}

/// Points to a blob.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    pub media_type: String,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Of a manifest with such a type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// A descriptor without annotations.
    pub fn new(media_type: &str, digest: String, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, artifact_type: None, annotations: BTreeMap::new() }
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotated(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.to_owned());
        self
    }
}

/// A container image's layer: its blob and the digest of the tar inside.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Layer {
    /// The gzip blob.
    pub descriptor: Descriptor,
    /// SHA-256 of the uncompressed tar, `sha256:…`.
    pub diff_id: String,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
struct IndexFile {
    schema_version: u32,
    media_type: String,
    manifests: Vec<Descriptor>,
}

/// SHA-256 of what a reader gives, in hexadecimal, and its length.
pub fn sha256(mut reader: impl Read) -> io::Result<(String, u64)> {
    let (mut hasher, mut size, mut buffer) = (Sha256::new(), 0, vec![0; 1 << 18]);
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok((hex(&hasher.finalize()), size));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

/// SHA-256 of a file, in hexadecimal, and its length.
pub fn sha256_file(path: &Path) -> Result<(String, u64), Error> {
    File::open(path).and_then(sha256).map_err(io_at("read", path))
}

/// Hard link, or copy where the file systems differ.
pub fn link(from: &Path, to: &Path) -> Result<(), Error> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => fs::copy(from, to).map(drop).map_err(io_at("write", to)),
        Ok(()) => Ok(()),
    }
}

/// An image layout in a folder.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    images: Vec<Descriptor>,
}

impl Layout {
    /// An empty layout in an existing folder.
    pub fn create(dir: &Path) -> Result<Self, Error> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(io_at("create", &blobs))?;
        Ok(Self { dir: dir.to_owned(), images: vec![] })
    }

    /// A finished layout.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("index.json");
        let bytes = fs::read(&path).map_err(io_at("read", &path))?;
        let index: IndexFile = serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
        Ok(Self { dir: dir.to_owned(), images: index.manifests })
    }

    /// Its images; the name is in the annotation [`REF_NAME`].
    pub fn images(&self) -> &[Descriptor] {
        &self.images
    }

    /// The image of this name.
    pub fn image(&self, name: &str) -> Result<&Descriptor, Error> {
        let named = |image: &&Descriptor| image.annotations.get(REF_NAME).is_some_and(|found| found == name);
        let missing = || Error::NoImage { path: self.dir.clone(), name: name.to_owned() };
        self.images.iter().find(named).ok_or_else(missing)
    }

    /// Where a blob lies.
    pub fn blob(&self, digest: &str) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))
    }

    /// Stores bytes.
    pub fn put(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
        let digest = format!("sha256:{}", hex(&Sha256::digest(bytes)));
        let path = self.blob(&digest);
        fs::write(&path, bytes).map_err(io_at("write", &path))?;
        Ok(Descriptor::new(media_type, digest, bytes.len() as u64))
    }

    /// Stores a file by a hard link; the file must not change any more.
    pub fn put_file(&self, media_type: &str, file: &Path) -> Result<Descriptor, Error> {
        let (digest, size) = sha256_file(file)?;
        let descriptor = Descriptor::new(media_type, format!("sha256:{digest}"), size);
        link(file, &self.blob(&descriptor.digest))?;
        Ok(descriptor)
    }

    /// Stores a container image of these layers. `config` is the configuration's `config` object.
    pub fn put_image(&mut self, name: &str, layers: &[Layer], config: &Value) -> Result<Descriptor, Error> {
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.put(CONFIG, config.to_string().as_bytes())?;
        let layers: Vec<_> = layers.iter().map(|layer| &layer.descriptor).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
        self.put_manifest(name, &manifest, None)
    }

    /// Stores an artifact of this type: a manifest with the empty configuration.
    pub fn put_artifact(&mut self, name: &str, artifact: &str, layers: &[Descriptor]) -> Result<Descriptor, Error> {
        let config = self.put(edge_api::bundle::EMPTY_CONFIG, b"{}")?;
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": artifact, "config": config, "layers": layers,
        });
        self.put_manifest(name, &manifest, Some(artifact))
    }

    fn put_manifest(&mut self, name: &str, manifest: &Value, artifact: Option<&str>) -> Result<Descriptor, Error> {
        let mut descriptor = self.put(MANIFEST, manifest.to_string().as_bytes())?.annotated(REF_NAME, name);
        descriptor.artifact_type = artifact.map(str::to_owned);
        self.images.push(descriptor.clone());
        Ok(descriptor)
    }

    /// The digests an image consists of: manifest, configuration, layers; and their sizes.
    pub fn parts(&self, image: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        #[derive(Deserialize)]
        struct Manifest {
            config: Descriptor,
            layers: Vec<Descriptor>,
        }
        let path = self.blob(&image.digest);
        let bytes = fs::read(&path).map_err(io_at("read", &path))?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(|source| Error::Json { path, source })?;
        let mut parts = vec![image.clone(), manifest.config];
        parts.extend(manifest.layers);
        Ok(parts)
    }

    /// Takes an image over from another layout by hard links.
    pub fn adopt(&mut self, other: &Layout, image: &Descriptor) -> Result<(), Error> {
        for part in other.parts(image)? {
            link(&other.blob(&part.digest), &self.blob(&part.digest))?;
        }
        self.images.push(image.clone());
        Ok(())
    }

    /// Writes `oci-layout` and `index.json`, images sorted by name.
    pub fn finish(mut self) -> Result<(), Error> {
        self.images.sort_by(|a, b| a.annotations.get(REF_NAME).cmp(&b.annotations.get(REF_NAME)));
        let media_type = "application/vnd.oci.image.index.v1+json".to_owned();
        let index = IndexFile { schema_version: 2, media_type, manifests: self.images };
        let path = self.dir.join("index.json");
        let text = serde_json::to_string_pretty(&index).map_err(|source| Error::Json { path: path.clone(), source })?;
        fs::write(&path, text).map_err(io_at("write", &path))?;
        let path = self.dir.join("oci-layout");
        fs::write(&path, r#"{"imageLayoutVersion":"1.0.0"}"#).map_err(io_at("write", &path))
    }
}

/// Checks one blob of a layout against its name and size.
pub fn verify_blob(layout: &Layout, part: &Descriptor) -> Result<(), Error> {
    let path = layout.blob(&part.digest);
    let (found, size) = sha256_file(&path)?;
    if format!("sha256:{found}") != part.digest || size != part.size {
        return Err(Error::Digest { path, found, expected: format!("{} of {} bytes", part.digest, part.size) });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::{Source, Tree};

    fn layout(dir: &Path) -> Descriptor {
        let mut tree = Tree::default();
        tree.file("usr/bin/tool", 0o755, Source::Bytes(b"#!/bin/sh\n".to_vec()));
        let scratch = dir.join("layer");
        let layer = tree.write_layer(&scratch).unwrap();
        let mut layout = Layout::create(dir).unwrap();
        link(&scratch, &layout.blob(&layer.descriptor.digest)).unwrap();
        let image = layout.put_image("example.io/a:1", &[layer], &json!({"Cmd": ["tool"]})).unwrap();
        layout.finish().unwrap();
        image
    }

    #[test]
    fn the_same_content_gives_the_same_digest_and_everything_verifies() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let image = layout(one.path());
        assert_eq!(image.digest, layout(two.path()).digest);
        let layout = Layout::open(one.path()).unwrap();
        assert_eq!(layout.image("example.io/a:1").unwrap(), &image);
        assert!(layout.image("example.io/a:2").is_err());
        let parts = layout.parts(&image).unwrap();
        assert_eq!(parts.len(), 3);
        for part in &parts {
            verify_blob(&layout, part).unwrap();
        }
    }

    #[test]
    fn a_flipped_byte_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let image = layout(dir.path());
        let layout = Layout::open(dir.path()).unwrap();
        for part in layout.parts(&image).unwrap() {
            let path = layout.blob(&part.digest);
            let whole = fs::read(&path).unwrap();
            let mut broken = whole.clone();
            broken[whole.len() / 2] ^= 1;
            fs::write(&path, &broken).unwrap();
            assert!(matches!(verify_blob(&layout, &part), Err(Error::Digest { .. })));
            fs::write(&path, &whole).unwrap();
        }
    }

    #[test]
    fn an_adopted_image_is_whole() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let image = layout(one.path());
        let mut copy = Layout::create(two.path()).unwrap();
        copy.adopt(&Layout::open(one.path()).unwrap(), &image).unwrap();
        copy.finish().unwrap();
        let copy = Layout::open(two.path()).unwrap();
        for part in copy.parts(&image).unwrap() {
            verify_blob(&copy, &part).unwrap();
        }
    }
}
