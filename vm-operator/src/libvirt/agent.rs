//! The guest agent's protocol, as far as it is spoken: the end of a file.
//!
//! <https://www.qemu.org/docs/master/interop/qemu-ga-ref.html>

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::Error;

/// Reads the last `limit` bytes of a file; `ask` sends one command. What was opened is closed again.
pub fn file_end(
    path: &str,
    limit: u32,
    mut ask: impl FnMut(Value) -> Result<String, Error>,
) -> Result<Option<Vec<u8>>, Error> {
    let strange = |reason: String| Error::Agent { what: format!("read {path}"), reason };
    let mut ask = |command: &str, arguments: Value| -> Result<Value, Error> {
        let answer = ask(json!({ "execute": command, "arguments": arguments }))?;
        let mut answer: Value = serde_json::from_str(&answer).map_err(|e| strange(e.to_string()))?;
        Ok(answer["return"].take())
    };
    let handle = match ask("guest-file-open", json!({ "path": path, "mode": "r" })) {
        // The agent has no codes, but the C library's words.
        Err(error) if error.to_string().contains("No such file or directory") => return Ok(None),
        opened => opened?,
    };
    let mut read = || {
        let end = ask("guest-file-seek", json!({ "handle": handle, "offset": 0, "whence": "end" }))?;
        let size = end["position"].as_u64().ok_or_else(|| strange(format!("a position, found {end}")))?;
        let offset = size.saturating_sub(u64::from(limit));
        ask("guest-file-seek", json!({ "handle": handle, "offset": offset, "whence": "set" }))?;
        let found = ask("guest-file-read", json!({ "handle": handle, "count": limit }))?;
        let encoded = found["buf-b64"].as_str().ok_or_else(|| strange("no data".to_owned()))?;
        BASE64_STANDARD.decode(encoded).map_err(|e| strange(e.to_string()))
    };
    let read = read();
    ask("guest-file-close", json!({ "handle": handle }))?;
    read.map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_file_is_read_and_the_file_closed() {
        let mut asked = Vec::new();
        let read = file_end("/f", 4, |command| {
            asked.push(format!("{} {}", command["execute"].as_str().unwrap(), command["arguments"]["offset"]));
            let answer = match command["execute"].as_str().unwrap() {
                "guest-file-open" => json!(7),
                "guest-file-seek" => json!({ "position": 10, "eof": false }),
                "guest-file-read" => json!({ "count": 4, "buf-b64": BASE64_STANDARD.encode("tail"), "eof": true }),
                _ => json!({}),
            };
            Ok(json!({ "return": answer }).to_string())
        });
        assert_eq!(read.unwrap().as_deref(), Some(b"tail".as_slice()));
        let expected = [
            "guest-file-open null",
            "guest-file-seek 0",
            "guest-file-seek 6",
            "guest-file-read null",
            "guest-file-close null",
        ];
        assert_eq!(asked, expected);
    }

    #[test]
    fn a_strange_answer_is_an_error_and_the_file_is_closed() {
        let mut closed = false;
        let read = file_end("/f", 4, |command| {
            closed |= command["execute"] == "guest-file-close";
            Ok(json!({ "return": 7 }).to_string())
        });
        assert!(matches!(read, Err(Error::Agent { .. })) && closed);
    }
}
