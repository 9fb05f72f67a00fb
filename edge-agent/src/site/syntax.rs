//! Files that cannot be read at all: one error in a technician's words, at its place.

use edge_api::agent::ValidationError;
use granit_parser::{ErrorKind, ScanError};

use super::report::Report;
use super::tree::Place;
use super::{MAX_BYTES, damage, tree};

/// Bytes to text, without the byte order mark that Windows' editors put first.
pub fn text(bytes: &[u8]) -> Result<&str, ValidationError> {
    let refuse = |line, column, found: String, expected: &str, hint: &str| ValidationError {
        line,
        column,
        field: String::new(),
        found,
        expected: expected.to_owned(),
        hint: Some(hint.to_owned()),
    };
    if bytes.len() > MAX_BYTES {
        let expected = "at most 1 MiB (1048576 bytes)";
        return Err(refuse(0, 0, "a bigger file".to_owned(), expected, "is this the right file?"));
    }
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        let hint = "save the file again with the encoding UTF-8 (editors also call UTF-16 `Unicode`)";
        return Err(refuse(1, 1, "UTF-16 text".to_owned(), "UTF-8 text", hint));
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = str::from_utf8(bytes).map_err(|error| {
        let valid = &bytes[..error.valid_up_to()];
        let (line, column) = end(str::from_utf8(valid).unwrap_or_default());
        let byte = bytes.get(valid.len()).copied().unwrap_or_default();
        let found = format!("byte 0x{byte:02x} at offset {}, which is no UTF-8 text", valid.len());
        let hint = "save the file again with the encoding UTF-8; an archive or a picture is no YAML";
        refuse(line, column, found, "UTF-8 text", hint)
    })?;
    if let Some(offset) = text.find('\0') {
        let (line, column) = end(&text[..offset]);
        let found = format!("a zero byte at offset {offset}");
        return Err(refuse(line, column, found, "UTF-8 text", "is this the right file?"));
    }
    Ok(text)
}

/// Lines as YAML counts them: a carriage return alone ends one as well.
pub fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('\r'))
}

/// Line and column right behind a text.
fn end(text: &str) -> (u32, u32) {
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let line = text.bytes().filter(|b| *b == b'\n').count() + 1;
    let column = text.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    (u32::try_from(line).unwrap_or(u32::MAX), u32::try_from(column).unwrap_or(u32::MAX))
}

/// Reports lines that are indented with what only looks like spaces: YAML takes them for text, and the errors that
/// follow from that would be about everything but the cause. True where there are any.
pub fn indentation(text: &str, report: &mut Report<'_>) -> bool {
    for (line, content) in (1..).zip(lines(text)) {
        if let Some((column, found)) = damage::in_indentation(content) {
            let place = Place { line, column: u32::try_from(column).unwrap_or(u32::MAX) };
            report.add(place, "", format!("{found} before the text"), "spaces", None);
        }
    }
    !report.is_empty()
}

/// Reports why the parser gave up. `before` is the last thing that it could read.
pub fn explain(error: &ScanError, place: Place, before: Place, report: &mut Report<'_>) {
    let (found, expected, hint) = words(error.kind());
    // The parser names the place behind a tab.
    let place = match report.line(place.line).chars().position(|c| c == '\t') {
        Some(index) if found == "a tab" => Place { column: u32::try_from(index + 1).unwrap_or(u32::MAX), ..place },
        _ => place,
    };
    // The parser notices damage late: a missing quote, for instance, at the end of the file.
    let last_line = report.line(before.line);
    let damaged_before = damage::hint(report.line(place.line)).is_none().then(|| damage::hint(last_line)).flatten();
    let hint = match damaged_before {
        Some(damage) => Some(format!("line {}: {damage}", before.line)),
        None => hint.map(str::to_owned),
    };
    let fence = report.line(place.line).trim_start().starts_with("```");
    let found = if fence { "a line that starts with ```".to_owned() } else { found };
    report.add(place, "", found, expected, hint.as_deref());
}

fn words(kind: &ErrorKind) -> (String, &'static str, Option<&'static str>) {
    const QUOTE: &str = "put text with special characters in quotes, for instance \"a: b\"";
    let plain = |found: &str, expected, hint| (found.to_owned(), expected, Some(hint));
    match kind {
        ErrorKind::TabNotAllowed
        | ErrorKind::TabInBlockIndentation
        | ErrorKind::TabInIndentation
        | ErrorKind::TabInPlainScalar
        | ErrorKind::InvalidBlockEntryWhitespace
        | ErrorKind::InvalidMappingValueWhitespace
        | ErrorKind::TabAtBlockScalarStart => {
            plain("a tab", "spaces", "YAML is indented with spaces: put two spaces for each level")
        }
        ErrorKind::SimpleKeyExpected | ErrorKind::InvalidSimpleKey => plain(
            "a line without a value",
            "`field: value`",
            "a colon and a space part a field from its value; a long text goes on, indented, in the next line",
        ),
        ErrorKind::MappingValueNotAllowed | ErrorKind::InvalidColonPlacement => plain(
            "a colon where no field can stand",
            "one `field: value` in a line",
            "is the line indented more than the one above it, or does that one lack its colon? \
             Text that holds `: ` goes in quotes",
        ),
        ErrorKind::InvalidIndentation
        | ErrorKind::ExpectedBlockMappingKey
        | ErrorKind::ExpectedBlockSequenceEntry
        | ErrorKind::MappingKeyNotAllowed
        | ErrorKind::BlockSequenceEntryNotAllowed => plain(
            "a line that fits nothing above it",
            "fields of one block in the same column",
            "compare the spaces before this line with those of the lines around it",
        ),
        ErrorKind::UnclosedQuotedScalar
        | ErrorKind::DocumentIndicatorInQuotedScalar
        | ErrorKind::InvalidQuotedScalarIndent => plain(
            "text with an opening quote only",
            "a closing quote",
            "close the quote that was opened on or before this line",
        ),
        ErrorKind::InvalidTrailingSingleQuotedScalar | ErrorKind::InvalidTrailingDoubleQuotedScalar => plain(
            "text behind a closing quote",
            "the end of the line",
            "put the whole text in quotes; write ' twice within '…', and \\\" within \"…\"",
        ),
        ErrorKind::UnknownQuotedScalarEscape | ErrorKind::InvalidQuotedScalarHexEscape => {
            plain("a backslash that means nothing", "plain text", "use '…' for text with backslashes")
        }
        ErrorKind::UnclosedFlowCollection { .. }
        | ErrorKind::UnexpectedEofFlowSequence
        | ErrorKind::UnexpectedEofFlowMapping
        | ErrorKind::UnexpectedEofImplicitFlowMapping
        | ErrorKind::ExpectedFlowMappingSeparator
        | ErrorKind::ExpectedFlowSequenceSeparator
        | ErrorKind::MismatchedFlowCollectionEnd { .. }
        | ErrorKind::MisplacedFlowCollectionEnd => {
            plain("brackets that do not match", "one closing bracket for each opening one", QUOTE)
        }
        ErrorKind::RecursionLimitExceeded => (
            "values within values, too deep to be read".to_owned(),
            "at most 32 levels",
            Some("is this the right file?"),
        ),
        ErrorKind::DirectiveDisallowed => {
            plain("a directive (`%…`)", "fields", "remove the line, or put text that starts with % in quotes")
        }
        ErrorKind::UndeclaredTagHandle
        | ErrorKind::MissingTagUri
        | ErrorKind::InvalidTagTerminator
        | ErrorKind::UnclosedVerbatimTag => {
            plain("a tag (`!name`)", "the value alone", "put text that starts with ! in quotes")
        }
        ErrorKind::MissingAnchorOrAliasName => (
            "`*` or `&` at the start of a value".to_owned(),
            "text",
            Some("put text that starts with * or & in quotes; YAML starts a list item with `- `, Markdown with `* `"),
        ),
        ErrorKind::UnexpectedCharacter { character } => (
            format!("the character {}", tree::shown(&character.to_string())),
            "`field: value`",
            Some("put text that starts with a special character in quotes"),
        ),
        ErrorKind::CommentNotSeparated => plain("# right behind text", "a space before #", "put text with # in quotes"),
        ErrorKind::InvalidDocumentEnd => plain("text behind `...`", "the end of the file", "remove it"),
        other => (format!("text that is no YAML ({other})"), "`field: value`", Some(QUOTE)),
    }
}
