//! The site file, `unattended.yaml` (R-8 to R-10): from bytes to a [`SiteConfig`], or to every error at once.
//!
//! ```text
//! bytes ─ text ─► tree      positions, hard limits before anything is built
//!         tree ─► shape     JSON Schema of the types; pointers become lines and columns
//!         syntax            one error for YAML that cannot be read, with hints for paste damage
//!         tree ─► rules     addresses, networks, proxy, certificates, names: what spans fields
//!         tree ─► SiteConfig, where nothing was found
//! ```
//!
//! Rules read the tree, not the types, and skip what the schema already refused: so one bad field hides no other.
//! Pure but for [`read`].

mod damage;
mod defaults;
mod diff;
mod report;
mod rules;
mod shape;
mod syntax;
mod tree;
mod values;

#[cfg(test)]
mod tests;

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use edge_api::SiteConfig;
use edge_api::agent::ValidationError;
use serde_json::Value;

pub use defaults::{effective_networks, effective_pools};
pub use diff::{Changes, as_installed, diff};
pub use shape::schema;

use report::Report;

/// Largest site file that is looked at, in bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// Commented example of a site file; its first line points editors to the schema beside it.
pub const TEMPLATE: &str = include_str!("template.yaml");

/// File name that [`TEMPLATE`] names for the schema.
pub const SCHEMA_FILE: &str = "unattended.schema.json";

/// Reads at most one byte more than [`MAX_BYTES`] of a regular file, so that [`load_bytes`] can refuse a bigger one
/// without having read it.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    // Not blocking: somebody may have put a FIFO there.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Checks a site file given as bytes; see [`load`].
pub fn load_bytes(bytes: &[u8]) -> Result<SiteConfig, Vec<ValidationError>> {
    match syntax::text(bytes) {
        Ok(text) => load(text),
        Err(error) => Err(vec![error]),
    }
}

/// Checks a site file; all errors at once (R-10), in the order of their place.
pub fn load(text: &str) -> Result<SiteConfig, Vec<ValidationError>> {
    let text = syntax::text(text.as_bytes()).map_err(|error| vec![error])?;
    let mut report = Report::new(text);
    let blank = (
        "at least one field, for instance `device_id: store-1`",
        "the commented template beside the file shows every field",
    );
    let Some(root) = read_tree(text, blank, &mut report) else { return Err(report.finish()) };
    shape::check(&root, schema(), &mut report);
    rules::check(&root, &mut report);
    if !report.is_empty() {
        return Err(report.finish());
    }
    serde_json::from_value(root.to_json(false)).map_err(|_| {
        // Schema and types come from one place; this would be a fault of ours. serde's text may repeat a secret.
        report.unplaced("a file that fits the schema but not its types", "a file that fits both");
        report.finish()
    })
}

/// Checks any other file of one YAML document against a JSON Schema, as a site file is read; `blank` is what is
/// expected of an empty one, and a hint. Its content as JSON, without keys that have no value, or all errors at once.
pub fn document(bytes: &[u8], schema: Value, blank: (&str, &str)) -> Result<Value, Vec<ValidationError>> {
    let text = syntax::text(bytes).map_err(|error| vec![error])?;
    let mut report = Report::new(text);
    let Some(root) = read_tree(text, blank, &mut report) else { return Err(report.finish()) };
    shape::check(&root, schema, &mut report);
    if report.is_empty() { Ok(root.to_json(false)) } else { Err(report.finish()) }
}

/// The tree of a text; `None` where it cannot be read, which the report then tells.
fn read_tree<'t>(text: &'t str, blank: (&str, &str), report: &mut Report<'t>) -> Option<tree::Node> {
    if syntax::indentation(text, report) {
        return None;
    }
    tree::parse(text, blank, report)
}

/// What a person should know about a valid site file: parts of it that this version accepts and does not use yet.
pub fn notes(site: &SiteConfig) -> Vec<String> {
    let mut notes = Vec::new();
    if site.hub.is_some() {
        notes.push("hub: accepted, but pairing with a hub is not in this version".to_owned());
    }
    notes
}

/// PEM of the certificates to trust behind the proxy, one each; every entry of the site file may hold several.
pub fn proxy_certificates(site: &SiteConfig) -> Vec<String> {
    const END: &str = "-----END CERTIFICATE-----";
    let entries = site.proxy.iter().flat_map(|proxy| &proxy.ca_certificates);
    let texts = entries.filter_map(|entry| {
        let compact: String = entry.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        String::from_utf8(values::BASE64.decode(compact).ok()?).ok()
    });
    let mut all = Vec::new();
    for text in texts {
        // What stands between certificates is for people.
        for part in text.split_inclusive(END) {
            if let Some(at) = part.find("-----BEGIN CERTIFICATE-----").filter(|_| part.ends_with(END)) {
                all.push(format!("{}\n", &part[at..]));
            }
        }
    }
    all
}
