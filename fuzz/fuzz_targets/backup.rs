//! Backups: whatever one holds, it is refused without a trace, or what is below the root afterwards is what another reader
//! of tar finds in it, at the paths that a backup has, and nothing else has changed.

#![no_main]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use arbitrary::Arbitrary;
use edge_agent::backup::{Error, unpack_and_place};
use edge_agent::paths::Paths;
use edge_api::Instance;
use edge_fuzz::archive::{Entry, all, file, files_of, tar};
use edge_profiles::Digest;
use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use serde_json::json;

/// Written by the restore itself.
const RECORD: &str = "root/state/restored.json";
const MANIFEST: &str = "backup.json";

#[derive(Arbitrary, Debug)]
enum Input {
    /// These entries, and a manifest that names what another reader finds in them.
    Entries { entries: Vec<Entry>, manifest: bool },
    /// A good backup with further entries before its own.
    Further(Vec<Entry>),
    /// A good backup with other bytes in its headers: entry, place, byte.
    Headers(Vec<(u8, u16, u8)>),
    /// A good backup but for its manifest.
    Manifest(Vec<u8>),
    /// Whatever was compressed, or was not.
    Bytes { bytes: Vec<u8>, compressed: bool },
}

fuzz_target!(|input: Input| {
    let good = || vec![file("etcd/backup.db", b"data"), file("ca/ca.crt", b"c"), file("conf/unattended.yaml", b"{}")];
    let archive = match input {
        Input::Entries { mut entries, manifest } => {
            if manifest {
                entries.push(manifest_of(&entries));
            }
            tar(&entries)
        }
        Input::Further(mut entries) => {
            entries.extend(good());
            entries.push(manifest_of(&entries));
            tar(&entries)
        }
        Input::Headers(edits) => {
            let mut entries = good();
            entries.push(manifest_of(&entries));
            for (entry, at, byte) in edits {
                let entry = usize::from(entry) % entries.len();
                entries[entry].edits.push((at, byte));
            }
            tar(&entries)
        }
        Input::Manifest(text) => {
            let mut entries = good();
            entries.push(file(MANIFEST, &text));
            tar(&entries)
        }
        Input::Bytes { bytes, compressed: true } => bytes,
        Input::Bytes { bytes, compressed: false } => return restore(&bytes, &bytes),
    };
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&archive).unwrap();
    restore(&gzip.finish().unwrap(), &archive);
});

/// The manifest of what another reader finds in these entries; names what it can.
fn manifest_of(entries: &[Entry]) -> Entry {
    let files = files_of(&tar(entries)).unwrap_or_default();
    let files: BTreeMap<_, _> = files.iter().map(|(path, content)| (path, Digest::of(content))).collect();
    let manifest = json!({"format": 1, "made": "2026-01-01T00:00:00Z", "instance": Instance::default().as_str(), "deviceId": null,
        "kubernetesVersion": "v1.36.3", "files": files});
    file(MANIFEST, manifest.to_string().as_bytes())
}

fn restore(backup: &[u8], archive: &[u8]) {
    let scratch = tempfile::tempdir().unwrap();
    let (path, paths) = (scratch.path().join("backup"), Paths::new(scratch.path().join("root")));
    fs::write(&path, backup).unwrap();
    paths.ensure().unwrap();
    let before = all(scratch.path());
    let restored = unpack_and_place(&paths, &Instance::default(), &path);
    let mut after = all(scratch.path());
    match restored {
        // Names and folders that no file system takes, too.
        Err(Error::Damaged { .. } | Error::Refused { .. } | Error::Io { .. }) => {
            return assert_eq!(after, before, "the refusal left a trace");
        }
        Err(error) => panic!("{error:?}"),
        Ok(_) => {}
    }
    for (path, content) in before {
        assert_eq!(after.remove(&path), Some(content), "{path}");
    }
    assert!(after.remove(RECORD).is_some());
    let files = after.into_iter().filter_map(|(path, content)| Some((path, content?)));
    let found: BTreeMap<_, _> = files.map(|(path, content)| (path.replacen("root/", "", 1), content)).collect();
    for path in found.keys() {
        let place = path.split_once('/').map_or("", |(folder, _)| folder);
        assert!(["etcd", "ca", "pki", "state", "conf"].contains(&place), "{path} was written");
    }
    let mut expected = files_of(archive).unwrap();
    expected.remove(MANIFEST);
    assert_eq!(found, expected);
}
