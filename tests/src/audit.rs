//! The API server's audit log: who wrote what between two marks.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

/// A place in an audit log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark(u64);

/// An audit log file of JSON lines.
#[derive(Clone, Debug)]
pub struct AuditLog(PathBuf);

/// One request that changes something.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Write {
    /// Who, after impersonation.
    pub user: String,
    /// Program that asked.
    pub agent: String,
    /// `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// `group/resource[/subresource] namespace/name`.
    pub object: String,
    /// HTTP status of the answer.
    pub code: u16,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} by {} ({})", self.code, self.verb, self.object, self.user, self.agent)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    verb: String,
    stage: String,
    user: User,
    impersonated_user: Option<User>,
    #[serde(default)]
    user_agent: String,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    api_group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

impl AuditLog {
    /// The log at `path`; the file may appear later.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where the log lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The beginning of the log.
    pub fn start(&self) -> Mark {
        Mark(0)
    }

    /// The present end of the log.
    pub fn mark(&self) -> Result<Mark> {
        match std::fs::metadata(&self.0) {
            Ok(meta) => Ok(Mark(meta.len())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Mark(0)),
            Err(error) => Err(error).with_context(|| self.0.display().to_string()),
        }
    }

    /// Writes between two marks, those to leases and those that only ask (reviews) left out. Requests that were
    /// refused count: somebody wanted to write.
    ///
    /// # Errors
    /// A log shorter than `to` was rotated: then nothing can be said.
    pub fn writes(&self, from: Mark, to: Mark) -> Result<Vec<Write>> {
        let mut file = File::open(&self.0).with_context(|| self.0.display().to_string())?;
        let length = file.metadata()?.len();
        anyhow::ensure!(length >= to.0, "{} was rotated between the marks", self.0.display());
        file.seek(SeekFrom::Start(from.0))?;
        let mut writes = Vec::new();
        for line in BufReader::new(file.take(to.0.saturating_sub(from.0))).lines() {
            let line = line?;
            let event: Event = serde_json::from_str(&line).with_context(|| format!("audit line {line}"))?;
            writes.extend(write_of(event));
        }
        Ok(writes)
    }

    /// Writes since `from` by users for whom `by` holds.
    pub fn writes_since(&self, from: Mark, by: impl Fn(&str) -> bool) -> Result<Vec<Write>> {
        let mut writes = self.writes(from, self.mark()?)?;
        writes.retain(|write| by(&write.user));
        Ok(writes)
    }
}

fn write_of(event: Event) -> Option<Write> {
    let Event { verb, stage, user, impersonated_user, user_agent, object_ref, response_status } = event;
    let object = object_ref.unwrap_or_default();
    let writes = matches!(verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
    let asks = matches!(object.api_group.as_str(), "authorization.k8s.io" | "authentication.k8s.io")
        || object.subresource == "portforward"
        || object.subresource == "token";
    let lease = object.api_group == "coordination.k8s.io" && object.resource == "leases";
    if stage != "ResponseComplete" || !writes || asks || lease {
        return None;
    }
    let sub = if object.subresource.is_empty() { String::new() } else { format!("/{}", object.subresource) };
    let group = if object.api_group.is_empty() { "core" } else { &object.api_group };
    Some(Write {
        user: impersonated_user.unwrap_or(user).username,
        agent: user_agent,
        verb,
        object: format!("{group}/{}{sub} {}/{}", object.resource, object.namespace, object.name),
        code: response_status.map_or(0, |s| s.code),
    })
}
