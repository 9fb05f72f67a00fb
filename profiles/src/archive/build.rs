//! From a source folder to an archive: the same folder always gives the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use flate2::{Compression, GzBuilder};
use serde_json::json;
use tar::{EntryType, Header};

use super::{ARTIFACT_TYPE, CONFIG_TYPE, INDEX_TYPE, MANIFEST_TYPE, REF_NAME, TITLE, VERSION, layer_type};
use crate::digest::Digest;
use crate::error::Error;
use crate::model::{LayerEntry, LayerKind, is_relative, load, read_definition};

/// A file of a layer: its path in the layer and whether it is executable.
type Files = BTreeMap<String, bool>;

/// Builds the archive `out` of the profile in `dir` and tells the digest of its manifest, which identifies it.
///
/// Whatever is not named by `profile.yaml` stays out. `out` is replaced in one step.
pub fn build_archive(dir: &Path, out: &Path) -> Result<Digest, Error> {
    // Refuses what could not be loaded again at the site.
    load(dir)?;
    let (mut file, tree) = read_definition(dir)?;
    let mut blobs: Vec<(Digest, Vec<u8>)> = Vec::new();
    let mut layers = Vec::new();
    for (index, entry) in file.layers.iter_mut().enumerate() {
        let line = tree.get("layers").and_then(|l| l.items().get(index)).map_or(0, |l| l.line);
        let bytes = layer_blob(dir, entry, line)?;
        let digest = Digest::of(&bytes);
        layers.push(json!({
            "mediaType": format!("{}+gzip", layer_type(entry.kind)),
            "digest": digest,
            "size": bytes.len(),
            "annotations": {TITLE: entry.name},
        }));
        // In the archive every layer is a folder of its own name, so that nothing has to be said about paths.
        entry.path.clone_from(&entry.name);
        if !blobs.iter().any(|(other, _)| *other == digest) {
            blobs.push((digest, bytes));
        }
    }
    let config = serde_json::to_vec(&file).unwrap_or_default();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": CONFIG_TYPE, "digest": Digest::of(&config), "size": config.len()},
        "layers": layers,
        "annotations": {TITLE: file.name, VERSION: file.version},
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = Digest::of(&manifest);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": INDEX_TYPE,
        "manifests": [{
            "mediaType": MANIFEST_TYPE,
            "artifactType": ARTIFACT_TYPE,
            "digest": digest,
            "size": manifest.len(),
            "annotations": {REF_NAME: format!("{}:{}", file.name, file.version.replace('+', "_"))},
        }],
    });
    let head = [(digest, manifest), (Digest::of(&config), config)];
    write_archive(out, &index.to_string().into_bytes(), head.into_iter().chain(blobs))?;
    Ok(digest)
}

fn write_archive(out: &Path, index: &[u8], blobs: impl Iterator<Item = (Digest, Vec<u8>)>) -> Result<(), Error> {
    let failed = |e| Error::io("write", out)(e);
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new().prefix(".profile-").tempfile_in(parent).map_err(failed)?;
    let mut tar = tar::Builder::new(BufWriter::new(temporary.as_file_mut()));
    let mut add = |path: &str, content: &[u8]| append(&mut tar, path, content, false).map_err(failed);
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", index)?;
    for (digest, content) in blobs {
        add(&format!("blobs/sha256/{}", digest.hex()), &content)?;
    }
    tar.into_inner().and_then(|mut w| w.flush()).map_err(failed)?;
    let file = temporary.persist(out).map_err(|e| failed(e.error))?;
    // Temporary files are for their owner only; an archive is to be carried around.
    file.set_permissions(fs::Permissions::from_mode(0o644)).and_then(|()| file.sync_all()).map_err(failed)
}

/// A layer's folder as a gzip-compressed tar.
fn layer_blob(dir: &Path, entry: &LayerEntry, line: usize) -> Result<Vec<u8>, Error> {
    let root = dir.join(&entry.path);
    let mut files = Files::new();
    let single = entry.kind == LayerKind::Manifest && !root.is_dir();
    let base = if single {
        let name = Path::new(&entry.path).file_name().and_then(|n| n.to_str()).unwrap_or_default();
        files.insert(name.to_owned(), false);
        root.parent().unwrap_or(dir).to_owned()
    } else {
        collect(&root, "", &mut files, entry, line)?;
        root
    };
    let failed = |path: &Path| Error::io("read", path);
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::best());
    let mut tar = tar::Builder::new(gzip);
    for (path, executable) in &files {
        let place = base.join(path);
        let content = fs::read(&place).map_err(failed(&place))?;
        append(&mut tar, path, &content, *executable).map_err(failed(&place))?;
    }
    tar.into_inner().and_then(flate2::write::GzEncoder::finish).map_err(failed(&base))
}

fn collect(root: &Path, below: &str, files: &mut Files, entry: &LayerEntry, line: usize) -> Result<(), Error> {
    let dir = root.join(below);
    for item in fs::read_dir(&dir).map_err(Error::io("list", &dir))? {
        let item = item.map_err(Error::io("list", &dir))?;
        let refuse = |what: &str| {
            let shown = item.path();
            Err(Error::invalid("profile.yaml", line, format!("layer {:?}: {} {what}", entry.name, shown.display())))
        };
        let name = item.file_name();
        let Some(name) = name.to_str() else { return refuse("has a name that is not UTF-8") };
        let path = if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if !is_relative(&path) {
            return refuse("has a name that not every tool can carry");
        }
        let kind = item.file_type().map_err(Error::io("look at", &item.path()))?;
        if kind.is_dir() {
            collect(root, &path, files, entry, line)?;
        } else if kind.is_file() {
            let mode = item.metadata().map_err(Error::io("look at", &item.path()))?.permissions().mode();
            files.insert(path, mode & 0o111 != 0);
        } else {
            return refuse("is neither a file nor a folder; links are not carried");
        }
    }
    Ok(())
}

/// Adds a file without anything of this host: no owner, no time.
fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, content: &[u8], executable: bool) -> io::Result<()> {
    let mut header = Header::new_ustar();
    header.set_path(path)?;
    header.set_entry_type(EntryType::Regular);
    header.set_mode(if executable { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(content.len() as u64);
    header.set_cksum();
    tar.append(&header, content)
}

/// Opens an archive for reading.
pub(super) fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(Error::io("open", path))
}
