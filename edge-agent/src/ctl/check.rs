//! `edgectl validate`: the errors of a site file as a compiler shows them.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use edge_api::SiteConfig;
use edge_api::agent::{ValidationError, ValidationReport};

use super::error::Error;
use super::text::{self, Paint, char_width, clean};
use crate::site;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Site file; `-` reads standard input
    pub file: PathBuf,
    /// Format of the result
    #[arg(short, long, value_enum, default_value = "text")]
    pub output: Output,
}

/// Format of the result.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// JSON
    Json,
}

pub fn run(args: &Args) -> Result<ExitCode, Error> {
    let bytes = read(&args.file)?;
    let checked = site::load_bytes(&bytes);
    text::seen(match args.output {
        Output::Json => {
            let errors = checked.as_ref().err().cloned().unwrap_or_default();
            text::json(&ValidationReport { errors, ..ValidationReport::default() }, true)
        }
        Output::Text => match &checked {
            Ok(config) => text::print(&valid(&args.file, config)),
            Err(errors) => text::print(&report(&name(&args.file), &bytes, errors, Paint::detect())),
        },
    })?;
    Ok(if checked.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads a site file, or standard input for `-`, no further than anything is accepted.
pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        let most = site::MAX_BYTES as u64 + 1;
        std::io::stdin().lock().take(most).read_to_end(&mut bytes).map_err(|e| Error::read(Path::new("stdin"), e))?;
        return Ok(bytes);
    }
    site::read(path).map_err(|error| Error::read(path, error))
}

/// How a file is called in results.
pub fn name(path: &Path) -> String {
    if path == Path::new("-") { "<stdin>".to_owned() } else { clean(&path.display().to_string()) }
}

fn valid(path: &Path, config: &SiteConfig) -> String {
    let mut out = format!("{}: valid\n", name(path));
    for note in site::notes(config) {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// All errors with their source lines.
pub fn report(name: &str, bytes: &[u8], errors: &[ValidationError], paint: Paint) -> String {
    let source = String::from_utf8_lossy(bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes));
    let lines: Vec<&str> = source.lines().collect();
    let gutter = errors.iter().map(|error| error.line.to_string().len()).max().unwrap_or(1);
    let mut out = String::new();
    for error in errors {
        one(&mut out, name, &lines, error, gutter, paint);
    }
    let count = errors.len();
    let _ = writeln!(out, "{name}: {count} error{}", if count == 1 { "" } else { "s" });
    out
}

fn one(out: &mut String, name: &str, lines: &[&str], error: &ValidationError, gutter: usize, paint: Paint) {
    let title = if error.field.is_empty() { clean(&error.found) } else { clean(&error.field) };
    let _ = writeln!(out, "{}{}", paint.red("error"), paint.bold(&format!(": {title}")));
    let pad = " ".repeat(gutter);
    let bar = paint.blue("|");
    if error.line > 0 {
        let _ = writeln!(out, "{pad}{} {name}:{}:{}", paint.blue("-->"), error.line, error.column);
        let line = lines.get(error.line as usize - 1).copied().unwrap_or_default();
        let (shown, caret) = excerpt(line, error.column as usize);
        let number = format!("{:>gutter$}", error.line);
        let _ = writeln!(out, "{pad} {bar}");
        let _ = writeln!(out, "{} {bar} {shown}", paint.blue(&number));
        let _ = writeln!(out, "{pad} {bar} {}", paint.red(&caret));
    }
    let note = |out: &mut String, word: &str, text: &str| {
        let _ = writeln!(out, "{pad} {} {word:<8} {}", paint.blue("="), clean(text));
    };
    if !error.field.is_empty() {
        note(out, "found", &error.found);
    }
    note(out, "expected", &error.expected);
    if let Some(hint) = &error.hint {
        note(out, "hint", hint);
    }
    out.push('\n');
}

/// The part of a source line around a column (from 1), without secrets, and a line of carets below it.
fn excerpt(line: &str, column: usize) -> (String, String) {
    const MOST: usize = 100;
    if line.contains("PRIVATE KEY") {
        return ("(a private key, not shown)".to_owned(), String::new());
    }
    let at = column.saturating_sub(1);
    let end = line.find(" #").map_or(line, |comment| &line[..comment]).trim_end().chars().count();
    let masked = mask(line);
    // A masked text has fewer characters; the place is before it, or shown at it.
    let shown_length = masked.chars().count();
    let at = at.min(shown_length);
    let end = if masked.len() == line.len() { end } else { shown_length };
    let start = at.saturating_sub(MOST * 2 / 3);
    let mut shown = String::new();
    let mut caret = String::new();
    if start > 0 {
        shown.push('…');
        caret.push(' ');
    }
    for (index, c) in masked.chars().enumerate().skip(start).take(MOST) {
        let c = visible(c);
        shown.push(c);
        let mark = if index == at || (index > at && index < end) { '^' } else { ' ' };
        for _ in 0..char_width(c) {
            caret.push(mark);
        }
    }
    if start + MOST < shown_length {
        shown.push('…');
    }
    if at >= shown_length.min(start + MOST) {
        caret.push('^');
    }
    (shown, caret.trim_end().to_owned())
}

/// What cannot be seen is shown as a sign of its own: it may be the error itself.
fn visible(c: char) -> char {
    match c {
        '\t' => '→',
        '\u{a0}' | '\u{2000}'..='\u{200a}' | '\u{202f}' | '\u{205f}' | '\u{3000}' => '␣',
        c if c.is_control() || char_width(c) == 0 => '\u{fffd}',
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => '\u{fffd}',
        c => c,
    }
}

/// A source line without logins and codes.
fn mask(line: &str) -> String {
    const KEYS: [&str; 3] = ["http", "https", "pairing_code"];
    if let Some((_, rest)) = line.split_once("//")
        && let Some((_, host)) = rest.rsplit_once('@')
    {
        let before = &line[..line.len() - rest.len()];
        return format!("{before}***@{host}");
    }
    let (key, value) = line.split_once(':').unwrap_or((line, ""));
    let name = key.trim_start_matches([' ', '-', '{', '"', '\'', '?']).trim_end_matches([' ', '"', '\'']);
    if KEYS.contains(&name) && !value.trim().is_empty() && !value.trim_start().starts_with(['#', '/']) {
        let plain = value.trim_start().starts_with("http://") || value.trim_start().starts_with("https://");
        if !plain {
            return format!("{key}: ***");
        }
    }
    if line.contains("pairing_code") { "(a line with a pairing code, not shown)".to_owned() } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let secret = "s3cret";
        for line in [
            format!("  http: http://user:{secret}@proxy:3128"),
            format!("proxy: {{ http: http://user:{secret}@proxy:3128 }}"),
            format!("  pairing_code: {secret}"),
            format!("hub: {{ endpoint: x, pairing_code: {secret} }}"),
            format!("  https: {secret}"),
            format!("  - -----BEGIN OPENSSH PRIVATE KEY----- {secret}"),
            format!("  http://user:{secret}@proxy:3128"),
        ] {
            for column in 1..line.len() + 3 {
                assert!(!excerpt(&line, column).0.contains(secret), "{line}");
            }
        }
        assert_eq!(excerpt("mode: ha # no", 7), ("mode: ha # no".to_owned(), "      ^^".to_owned()));
        assert_eq!(excerpt("a: 日本 x", 4), ("a: 日本 x".to_owned(), "   ^^^^^^".to_owned()));
    }

    #[test]
    fn long_lines_are_cut_around_the_place() {
        let line = format!("{}X{}", "a".repeat(5000), "b".repeat(5000));
        let (shown, caret) = excerpt(&line, 5001);
        assert!(shown.chars().count() <= 102 && shown.contains('X'));
        assert_eq!(shown.chars().nth(caret.chars().position(|c| c == '^').unwrap()), Some('X'));
    }
}
