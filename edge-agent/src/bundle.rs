//! Reading of a bundle: an OCI image layout with `pcg-index.json` (see [`edge_api::bundle`]).

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use edge_api::bundle::{ANNOTATION_TITLE, ArtifactKind, INDEX_FILE, Index};
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// Largest manifest that is read.
const MANIFEST_LIMIT: u64 = 4 << 20;

/// A bundle cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A JSON file is not what it should be.
    #[error("{} is not of the expected shape", path.display())]
    Shape {
        /// Which file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// The format is of another version.
    #[error("{} has format version {found}, 1 was expected", path.display())]
    Version {
        /// Which file.
        path: PathBuf,
        /// Its version.
        found: u32,
    },
    /// A digest is not `sha256:` and 64 hexadecimal digits.
    #[error("{text:?} is no SHA-256 digest")]
    Digest {
        /// What was found.
        text: String,
    },
    /// The content of a file is not what its digest says.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Mismatch {
        /// Which file.
        path: PathBuf,
        /// Digest or size by the index.
        expected: String,
        /// Digest or size of the file.
        found: String,
    },
}

/// A descriptor of the OCI image specification, as far as it matters here.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Digest of the content.
    pub digest: String,
    /// Its bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

/// A manifest of the OCI image specification: of an image, or a list of manifests.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Media type, by which it is pushed.
    pub media_type: Option<String>,
    /// Configuration of an image.
    pub config: Option<Descriptor>,
    /// Layers of an image, lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// Manifests of a list.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// A file that must have a digest and a size.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expected {
    /// The file.
    pub path: PathBuf,
    /// `sha256:…`.
    pub digest: String,
    /// Bytes.
    pub size: u64,
}

/// Reads the index of a bundle with the digest of its text.
pub fn read_index(bundle: &Path) -> Result<(Index, String), Error> {
    let path = bundle.join(INDEX_FILE);
    let text = read(&path)?;
    let index: Index = serde_json::from_slice(&text).map_err(|source| Error::Shape { path: path.clone(), source })?;
    if index.format_version != 1 {
        return Err(Error::Version { path, found: index.format_version });
    }
    Ok((index, sha256(&text)))
}

/// Path of a blob.
pub fn blob(bundle: &Path, digest: &str) -> Result<PathBuf, Error> {
    let hex = digest.strip_prefix("sha256:").filter(|h| h.len() == 64 && h.bytes().all(|b| b.is_ascii_hexdigit()));
    let hex = hex.ok_or_else(|| Error::Digest { text: digest.to_owned() })?;
    Ok(bundle.join("blobs/sha256").join(hex))
}

/// Reads a manifest, and checks its digest.
pub fn read_manifest(bundle: &Path, digest: &str) -> Result<(Manifest, Vec<u8>), Error> {
    let path = blob(bundle, digest)?;
    let text = read(&path)?;
    let found = sha256(&text);
    if found != digest {
        return Err(Error::Mismatch { path, expected: digest.to_owned(), found });
    }
    let manifest = serde_json::from_slice(&text).map_err(|source| Error::Shape { path, source })?;
    Ok((manifest, text))
}

/// Every file that the index stands for: programs, and the blobs of all artifacts once each.
pub fn expected(bundle: &Path, index: &Index) -> Result<Vec<Expected>, Error> {
    let mut blobs = BTreeMap::new();
    let mut manifests: Vec<String> = index.artifacts.iter().map(|a| a.digest.clone()).collect();
    while let Some(digest) = manifests.pop() {
        let (manifest, text) = read_manifest(bundle, &digest)?;
        blobs.insert(digest, text.len() as u64);
        manifests.extend(manifest.manifests.into_iter().map(|d| d.digest));
        blobs.extend(manifest.config.into_iter().chain(manifest.layers).map(|d| (d.digest, d.size)));
    }
    let mut files: Vec<Expected> = index
        .programs
        .iter()
        .map(|p| Expected { path: bundle.join("bin").join(&p.name), digest: p.digest.clone(), size: p.size })
        .collect();
    for (digest, size) in blobs {
        files.push(Expected { path: blob(bundle, &digest)?, digest, size });
    }
    Ok(files)
}

/// Files of an artifact of install manifests, by name; `name` is its reference without tag. None where there is none.
pub fn manifest_files(bundle: &Path, index: &Index, name: &str) -> Result<BTreeMap<String, PathBuf>, Error> {
    let artifact = index.artifacts.iter().find(|a| {
        a.kind == ArtifactKind::Manifests && a.name.strip_prefix(name).is_some_and(|rest| rest.starts_with(':'))
    });
    let Some(artifact) = artifact else { return Ok(BTreeMap::new()) };
    let (manifest, _) = read_manifest(bundle, &artifact.digest)?;
    let titled = manifest.layers.into_iter().filter_map(|mut layer| {
        let title = layer.annotations.remove(ANNOTATION_TITLE)?;
        Some(blob(bundle, &layer.digest).map(|path| (title, path)))
    });
    titled.collect()
}

/// Checks one file against its size and digest; `count` is told the bytes as they are read.
pub fn verify(file: &Expected, mut count: impl FnMut(u64)) -> Result<(), Error> {
    let failed = |source| Error::Read { path: file.path.clone(), source };
    let mut reader = std::fs::File::open(&file.path).map_err(failed)?;
    let size = reader.metadata().map_err(failed)?.len();
    let mismatch = |expected: String, found: String| Error::Mismatch { path: file.path.clone(), expected, found };
    if size != file.size {
        return Err(mismatch(format!("{} bytes", file.size), format!("{size} bytes")));
    }
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let n = reader.read(&mut buffer).map_err(failed)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        count(n as u64);
    }
    let found = hex(&hash.finalize());
    if found == file.digest { Ok(()) } else { Err(mismatch(file.digest.clone(), found)) }
}

/// Digest of some bytes, `sha256:…`.
pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    digest.iter().fold("sha256:".to_owned(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(MANIFEST_LIMIT).read_to_end(&mut text).map_err(failed)?;
    Ok(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    /// A small bundle with one image and one program.
    pub(crate) fn make(bundle: &Path) -> Index {
        fs::create_dir_all(bundle.join("blobs/sha256")).unwrap();
        fs::create_dir_all(bundle.join("bin")).unwrap();
        let put = |content: &[u8]| {
            let digest = sha256(content);
            fs::write(blob(bundle, &digest).unwrap(), content).unwrap();
            (digest, content.len())
        };
        let (config, config_size) = put(b"{}");
        let (layer, layer_size) = put(&vec![7; 100_000]);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer, "size": layer_size}],
        });
        let (digest, _) = put(manifest.to_string().as_bytes());
        fs::write(bundle.join("bin/kind"), b"program").unwrap();
        let index = serde_json::json!({
            "formatVersion": 1, "version": "0.1.0", "pinsDigest": "00", "kubernetesVersion": "v1.36.3",
            "artifacts": [{"name": "pcg-edge.io/x:1", "digest": digest, "size": 1, "kind": "container",
                "registry": true, "source": "test"}],
            "programs": [{"name": "kind", "digest": sha256(b"program"), "size": 7, "source": "test"}],
        });
        fs::write(bundle.join(INDEX_FILE), index.to_string()).unwrap();
        serde_json::from_value(index).unwrap()
    }

    #[test]
    fn every_file_is_expected_once_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let made = make(folder.path());
        let (index, _) = read_index(folder.path()).unwrap();
        assert_eq!(index, made);
        let files = expected(folder.path(), &index).unwrap();
        assert_eq!(files.len(), 4, "program, configuration, layer, manifest");
        let mut read = 0;
        for file in &files {
            verify(file, |n| read += n).unwrap();
        }
        assert_eq!(read, files.iter().map(|f| f.size).sum::<u64>());
    }

    #[test]
    fn a_changed_byte_a_short_file_and_a_foreign_manifest_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let index = make(folder.path());
        let files = expected(folder.path(), &index).unwrap();
        let layer = files.iter().find(|f| f.size == 100_000).unwrap();
        let mut content = vec![7; 100_000];
        content[50_000] = 8;
        fs::write(&layer.path, &content).unwrap();
        assert!(matches!(verify(layer, |_| {}), Err(Error::Mismatch { .. })));
        fs::write(&layer.path, &content[..10]).unwrap();
        let short = verify(layer, |_| {}).unwrap_err().to_string();
        assert!(short.contains("100000 bytes, found 10 bytes"), "{short}");
        fs::write(blob(folder.path(), &index.artifacts[0].digest).unwrap(), "{}").unwrap();
        assert!(matches!(expected(folder.path(), &index), Err(Error::Mismatch { .. })));
        assert!(matches!(blob(folder.path(), "sha256:../../etc/passwd"), Err(Error::Digest { .. })));
    }
}
