//! Writing for people and for programs: tables, colours, JSON, YAML, times.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

pub use edge_client::span;
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::error::Error;

/// Writes text to standard output.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::Output)
}

/// Who reads a result need not read to its end (`… | head`); the exit code still tells how it is.
pub fn seen(written: Result<(), Error>) -> Result<(), Error> {
    written.or_else(|error| if error.is_closed_pipe() { Ok(()) } else { Err(error) })
}

/// Writes a line to standard error. Nobody may be reading it any more; that is no reason to stop.
pub fn complain(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{}", clean(line));
}

/// Writes lines to standard error, as they are.
pub fn complain_lines(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// Writes JSON, indented or in one line.
pub fn json(value: &impl Serialize, pretty: bool) -> Result<(), Error> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    print(&(text.map_err(|_| Error::Format("JSON"))? + "\n"))
}

/// Writes a YAML document.
pub fn yaml(value: &impl Serialize) -> Result<(), Error> {
    let text = serde_saphyr::to_string(value).map_err(|_| Error::Format("YAML"))?;
    print(&text)
}

/// Text without what could move a terminal's cursor or hide other text; line breaks become spaces.
pub fn clean(text: &str) -> String {
    text.chars()
        .filter(|c| !matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
        .map(|c| match c {
            '\n' | '\t' => ' ',
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect()
}

/// Columns that a text takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// Columns that a character takes on a terminal.
pub fn char_width(c: char) -> usize {
    c.width().unwrap_or(0)
}

/// Colours, where standard output is a terminal and nobody asked for none.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours as the surroundings want them.
    pub fn detect() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty())
            || std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { on: !plain && io::stdout().is_terminal() }
    }

    /// No colours.
    #[cfg(test)]
    #[allow(dead_code)]
    pub const fn none() -> Self {
        Self { on: false }
    }

    fn wrap(self, code: &str, text: &str) -> String {
        if self.on && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    pub fn bold(self, text: &str) -> String {
        self.wrap("1", text)
    }

    pub fn red(self, text: &str) -> String {
        self.wrap("1;31", text)
    }

    pub fn green(self, text: &str) -> String {
        self.wrap("32", text)
    }

    pub fn yellow(self, text: &str) -> String {
        self.wrap("33", text)
    }

    pub fn blue(self, text: &str) -> String {
        self.wrap("1;34", text)
    }
}

/// A cell of a table: its text, and how it is shown.
pub struct Cell {
    text: String,
    shown: Option<String>,
}

impl Cell {
    /// A cell with a colour; `shown` is `text` with colour codes.
    pub fn painted(text: &str, shown: String) -> Self {
        Self { text: text.to_owned(), shown: Some(shown) }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: clean(text.as_ref()), shown: None }
    }
}

/// Lays out rows below headings. The last column is not padded.
pub fn table(headings: &[&str], rows: Vec<Vec<Cell>>, paint: Paint) -> String {
    let head = headings.iter().map(|h| Cell::painted(h, paint.bold(h))).collect();
    let rows: Vec<Vec<Cell>> = std::iter::once(head).chain(rows).collect();
    let widths: Vec<usize> = (0..headings.len())
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| width(&cell.text)).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (index, (cell, most)) in row.iter().zip(&widths).enumerate() {
            line.push_str(cell.shown.as_ref().unwrap_or(&cell.text));
            if index + 1 < headings.len() {
                line.push_str(&" ".repeat(most - width(&cell.text) + 2));
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A moment in the host's time zone, to the second.
pub fn local(time: Timestamp) -> String {
    time.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// Whether somebody at the terminal typed the name of what is going to be removed; says why not.
pub fn confirmed(what: &str, name: &str) -> Result<bool, Error> {
    if !io::stdin().is_terminal() {
        complain("error: this wants a confirmation, and standard input is no terminal");
        complain("hint: give --yes to go on without being asked");
        return Ok(false);
    }
    let name = clean(name);
    let _ = write!(io::stderr(), "This removes {}. Type {name} to go on: ", clean(what));
    let mut typed = String::new();
    io::stdin().read_line(&mut typed).map_err(|error| Error::read(Path::new("stdin"), error))?;
    if typed.trim() == name {
        return Ok(true);
    }
    complain("error: that is something else; nothing was removed");
    Ok(false)
}
