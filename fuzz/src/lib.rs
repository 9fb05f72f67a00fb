//! What the targets share: XML as another reader than ours sees it, and archives.

pub mod archive;

use roxmltree::{Document, Node, NodeType};

/// An element, a comment or a processing instruction.
#[derive(Debug, Eq, PartialEq)]
pub struct Element {
    /// Its name; `!--` of a comment, `?` and the target of a processing instruction.
    pub name: String,
    /// Names and values in their order.
    pub attributes: Vec<(String, String)>,
    /// All texts that stand directly in it.
    pub text: String,
    /// What stands in it.
    pub children: Vec<Element>,
}

/// Reads a document; the outermost element of the result stands for the document itself.
pub fn xml(document: &str) -> Result<Element, roxmltree::Error> {
    Ok(element(Document::parse(document)?.root()))
}

/// Whether XML has a way to write all of a text.
pub fn has_xml(text: &str) -> bool {
    text.chars().all(|c| c >= ' ' && !matches!(c, '\u{fffe}' | '\u{ffff}') || matches!(c, '\t' | '\n' | '\r'))
}

fn element(node: Node<'_, '_>) -> Element {
    let name = match node.node_type() {
        NodeType::Comment => "!--".to_owned(),
        NodeType::PI => format!("?{}", node.pi().map(|pi| pi.target).unwrap_or_default()),
        _ => match node.tag_name().namespace() {
            Some(namespace) => format!("{{{namespace}}}{}", node.tag_name().name()),
            None => node.tag_name().name().to_owned(),
        },
    };
    let own = node.pi().and_then(|pi| pi.value).or(node.is_comment().then(|| node.text().unwrap_or_default()));
    let texts = node.children().filter(Node::is_text).filter_map(|text| text.text());
    Element {
        name,
        attributes: node.attributes().map(|a| (a.name().to_owned(), a.value().to_owned())).collect(),
        text: own.into_iter().chain(texts).collect(),
        children: node.children().filter(|child| !child.is_text()).map(element).collect(),
    }
}
