//! Archives that are damaged or mean harm: each is refused, for the right reason, and the store stays as it was.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::*;
use crate::Error;

/// An entry of a tar, written without any of the checks that a tar library makes.
#[derive(Clone)]
struct Raw {
    path: String,
    kind: EntryType,
    content: Vec<u8>,
    /// Size to declare, where it is not that of the content.
    size: Option<u64>,
    link: &'static str,
}

impl Raw {
    fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), kind: EntryType::Regular, content: content.into(), size: None, link: "" }
    }

    fn special(path: &str, kind: EntryType, link: &'static str) -> Self {
        Self { path: path.to_owned(), kind, content: Vec::new(), size: None, link }
    }
}

fn tar_of(entries: &[Raw]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(entry.size.unwrap_or(entry.content.len() as u64));
        header.set_cksum();
        out.extend(header.as_bytes());
        out.extend(&entry.content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn blob(content: &[u8]) -> Raw {
    Raw::file(&format!("blobs/sha256/{}", Digest::of(content).hex()), content)
}

const OBJECT: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";

/// A good archive of one manifest layer with this blob, as entries in the usual order: layout, index, manifest,
/// configuration, layer.
fn archive_with(layer: &[u8], compression: &str) -> Vec<Raw> {
    let config = json!({"name": "p", "version": "1", "layers": [{"name": "one", "kind": "manifest", "path": "one"}]});
    archive_of(config.to_string().as_bytes(), layer, compression, |_| {})
}

fn archive_of(config: &[u8], layer: &[u8], compression: &str, edit: impl FnOnce(&mut Value)) -> Vec<Raw> {
    let descriptor =
        |media: &str, content: &[u8]| json!({"mediaType": media, "digest": Digest::of(content), "size": content.len()});
    let mut layer_descriptor = descriptor(&format!("{}+{compression}", layer_type(LayerKind::Manifest)), layer);
    layer_descriptor["annotations"] = json!({TITLE: "one"});
    let mut manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "artifactType": ARTIFACT_TYPE,
        "config": descriptor(CONFIG_TYPE, config), "layers": [layer_descriptor]});
    edit(&mut manifest);
    let manifest = manifest.to_string().into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [descriptor(MANIFEST_TYPE, &manifest)]});
    vec![
        Raw::file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        Raw::file("index.json", index.to_string()),
        blob(&manifest),
        blob(config),
        blob(layer),
    ]
}

fn good() -> Vec<Raw> {
    archive_with(&gzip(&tar_of(&[Raw::file("a.yaml", OBJECT)])), "gzip")
}

/// A store with something in it already, and a folder around it.
struct Store {
    scratch: tempfile::TempDir,
    store: PathBuf,
}

impl Store {
    fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let store = scratch.path().join("store");
        let this = Self { scratch, store };
        let config =
            json!({"name": "earlier", "version": "1", "layers": [{"name": "one", "kind": "manifest", "path": "one"}]});
        let layer = gzip(&tar_of(&[Raw::file("a.yaml", OBJECT)]));
        this.publish(&tar_of(&archive_of(config.to_string().as_bytes(), &layer, "gzip", |_| {})), &Limits::default())
            .unwrap();
        this
    }

    fn publish(&self, archive: &[u8], limits: &Limits) -> Result<Published, Error> {
        let path = self.scratch.path().join("archive.tar");
        fs::write(&path, archive).unwrap();
        publish_archive(&path, &self.store, limits)
    }

    /// Everything in the scratch folder but the archive itself: type, mode and content.
    fn content(&self) -> BTreeMap<PathBuf, (u32, Option<Vec<u8>>)> {
        fn walk(dir: &Path, into: &mut BTreeMap<PathBuf, (u32, Option<Vec<u8>>)>) {
            for item in fs::read_dir(dir).unwrap().map(Result::unwrap) {
                let meta = item.path().symlink_metadata().unwrap();
                let content = meta.is_file().then(|| fs::read(item.path()).unwrap());
                into.insert(item.path(), (meta.permissions().mode(), content));
                if meta.is_dir() {
                    walk(&item.path(), into);
                }
            }
        }
        let mut all = BTreeMap::new();
        walk(self.scratch.path(), &mut all);
        all.remove(&self.scratch.path().join("archive.tar"));
        all
    }

    /// Refused, with this in the reason, and without a trace.
    #[track_caller]
    fn refuses(&self, archive: &[u8], limits: &Limits, expected: &str) {
        let before = self.content();
        let reason = match self.publish(archive, limits) {
            Err(Error::Refused { reason, .. }) => reason,
            other => panic!("expected a refusal with {expected:?}, got {other:?}"),
        };
        let mut text = reason.to_string();
        let mut source = std::error::Error::source(&reason);
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        assert!(text.contains(expected), "expected {expected:?}: {text}");
        assert_eq!(self.content(), before, "the refusal of {expected:?} left a trace");
        // The same verdict without a store.
        let path = self.scratch.path().join("archive.tar");
        assert!(verify_archive(&path, limits).is_err());
    }
}

#[track_caller]
fn refuses(entries: &[Raw], expected: &str) {
    Store::new().refuses(&tar_of(entries), &Limits::default(), expected);
}

#[track_caller]
fn refuses_layer(entries: &[Raw], expected: &str) {
    refuses(&archive_with(&gzip(&tar_of(entries)), "gzip"), expected);
}

#[test]
fn the_good_one_is_accepted_in_any_order() {
    let store = Store::new();
    let mut entries = good();
    let first = store.publish(&tar_of(&entries), &Limits::default()).unwrap();
    assert_eq!(fs::read_to_string(first.dir.join("one/a.yaml")).unwrap(), OBJECT);
    assert_eq!(fs::metadata(first.dir.join("one/a.yaml")).unwrap().permissions().mode() & 0o777, 0o600);
    entries.reverse();
    entries.push(Raw::special("blobs/", EntryType::Directory, ""));
    assert_eq!(store.publish(&tar_of(&entries), &Limits::default()).unwrap(), first);
    // PAX headers with times, as other tools write them, and a zstd layer.
    let zstd = zstd::encode_all(&tar_of(&[Raw::file("a.yaml", OBJECT)])[..], 3).unwrap();
    let mut entries = archive_with(&zstd, "zstd");
    let mut pax = Raw::file("PaxHeaders/index.json", "20 mtime=1700000000\n");
    pax.kind = EntryType::XHeader;
    entries.insert(1, pax);
    store.publish(&tar_of(&entries), &Limits::default()).unwrap();
    assert_eq!(fs::read_dir(&store.store).unwrap().count(), 3);
}

#[test]
fn cut_off_anywhere() {
    let store = Store::new();
    let whole = tar_of(&good());
    // Every boundary of a block and a byte beside it; only the whole file is accepted.
    for boundary in (0..whole.len()).step_by(512) {
        for cut in [boundary, boundary + 1, (boundary + 511).min(whole.len() - 1)] {
            store.refuses(&whole[..cut], &Limits::default(), "it ends in the middle of");
        }
    }
    store.publish(&whole, &Limits::default()).unwrap();
}

#[test]
fn a_layer_cut_off() {
    let layer = gzip(&tar_of(&[Raw::file("a.yaml", OBJECT), Raw::file("b.yaml", vec![b'#'; 3000])]));
    for cut in [0, 1, 10, layer.len() / 2, layer.len() - 8, layer.len() - 1] {
        refuses(&archive_with(&layer[..cut], "gzip"), "it ends in the middle of layer one");
    }
    let tar = tar_of(&[Raw::file("a.yaml", OBJECT)]);
    for cut in [512, 1024, 1536] {
        refuses(&archive_with(&gzip(&tar[..cut]), "gzip"), "it ends in the middle of layer one");
    }
    let zstd = zstd::encode_all(&tar[..], 3).unwrap();
    refuses(&archive_with(&zstd[..zstd.len() - 1], "zstd"), "layer one");
}

#[test]
fn something_behind_the_end() {
    let mut archive = tar_of(&good());
    archive.extend(tar_of(&[Raw::file("index.json", "{}")]));
    Store::new().refuses(&archive, &Limits::default(), "something follows the end mark");
    let mut layer = gzip(&tar_of(&[Raw::file("a.yaml", OBJECT)]));
    layer.extend(gzip(b"more"));
    refuses(&archive_with(&layer, "gzip"), "something follows the compressed data");
}

#[test]
fn wrong_digests() {
    let mut entries = good();
    entries[4].content[20] ^= 1;
    refuses(&entries, "has the digest sha256:");
    // A blob that the manifest does not name, and one that it names and is not there.
    let mut entries = good();
    entries.push(blob(b"stray"));
    refuses(&entries, "belongs to nothing");
    let mut entries = good();
    entries.pop();
    refuses(&entries, "is not in the archive");
    let mut entries = good();
    entries[2].path = entries[2].path.to_uppercase();
    refuses(&entries, "is no entry of a profile archive");
}

#[test]
fn damaged_headers() {
    let whole = tar_of(&good());
    for at in [0, 110, 124, 148, 156, 257] {
        let mut archive = whole.clone();
        archive[at] ^= 1;
        Store::new().refuses(&archive, &Limits::default(), "its checksum");
    }
    // A PAX record that gives the next entry another name, and one that lies about its own length.
    for record in ["20 path=../../etc/x\n", "16 size=1000000\n", "99 mtime=1\n", "mtime=1\n", "0 x=1\n"] {
        let mut entries = good();
        let mut pax = Raw::file("PaxHeaders/x", record);
        pax.kind = EntryType::XHeader;
        entries.insert(0, pax);
        refuses(&entries, "a PAX record");
    }
}

#[test]
fn entries_that_do_not_belong() {
    let kinds = [
        Raw::file("../evil", "x"),
        Raw::file("/etc/evil", "x"),
        Raw::file("./index.json", "x"),
        Raw::file("blobs/sha256/../../evil", "x"),
        Raw::file("blobs/sha512/aa", "x"),
        Raw::file("readme", "x"),
        Raw::special("other/", EntryType::Directory, ""),
    ];
    for entry in kinds {
        let mut entries = good();
        entries.insert(1, entry);
        refuses(&entries, "is no entry of a profile archive");
    }
    let specials = [
        (EntryType::Symlink, "a symbolic link"),
        (EntryType::Link, "a hard link"),
        (EntryType::Char, "a device"),
        (EntryType::Block, "a device"),
        (EntryType::Fifo, "a pipe"),
        (EntryType::GNUSparse, "a sparse file"),
        (EntryType::GNULongName, "a long name"),
    ];
    for (kind, expected) in specials {
        let mut entries = good();
        entries.insert(0, Raw::special("index.json", kind, "/etc/passwd"));
        refuses(&entries, expected);
        refuses_layer(&[Raw::special("a.yaml", kind, "/etc/passwd"), Raw::file("b.yaml", OBJECT)], expected);
    }
}

#[test]
fn ways_out_of_a_layer() {
    let paths = ["../evil", "/etc/evil", "a/../../evil", "a/..", "./a", "a//b", "..", ".", "a\\..\\b", "a\nb", ""];
    for path in paths {
        refuses_layer(&[Raw::file(path, "x")], "expected a plain path");
    }
    // A link that a later entry would follow is refused at the link.
    let through = [Raw::special("out", EntryType::Symlink, "/tmp"), Raw::file("out/evil", "x")];
    refuses_layer(&through, "a symbolic link");
    let folder = Raw::special("../", EntryType::Directory, "");
    refuses_layer(&[folder], "expected a plain path");
}

#[test]
fn duplicates() {
    let mut entries = good();
    entries.push(entries[1].clone());
    refuses(&entries, "is there twice");
    let mut entries = good();
    entries.push(entries[4].clone());
    refuses(&entries, "is there twice");
    refuses_layer(&[Raw::file("a.yaml", OBJECT), Raw::file("a.yaml", OBJECT)], "is there twice");
    refuses_layer(&[Raw::file("a", "x"), Raw::file("a/b", "x")], "is there twice");
    refuses_layer(&[Raw::file("a/b", "x"), Raw::file("a", "x")], "is there twice");
}

#[test]
fn bombs() {
    // 64 MiB of zeros in some 64 KiB.
    let zeros = Raw::file("a.yaml", vec![0; 64 << 20]);
    refuses_layer(std::slice::from_ref(&zeros), "a decompression bomb");
    let zstd = zstd::encode_all(&tar_of(&[zeros])[..], 3).unwrap();
    refuses(&archive_with(&zstd, "zstd"), "a decompression bomb");
    // Declared sizes that nobody could keep: refused before anything is read or reserved.
    for size in [1 << 40, (8 << 30) - 1] {
        let mut entries = good();
        entries[4].size = Some(size);
        refuses(&entries, "at most");
        let mut entries = good();
        entries[1].size = Some(size);
        refuses(&entries, "at most");
        let mut huge = Raw::file("a.yaml", "x");
        huge.size = Some(size);
        refuses_layer(&[huge], "at most");
    }
    // Incompressible, but too much: over the limit of all layers together.
    let limits = Limits { unpacked_bytes: 100_000, ..Limits::default() };
    let noise: Vec<u8> =
        (0..200_000_u32).flat_map(|n| Digest::of(&n.to_le_bytes()).hex().into_bytes()).take(200_000).collect();
    let many: Vec<_> = noise.chunks(10_000).enumerate().map(|(i, c)| Raw::file(&format!("{i}.yaml"), c)).collect();
    let archive = tar_of(&archive_with(&gzip(&tar_of(&many)), "gzip"));
    Store::new().refuses(&archive, &limits, "all layers unpacked has 100001 bytes");
}

#[test]
fn too_many_and_too_large() {
    let many: Vec<_> = (0..100_000).map(|i| Raw::file(&format!("{i}"), "")).collect();
    // As the archive's own entries, and as a layer's; with a ratio that lets the zeros pass.
    let limits = Limits { ratio: 10_000, ..Limits::default() };
    let archive = tar_of(&archive_with(&gzip(&tar_of(&many)), "gzip"));
    Store::new().refuses(&archive, &limits, "layer one has more than 20000 entries");
    let mut entries = good();
    entries.extend((0..100_000_u32).map(|i| blob(&i.to_le_bytes())));
    refuses(&entries, "the archive has more than 1024 entries");
    let limits = Limits { archive_bytes: 2000, ..Limits::default() };
    Store::new().refuses(&tar_of(&good()), &limits, "the archive has");
    let limits = Limits { blob_bytes: 100, ..Limits::default() };
    Store::new().refuses(&tar_of(&good()), &limits, "at most 100 are allowed");
    let limits = Limits { document_bytes: 100, ..Limits::default() };
    Store::new().refuses(&tar_of(&good()), &limits, "at most 100 are allowed");
}

#[test]
fn other_artifacts_and_wrong_content() {
    let layer = gzip(&tar_of(&[Raw::file("a.yaml", OBJECT)]));
    let config = |text: &str| archive_of(text.as_bytes(), &layer, "gzip", |_| {});
    let one = r#"{"name":"p","version":"1","layers":[{"name":"one","kind":"manifest","path":"one"}]}"#;
    let edited = |edit: fn(&mut Value)| archive_of(one.as_bytes(), &layer, "gzip", edit);
    refuses(&edited(|m| m["artifactType"] = "application/x".into()), "this is no profile archive");
    refuses(&edited(|m| drop(m.as_object_mut().unwrap().remove("artifactType"))), "this is no profile archive");
    refuses(&edited(|m| m["layers"] = json!([])), "the profile has 1 layers, the manifest 0");
    refuses(&edited(|m| m["layers"][0]["size"] = 7.into()), "its descriptor says 7");
    refuses(&edited(|m| m["layers"][0]["mediaType"] = "text/x".into()), "expected application/vnd");
    refuses(&edited(|m| m["layers"][0]["annotations"][TITLE] = "two".into()), "name it differently");
    refuses(&edited(|m| m["layers"][0]["digest"] = "sha256:zz".into()), "is no digest");
    refuses(&config("{}"), "missing field");
    refuses(&config(&one.replace("\"version\"", "\"colour\":1,\"version\"")), "colour");
    refuses(&config(&one.replace("\"path\":\"one\"", "\"path\":\"../one\"")), "expected a path inside");
    refuses(&config(&one.replace("\"path\":\"one\"", "\"path\":\"two\"")), "name it differently");
    refuses(&config(&one.replace("manifest", "vm")), "expected application/vnd");
    refuses(&archive_with(b"no gzip", "gzip"), "layer one");
    let mut entries = good();
    entries[0].content = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec();
    refuses(&entries, "expected 1.0.0");
    let mut entries = good();
    entries.remove(0);
    refuses(&entries, "oci-layout is missing");
    let mut entries = good();
    entries.remove(1);
    refuses(&entries, "index.json is missing");
    let mut entries = good();
    entries[1].content = b"[".to_vec();
    refuses(&entries, "index.json:");
    refuses(&[], "oci-layout is missing");
}

#[test]
fn what_a_killed_publisher_left_is_removed() {
    let store = Store::new();
    fs::create_dir_all(store.store.join(".staging-old/profile/one")).unwrap();
    fs::write(store.store.join(".staging-old/profile/one/x"), "x").unwrap();
    let published = store.publish(&tar_of(&good()), &Limits::default()).unwrap();
    let mut names: Vec<_> = fs::read_dir(&store.store).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|path| *path != published.dir);
    assert_eq!(names.len(), 1, "{names:?}");
}

#[test]
fn many_publishers_at_once() {
    let store = Store::new();
    let path = store.scratch.path().join("archive.tar");
    fs::write(&path, tar_of(&good())).unwrap();
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| publish_archive(&path, &store.store, &Limits::default()).unwrap())).collect();
        let dirs: Vec<_> = threads.into_iter().map(|t| t.join().unwrap().dir).collect();
        assert!(dirs.windows(2).all(|w| w[0] == w[1]));
    });
    assert_eq!(fs::read_dir(&store.store).unwrap().count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// One byte anywhere: refused without a trace, or one of those bytes that say nothing (owners, times, …) and then
    /// the same profile.
    #[test]
    fn any_flipped_byte(at in 0_usize..20_000, bit in 0_u8..8) {
        let store = Store::new();
        let mut archive = tar_of(&good());
        let at = at % archive.len();
        archive[at] ^= 1 << bit;
        let before = store.content();
        match store.publish(&archive, &Limits::default()) {
            Err(Error::Refused { .. }) => prop_assert_eq!(store.content(), before),
            Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            Ok(published) => {
                let content = fs::read_to_string(published.dir.join("one/a.yaml")).unwrap();
                prop_assert_eq!(content, OBJECT);
            }
        }
    }

    /// Names of files, whatever they are: kept exactly or refused, never written elsewhere.
    #[test]
    fn any_file_name(path in "[ -~é/.\\\\]{1,60}") {
        let store = Store::new();
        let layer = gzip(&tar_of(&[Raw::file(&path, OBJECT), Raw::file("zz.yaml", OBJECT)]));
        let outside = store.content();
        match store.publish(&tar_of(&archive_with(&layer, "gzip")), &Limits::default()) {
            Err(Error::Refused { .. }) => prop_assert_eq!(store.content(), outside),
            Err(other) => return Err(TestCaseError::fail(format!("{other:?}"))),
            Ok(published) => {
                prop_assert_eq!(fs::read_to_string(published.dir.join("one").join(&path)).unwrap(), OBJECT);
                let mut now = store.content();
                now.retain(|place, _| !place.starts_with(&published.dir));
                prop_assert_eq!(now, outside);
            }
        }
    }
}
