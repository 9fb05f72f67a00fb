//! Site files: whatever the bytes, there is a configuration, or errors that each have a place in the file and can be
//! shown. A valid file means the same to another reader, and written in other words; no error repeats a secret.
//!
//! Bytes are a file. After a line `secret`, they are the rest of a secret in an otherwise valid file.

#![no_main]

use std::path::Path;

use edge_agent::site;
use edge_api::agent::ValidationError;
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

fuzz_target!(|bytes: &[u8]| {
    match bytes.strip_prefix(b"secret\n") {
        Some(rest) => secret(&String::from_utf8_lossy(rest)),
        None => file(bytes),
    }
});

fn file(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let site = match site::load_bytes(bytes) {
        Ok(site) => site,
        Err(errors) => return check(&text, &errors),
    };
    assert!(site::diff(&site, &site).is_empty());
    assert_eq!(site::as_installed(&site, &site).networks, site::effective_networks(&site));
    assert!(!site::effective_networks(&site).is_empty());
    assert!(!site::effective_pools(&site, Path::new("/root")).is_empty());
    site::notes(&site);
    site::proxy_certificates(&site);
    let other: Value = serde_saphyr::from_slice(bytes).unwrap_or_else(|e| panic!("another reader refuses it: {e}"));
    let again = site::load(&other.to_string()).unwrap_or_else(|errors| panic!("refused as {other}: {errors:#?}"));
    assert_eq!(again, site, "another reader sees {other}");
}

/// Errors are few, each stands in the file, and none holds what a terminal would obey.
fn check(text: &str, errors: &[ValidationError]) {
    assert!((1..=101).contains(&errors.len()), "{} errors", errors.len());
    // A carriage return alone ends a line of YAML as well.
    let lines: Vec<_> = text.lines().flat_map(|line| line.split('\r')).map(|line| line.chars().count()).collect();
    for error in errors {
        let ValidationError { line, column, field, found, expected, hint } = error;
        // The end of the file may be named as the line behind the last one, the end of a line as the column behind it.
        assert!(*line as usize <= lines.len() + 1, "{error:?}: the file has {} lines", lines.len());
        let width = lines.get((*line as usize).saturating_sub(1)).copied().unwrap_or_default();
        assert!(*column as usize <= width + 2, "{error:?}: the line has {width} characters");
        for shown in [field, found, expected, hint.as_ref().unwrap_or(&String::new())] {
            assert!(shown.len() < 2000 && !shown.contains(char::is_control), "{error:?}");
        }
    }
}

fn secret(rest: &str) {
    const SECRET: &str = "hunter2";
    let url = format!("http://user:{SECRET}{rest}");
    let file = json!({
        "proxy": {"http": url, "https": url},
        "hub": {"endpoint": "hub.example.com", "pairing_code": format!("{SECRET}{rest}")},
    });
    match site::load(&file.to_string()) {
        Ok(site) => assert!(!format!("{site:?}").contains(SECRET), "{site:?}"),
        Err(errors) => assert!(!format!("{errors:?}").contains(SECRET), "{errors:?}"),
    }
}
