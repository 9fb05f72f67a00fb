//! What copying through chats, mails and word processors does to YAML, found in one source line.

/// Looks for paste damage in a line. Comments are left alone: nothing in them can do harm.
pub fn hint(line: &str) -> Option<String> {
    let code = without_comment(line);
    let trimmed = code.trim_start();
    if trimmed.starts_with("```") || trimmed.starts_with("~~~") {
        return Some("this line is a Markdown code fence that was copied along; remove it".to_owned());
    }
    let indent = &code[..code.len() - trimmed.len()];
    if indent.contains('\t') {
        return Some("the line is indented with a tab; YAML wants spaces: put two spaces for each level".to_owned());
    }
    let (index, found) = code.chars().enumerate().find_map(|(index, c)| name(c).map(|name| (index, name)))?;
    let column = index + 1;
    Some(match found {
        Found::Space(name) => {
            format!("column {column} holds {name}, which looks like a space and is none; type an ordinary space")
        }
        Found::Invisible(name) => format!("column {column} holds {name}, which cannot be seen; delete it"),
        Found::Quote(c) => format!("column {column} holds the typographic quote {c}; type a plain \" or '"),
        Found::Mark(c, plain) => format!("column {column} holds {c}; YAML wants a plain {plain}"),
        Found::Bullet(c) => format!("column {column} holds the bullet {c}; YAML starts a list item with `- `"),
    })
}

/// True where indentation holds something that YAML does not take for a space, though it looks like one.
pub fn in_indentation(line: &str) -> Option<(usize, &'static str)> {
    let trimmed = line.trim_start_matches(|c: char| c.is_whitespace() || invisible(c).is_some());
    if trimmed.is_empty() || trimmed.starts_with('#') {
        return None;
    }
    let indent = &line[..line.len() - trimmed.len()];
    indent.chars().enumerate().find_map(|(index, c)| space(c).or_else(|| invisible(c)).map(|name| (index + 1, name)))
}

enum Found {
    Space(&'static str),
    Invisible(&'static str),
    Quote(char),
    Mark(char, &'static str),
    Bullet(char),
}

fn name(c: char) -> Option<Found> {
    if c.is_ascii() {
        return None;
    }
    if let Some(name) = space(c) {
        return Some(Found::Space(name));
    }
    if let Some(name) = invisible(c) {
        return Some(Found::Invisible(name));
    }
    Some(match c {
        '\u{2018}'..='\u{201f}' | '\u{ab}' | '\u{bb}' | '\u{2039}' | '\u{203a}' | '\u{ff02}' | '\u{ff07}' => {
            Found::Quote(c)
        }
        '\u{2010}'..='\u{2015}' | '\u{2212}' | '\u{ff0d}' => Found::Mark(c, "hyphen `-`"),
        '\u{ff1a}' | '\u{a789}' | '\u{2236}' => Found::Mark(c, "colon `:` and a space"),
        '\u{ff0c}' => Found::Mark(c, "comma `,`"),
        '\u{ff0e}' | '\u{3002}' => Found::Mark(c, "full stop `.`"),
        '\u{2026}' => Found::Mark(c, "text: something was left out here"),
        '\u{2022}' | '\u{25cf}' | '\u{25e6}' | '\u{25aa}' | '\u{b7}' => Found::Bullet(c),
        _ => return None,
    })
}

fn space(c: char) -> Option<&'static str> {
    Some(match c {
        '\u{a0}' => "a non-breaking space (U+00A0)",
        '\u{2000}'..='\u{200a}' => "a typographic space (U+2000 to U+200A)",
        '\u{202f}' => "a narrow non-breaking space (U+202F)",
        '\u{205f}' => "a mathematical space (U+205F)",
        '\u{3000}' => "an ideographic space (U+3000)",
        '\u{1680}' => "an Ogham space (U+1680)",
        '\u{85}' | '\u{2028}' | '\u{2029}' => "a line separator",
        _ => return None,
    })
}

fn invisible(c: char) -> Option<&'static str> {
    Some(match c {
        '\u{200b}' => "a zero width space (U+200B)",
        '\u{200c}' | '\u{200d}' => "a zero width joiner (U+200C, U+200D)",
        '\u{2060}' => "a word joiner (U+2060)",
        '\u{feff}' => "a byte order mark (U+FEFF)",
        '\u{ad}' => "a soft hyphen (U+00AD)",
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => "a text direction mark",
        _ => return None,
    })
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.split(" #").next().unwrap_or(line)
}
