//! Colours in the form that every terminal reads.
//!
//! crossterm writes even the eight basic colours in the form for 256 of them (`ESC [ 38;5;1 m`). Serial consoles and
//! old terminals take that for something else; this writer turns it into the basic form (`ESC [ 31 m`).

use std::io::{self, Write};

/// Longest control sequence that is held back to be looked at; longer ones go through as they are.
const MOST: usize = 64;

/// Writes through to another writer, with colours in the basic form. Flushing writes out what is held.
pub struct BasicColours<W: Write> {
    inner: W,
    ready: Vec<u8>,
    /// A control sequence that has not ended yet.
    held: Vec<u8>,
}

impl<W: Write> BasicColours<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, ready: Vec::new(), held: Vec::new() }
    }

    fn push(&mut self, byte: u8) {
        match self.held.len() {
            0 if byte != 0x1b => self.ready.push(byte),
            // Not a control sequence after all, or none that matters here.
            1 if byte != b'[' => self.release(byte),
            0 | 1 => self.held.push(byte),
            _ if (0x40..=0x7e).contains(&byte) => {
                if byte == b'm' {
                    let parameters = String::from_utf8_lossy(&self.held[2..]).into_owned();
                    self.held.truncate(2);
                    self.held.extend_from_slice(basic(&parameters).as_bytes());
                }
                self.release(byte);
            }
            MOST.. => self.release(byte),
            _ => self.held.push(byte),
        }
    }

    fn release(&mut self, byte: u8) {
        self.ready.append(&mut self.held);
        self.ready.push(byte);
    }
}

impl<W: Write> Write for BasicColours<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            self.push(*byte);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let ready = std::mem::take(&mut self.ready);
        self.inner.write_all(&ready)?;
        self.inner.flush()
    }
}

/// Parameters of a colour sequence, `38;5;N` and `48;5;N` with N below 8 in their basic form.
fn basic(parameters: &str) -> String {
    let list: Vec<&str> = parameters.split(';').collect();
    let mut out: Vec<String> = Vec::new();
    let mut index = 0;
    while index < list.len() {
        let colour = list.get(index + 2).and_then(|text| text.parse::<u8>().ok()).filter(|colour| *colour < 8);
        match (list[index], list.get(index + 1), colour) {
            (ground @ ("38" | "48"), Some(&"5"), Some(colour)) => {
                out.push(format!("{}{colour}", &ground[..1]));
                index += 3;
            }
            (other, ..) => {
                out.push(other.to_owned());
                index += 1;
            }
        }
    }
    out.join(";")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(parts: &[&str]) -> String {
        let mut out = Vec::new();
        let mut writer = BasicColours::new(&mut out);
        for part in parts {
            writer.write_all(part.as_bytes()).unwrap();
        }
        writer.flush().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn colours_become_basic_and_all_else_stays() {
        assert_eq!(through(&["a\x1b[38;5;1mb\x1b[48;5;", "6", "m日\x1b[0m"]), "a\x1b[31mb\x1b[46m日\x1b[0m");
        assert_eq!(through(&["\x1b[1;38;5;3;48;5;0m"]), "\x1b[1;33;40m");
        let others = "\x1b[38;5;208m\x1b[2J\x1b[?1049h\x1b(B\x1b[10;20Hx";
        assert_eq!(through(&[others]), others);
        let long = format!("\x1b[{}m", "1;".repeat(200));
        assert_eq!(through(&[&long]), long);
    }
}
