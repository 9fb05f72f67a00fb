//! `edge.log`: the high-level log that people read, and its last lines in memory for the socket.
//!
//! A tracing layer takes every event of this crate at level info or above. A line is `time level step message`; the
//! step is the event's field `step`. The file is renamed to `edge.log.1` at 10 MB, so both together stay below 20.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use edge_api::agent::LogLine;
use jiff::Timestamp;
use tokio::sync::broadcast;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use crate::redact;

/// Size at which the file is renamed away.
const CAP: u64 = 10 << 20;
/// Lines kept in memory.
const LINES: usize = 1000;
/// Characters of a line's message.
const WIDTH: usize = 2000;

/// The log, shared by the tracing layer and the server.
#[derive(Clone, Debug)]
pub struct Journal {
    inner: Arc<Mutex<Inner>>,
    live: broadcast::Sender<LogLine>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: File,
    size: u64,
    cap: u64,
    last: VecDeque<LogLine>,
}

impl Journal {
    /// Opens the log and reads back its last lines.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::with_cap(path, CAP)
    }

    fn with_cap(path: &Path, cap: u64) -> io::Result<Self> {
        let file = append(path)?;
        let size = file.metadata()?.len();
        let last = read_back(path, size)?;
        let inner = Inner { path: path.to_owned(), file, size, cap, last };
        Ok(Self { inner: Arc::new(Mutex::new(inner)), live: broadcast::Sender::new(256) })
    }

    /// The last `count` lines, oldest first.
    pub fn last(&self, count: usize) -> Vec<LogLine> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last.iter().skip(inner.last.len().saturating_sub(count)).cloned().collect()
    }

    /// Follows new lines.
    pub fn subscribe(&self) -> broadcast::Receiver<LogLine> {
        self.live.subscribe()
    }

    /// Adds a line.
    pub fn add(&self, line: LogLine) {
        let line = LogLine { message: redact::line(&line.message, WIDTH), ..line };
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let text = format!("{line}\n", line = show(&line));
            // A full disk must not stop the appliance; the line is still on the socket.
            let _ = inner.write(text.as_bytes());
            if inner.last.len() == LINES {
                inner.last.pop_front();
            }
            inner.last.push_back(line.clone());
        }
        let _ = self.live.send(line);
    }
}

impl Inner {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > self.cap {
            let mut old = self.path.clone().into_os_string();
            old.push(".1");
            match fs::rename(&self.path, old) {
                // Renamed already by a line before, for which no new file could be made.
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
            self.file = append(&self.path)?;
            self.size = 0;
        }
        if let Err(e) = self.file.write_all(bytes) {
            // No half line: what follows it would be taken for its end.
            self.file.set_len(self.size)?;
            return Err(e);
        }
        self.size += bytes.len() as u64;
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

fn show(line: &LogLine) -> String {
    let step = line.step.as_deref().unwrap_or("-");
    format!("{:.3} {:<5} {:<19} {}", line.time, line.level.to_uppercase(), step, line.message)
}

fn parse(text: &str) -> Option<LogLine> {
    let (time, rest) = text.split_once(' ')?;
    let (level, rest) = rest.split_once(' ')?;
    let (step, message) = rest.trim_start().split_once(' ')?;
    Some(LogLine {
        time: time.parse().ok()?,
        level: level.to_lowercase(),
        step: (step != "-").then(|| step.to_owned()),
        message: message.trim_start().to_owned(),
    })
}

fn read_back(path: &Path, size: u64) -> io::Result<VecDeque<LogLine>> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(size.saturating_sub(128 << 10)))?;
    let mut bytes = Vec::new();
    file.take(128 << 10).read_to_end(&mut bytes)?;
    let lines: Vec<LogLine> = String::from_utf8_lossy(&bytes).lines().filter_map(parse).collect();
    Ok(lines.into_iter().rev().take(LINES).rev().collect())
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let metadata = event.metadata();
        if !metadata.target().starts_with("edge_agent") || *metadata.level() > Level::INFO {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = metadata.level().to_string().to_lowercase();
        self.add(LogLine {
            time: Timestamp::now(),
            level,
            step: fields.step,
            message: fields.message + &fields.others,
        });
    }
}

/// Fields of an event: the message, the step, and the others as ` name=value`.
#[derive(Default)]
struct Fields {
    message: String,
    step: Option<String>,
    others: String,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            "step" => self.step = Some(value.to_owned()),
            name => {
                let _ = write!(self.others, " {name}={value}");
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    #[test]
    fn lines_are_written_redacted_and_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.log");
        let journal = Journal::open(&path).unwrap();
        let mut reader = journal.subscribe();
        let subscriber = tracing_subscriber::registry().with(journal.clone());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "edge_agent::x", step = "bundle", size = 3, "verified\nat http://a:b@c");
            tracing::debug!(target: "edge_agent::x", "not for people");
            tracing::info!(target: "hyper", "not ours");
        });
        let line = reader.try_recv().unwrap();
        assert_eq!((line.level.as_str(), line.step.as_deref()), ("info", Some("bundle")));
        assert_eq!(line.message, "verified at http://***@c size=3");
        assert!(reader.try_recv().is_err());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(" INFO  bundle              verified at http://***@c size=3\n"), "{text}");
        let again = Journal::open(&path).unwrap().last(10);
        assert_eq!(again.len(), 1);
        assert_eq!((&again[0].message, &again[0].step), (&line.message, &line.step));
    }

    #[test]
    fn a_full_disk_costs_the_lines_that_find_no_space_and_no_others() {
        let disk = edge_tests::SmallDisk::new(1 << 20).unwrap();
        let path = disk.path().join("edge.log");
        let journal = Journal::open(&path).unwrap();
        let add = |message: &str| {
            let message = message.to_owned();
            journal.add(LogLine { time: Timestamp::now(), level: "info".to_owned(), step: None, message });
        };
        add("before");
        disk.leave(0).unwrap();
        for n in 0..100 {
            add(&format!("{n} {}", "x".repeat(100)));
        }
        disk.leave(1 << 20).unwrap();
        add("after");
        assert_eq!(journal.last(1000).len(), 102, "all are on the socket");
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<LogLine> = text.lines().map(|line| parse(line).unwrap()).collect();
        assert_eq!(lines.last().unwrap().message, "after");
        assert!(lines.len() > 2 && lines.len() < 102, "{}", lines.len());
        let whole = |line: &LogLine| line.message.len() >= 102 || ["before", "after"].contains(&line.message.as_str());
        assert!(lines.iter().all(whole), "{text}");
    }

    #[test]
    fn a_new_file_that_cannot_be_made_is_made_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.log");
        let journal = Journal::with_cap(&path, 100).unwrap();
        let add = |message: &str| {
            let message = message.repeat(40);
            journal.add(LogLine { time: Timestamp::now(), level: "info".to_owned(), step: None, message });
        };
        add("a");
        // As if the line before had got as far as that.
        fs::rename(&path, folder.path().join("edge.log.1")).unwrap();
        add("b");
        assert!(fs::read_to_string(&path).unwrap().ends_with(&format!("{}\n", "b".repeat(40))));
    }

    #[test]
    fn the_file_is_capped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.log");
        let journal = Journal::with_cap(&path, 1000).unwrap();
        for n in 0..100 {
            let message = format!("line {n}");
            journal.add(LogLine { time: Timestamp::now(), level: "info".to_owned(), step: None, message });
        }
        assert!(fs::metadata(&path).unwrap().len() <= 1000);
        assert!(fs::metadata(folder.path().join("edge.log.1")).unwrap().len() <= 1000);
        assert_eq!(journal.last(3).last().unwrap().message, "line 99");
    }
}
