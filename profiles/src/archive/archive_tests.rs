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
    mode: u32,
}

impl Raw {
    fn file(path: &str, content: impl Into<Vec<u8>>) -> Self {
        Self {
            path: path.to_owned(),
            kind: EntryType::Regular,
            content: content.into(),
            size: None,
            link: "",
            mode: 0o644,
        }
    }

    fn special(path: &str, kind: EntryType, link: &'static str) -> Self {
        Self { path: path.to_owned(), kind, content: Vec::new(), size: None, link, mode: 0o777 }
    }
}

fn tar_of(entries: &[Raw]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..entry.path.len()].copy_from_slice(entry.path.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
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
}

#[test]
fn pax_records_that_change_what_follows() {
    let records = [
        "20 path=../../etc/x\n",
        "24 linkpath=/etc/passwd\n",
        "16 size=1000000\n",
        // A sparse file in each of GNU tar's three formats.
        "22 GNU.sparse.major=1\n",
        "27 GNU.sparse.size=1000000\n",
        "28 GNU.sparse.map=0,1,999,1\n",
        "31 GNU.sparse.realsize=1000000\n",
        "24 GNU.sparse.name=../x\n",
        // Behind one that says nothing.
        "11 mtime=1\n16 size=1000000\n",
        // Lies about their own length.
        "99 mtime=1\n",
        "mtime=1\n",
        "0 x=1\n",
        "-6 x=1\n",
        "99999999999999999999 x=1\n",
    ];
    for record in records {
        for kind in [EntryType::XHeader, EntryType::XGlobalHeader] {
            let pax = Raw { kind, ..Raw::file("PaxHeaders/x", record) };
            let mut entries = good();
            entries.insert(0, pax.clone());
            refuses(&entries, "a PAX record");
            refuses_layer(&[pax, Raw::file("a.yaml", OBJECT)], "a PAX record");
        }
    }
    // More than anybody has to say.
    let long =
        Raw { kind: EntryType::XHeader, ..Raw::file("PaxHeaders/x", format!("100010 x={}\n", "y".repeat(100_000))) };
    refuses_layer(&[long], "a PAX header of layer one has 100010 bytes");
}

#[test]
fn sizes_that_are_no_sizes() {
    // GNU's binary form: 1 as others write it in digits, 2^64 + 1 that some read as 1, the greatest, and -1.
    let mut fields = vec![[0; 12], [0; 12], [0xff; 12], [0xff; 12]];
    fields[0][11] = 1;
    (fields[1][3], fields[1][11]) = (1, 1);
    fields[2][..4].fill(0);
    fields[..3].iter_mut().for_each(|field| field[0] |= 0x80);
    for digits in ["-1", "1x", "0x10", "99999999999", ""] {
        let mut field = [0; 12];
        field[..digits.len()].copy_from_slice(digits.as_bytes());
        fields.push(field);
    }
    for field in fields {
        let mut tar = tar_of(&[Raw::file("a.yaml", "x")]);
        let mut header = Header::from_byte_slice(&tar[..512]).clone();
        header.as_old_mut().size = field;
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        refuses(&archive_with(&gzip(&tar), "gzip"), "its size is");
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
        (EntryType::GNULongLink, "a long name"),
        // Multi-volume, volume label, dump of a folder, Solaris' extended header, contiguous file.
        (EntryType::new(b'M'), "of an unknown type"),
        (EntryType::new(b'V'), "of an unknown type"),
        (EntryType::new(b'D'), "of an unknown type"),
        (EntryType::new(b'X'), "of an unknown type"),
        (EntryType::Continuous, "of an unknown type"),
    ];
    for (kind, expected) in specials {
        let mut entries = good();
        entries.insert(0, Raw::special("index.json", kind, "/etc/passwd"));
        refuses(&entries, expected);
        refuses_layer(&[Raw::special("a.yaml", kind, "/etc/passwd"), Raw::file("b.yaml", OBJECT)], expected);
        // With content, as some readers skip and some do not.
        let full = Raw { kind, link: "/etc/passwd", ..Raw::file("a.yaml", OBJECT) };
        refuses_layer(&[full, Raw::file("b.yaml", OBJECT)], expected);
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
    // Entries that would write through a link, or change the mode of what it leads to.
    for (kind, expected) in [(EntryType::Symlink, "a symbolic link"), (EntryType::Link, "a hard link")] {
        for second in
            [Raw::file("out", "x"), Raw::special("out/", EntryType::Directory, ""), Raw::special("out", kind, "")]
        {
            refuses_layer(&[Raw::special("out", kind, "/tmp"), second], expected);
        }
    }
}

#[test]
fn modes_are_for_the_owner_alone() {
    let store = Store::new();
    let file = |path: &str, mode| Raw { mode, ..Raw::file(path, OBJECT) };
    let folder = Raw { mode: 0o7777, ..Raw::special("sub/", EntryType::Directory, "") };
    let layer =
        gzip(&tar_of(&[file("a.yaml", 0o7666), file("b.sh", 0o6755), folder, file("sub/c", 0), file("new/d", 0o777)]));
    let dir = store.publish(&tar_of(&archive_with(&layer, "gzip")), &Limits::default()).unwrap().dir.join("one");
    let expected = [("", 0o700), ("a.yaml", 0o600), ("b.sh", 0o700), ("sub", 0o700), ("sub/c", 0o600), ("new", 0o700)];
    for (path, mode) in expected {
        assert_eq!(fs::metadata(dir.join(path)).unwrap().permissions().mode() & 0o7777, mode, "{path}");
    }
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
    // A window that would take 128 MiB of memory.
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    encoder.window_log(27).unwrap();
    encoder.write_all(&tar_of(&[Raw::file("a.yaml", OBJECT)])).unwrap();
    refuses(&archive_with(&encoder.finish().unwrap(), "zstd"), "could not be read at layer one");
    // Declared sizes that nobody could keep: refused before anything is read or reserved.
    for (size, expected) in [(1 << 40, "its size is in binary"), ((8 << 30) - 1, "at most")] {
        let mut entries = good();
        entries[4].size = Some(size);
        refuses(&entries, expected);
        let mut entries = good();
        entries[1].size = Some(size);
        refuses(&entries, expected);
        let mut huge = Raw::file("a.yaml", "x");
        huge.size = Some(size);
        refuses_layer(&[huge], expected);
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
    // A million entries of a layer, with a ratio that lets them pass: files, and one folder again and again.
    let limits = Limits { ratio: 10_000, ..Limits::default() };
    for name in [|n: u32| format!("{n}"), |_| "a/".to_owned()] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        for chunk in 0..1000 {
            let kind = |name: &str| if name.ends_with('/') { EntryType::Directory } else { EntryType::Regular };
            let names = (0..1000).map(|n| name(chunk * 1000 + n));
            let entries: Vec<_> = names.map(|name| Raw::special(&name, kind(&name), "")).collect();
            let tar = tar_of(&entries);
            encoder.write_all(&tar[..tar.len() - 1024]).unwrap();
        }
        encoder.write_all(&[0; 1024]).unwrap();
        let archive = tar_of(&archive_with(&encoder.finish().unwrap(), "zstd"));
        Store::new().refuses(&archive, &limits, "layer one has more than 20000 entries");
    }
    // Few entries that bring many folders.
    let deep: Vec<_> = (0..30).map(|n| Raw::file(&format!("{n:03}{}x", "/d".repeat(47)), "")).collect();
    let limits = Limits { unpacked_entries: 1000, ..Limits::default() };
    let archive = tar_of(&archive_with(&gzip(&tar_of(&deep)), "gzip"));
    Store::new().refuses(&archive, &limits, "layer one has more than 1000 entries");
    // As the archive's own.
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

#[test]
fn only_the_profile_that_is_in_use_stays() {
    let store = Store::new();
    let used = store.publish(&tar_of(&good()), &Limits::default()).unwrap();
    fs::write(store.store.join("notes.txt"), "somebody's").unwrap();
    let removed = keep_only(&store.store, used.digest).unwrap();
    assert!(removed.len() == 1 && removed[0] != used.digest);
    let mut left: Vec<_> = fs::read_dir(&store.store).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    let mut expected = [used.digest.hex().into(), std::ffi::OsString::from("notes.txt")];
    expected.sort();
    assert_eq!(left, expected);
    assert_eq!(keep_only(&store.store, used.digest).unwrap(), []);
}
