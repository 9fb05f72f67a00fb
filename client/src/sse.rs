//! A small parser of server-sent events with a bound on what it holds.
//!
//! Of the format it knows what the agent sends: `event:` and `data:` fields, comments (keep-alive), LF and CRLF.

/// Most bytes of one event.
pub const MAX_EVENT: usize = 8 * 1024 * 1024;

/// An event: its name, `message` where it has none, and its data.
#[derive(Debug, Eq, PartialEq)]
pub struct Raw {
    pub name: String,
    pub data: String,
}

/// An event was larger than [`MAX_EVENT`].
#[derive(Debug, Eq, PartialEq)]
pub struct TooBig;

/// Bytes in, events out.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    name: String,
    data: String,
    has_data: bool,
}

impl Parser {
    /// Takes bytes up to the end of the next event; returns how many were taken and the event, where one ended.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(usize, Option<Raw>), TooBig> {
        let mut taken = 0;
        while let Some(length) = bytes[taken..].iter().position(|b| *b == b'\n') {
            self.hold(&bytes[taken..taken + length])?;
            taken += length + 1;
            if let Some(event) = self.end_of_line() {
                return Ok((taken, Some(event)));
            }
        }
        self.hold(&bytes[taken..])?;
        Ok((bytes.len(), None))
    }

    fn hold(&mut self, bytes: &[u8]) -> Result<(), TooBig> {
        if self.line.len() + self.data.len() + bytes.len() > MAX_EVENT {
            return Err(TooBig);
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn end_of_line(&mut self) -> Option<Raw> {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        let line = line.strip_suffix('\r').unwrap_or(&line);
        if line.is_empty() {
            let name = std::mem::take(&mut self.name);
            let data = std::mem::take(&mut self.data);
            let name = if name.is_empty() { "message".to_owned() } else { name };
            return std::mem::take(&mut self.has_data).then_some(Raw { name, data });
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.name),
            "data" => {
                if self.has_data {
                    self.data.push('\n');
                }
                self.data.push_str(value);
                self.has_data = true;
            }
            // Comments, `id`, `retry`.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(parser: &mut Parser, mut bytes: &[u8]) -> Vec<Raw> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let (taken, event) = parser.take(bytes).unwrap();
            bytes = &bytes[taken..];
            events.extend(event);
        }
        events
    }

    fn raw(name: &str, data: &str) -> Raw {
        Raw { name: name.to_owned(), data: data.to_owned() }
    }

    const STREAM: &str =
        ": hello\n\nevent: status\ndata: {\"a\":1}\n\nevent: log\r\ndata: x\r\ndata: y\r\n\r\ndata:z\n\n";

    #[test]
    fn reads_events_and_skips_comments() {
        let events = all(&mut Parser::default(), STREAM.as_bytes());
        assert_eq!(events, [raw("status", "{\"a\":1}"), raw("log", "x\ny"), raw("message", "z")]);
    }

    #[test]
    fn refuses_what_never_ends() {
        let mut parser = Parser::default();
        let chunk = vec![b'x'; 1024 * 1024];
        let refused = (0..9).map(|_| parser.take(&chunk)).find(Result::is_err);
        assert_eq!(refused, Some(Err(TooBig)));
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(cuts in proptest::collection::vec(0usize..STREAM.len(), 0..8)) {
            let mut cuts = cuts;
            cuts.sort_unstable();
            let (mut parser, mut events, mut start) = (Parser::default(), Vec::new(), 0);
            for cut in cuts.into_iter().chain([STREAM.len()]) {
                events.extend(all(&mut parser, &STREAM.as_bytes()[start..cut]));
                start = cut;
            }
            prop_assert_eq!(events, all(&mut Parser::default(), STREAM.as_bytes()));
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            all(&mut Parser::default(), &bytes);
        }
    }
}
