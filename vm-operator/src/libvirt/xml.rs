//! XML as a tree that is written by `quick-xml`, so that no value can ever become markup (D9).

use quick_xml::Writer;
use quick_xml::events::{BytesEnd, BytesStart, BytesText, Event};
use serde::de::DeserializeOwned;

use super::Error;

/// An element with its attributes and content.
#[derive(Clone, Debug)]
pub struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

#[derive(Clone, Debug)]
enum Node {
    Element(Element),
    Text(String),
}

/// Starts an element.
pub fn element(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), children: Vec::new() }
}

/// An element with text only.
pub fn text(name: &'static str, text: impl Into<String>) -> Element {
    let mut made = element(name);
    made.children.push(Node::Text(text.into()));
    made
}

impl Element {
    /// Adds an attribute.
    #[must_use]
    pub fn attr(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.attributes.push((name, value.into()));
        self
    }

    /// Adds an attribute where there is a value.
    #[must_use]
    pub fn attr_opt(self, name: &'static str, value: Option<impl Into<String>>) -> Self {
        match value {
            Some(value) => self.attr(name, value),
            None => self,
        }
    }

    /// Adds a child.
    #[must_use]
    pub fn child(mut self, child: Element) -> Self {
        self.children.push(Node::Element(child));
        self
    }

    /// Adds children.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }

    /// The document with this element as its root. Writing into memory cannot fail; were it to, libvirt would refuse
    /// the empty document.
    pub fn document(&self) -> String {
        let mut writer = Writer::new_with_indent(Vec::new(), b' ', 2);
        match self.write(&mut writer) {
            Ok(()) => String::from_utf8(writer.into_inner()).unwrap_or_default(),
            Err(error) => {
                tracing::error!(%error, "cannot write XML");
                String::new()
            }
        }
    }

    fn write(&self, writer: &mut Writer<Vec<u8>>) -> std::io::Result<()> {
        let mut start = BytesStart::new(self.name);
        for (name, value) in &self.attributes {
            start.push_attribute((*name, value.as_str()));
        }
        if self.children.is_empty() {
            return writer.write_event(Event::Empty(start));
        }
        writer.write_event(Event::Start(start))?;
        for child in &self.children {
            match child {
                Node::Element(element) => element.write(writer)?,
                Node::Text(text) => writer.write_event(Event::Text(BytesText::new(text)))?,
            }
        }
        writer.write_event(Event::End(BytesEnd::new(self.name)))
    }
}

/// Whether a text is one line that XML can carry: without control characters, and the two that it calls none.
pub fn is_line(text: &str) -> bool {
    !text.contains(|c: char| c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// Reads the parts of a document that a type names.
pub fn read<T: DeserializeOwned>(what: &str, document: &str) -> Result<T, Error> {
    quick_xml::de::from_str(document).map_err(|error| Error::Xml { what: what.to_owned(), reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct A {
        #[serde(rename = "@b")]
        b: String,
        c: String,
    }

    #[test]
    fn values_never_become_markup() {
        let xml = element("a").attr("b", "x' y=\"<&>").child(text("c", "</c><d/>&amp;")).document();
        assert!(!xml.contains("<d/>"), "{xml}");
        let read: A = read("test", &xml).unwrap();
        assert_eq!((read.b.as_str(), read.c.as_str()), ("x' y=\"<&>", "</c><d/>&amp;"));
    }
}
