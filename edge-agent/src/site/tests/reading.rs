//! Files as text: broken, damaged by copying, hostile.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

#[test]
fn broken_yaml_has_one_error_at_its_place() {
    for (text, place, hint) in [
        ("router:\n\tlan_ip: 1.2.3.4/24\n", (2, 1), "tab"),
        ("mode: standalone\n  device_id: a\n", (2, 12), "indented"),
        ("device_id: \"abc\nmode: standalone\n", (2, 1), "close the quote"),
        ("device_id: [a, b\n", (1, 12), "quotes"),
        ("```yaml\ndevice_id: a\n```\n", (1, 1), "code fence"),
        ("device_id: a\n```\n", (2, 1), "code fence"),
        ("router:\n\u{a0}\u{a0}lan_ip: 1.2.3.4/24\n", (2, 1), "U+00A0"),
        ("\u{200b}device_id: a\n", (1, 1), "U+200B"),
        ("device_id:\u{a0}a\nmode: standalone\n", (2, 5), "line 1: column 11"),
        ("networks:\n  – name: wan\n    type: nat\n", (3, 9), "line 2: column 3 holds –"),
        ("* device_id: a\n", (1, 1), "Markdown"),
        ("%YAML 1.2\n---\ndevice_id: a\n", (1, 1), "quotes"),
        ("device_id: a\n---\ndevice_id: b\n", (2, 1), "another document"),
        ("device_id: @store\n", (1, 12), "quotes"),
        ("", (1, 1), "template"),
        ("\n# only a comment\n", (1, 1), "template"),
        ("---\n", (1, 1), "template"),
        ("just words\n", (1, 1), ""),
        ("- device_id: a\n", (1, 1), ""),
    ] {
        let found = errors(text);
        assert_eq!(found.len(), 1, "{text:?} {found:#?}");
        assert_eq!((found[0].line, found[0].column), place, "{text:?} {found:#?}");
        assert!(found[0].hint.as_deref().unwrap_or_default().contains(hint), "{text:?} {found:#?}");
    }
}

#[test]
fn paste_damage_within_values_is_named() {
    for (text, hint) in [
        ("device_id: “store-1”\n", "column 12 holds the typographic quote “"),
        ("device_id: store\u{2011}1\n", "column 17 holds"),
        ("device_id: store-1\u{200b}\n", "U+200B"),
        ("device_id: store\u{ad}1\n", "U+00AD"),
        ("\u{201c}device_id\u{201d}: store-1\n", "typographic quote"),
        ("router：\n  lan_ip: 1\n", "colon"),
    ] {
        let found = errors(text);
        assert!(found[0].hint.as_deref().unwrap_or_default().contains(hint), "{text:?} {found:#?}");
    }
    // What is right is not called damage, and comments may hold anything.
    assert!(load("device_id: store-1 # „Filiale“\u{a0}– Süd\n").is_ok());
}

#[test]
fn lines_end_as_yaml_ends_them() {
    for end in ["\n", "\r\n", "\r"] {
        let text = ["mode: standalone", "device_id: “a”", "hub: {endpoint: h}", "x: 1", ""].join(end);
        let found = errors(&text);
        let places: Vec<_> = found.iter().map(|error| (error.line, error.column)).collect();
        assert_eq!(places, [(2, 12), (4, 1)], "{end:?} {found:#?}");
        assert!(found[0].hint.as_deref().unwrap_or_default().contains("typographic quote"), "{end:?} {found:#?}");
        let binary = [text.as_bytes(), b"\xe9"].concat();
        assert_eq!(load_bytes(&binary).unwrap_err()[0].line, 5, "{end:?}");
    }
}

#[test]
fn encodings() {
    assert_eq!(
        load_bytes(b"\xef\xbb\xbfdevice_id: a\r\nmode: standalone\r\n").unwrap().device_id.as_deref(),
        Some("a")
    );
    for (bytes, place, found) in [
        (b"mode: standalone\ndevice_id: caf\xe9\n".as_slice(), (2, 15), "byte 0xe9 at offset 31"),
        (b"\xff\xfed\0".as_slice(), (1, 1), "UTF-16"),
        (b"device_id: \0\n".as_slice(), (1, 12), "zero byte at offset 11"),
    ] {
        let errors = load_bytes(bytes).unwrap_err();
        assert_eq!((errors.len(), errors[0].line, errors[0].column), (1, place.0, place.1), "{errors:?}");
        assert!(errors[0].found.contains(found), "{errors:?}");
    }
}

#[test]
fn anchors_aliases_tags_and_merges_are_refused_each_at_its_place() {
    refused_at(
        "device_id: &id store-1\nprofile: *id\nhost:\n  ntp: !!seq [a]\n",
        &[(1, 16, "device_id"), (2, 10, "profile"), (4, 8, "host.ntp")],
    );
    refused_at("host:\n  <<: *other\n", &[(2, 3, "host.<<"), (2, 7, "host.<<")]);
    refused_at("profile: *unknown\n", &[(1, 10, "profile")]);
    let billion_laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n";
    assert!(errors(billion_laughs).iter().any(|error| error.found.contains("anchor")));
}

#[test]
fn duplicate_keys_name_both_places() {
    let found = errors("device_id: a\nmode: standalone\ndevice_id: b\n");
    assert_eq!((found.len(), found[0].line, found[0].column), (1, 3, 1));
    assert!(found[0].found.contains("line 1, column 1"), "{found:?}");
    refused_at("host:\n  ntp: []\n  dns: []\n  ntp: []\n", &[(4, 3, "host.ntp")]);
}

#[test]
fn columns_count_characters() {
    refused_at("host: {ntp: ['ä ö', '日 本']}\n", &[(1, 14, "host.ntp[0]"), (1, 21, "host.ntp[1]")]);
}

/// Limits hold before anything is built: no hostile file takes long.
#[test]
fn hostile_files_are_refused_quickly() {
    let mib = MAX_BYTES;
    let mut nested = String::new();
    for depth in 0..MAX_BYTES / 300 {
        let _ = writeln!(nested, "{}a:", " ".repeat(depth.min(250)));
    }
    for (name, text) in [
        ("brackets", "[".repeat(mib)),
        ("braces", "{a: ".repeat(mib / 4)),
        ("indentation", nested),
        ("dashes", "- ".repeat(mib / 2)),
        ("items", "- x\n".repeat(mib / 4)),
        ("one key", format!("{}: x\n", "k".repeat(mib - 4))),
        ("one value", format!("device_id: {}\n", "v".repeat(mib - 20))),
        ("keys", (0..9000).fold(String::new(), |all, n| all + &format!("k{n}: 1\n"))),
        ("same key", "device_id: x\n".repeat(9000)),
        ("anchors", (0..20000).fold(String::new(), |all, n| all + &format!("- &a{n} x\n"))),
        ("aliases", "- *a\n".repeat(mib / 5)),
        ("comments", "# x\n".repeat(mib / 4)),
        ("line breaks", "\n".repeat(mib)),
        ("quotes", "\"".repeat(mib)),
        ("question marks", "? ".repeat(mib / 2)),
        ("spaces before text", "\u{a0}x\n".repeat(mib / 4)),
        ("tags", "- !!str x\n".repeat(mib / 10)),
        ("networks", "networks:\n".to_owned() + &"  - {name: a, type: isolated}\n".repeat(4500)),
        (
            "pools",
            (0..4500).fold("storage_pools:\n".to_owned(), |all, n| all + &format!("  - {{name: a, path: /{n}}}\n")),
        ),
        ("no_proxy", format!("proxy: {{no_proxy: '{}'}}\n", ",".repeat(mib / 2))),
    ] {
        let start = Instant::now();
        let found = load(&text).expect_err(name);
        let took = start.elapsed();
        assert!(took < Duration::from_secs(5), "{name} took {took:?}");
        assert!(!found.is_empty() && found.len() <= 101, "{name}");
        assert!(found.iter().all(|error| error.found.len() < 1000 && error.field.len() < 1000), "{name} {found:?}");
    }
    assert_eq!(load(&"x".repeat(mib + 1)).unwrap_err()[0].found, "a bigger file");
}

#[test]
fn a_huge_file_is_refused_without_being_read() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(100 * 1024 * 1024).unwrap();
    let bytes = read(file.path()).unwrap();
    assert_eq!(bytes.len(), MAX_BYTES + 1);
    assert_eq!(load_bytes(&bytes).unwrap_err()[0].found, "a bigger file");
}

#[test]
fn only_regular_files_are_read() {
    let dir = tempfile::tempdir().unwrap();
    assert!(read(dir.path()).is_err());
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    assert!(read(&fifo).is_err());
    assert!(read(Path::new("/dev/zero")).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = load_bytes(&bytes);
    }

    #[test]
    fn no_text_panics(text in "([ -~\u{a0}\u{200b}“”–\t\n日]|device_id|router:|- |: |\n  ){0,120}") {
        if let Err(errors) = load(&text) {
            prop_assert!(!errors.is_empty());
            prop_assert!(errors.is_sorted_by_key(|error| (error.line == 0, error.line, error.column)));
        }
    }

    #[test]
    fn no_edit_of_a_valid_file_panics(at in 0usize..3000, insert in "[ -~\n\t“\u{a0}]{0,3}", cut in 0usize..4) {
        let full: String = TEMPLATE.lines().map(|line| line.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(line).to_owned() + "\n").collect();
        let mut chars: Vec<char> = full.chars().collect();
        let at = at.min(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, insert.chars());
        let text: String = chars.into_iter().collect();
        if let Err(errors) = load(&text) {
            let lines = text.lines().count() as u32;
            prop_assert!(errors.iter().all(|error| error.line <= lines + 1), "{:?}", errors);
        }
    }
}
