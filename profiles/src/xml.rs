//! XML, read as events, with texts and attribute values rendered and escaped again by the writer.
//!
//! A template is an XML file first: templates stand in texts, CDATA sections and attribute values. Names, comments and
//! processing instructions pass as they are. Document types are refused, because entities come with them.

use std::borrow::Cow;

use quick_xml::escape::unescape;
use quick_xml::events::{BytesStart, BytesText, Event};
use quick_xml::{Reader, Writer};

use crate::error::Error;
use crate::template::{Renderer, TemplateError};

/// How deep elements may be nested.
const MAX_DEPTH: usize = 128;

/// Renders an XML file.
pub(crate) fn render(file: &str, source: &str, renderer: &Renderer) -> Result<String, Error> {
    let mut pass = Pass { file, source, renderer, out: Writer::new(Vec::new()), text: None, depth: 0, roots: 0 };
    let mut reader = Reader::from_str(source.strip_prefix('\u{feff}').unwrap_or(source));
    loop {
        let at = usize::try_from(reader.buffer_position()).unwrap_or(usize::MAX);
        let event = reader.read_event().map_err(|e| {
            let at = usize::try_from(reader.error_position()).unwrap_or(at);
            Error::invalid(file, pass.line(at), format!("is not well-formed XML: {e}"))
        })?;
        if matches!(event, Event::Eof) {
            break;
        }
        pass.event(event, at)?;
    }
    pass.flush_text()?;
    let end = source.lines().count();
    if pass.depth > 0 {
        return Err(Error::invalid(file, end, "is not well-formed XML: an element is not closed"));
    }
    if pass.roots != 1 {
        return Err(Error::invalid(file, end, "is not well-formed XML: expected one element at the top"));
    }
    String::from_utf8(pass.out.into_inner()).map_err(|_| Error::invalid(file, 0, "is not UTF-8 text"))
}

struct Pass<'a> {
    file: &'a str,
    source: &'a str,
    renderer: &'a Renderer,
    out: Writer<Vec<u8>>,
    /// Texts, references and CDATA sections that follow each other are one text to a reader, and to a template.
    text: Option<(usize, String)>,
    depth: usize,
    roots: usize,
}

impl Pass<'_> {
    fn event(&mut self, event: Event<'_>, at: usize) -> Result<(), Error> {
        match event {
            Event::Text(text) => return self.add_text(at, &text.xml10_content()),
            Event::CData(text) => return self.add_text(at, &text.xml10_content()),
            Event::GeneralRef(name) => {
                let raw = format!("&{};", name.into_inner());
                let text = unescape(&raw).map_err(|e| self.fail(at, &format!("{raw}: {e}")))?.into_owned();
                return self.add_text(at, &text);
            }
            _ => self.flush_text()?,
        }
        match event {
            Event::Start(tag) => {
                self.open(at)?;
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(self.fail(at, &format!("elements are nested more than {MAX_DEPTH} levels deep")));
                }
                let tag = self.tag(&tag, at)?;
                self.write(Event::Start(tag), at)
            }
            Event::Empty(tag) => {
                self.open(at)?;
                let tag = self.tag(&tag, at)?;
                self.write(Event::Empty(tag), at)
            }
            Event::End(tag) => {
                self.depth = self.depth.saturating_sub(1);
                self.write(Event::End(tag), at)
            }
            Event::Decl(decl) => {
                let encoding = decl.encoding().and_then(Result::ok);
                if encoding.as_ref().is_some_and(|e| !e.eq_ignore_ascii_case("utf-8")) {
                    return Err(self.fail(at, "has an encoding other than UTF-8"));
                }
                self.write(Event::Decl(decl), at)
            }
            Event::DocType(_) => Err(self.fail(at, "document types are not supported")),
            other => self.write(other, at),
        }
    }

    fn open(&mut self, at: usize) -> Result<(), Error> {
        if self.depth == 0 {
            self.roots += 1;
            if self.roots > 1 {
                return Err(self.fail(at, "is not well-formed XML: a second element at the top"));
            }
        }
        Ok(())
    }

    fn add_text(&mut self, at: usize, text: &str) -> Result<(), Error> {
        if self.depth == 0 && !text.chars().all(char::is_whitespace) {
            return Err(self.fail(at, "is not well-formed XML: text outside of the element at the top"));
        }
        self.text.get_or_insert((at, String::new())).1.push_str(text);
        Ok(())
    }

    fn flush_text(&mut self) -> Result<(), Error> {
        let Some((at, text)) = self.text.take() else { return Ok(()) };
        let rendered = self.renderer.text(&text).map_err(|e| self.located(at, e))?;
        let escaped = self.escape(&rendered, false, at)?;
        self.write(Event::Text(BytesText::from_escaped(escaped)), at)
    }

    fn tag(&self, tag: &BytesStart<'_>, at: usize) -> Result<BytesStart<'static>, Error> {
        let name = tag.name().0.to_owned();
        let mut content = name.clone();
        for attribute in tag.attributes() {
            let attribute = attribute.map_err(|e| self.fail(at, &format!("attribute of <{name}>: {e}")))?;
            // A line break or tab as such is a space to every reader; one that is meant is a reference.
            let raw: String =
                attribute.value.chars().map(|c| if matches!(c, '\n' | '\r' | '\t') { ' ' } else { c }).collect();
            let text = unescape(&raw).map_err(|e| self.fail(at, &format!("attribute of <{name}>: {e}")))?;
            let rendered = self.renderer.text(&text).map_err(|e| self.located(at, e))?;
            let value = self.escape(&rendered, true, at)?;
            content.push(' ');
            content.push_str(attribute.key.0);
            content.push_str("=\"");
            content.push_str(&value);
            content.push('"');
        }
        Ok(BytesStart::from_content(content, name.len()))
    }

    /// What a reader would take as markup, or normalise, becomes a reference.
    fn escape(&self, text: &str, attribute: bool, at: usize) -> Result<String, Error> {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            let reference: Cow<'_, str> = match c {
                '&' => "&amp;".into(),
                '<' => "&lt;".into(),
                '>' => "&gt;".into(),
                '"' if attribute => "&quot;".into(),
                '\n' | '\t' if attribute => format!("&#{};", u32::from(c)).into(),
                '\r' | '\u{85}' | '\u{2028}' => format!("&#{};", u32::from(c)).into(),
                '\0'..='\u{8}' | '\u{b}' | '\u{c}' | '\u{e}'..='\u{1f}' | '\u{fffe}' | '\u{ffff}' => {
                    let code = u32::from(c);
                    return Err(
                        self.fail(at, &format!("a value holds the character U+{code:04X}, which XML cannot carry"))
                    );
                }
                c => {
                    out.push(c);
                    continue;
                }
            };
            out.push_str(&reference);
        }
        Ok(out)
    }

    fn write(&mut self, event: Event<'_>, at: usize) -> Result<(), Error> {
        let result = self.out.write_event(event);
        result.map_err(|e| self.fail(at, &format!("cannot be written: {e}")))
    }

    fn line(&self, at: usize) -> usize {
        self.source.as_bytes().iter().take(at).filter(|b| **b == b'\n').count() + 1
    }

    fn fail(&self, at: usize, message: &str) -> Error {
        Error::invalid(self.file, self.line(at), message)
    }

    fn located(&self, at: usize, error: TemplateError) -> Error {
        Error::invalid(self.file, self.line(at) + error.line_offset, error.message)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn with(template: &str, values: &serde_json::Value) -> Result<String, Error> {
        render("config.xml", template, &Renderer::new(values))
    }

    /// The first text and the attribute `a` of the top element, as a reader gets them.
    fn read(document: &str) -> (String, String) {
        let mut reader = Reader::from_str(document);
        let (mut text, mut attribute) = (String::new(), String::new());
        loop {
            match reader.read_event().unwrap() {
                Event::Start(tag) => {
                    let found = tag.attributes().next().unwrap().unwrap();
                    attribute = unescape(&found.value).unwrap().into_owned();
                }
                Event::Text(t) => text.push_str(&t.xml10_content()),
                Event::GeneralRef(r) => text.push_str(&unescape(&format!("&{};", r.into_inner())).unwrap()),
                Event::Eof => return (text, attribute),
                _ => {}
            }
        }
    }

    #[test]
    fn markup_passes_and_texts_are_rendered() {
        let template = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- {{ not.this }} -->\n<r a='{{ v }}'><b/>1 &lt; \
                        {{ v }}<![CDATA[ & {{ v }} ]]></r>\n";
        let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- {{ not.this }} -->\n<r a=\"x\"><b/>1 &lt; x \
                        &amp; x </r>\n";
        assert_eq!(with(template, &json!({"v": "x"})).unwrap(), expected);
    }

    #[test]
    fn refusals_name_file_and_line() {
        let cases = [
            ("<r>\n<a>{{ missing }}</a></r>", "config.xml:2: `missing` is undefined"),
            ("<r>\n\n<a b='{{ missing }}'/></r>", "config.xml:3: `missing` is undefined"),
            ("<r>\n<a>\n\n{{ missing }}</a></r>", "config.xml:4: `missing` is undefined"),
            ("<r>\n<a></b></r>", "config.xml:2: is not well-formed"),
            ("<r>\n", "config.xml:1: is not well-formed"),
            ("<r/><r/>", "config.xml:1: is not well-formed"),
            ("", "config.xml:0: is not well-formed"),
            ("<!DOCTYPE r [<!ENTITY e 'x'>]><r>&e;</r>", "config.xml:1: document types"),
            ("<r>&e;</r>", "config.xml:1: &e;"),
            ("<r>{{ nul }}</r>", "config.xml:1: a value holds the character U+0000"),
        ];
        for (template, expected) in cases {
            let error = with(template, &json!({"nul": "\0"})).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{template:?}: {error}");
        }
        assert!(with(&"<a>".repeat(10_000), &json!({})).is_err());
    }

    proptest! {
        /// Whatever a site's value is, a reader gets it back exactly, in a text and in an attribute.
        #[test]
        fn any_value_survives(value in hostile_text()) {
            let document = with("<r a='{{ v }}'>[{{ v }}]</r>", &json!({"v": value})).unwrap();
            let (text, attribute) = read(&document);
            prop_assert_eq!(text, format!("[{value}]"));
            prop_assert_eq!(attribute, value);
        }
    }

    fn hostile_text() -> impl Strategy<Value = String> {
        let special = prop::sample::select(vec![
            "\"",
            "'",
            "\n",
            "\r\n",
            "\r",
            "\t",
            "]]>",
            "<![CDATA[",
            "<!--",
            "-->",
            "</r>",
            "&",
            "&amp;",
            "{{",
            "}}",
            "{%",
            "<?x",
            " ",
            "\u{85}",
            "\u{2028}",
        ]);
        let carried =
            |text: String| text.chars().filter(|c| *c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}')).collect();
        prop_oneof![
            any::<String>().prop_map(carried),
            prop::collection::vec(special, 0..12).prop_map(|parts| parts.concat())
        ]
    }
}
