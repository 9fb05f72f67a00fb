//! YAML as a tree that knows its lines, rendered scalar by scalar and written again by a writer of our own.
//!
//! Read by the rules of YAML 1.2's core schema, with one old habit kept because `kubectl` has it: an integer with a
//! leading zero is octal (`defaultMode: 0644`). Aliases and tags beyond the core schema are refused: a profile has no
//! need of them, and a bomb is made of them.

use std::collections::HashSet;
use std::fmt::Write as _;

use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

use crate::error::Error;
use crate::template::Renderer;

/// Nodes one file may have.
const MAX_NODES: usize = 200_000;
/// How deep they may be nested.
const MAX_DEPTH: usize = 128;
/// Characters up to which readers take a text before a colon for a key; YAML allows 1024 with the colon.
const MAX_IMPLICIT_KEY: usize = 1000;

/// A node with the line it begins on.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub line: usize,
    pub kind: Kind,
}

/// What a node is. Mappings keep the order of the file.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A scalar; `Value` is never a list or mapping before rendering.
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A mapping's key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub line: usize,
    pub text: String,
}

impl Node {
    /// The value below a key.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Items, where this is a list.
    pub fn items(&self) -> &[Node] {
        match &self.kind {
            Kind::List(items) => items,
            _ => &[],
        }
    }

    /// The tree without lines.
    pub fn to_json(&self) -> Value {
        match &self.kind {
            Kind::Scalar(value) => value.clone(),
            Kind::List(items) => items.iter().map(Node::to_json).collect(),
            Kind::Map(entries) => {
                entries.iter().map(|(k, n)| (k.text.clone(), n.to_json())).collect::<Map<_, _>>().into()
            }
        }
    }

    /// The same tree with every key and text rendered.
    pub fn render(&self, file: &str, renderer: &Renderer) -> Result<Node, Error> {
        let located = |line: usize| {
            move |e: crate::template::TemplateError| Error::invalid(file, line + e.line_offset, e.message)
        };
        let kind = match &self.kind {
            Kind::Scalar(Value::String(text)) => Kind::Scalar(renderer.value(text).map_err(located(self.line))?),
            Kind::Scalar(value) => Kind::Scalar(value.clone()),
            Kind::List(items) => Kind::List(items.iter().map(|n| n.render(file, renderer)).collect::<Result<_, _>>()?),
            Kind::Map(entries) => {
                let mut out: Vec<(Key, Node)> = Vec::with_capacity(entries.len());
                let mut seen = HashSet::new();
                for (key, node) in entries {
                    let text = renderer.text(&key.text).map_err(located(key.line))?;
                    if !seen.insert(text.clone()) {
                        return Err(Error::invalid(file, key.line, format!("key {text:?} is there twice")));
                    }
                    out.push((Key { line: key.line, text }, node.render(file, renderer)?));
                }
                Kind::Map(out)
            }
        };
        Ok(Node { line: self.line, kind })
    }
}

/// Reads all documents of a file; empty ones are left out.
pub(crate) fn parse(file: &str, text: &str) -> Result<Vec<Node>, Error> {
    let mut builder = Builder { file, open: Vec::new(), done: Vec::new(), nodes: 0 };
    for event in Parser::new_from_str(text) {
        let (event, span) = event.map_err(|e| Error::invalid(file, e.marker().line(), e.info()))?;
        builder.event(event, span.start.line())?;
    }
    Ok(builder.done.into_iter().filter(|node| !matches!(node.kind, Kind::Scalar(Value::Null))).collect())
}

/// Reads a file that holds one document.
pub(crate) fn parse_one(file: &str, text: &str) -> Result<Node, Error> {
    let mut documents = parse(file, text)?;
    match (documents.pop(), documents.len()) {
        (Some(node), 0) => Ok(node),
        (None, _) => Err(Error::invalid(file, 0, "is empty")),
        (Some(node), _) => Err(Error::invalid(file, node.line, "a second document; one is expected here")),
    }
}

enum Open {
    List(usize, Vec<Node>),
    Map(OpenMap),
}

/// A mapping that is being read.
struct OpenMap {
    line: usize,
    entries: Vec<(Key, Node)>,
    pending: Option<Key>,
    /// Keys so far: looking through `entries` would take forever in a hostile file.
    keys: HashSet<String>,
}

struct Builder<'f> {
    file: &'f str,
    open: Vec<Open>,
    done: Vec<Node>,
    nodes: usize,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, line: usize) -> Result<(), Error> {
        let core = |tag: &granit_parser::Tag| tag.is_yaml_core_schema();
        match event {
            Event::Alias(_) => {
                Err(Error::invalid(self.file, line, "aliases (`*name`) are not supported; repeat the value"))
            }
            Event::Scalar(text, style, _, tag) => {
                let value = match tag.as_deref() {
                    None if style == ScalarStyle::Plain => self.plain(&text, line)?,
                    Some(tag) if core(tag) && tag.suffix() != "str" => self.plain(&text, line)?,
                    Some(tag) if !core(tag) && tag.suffix() != "!" => return Err(self.tag(line)),
                    _ => Value::String(text.into_owned()),
                };
                self.push(Node { line, kind: Kind::Scalar(value) })
            }
            Event::SequenceStart(_, _, tag) | Event::MappingStart(_, _, tag)
                if tag.as_deref().is_some_and(|t| !core(t)) =>
            {
                Err(self.tag(line))
            }
            Event::SequenceStart(..) => self.begin(Open::List(line, Vec::new()), line),
            Event::MappingStart(..) => {
                let map = OpenMap { line, entries: Vec::new(), pending: None, keys: HashSet::new() };
                self.begin(Open::Map(map), line)
            }
            Event::SequenceEnd | Event::MappingEnd => match self.open.pop() {
                Some(Open::List(line, items)) => self.push(Node { line, kind: Kind::List(items) }),
                Some(Open::Map(map)) => self.push(Node { line: map.line, kind: Kind::Map(map.entries) }),
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn tag(&self, line: usize) -> Error {
        Error::invalid(self.file, line, "tags other than those of YAML's core schema are not supported")
    }

    fn begin(&mut self, open: Open, line: usize) -> Result<(), Error> {
        if matches!(self.open.last(), Some(Open::Map(map)) if map.pending.is_none()) {
            let hint = "a key has to be a text; a template as a value needs quotes: key: \"{{ … }}\"";
            return Err(Error::invalid(self.file, line, hint));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(Error::invalid(self.file, line, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        self.open.push(open);
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<(), Error> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(Error::invalid(self.file, node.line, format!("more than {MAX_NODES} values")));
        }
        match self.open.last_mut() {
            None => self.done.push(node),
            Some(Open::List(_, items)) => items.push(node),
            Some(Open::Map(map)) => {
                if let Some(key) = map.pending.take() {
                    map.entries.push((key, node));
                    return Ok(());
                }
                let text = match node.kind {
                    Kind::Scalar(Value::String(text)) => text,
                    Kind::Scalar(value) => value.to_string(),
                    Kind::List(_) | Kind::Map(_) => return Ok(()),
                };
                if !map.keys.insert(text.clone()) {
                    return Err(Error::invalid(self.file, node.line, format!("key {text:?} is there twice")));
                }
                map.pending = Some(Key { line: node.line, text });
            }
        }
        Ok(())
    }

    fn plain(&self, text: &str, line: usize) -> Result<Value, Error> {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
            "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
            ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | ".nan" | ".NaN" | ".NAN" => {
                return Err(Error::invalid(self.file, line, format!("{text} has no place in Kubernetes; quote it")));
            }
            _ => {}
        }
        let (negative, digits) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        if !digits.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Ok(Value::String(text.to_owned()));
        }
        let integer = if let Some(hex) = digits.strip_prefix("0x") {
            radix(hex, 16)
        } else if let Some(octal) = digits.strip_prefix("0o") {
            radix(octal, 8)
        } else if digits.len() > 1 && digits.starts_with('0') {
            radix(&digits[1..], 8)
        } else {
            radix(digits, 10)
        };
        if let Some(magnitude) = integer {
            let number = match (negative, i64::try_from(magnitude)) {
                (false, _) => Number::from(magnitude),
                (true, Ok(value)) => Number::from(-value),
                (true, Err(_)) => return Ok(Value::String(text.to_owned())),
            };
            return Ok(Value::Number(number));
        }
        let float = digits.bytes().all(|c| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'+' | b'-'))
            && digits.bytes().any(|c| c.is_ascii_digit());
        let number = float.then(|| text.parse::<f64>().ok().and_then(Number::from_f64)).flatten();
        Ok(number.map_or_else(|| Value::String(text.to_owned()), Value::Number))
    }
}

/// Digits of a radix; `from_str_radix` alone would also take a sign.
fn radix(digits: &str, radix: u32) -> Option<u64> {
    let plain = !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    plain.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// Writes a tree as YAML that readers of YAML 1.1 and 1.2 understand alike: every text in double quotes.
pub(crate) fn write(node: &Node) -> String {
    let mut out = String::new();
    match &node.kind {
        Kind::Scalar(_) | Kind::List(_) | Kind::Map(_) if is_flow(node) => {
            flow(node, &mut out);
            out.push('\n');
        }
        _ => block(node, 0, &mut out),
    }
    out
}

/// What stands on one line: scalars (also lists and mappings that an expression gave) and empty collections.
fn is_flow(node: &Node) -> bool {
    match &node.kind {
        Kind::Scalar(_) => true,
        Kind::List(items) => items.is_empty(),
        Kind::Map(entries) => entries.is_empty(),
    }
}

fn flow(node: &Node, out: &mut String) {
    match &node.kind {
        Kind::Scalar(value) => flow_value(value, out),
        Kind::List(_) => out.push_str("[]"),
        Kind::Map(_) => out.push_str("{}"),
    }
}

fn flow_value(value: &Value, out: &mut String) {
    match value {
        Value::String(text) => quoted(text, out),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                flow_value(item, out);
            }
            out.push(']');
        }
        Value::Object(map) => {
            out.push('{');
            for (index, (key, item)) in map.iter().enumerate() {
                if index > 0 {
                    out.push_str(", ");
                }
                let explicit = write_key(key, out);
                out.push_str(if explicit { " : " } else { ": " });
                flow_value(item, out);
            }
            out.push('}');
        }
        other => {
            let _ = write!(out, "{other}");
        }
    }
}

fn block(node: &Node, indent: usize, out: &mut String) {
    let mut entry = |lead: &dyn Fn(&mut String), child: &Node| {
        out.extend(std::iter::repeat_n(' ', indent));
        lead(out);
        if is_flow(child) {
            out.push(' ');
            flow(child, out);
            out.push('\n');
        } else {
            out.push('\n');
            block(child, indent + 2, out);
        }
    };
    match &node.kind {
        Kind::Scalar(_) => {}
        Kind::List(items) => items.iter().for_each(|item| entry(&|out| out.push('-'), item)),
        Kind::Map(entries) => {
            for (key, child) in entries {
                let lead = |out: &mut String| {
                    if write_key(&key.text, out) {
                        out.push('\n');
                        out.extend(std::iter::repeat_n(' ', indent));
                    }
                    out.push(':');
                };
                entry(&lead, child);
            }
        }
    }
}

/// Writes a key, and tells whether it is an explicit one (`? key`), as YAML wants it of long ones.
fn write_key(text: &str, out: &mut String) -> bool {
    let start = out.len();
    if is_plain_key(text) {
        out.push_str(text);
    } else {
        quoted(text, out);
    }
    let explicit = out[start..].chars().count() > MAX_IMPLICIT_KEY;
    if explicit {
        out.insert_str(start, "? ");
    }
    explicit
}

/// Keys that need no quotes in any version of YAML. Short words such as `y`, `on` or `no` are booleans to some.
fn is_plain_key(text: &str) -> bool {
    text.len() > 5
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

fn quoted(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Line breaks to YAML 1.1, byte order marks and what YAML calls unprintable.
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
#[path = "yaml_tests.rs"]
mod tests;
