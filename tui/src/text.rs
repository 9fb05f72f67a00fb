//! Text for a terminal: cleaned, cut and wrapped by the columns it takes.

pub use edge_client::span;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Text without what could move the cursor, change colours or hide other text; line breaks and tabs become spaces.
pub fn clean(text: &str) -> String {
    text.chars()
        .filter_map(|c| match c {
            '\n' | '\r' | '\t' => Some(' '),
            c if c.is_control() => Some('?'),
            // Zero width, direction marks, combining marks without a base: nothing that a console shows as meant.
            c if c.width() == Some(0) => None,
            c => Some(c),
        })
        .collect()
}

/// Columns that a text takes.
pub fn width(text: &str) -> usize {
    text.width()
}

/// At most `most` columns of a text, with `..` where something was cut off.
pub fn cut(text: &str, most: usize) -> String {
    if width(text) <= most {
        return text.to_owned();
    }
    let keep = most.saturating_sub(2);
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let wide = c.width().unwrap_or(0);
        if used + wide > keep {
            break;
        }
        out.push(c);
        used += wide;
    }
    out + &".."[..most.min(2)]
}

/// A text in exactly `columns`, cut or filled up.
pub fn fit(text: &str, columns: usize) -> String {
    let text = cut(text, columns);
    let rest = columns - width(&text);
    text + &" ".repeat(rest)
}

/// A text in lines of at most `columns`, broken between words where that is possible.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let columns = columns.max(2);
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut used = 0;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let wide = width(word);
        if used > 0 && used + 1 + wide <= columns {
            line.push(' ');
            line.push_str(word);
            used += 1 + wide;
            continue;
        }
        if used > 0 {
            lines.push(std::mem::take(&mut line));
            used = 0;
        }
        for c in word.chars() {
            let wide = c.width().unwrap_or(0);
            if used + wide > columns {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.push(c);
            used += wide;
        }
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// Time of day in a zone.
pub fn clock(time: Timestamp, zone: &TimeZone) -> String {
    time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string()
}

/// A progress bar of ASCII, for instance `[####......]  40%`.
pub fn bar(percent: u8, cells: usize) -> String {
    let percent = usize::from(percent.min(100));
    let full = percent * cells / 100;
    format!("[{}{}] {percent:>3}%", "#".repeat(full), ".".repeat(cells - full))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_moves_the_cursor() {
        assert_eq!(clean("a\x1b[2J\u{9b}b\r\n\u{202e}c\u{200b}"), "a?[2J?b  c");
        assert_eq!(cut("日本語", 5), "日..");
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("日本語", 4), ["日本", "語"]);
        assert_eq!(bar(40, 10), "[####......]  40%");
    }

    proptest! {
        #[test]
        fn columns_are_kept(text in "\\PC{0,60}", columns in 0usize..40) {
            let text = clean(&text);
            prop_assert!(width(&cut(&text, columns)) <= columns);
            prop_assert_eq!(width(&fit(&text, columns)), columns);
            for line in wrap(&text, columns) {
                prop_assert!(width(&line) <= columns.max(2));
            }
        }
    }
}
