//! The event stream of the agent.

use edge_api::agent::{LogLine, Status};
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};

use crate::error::Error;
use crate::sse::{MAX_EVENT, Parser, Raw};

/// What the agent tells by itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The whole status: first of all, and after every change.
    Status(Box<Status>),
    /// A line of the log as it is written.
    Log(LogLine),
}

/// An open event stream.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    parser: Parser,
    rest: Bytes,
}

impl Events {
    pub(crate) fn new(body: Incoming) -> Self {
        Self { body, parser: Parser::default(), rest: Bytes::new() }
    }

    /// The next event; `None` where the agent ended the stream. Safe to be dropped and called again.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        loop {
            while !self.rest.is_empty() {
                let (taken, raw) = self
                    .parser
                    .take(&self.rest)
                    .map_err(|_| Error::Unreadable(format!("an event of more than {MAX_EVENT} bytes")))?;
                self.rest = self.rest.slice(taken..);
                if let Some(event) = raw.as_ref().map(read).transpose()?.flatten() {
                    return Ok(Some(event));
                }
            }
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(Error::broken(&error)),
                Some(Ok(frame)) => self.rest = frame.into_data().unwrap_or_default(),
            }
        }
    }
}

/// Events of names that this version does not know are skipped.
fn read(raw: &Raw) -> Result<Option<Event>, Error> {
    let unreadable = |error: serde_json::Error| Error::Unreadable(format!("event `{}`: {error}", raw.name));
    Ok(match raw.name.as_str() {
        "status" => Some(Event::Status(serde_json::from_str(&raw.data).map_err(unreadable)?)),
        "log" => Some(Event::Log(serde_json::from_str(&raw.data).map_err(unreadable)?)),
        _ => None,
    })
}
