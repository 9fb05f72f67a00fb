//! The JSON Schema of the site file, and violations of a schema in words that a technician reads.
//!
//! Schemas derive from the types. The validator finds what is wrong and where; what was expected is told from the
//! part of the schema at that place, so that every kind of error about a field reads the same.

use edge_api::SiteConfig;
use ipnet::Ipv4Net;
use jsonschema::error::ValidationErrorKind as Kind;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};

use super::report::Report;
use super::tree::{Content, Node, shown};

/// Fields whose values are never repeated.
const SECRET: [&str; 3] = ["proxy.http", "proxy.https", "hub.pairing_code"];

/// The JSON Schema of the site file, for editors.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(SiteConfig).to_value();
    if let Some(object) = schema.as_object_mut() {
        object.insert("title".to_owned(), Value::from("PCG-Edge site file (unattended.yaml)"));
    }
    schema
}

/// Reports every violation of a schema.
pub fn check(root: &Node, mut schema: Value, report: &mut Report<'_>) {
    without_null(&mut schema);
    let options =
        jsonschema::options().should_validate_formats(true).with_format("ipv4-cidr", |text: &str| net(text).is_some());
    let validator = match options.build(&schema) {
        Ok(validator) => validator,
        Err(error) => return report.unplaced(&format!("a schema that cannot be used: {error}"), "a sound one"),
    };
    let json = root.to_json(true);
    let places = Places { root, schema: &schema };
    for error in validator.iter_errors(&json) {
        if report.is_full() {
            report.at(root, "another error", "", None);
            continue;
        }
        let pointer = error.instance_path().as_str();
        let Some(node) = root.pointer(pointer) else { continue };
        match error.kind() {
            Kind::AdditionalProperties { unexpected } => {
                for key in unexpected {
                    if report.is_full() {
                        report.at(node, "another unknown field", "", None);
                    } else {
                        places.unknown(pointer, node, key, report);
                    }
                }
            }
            Kind::Required { property } => {
                if let Some(key) = property.as_str() {
                    places.missing(pointer, node, key, report);
                }
            }
            _ => places.wrong(pointer, node, report),
        }
    }
}

/// The optional fields' `null` alternative is for editors. Here a key without a value counts as not set, and errors
/// about alternatives would hide those below them.
fn without_null(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            if let Some(types) = object.get_mut("type").filter(|t| t.is_array()) {
                let other = types.as_array().and_then(|list| list.iter().find(|t| *t != "null").cloned());
                *types = other.unwrap_or(Value::Null);
            }
            if let Some(Value::Array(alternatives)) = object.remove("anyOf") {
                let other = alternatives.into_iter().find(|a| a.get("type").is_none_or(|t| t != "null"));
                if let Some(Value::Object(other)) = other {
                    object.extend(other);
                }
            }
            object.values_mut().for_each(without_null);
        }
        Value::Array(items) => items.iter_mut().for_each(without_null),
        _ => {}
    }
}

/// An address with prefix length. Stricter than [`Ipv4Net`]'s own reading, which takes `010` for 10 where others take
/// it for 8.
pub fn net(text: &str) -> Option<Ipv4Net> {
    let (address, prefix) = text.split_once('/')?;
    let plain = prefix.bytes().all(|b| b.is_ascii_digit()) && (prefix == "0" || !prefix.starts_with('0'));
    Ipv4Net::new(address.parse().ok()?, prefix.parse().ok().filter(|_| plain)?).ok()
}

struct Places<'a> {
    root: &'a Node,
    schema: &'a Value,
}

impl Places<'_> {
    /// The part of the schema for a pointer into the document.
    fn schema_at(&self, pointer: &str) -> &Value {
        pointer.split('/').skip(1).fold(self.resolve(self.schema), |schema, token| {
            let named = schema.pointer(&format!("/properties/{token}"));
            let any = ["items", "additionalProperties"].into_iter().find_map(|key| schema.get(key));
            self.resolve(named.or(any).unwrap_or(&Value::Null))
        })
    }

    fn resolve<'v>(&'v self, schema: &'v Value) -> &'v Value {
        match schema.get("$ref").and_then(Value::as_str) {
            Some(reference) => self.schema.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null),
            None => schema,
        }
    }

    fn names(&self, pointer: &str) -> Vec<&str> {
        let properties = self.schema_at(pointer).get("properties").and_then(Value::as_object);
        properties.map(|p| p.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    fn unknown(&self, pointer: &str, node: &Node, key: &str, report: &mut Report<'_>) {
        let Some(entry) = node.entry(key) else { return };
        let names = self.names(pointer);
        let hint = self.meant(key, &names, node);
        let list = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let field = entry.value.path.clone();
        report.add(
            entry.key_place,
            field,
            format!("the unknown field `{}`", shown(key)),
            format!("one of {list}"),
            hint.as_deref(),
        );
    }

    fn meant(&self, key: &str, names: &[&str], node: &Node) -> Option<String> {
        let plain = plain(key);
        let distance = |name: &&&str| strsim::damerau_levenshtein(&plain, &self::plain(name));
        let near = names.iter().min_by_key(distance);
        if let Some(name) = near.filter(|name| distance(name) <= 1 + name.len() / 4) {
            return Some(format!("did you mean `{name}`?"));
        }
        let home = self.home(key).filter(|home| *home != node.path)?;
        Some(match home.as_str() {
            "" => format!("`{key}` belongs to the outermost fields; remove the spaces before it"),
            home => format!("`{key}` belongs under `{home}`; check the spaces before it"),
        })
    }

    /// Path of the mapping that has a field of this name, where there is only one.
    fn home(&self, key: &str) -> Option<String> {
        let mut homes = Vec::new();
        if self.names("").contains(&key) {
            homes.push(String::new());
        }
        for name in self.names("") {
            let pointer = format!("/{name}");
            if self.names(&pointer).contains(&key) {
                homes.push(name.to_owned());
            } else if self.names(&format!("{pointer}/0")).contains(&key) {
                homes.push(format!("{name}[…]"));
            }
            for below in self.names(&pointer) {
                if self.names(&format!("{pointer}/{below}")).contains(&key) {
                    homes.push(format!("{name}.{below}"));
                }
            }
        }
        homes.pop().filter(|_| homes.is_empty())
    }

    fn missing(&self, pointer: &str, node: &Node, key: &str, report: &mut Report<'_>) {
        if matches!(node.content, Content::Refused) {
            return;
        }
        let field = if node.path.is_empty() { key.to_owned() } else { format!("{}.{key}", node.path) };
        let schema = self.schema_at(&format!("{pointer}/{key}"));
        report.add(node.head, field, "nothing", expected(schema), Some("this field must be set"));
    }

    fn wrong(&self, pointer: &str, node: &Node, report: &mut Report<'_>) {
        let schema = self.schema_at(pointer);
        match &node.content {
            Content::Refused => {}
            Content::Null => {
                let (parent, key) = pointer.rsplit_once('/').unwrap_or_default();
                let required = self.schema_at(parent).get("required").and_then(Value::as_array);
                let required = required.is_some_and(|names| names.iter().any(|name| name == key));
                let item = self.root.pointer(parent).is_some_and(|p| matches!(p.content, Content::List(_)));
                if required {
                    report.at(node, "nothing", expected(schema), Some("this field must be set"));
                } else if item {
                    report.at(node, "nothing", expected(schema), Some("remove the empty list item"));
                }
            }
            _ => {
                let hint = hint(schema, node);
                report.at(node, found(node), expected_at(schema, &node.path), hint.as_deref());
            }
        }
    }
}

/// A name as it is compared: in small letters, its words parted by one `_`.
fn plain(name: &str) -> String {
    let words: String = name
        .chars()
        .take(64)
        .flat_map(|c| if c.is_uppercase() { vec!['_', c] } else { vec![c] })
        .flat_map(char::to_lowercase)
        .map(|c| if c == '-' || c == ' ' { '_' } else { c })
        .collect();
    words.trim_matches('_').replace("__", "_")
}

/// What stands there, without secrets.
pub fn found(node: &Node) -> String {
    let secret = SECRET.contains(&node.path.as_str());
    match &node.content {
        Content::Null | Content::Refused => "nothing".to_owned(),
        Content::Bool(_) if !secret => "`true` or `false`".to_owned(),
        Content::Number(text) if !secret => format!("the number {}", shown(text)),
        Content::Text(text) if !secret && text.contains("PRIVATE KEY") => "a private key".to_owned(),
        Content::Text(text) if !secret && text.is_empty() => "an empty text".to_owned(),
        Content::Text(text) if !secret => format!("`{}`", shown(text)),
        Content::Bool(_) | Content::Number(_) => "a number or `true`, not shown here".to_owned(),
        Content::Text(_) => "text that is not shown here".to_owned(),
        Content::List(_) => "a list".to_owned(),
        Content::Map(_) => "fields".to_owned(),
    }
}

fn expected_at(schema: &Value, path: &str) -> String {
    match path {
        // The schema knows `ha`, so that the rule about it can speak.
        "mode" => "`standalone`".to_owned(),
        "" => "fields, each as `name: value`".to_owned(),
        _ => expected(schema),
    }
}

/// What a part of the schema asks for.
fn expected(schema: &Value) -> String {
    let string = |key| schema.get(key).and_then(Value::as_str).unwrap_or_default();
    let most = |key| schema.get(key).and_then(Value::as_u64);
    let bound = |key| schema.get(key).and_then(Value::as_f64);
    if let Some(options) = schema.get("oneOf").and_then(Value::as_array) {
        let list: Vec<_> =
            options.iter().filter_map(|o| o.get("const").and_then(Value::as_str)).map(|o| format!("`{o}`")).collect();
        return format!("one of {}", list.join(", "));
    }
    if let Some(options) = schema.get("enum").and_then(Value::as_array) {
        let list: Vec<_> = options.iter().filter_map(Value::as_str).map(|o| format!("`{o}`")).collect();
        return format!("one of {}", list.join(", "));
    }
    match (string("type"), string("format"), string("pattern")) {
        ("string", "ipv4", _) => "an IPv4 address, for instance 192.168.200.1".to_owned(),
        ("string", "ipv4-cidr", _) => "an IPv4 address with prefix length, for instance 192.168.200.1/24".to_owned(),
        ("string", _, pattern) if pattern.starts_with(r"^[0-9]+\.") => "a version, for instance 1.36.3".to_owned(),
        ("string", _, pattern) if pattern.starts_with("^[0-9]+(-") => "numbers of CPUs, for instance 0-3,6".to_owned(),
        ("string", _, "^/") => "an absolute path, for instance /var/lib/pool".to_owned(),
        ("string", _, pattern) => {
            let least = most("minLength").unwrap_or(1);
            let length = most("maxLength").map(|most| format!("{least} to {most} ")).unwrap_or_default();
            if pattern.starts_with("^[a-z0-9]") {
                format!("{length}lower-case letters, digits, `-` and `.`, a letter or digit first and last")
            } else if pattern.starts_with("^[a-z]") {
                format!("{length}lower-case letters, digits and `-`, a letter first and no `-` last")
            } else if length.is_empty() {
                "text".to_owned()
            } else {
                format!("text of {length}characters")
            }
        }
        ("array", ..) => match (most("minItems"), most("maxItems")) {
            (Some(least), Some(most)) => format!("a list of {least} to {most} items"),
            (None, Some(most)) => format!("a list of at most {most} items"),
            (_, None) => "a list".to_owned(),
        },
        ("boolean", ..) => "`true` or `false`".to_owned(),
        ("integer", ..) => match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => format!("a whole number from {least} to {most}"),
            _ => "a whole number".to_owned(),
        },
        ("object", ..) => {
            let names = schema.get("properties").and_then(Value::as_object);
            let names = names.map(|p| p.keys().map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", "));
            format!("fields, indented below it: {}", names.unwrap_or_default())
        }
        _ => "another value".to_owned(),
    }
}

/// What may have happened, from what stands there and what was asked for.
fn hint(schema: &Value, node: &Node) -> Option<String> {
    let wanted = schema.get("type").and_then(Value::as_str).unwrap_or_default();
    let format = schema.get("format").and_then(Value::as_str).unwrap_or_default();
    let known = |hint: &str| Some(hint.to_owned());
    match (&node.content, wanted) {
        (Content::Number(_) | Content::Bool(_), "string") if format.is_empty() => {
            known("put it in quotes, so that it is read as text")
        }
        (Content::Text(_) | Content::Number(_) | Content::Bool(_), "array") => {
            known("put each item in a line of its own that starts with `- `, or all in [ ]")
        }
        (Content::Map(_), "array") => known("put `- ` before the first field of each item"),
        (Content::List(_), "object") => known("remove the `- ` before the fields"),
        (Content::Text(text), "string") if format.starts_with("ipv4") => address_hint(text, format == "ipv4-cidr"),
        (Content::Text(text), "string") if text.chars().any(char::is_uppercase) => {
            known("capital letters are not allowed")
        }
        (Content::Text(text), "string") if text.contains('_') => known("`_` is not allowed; use `-`"),
        _ => None,
    }
}

fn address_hint(text: &str, prefix: bool) -> Option<String> {
    let (address, rest) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
    let numbers: Vec<_> = address.split('.').collect();
    Some(match rest {
        _ if text.contains(char::is_whitespace) => "remove the spaces within the address".to_owned(),
        _ if address.parse::<IpAddr>().is_ok_and(|a| a.is_ipv6()) => "IPv6 is not in this version".to_owned(),
        None if prefix && address.parse::<Ipv4Addr>().is_ok() => {
            format!("add the prefix length of its network, for instance {address}/24")
        }
        Some(_) if !prefix && address.parse::<Ipv4Addr>().is_ok() => format!("write {address}, without the prefix"),
        Some(mask) if mask.parse::<Ipv4Addr>().is_ok() => {
            let mask = u32::from(mask.parse::<Ipv4Addr>().ok()?);
            format!("write the network mask as a number of bits: {address}/{}", mask.leading_ones())
        }
        Some(bits) if bits.parse::<u32>().is_ok_and(|bits| bits > 32) => "a prefix length is at most 32".to_owned(),
        _ if numbers.iter().any(|n| n.len() > 1 && n.starts_with('0')) => {
            "numbers of an address have no leading zeros".to_owned()
        }
        _ if numbers.iter().any(|n| n.parse::<u32>().is_ok_and(|n| n > 255)) => {
            "each number of an address is at most 255".to_owned()
        }
        _ => return None,
    })
}
