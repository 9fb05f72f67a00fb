//! A YAML document as a small tree with the place of every key and value.
//!
//! Built straight from parser events, with every limit checked before the node it concerns is stored. What a site file
//! has no use for (anchors, aliases, tags, directives, several documents) is refused, so that no expansion and no type
//! but JSON's can arise from the text.

use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span, StrInput};
use serde_json::{Map, Value};

use super::report::Report;
use super::syntax;

/// Deepest nesting of lists and mappings.
pub const MAX_DEPTH: usize = 32;
/// Most keys and values together.
pub const MAX_NODES: usize = 20_000;

/// Paths are not made longer than this, and a little.
const MAX_PATH: usize = 256;

/// Where something stands; from 1, columns in characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Place {
    pub line: u32,
    pub column: u32,
}

impl Place {
    fn of(mark: Marker) -> Self {
        Self { line: small(mark.line()), column: small(mark.col() + 1) }
    }
}

fn small(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// A value with its place and its path in dotted form.
#[derive(Debug)]
pub struct Node {
    pub place: Place,
    /// Where its key stands; the same as `place` without one.
    pub head: Place,
    pub path: String,
    pub content: Content,
}

/// What a value is.
#[derive(Debug)]
pub enum Content {
    /// No value, or `null`.
    Null,
    Bool(bool),
    /// A number, as it was written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Refused already: nothing more is said about it.
    Refused,
}

/// A key with its value.
#[derive(Debug)]
pub struct Entry {
    pub key: String,
    pub key_place: Place,
    pub value: Node,
}

impl Node {
    /// The value of a key, where this is a mapping that has it and it is not empty.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|entry| &entry.value).filter(|node| !matches!(node.content, Content::Null))
    }

    /// A key with its value, empty or not.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        match &self.content {
            Content::Map(entries) => entries.iter().find(|entry| entry.key == key),
            _ => None,
        }
    }

    /// The items of a list; none where this is no list.
    pub fn items(&self) -> &[Node] {
        match &self.content {
            Content::List(items) => items,
            _ => &[],
        }
    }

    /// The text of a text.
    pub fn text(&self) -> Option<&str> {
        match &self.content {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Follows a JSON pointer, `/networks/0/address`.
    pub fn pointer(&self, pointer: &str) -> Option<&Node> {
        pointer.split('/').skip(1).try_fold(self, |node, token| match &node.content {
            Content::Map(_) => node.entry(&token.replace("~1", "/").replace("~0", "~")).map(|entry| &entry.value),
            Content::List(items) => items.get(token.parse::<usize>().ok()?),
            _ => None,
        })
    }

    /// As JSON. Keys without a value count as not set and are left out, unless `nulls` wants them.
    pub fn to_json(&self, nulls: bool) -> Value {
        match &self.content {
            Content::Null | Content::Refused => Value::Null,
            Content::Bool(value) => Value::Bool(*value),
            Content::Number(text) => serde_json::from_str(text).unwrap_or_else(|_| Value::from(0)),
            Content::Text(text) => Value::String(text.clone()),
            Content::List(items) => Value::Array(items.iter().map(|item| item.to_json(nulls)).collect()),
            Content::Map(entries) => Value::Object(
                entries
                    .iter()
                    .filter(|entry| nulls || !matches!(entry.value.content, Content::Null))
                    .map(|entry| (entry.key.clone(), entry.value.to_json(nulls)))
                    .collect::<Map<_, _>>(),
            ),
        }
    }
}

/// Builds the tree. `None` where the text cannot be read at all; the report says why. `blank` is what is expected of an
/// empty one, and a hint.
pub fn parse<'t>(text: &'t str, blank: (&str, &str), report: &mut Report<'t>) -> Option<Node> {
    let mut options = granit_parser::options! {
        disallow_directives: true,
        emit_unresolved_aliases: true,
        flow_nesting_limit: MAX_DEPTH,
        block_nesting_limit: MAX_DEPTH,
    };
    options.set_emit_comments(false);
    let mut builder =
        Builder { events: Parser::new_from_str_with_options(text, options), text, report, nodes: 0, last: START };
    let root = builder.document(blank);
    root.ok().flatten()
}

const START: Place = Place { line: 1, column: 1 };

/// The text cannot be read any further; the report says why.
struct Stop;

struct Builder<'t, 'r> {
    events: Parser<'t, StrInput<'t>>,
    text: &'t str,
    report: &'r mut Report<'t>,
    nodes: usize,
    last: Place,
}

impl<'t> Builder<'t, '_> {
    fn document(&mut self, blank: (&str, &str)) -> Result<Option<Node>, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::DocumentStart(..) if root.is_some() => {
                    self.report.add(
                        Place::of(span.start),
                        "",
                        "a second document",
                        "one document",
                        Some("the line `---` starts another document; remove it and what does not belong here"),
                    );
                    return Err(Stop);
                }
                Event::DocumentStart(..) => {
                    let (event, span) = self.next()?;
                    root = Some(self.node(event, span, String::new(), 0)?);
                }
                Event::StreamEnd => break,
                // Start of the stream, end of the document.
                _ => {}
            }
        }
        if let Some(root) = root {
            // `---` alone, or comments below it.
            if !matches!(root.content, Content::Null) {
                return Ok(Some(root));
            }
        }
        self.report.add(
            START,
            "",
            if self.text.trim().is_empty() { "an empty file" } else { "nothing but comments" },
            blank.0,
            Some(blank.1),
        );
        Err(Stop)
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), Stop> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.last = Place::of(span.start);
                Ok((event, span))
            }
            Some(Err(error)) => {
                syntax::explain(&error, Place::of(*error.marker()), self.last, self.report);
                Err(Stop)
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    /// Counts before it is built.
    fn count(&mut self, place: Place, depth: usize) -> Result<(), Stop> {
        self.nodes += 1;
        let (found, expected) = if depth > MAX_DEPTH {
            ("values within values, too deep to be read".to_owned(), format!("at most {MAX_DEPTH} levels"))
        } else if self.nodes > MAX_NODES {
            (format!("more than {MAX_NODES} values"), format!("at most {MAX_NODES} values"))
        } else {
            return Ok(());
        };
        self.report.add(place, "", found, expected, Some("is this the right file?"));
        Err(Stop)
    }

    fn node(&mut self, event: Event<'t>, span: Span, path: String, depth: usize) -> Result<Node, Stop> {
        let place = Place::of(span.start);
        self.count(place, depth)?;
        let refused = self.refuse(&event, &span, &path);
        let content = match event {
            Event::Scalar(text, style, ..) => scalar(&text, style),
            Event::SequenceStart(..) => self.list(&path, depth)?,
            Event::MappingStart(..) => self.map(&path, depth)?,
            _ => Content::Refused,
        };
        Ok(Node { place, head: place, path, content: if refused { Content::Refused } else { content } })
    }

    /// Reports what a site file must not use. True where the node must not be used.
    fn refuse(&mut self, event: &Event<'t>, span: &Span, path: &str) -> bool {
        let (anchor, tag) = match event {
            Event::Alias(_) | Event::UnresolvedAlias(_) => {
                self.report.add(
                    Place::of(span.start),
                    path,
                    "an alias (`*name`)",
                    "the value itself",
                    Some("aliases are not read; write the value out, or put text that starts with `*` in quotes"),
                );
                return true;
            }
            Event::Scalar(_, _, anchor, tag)
            | Event::SequenceStart(_, anchor, tag)
            | Event::MappingStart(_, anchor, tag) => (*anchor, tag.is_some()),
            _ => return false,
        };
        if anchor != 0 {
            self.report.add(
                Place::of(span.start),
                path,
                "an anchor (`&name`)",
                "the value alone",
                Some("anchors are not read; remove the word that starts with `&`, or put the text in quotes"),
            );
        }
        if tag {
            self.report.add(
                Place::of(span.tag_start.unwrap_or(span.start)),
                path,
                "a tag (`!name`)",
                "the value alone",
                Some("tags are not read; remove the word that starts with `!`, or put the text in quotes"),
            );
        }
        anchor != 0 || tag
    }

    fn list(&mut self, path: &str, depth: usize) -> Result<Content, Stop> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Content::List(items));
            }
            let path = format!("{path}[{}]", items.len());
            items.push(self.node(event, span, path, depth + 1)?);
        }
    }

    fn map(&mut self, path: &str, depth: usize) -> Result<Content, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut places: HashMap<String, Place> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(Content::Map(entries));
            }
            let key_place = Place::of(span.start);
            self.count(key_place, depth)?;
            let refused = self.refuse(&event, &span, path);
            let key = match event {
                Event::Scalar(text, ..) => Some(text.into_owned()),
                Event::Alias(_) | Event::UnresolvedAlias(_) => None,
                other => {
                    self.node(other, span, path.to_owned(), depth + 1)?;
                    self.report.add(
                        key_place,
                        path,
                        "a list or mapping as a name",
                        "a plain name before the colon",
                        Some("`{{ … }}` and `[ … ]` are read as YAML; put such text in quotes"),
                    );
                    None
                }
            };
            let (event, span) = self.next()?;
            let value_path = match (&key, path) {
                (Some(key), "") => shown(key),
                // Every node holds its path: a hostile file must not make that much.
                (Some(key), path) if path.len() < MAX_PATH => format!("{path}.{}", shown(key)),
                (_, path) => path.to_owned(),
            };
            let mut value = self.node(event, span, value_path, depth + 1)?;
            let Some(key) = key.filter(|_| !refused) else { continue };
            value.head = key_place;
            // A missing value has no place of its own.
            if matches!(value.content, Content::Null) {
                value.place = key_place;
            }
            if let Some(first) = places.get(&key) {
                self.report.add(
                    key_place,
                    value.path,
                    format!(
                        "`{}` again; it stands on line {}, column {} already",
                        shown(&key),
                        first.line,
                        first.column
                    ),
                    "each field once",
                    Some("keep one of the two"),
                );
                continue;
            }
            places.insert(key.clone(), key_place);
            entries.push(Entry { key, key_place, value });
        }
    }
}

/// A key or value for an error text: short, printable, and without what may be a login in a URL.
pub fn shown(text: &str) -> String {
    const MOST: usize = 60;
    if text.contains('@') && text.contains("//") {
        return "(text with a login)".to_owned();
    }
    let mut out: String = text.chars().take(MOST).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// YAML 1.2's core schema, without the forms that JSON has no word for (`.inf`, `0x`, `0o`): those stay text.
fn scalar(text: &str, style: ScalarStyle) -> Content {
    if style != ScalarStyle::Plain {
        return Content::Text(text.to_owned());
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Content::Null,
        "true" | "True" | "TRUE" => Content::Bool(true),
        "false" | "False" | "FALSE" => Content::Bool(false),
        _ if number(text) => Content::Number(text.to_owned()),
        _ => Content::Text(text.to_owned()),
    }
}

/// `[-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )?`
fn number(text: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (unsigned, None),
    };
    let exponent_ok = exponent.is_none_or(|e| digits(e.strip_prefix(['-', '+']).unwrap_or(e)));
    let mantissa_ok = match mantissa.split_once('.') {
        None => digits(mantissa),
        Some(("", fraction)) => digits(fraction),
        Some((whole, fraction)) => digits(whole) && (fraction.is_empty() || digits(fraction)),
    };
    exponent_ok && mantissa_ok
}
