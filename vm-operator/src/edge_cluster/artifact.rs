//! Manifests of a layer that lie in the appliance's registry.

use std::fmt;
use std::str::FromStr;

use edge_api::bundle::{ANNOTATION_TITLE, MANIFESTS_ARTIFACT, MANIFESTS_YAML};
use futures::TryStreamExt as _;

use crate::image::registry::{self, Registry, sha256};
use crate::image::validate::{Descriptor, Invalid, descriptors};

/// Bytes that the files of one artifact may have together; they are held in memory.
const LIMIT: u64 = 16 << 20;

/// An artifact in the appliance's registry, `<origin host>/<path>:<tag>`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Artifact {
    /// `<origin host>/<path>`.
    pub repository: String,
    /// Tag.
    pub tag: String,
}

/// A reference is not of the form `<origin host>/<path>:<tag>`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not of the form <origin host>/<path>:<tag>")]
pub struct NoArtifact(String);

impl FromStr for Artifact {
    type Err = NoArtifact;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |text: &str| {
            !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
        };
        match text.rsplit_once(':') {
            Some((repository, tag)) if is_word(tag) && repository.contains('/') => {
                // Only a host has a port.
                let (host, path) = repository.split_once('/').unwrap_or_default();
                let (name, port) = host.split_once(':').unwrap_or((host, "443"));
                let is_good = is_word(name) && is_word(port) && path.split('/').all(is_word);
                is_good.then(|| Self { repository: repository.to_owned(), tag: tag.to_owned() })
            }
            _ => None,
        }
        .ok_or_else(|| NoArtifact(text.to_owned()))
    }
}

impl fmt::Display for Artifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { repository, tag } = self;
        write!(f, "{repository}:{tag}")
    }
}

/// Why an artifact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its name is none.
    #[error(transparent)]
    Reference(NoArtifact),
    /// The registry refused, did not answer, or its login is not usable.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// It is something else.
    #[error("artifact {artifact}")]
    Invalid {
        /// Its name.
        artifact: Artifact,
        /// What is wrong with it.
        source: Invalid,
    },
    /// What came is not what the manifest names.
    #[error("artifact {artifact}: file {file} {what}")]
    Content {
        /// Its name.
        artifact: Artifact,
        /// Name of the file.
        file: String,
        /// What is wrong with it.
        what: String,
    },
    /// More than fits.
    #[error("artifact {artifact} has {size} bytes of files; at most {LIMIT} are taken")]
    Size {
        /// Its name.
        artifact: Artifact,
        /// Bytes.
        size: u64,
    },
}

/// A YAML file of an artifact.
pub struct File {
    /// Its name, or its digest where it has none.
    pub name: String,
    /// YAML.
    pub text: String,
}

/// The files of what a tag names now, in their order, with their digests checked.
pub async fn files(registry: &Registry, artifact: &Artifact) -> Result<Vec<File>, Error> {
    let (image, manifest) = registry.tagged(&artifact.repository, &artifact.tag).await?;
    let invalid = |source| Error::Invalid { artifact: artifact.clone(), source };
    let layers = descriptors(&manifest, MANIFESTS_ARTIFACT).map_err(invalid)?;
    if let Some(other) = layers.iter().find(|layer| layer.media_type != MANIFESTS_YAML) {
        return Err(invalid(Invalid::Layer(other.media_type.clone())));
    }
    let contents: Vec<_> = layers.iter().map(Descriptor::content).collect::<Result<_, _>>().map_err(invalid)?;
    let size = contents.iter().fold(0_u64, |sum, (_, size)| sum.saturating_add(*size));
    if size > LIMIT {
        return Err(Error::Size { artifact: artifact.clone(), size });
    }
    let mut files = Vec::with_capacity(layers.len());
    for (layer, (digest, size)) in layers.iter().zip(contents) {
        let name = layer.annotations.get(ANNOTATION_TITLE).map_or(digest, String::as_str);
        let content = |what: String| Error::Content { artifact: artifact.clone(), file: name.to_owned(), what };
        let mut stream = registry.layer(&image, digest, size).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.try_next().await.map_err(|error| content(error.to_string()))? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > size {
                return Err(content(format!("is longer than its {size} bytes")));
            }
        }
        let found = sha256(&bytes);
        if found != digest {
            return Err(content(format!("has digest {found}, not {digest}")));
        }
        let text = String::from_utf8(bytes).map_err(|_| content("is not UTF-8".to_owned()))?;
        files.push(File { name: name.to_owned(), text });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        for (text, repository, tag) in [
            ("pcg-edge.io/manifests/metallb:0.16.2", "pcg-edge.io/manifests/metallb", "0.16.2"),
            ("localhost:5000/a/b:v1", "localhost:5000/a/b", "v1"),
        ] {
            let artifact: Artifact = text.parse().unwrap();
            assert_eq!((artifact.repository.as_str(), artifact.tag.as_str()), (repository, tag));
            assert_eq!(artifact.to_string(), text);
        }
        for text in [
            "",
            "a",
            "a:b",
            "pcg-edge.io/a",
            "pcg-edge.io/a:",
            "pcg-edge.io//a:1",
            "pcg-edge.io/a:b:c",
            "localhost:5000/a",
            "pcg-edge.io/../a b:1",
            "pcg-edge.io/a@sha256:00",
        ] {
            assert_eq!(text.parse::<Artifact>(), Err(NoArtifact(text.to_owned())), "{text}");
        }
    }
}
