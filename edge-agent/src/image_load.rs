//! Streams an image of the bundle into `docker load`, as a docker archive: nothing is written to disk on the way.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::bundle::{self, Error, Manifest};

/// What goes into the archive, in order.
#[derive(Debug)]
pub struct Archive {
    files: Vec<(String, PathBuf, u64)>,
    manifest: Vec<u8>,
}

impl Archive {
    /// Plans the archive of the image with this manifest digest under the name `tag`.
    pub fn plan(folder: &Path, digest: &str, tag: &str) -> Result<Self, Error> {
        let (manifest, _) = bundle::read_manifest(folder, digest)?;
        let Manifest { config: Some(config), layers, .. } = manifest else {
            return Err(Error::Digest { text: format!("{digest} (no image)") });
        };
        let hex = |digest: &str| digest.trim_start_matches("sha256:").to_owned();
        let config_name = format!("{}.json", hex(&config.digest));
        let layer_name = |digest: &str| format!("{}.tar", hex(digest));
        let layer_names: Vec<String> = layers.iter().map(|l| layer_name(&l.digest)).collect();
        let manifest = json!([{"Config": config_name, "RepoTags": [tag], "Layers": layer_names}]);
        let mut files = vec![(config_name, bundle::blob(folder, &config.digest)?, config.size)];
        let mut seen = BTreeSet::new();
        for layer in layers.iter().filter(|l| seen.insert(&l.digest)) {
            files.push((layer_name(&layer.digest), bundle::blob(folder, &layer.digest)?, layer.size));
        }
        Ok(Self { files, manifest: manifest.to_string().into_bytes() })
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|(_, _, size)| size).sum()
    }

    /// Writes the archive; `count` is told the bytes of files written so far.
    pub async fn write(&self, out: &mut (impl AsyncWrite + Unpin), count: impl Fn(u64)) -> io::Result<()> {
        let mut done = 0;
        let mut buffer = vec![0; 256 << 10];
        out.write_all(&header("manifest.json", self.manifest.len() as u64)?).await?;
        out.write_all(&self.manifest).await?;
        out.write_all(padding(self.manifest.len() as u64)).await?;
        for (name, path, size) in &self.files {
            out.write_all(&header(name, *size)?).await?;
            let mut file = tokio::fs::File::open(path).await?.take(*size);
            let mut written = 0;
            loop {
                let n = file.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                out.write_all(&buffer[..n]).await?;
                written += n as u64;
                done += n as u64;
                count(done);
            }
            if written != *size {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, path.display().to_string()));
            }
            out.write_all(padding(*size)).await?;
        }
        out.write_all(&[0; 1024]).await
    }
}

fn header(name: &str, size: u64) -> io::Result<[u8; 512]> {
    let mut header = tar::Header::new_gnu();
    header.set_path(name)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_cksum();
    Ok(*header.as_bytes())
}

fn padding(size: u64) -> &'static [u8] {
    &[0; 512][..(512 - (size % 512) as usize) % 512]
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[tokio::test]
    async fn the_archive_is_what_docker_load_reads() {
        let folder = tempfile::tempdir().unwrap();
        let index = bundle::tests::make(folder.path());
        let archive = Archive::plan(folder.path(), &index.artifacts[0].digest, "a/b:c").unwrap();
        let mut out = Vec::new();
        let seen = std::cell::Cell::new(0);
        archive.write(&mut out, |n| seen.set(n)).await.unwrap();
        assert_eq!(seen.get(), archive.size());
        let mut tar = tar::Archive::new(out.as_slice());
        let mut names = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            names.push((entry.path().unwrap().display().to_string(), content));
        }
        let manifest: serde_json::Value = serde_json::from_slice(&names[0].1).unwrap();
        assert_eq!(manifest[0]["RepoTags"][0], "a/b:c");
        assert_eq!(manifest[0]["Config"], names[1].0.as_str());
        assert_eq!(manifest[0]["Layers"][0], names[2].0.as_str());
        assert_eq!(names[2].1, vec![7; 100_000]);
    }
}
