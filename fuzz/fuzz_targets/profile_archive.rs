//! Profile archives: whatever they hold, they are refused without a trace, or published as exactly the files that
//! another reader of tar finds in them, within the limits and within one folder.
//!
//! Checksums of tar headers and digests of blobs are made right here: nothing would get past them otherwise.

#![no_main]

use std::fs;
use std::io::{Read, Write};

use arbitrary::Arbitrary;
use edge_fuzz::archive::{Entry, all, file, files_of, tar};
use edge_profiles::archive::{ARTIFACT_TYPE, CONFIG_TYPE};
use edge_profiles::{Digest, Error, Limits, publish_archive, verify_archive};
use libfuzzer_sys::fuzz_target;
use serde_json::json;

const LIMITS: Limits = Limits {
    archive_bytes: 1 << 20,
    archive_entries: 32,
    blob_bytes: 1 << 18,
    document_bytes: 1 << 14,
    unpacked_bytes: 3 << 20,
    unpacked_entries: 64,
    ratio: 10,
};
/// Bytes that any blob may unpack to.
const RATIO_FLOOR: usize = 1 << 20;
const CONFIG: &[u8] = br#"{"name":"p","version":"1","layers":[{"name":"one","kind":"manifest","path":"one"}]}"#;
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER_TYPE: &str = "application/vnd.pcg-edge.system-profile.manifest.v1.tar";

#[derive(Arbitrary, Debug)]
enum Input {
    /// A layer of these entries; from 250 on, `zeros` is half MiBs of them in one more file.
    Layer { entries: Vec<Entry>, zeros: u8, zstd: bool },
    /// A layer that is this, compressed or not.
    Blob { blob: Vec<u8>, zstd: bool },
    /// A good archive with further entries before its own.
    Further(Vec<Entry>),
    /// A good archive with other bytes in its headers: entry, place, byte.
    Headers(Vec<(u8, u16, u8)>),
    /// A good archive but for its configuration.
    Configuration(Vec<u8>),
}

fuzz_target!(|input: Input| {
    let mut layer = tar(&[file("a.yaml", b"a: 1")]);
    let (mut zstd, mut blob, mut further, mut headers) = (false, None, Vec::new(), Vec::new());
    let mut config = CONFIG.to_vec();
    match input {
        Input::Layer { mut entries, zeros, zstd: by_zstd } => {
            if let Some(half_mib @ 1..) = zeros.checked_sub(249) {
                entries.push(file("zeros", &vec![0; usize::from(half_mib) << 19]));
            }
            layer = tar(&entries);
            zstd = by_zstd;
        }
        Input::Blob { blob: bytes, zstd: by_zstd } => (blob, zstd) = (Some(bytes), by_zstd),
        Input::Further(entries) => further = entries,
        Input::Headers(edits) => headers = edits,
        Input::Configuration(text) => config = text,
    }
    let blob = blob.unwrap_or_else(|| compress(&layer, zstd));
    further.extend(archive(&config, &blob, zstd));
    for (entry, at, byte) in headers {
        let entry = usize::from(entry) % further.len();
        further[entry].edits.push((at, byte));
    }
    publish(&tar(&further), &blob, zstd);
});

fn publish(archive: &[u8], blob: &[u8], zstd: bool) {
    let scratch = tempfile::tempdir().unwrap();
    let (path, store) = (scratch.path().join("archive.tar"), scratch.path().join("store"));
    fs::write(&path, archive).unwrap();
    fs::create_dir(&store).unwrap();
    fs::write(store.join("earlier"), "earlier").unwrap();
    let before = all(scratch.path());
    let published = publish_archive(&path, &store, &LIMITS);
    assert_eq!(verify_archive(&path, &LIMITS).is_ok(), published.is_ok(), "{published:?}");
    let mut after = all(scratch.path());
    let published = match published {
        Err(Error::Refused { .. }) => return assert_eq!(after, before, "the refusal left a trace"),
        Err(error) => panic!("{error:?}"),
        Ok(published) => published,
    };
    assert_eq!(publish_archive(&path, &store, &LIMITS).unwrap(), published);

    for (path, content) in before {
        assert_eq!(after.remove(&path), Some(content), "{path}");
    }
    let home = format!("store/{}", published.digest.hex());
    assert_eq!(after.remove(&home), Some(None));
    assert!(after.remove(&format!("{home}/profile.yaml")).is_some());
    assert_eq!(after.remove(&format!("{home}/one")), Some(None));
    let bytes: usize = after.values().flatten().map(Vec::len).sum();
    assert!(after.len() as u64 <= LIMITS.unpacked_entries, "{} files and folders", after.len());
    assert!(bytes as u64 <= LIMITS.unpacked_bytes && bytes <= RATIO_FLOOR.max(blob.len() * LIMITS.ratio as usize));
    let layer = format!("{home}/one/");
    let inside = |path: String| path.strip_prefix(&layer).unwrap_or_else(|| panic!("{path} was written")).to_owned();
    let files = after.into_iter().filter_map(|(path, content)| Some((inside(path), content?))).collect();
    // It may refuse what does not matter here, such as two PAX headers in a row.
    if let Ok(expected) = files_of(&decompress(blob, zstd)) {
        assert_eq!(expected, files);
    }
}

/// Entries of an archive that is good where its configuration and its layer's blob are.
fn archive(config: &[u8], blob: &[u8], zstd: bool) -> Vec<Entry> {
    let descriptor =
        |media: &str, content: &[u8]| json!({"mediaType": media, "digest": Digest::of(content), "size": content.len()});
    let mut layer = descriptor(&format!("{LAYER_TYPE}+{}", if zstd { "zstd" } else { "gzip" }), blob);
    layer["annotations"] = json!({"org.opencontainers.image.title": "one"});
    let manifest = json!({"artifactType": ARTIFACT_TYPE, "config": descriptor(CONFIG_TYPE, config), "layers": [layer]});
    let manifest = manifest.to_string().into_bytes();
    let index = json!({"manifests": [descriptor(MANIFEST_TYPE, &manifest)]}).to_string();
    let blob_file = |content| file(&format!("blobs/sha256/{}", Digest::of(content).hex()), content);
    vec![
        file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        file("index.json", index.as_bytes()),
        blob_file(&manifest),
        blob_file(config),
        blob_file(blob),
    ]
}

fn compress(tar: &[u8], zstd: bool) -> Vec<u8> {
    if zstd {
        return zstd::encode_all(tar, 1).unwrap();
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn decompress(blob: &[u8], zstd: bool) -> Vec<u8> {
    let mut tar = Vec::new();
    if zstd {
        zstd::Decoder::new(blob).unwrap().read_to_end(&mut tar).unwrap();
    } else {
        flate2::read::GzDecoder::new(blob).read_to_end(&mut tar).unwrap();
    }
    tar
}
