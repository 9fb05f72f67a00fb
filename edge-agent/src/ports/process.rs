//! Runs a foreign program: output captured and bounded, a deadline, and dropping the future ends the whole process
//! group. A program dies with the agent, too: an orphan of a killed agent would work against its successor.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, Command};

use crate::effects::Effect;
use crate::redact::redact;

/// Bytes of each output stream that are kept: the last ones.
const KEEP: usize = 128 * 1024;
/// Lines of output that an error shows.
const TAIL_LINES: usize = 12;
/// Debian's util-linux, an essential package; asks the kernel to end the child with its parent.
const SETPRIV: &str = "/usr/bin/setpriv";

/// A foreign program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("{program} cannot be started")]
    Start {
        /// Program.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("{command} ended with {status}: {tail}")]
    Failed {
        /// Program and its first arguments.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// Last lines of its output.
        tail: String,
    },
    /// It was ended because it took too long.
    #[error("{command} was ended after {} s: {tail}", after.as_secs())]
    Deadline {
        /// Program and its first arguments.
        command: String,
        /// The deadline.
        after: Duration,
        /// Last lines of its output.
        tail: String,
    },
    /// Its input could not be produced.
    #[error("input for {command}")]
    Input {
        /// Program and its first arguments.
        command: String,
        /// Why.
        source: std::io::Error,
    },
}

impl Error {
    /// Last lines of the program's output, where it ran.
    pub fn tail(&self) -> &str {
        match self {
            Self::Failed { tail, .. } | Self::Deadline { tail, .. } => tail,
            Self::Start { .. } | Self::Input { .. } => "",
        }
    }
}

/// A program to run.
#[derive(Clone, Debug)]
pub struct Program {
    path: PathBuf,
    args: Vec<OsString>,
    env: Vec<(String, OsString)>,
    deadline: Duration,
    effect: Option<Effect>,
}

/// What a program that succeeded wrote.
#[derive(Clone, Debug, Default)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Program {
    /// `path` with a deadline of 30 s.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let (path, deadline) = (path.as_ref().to_owned(), Duration::from_secs(30));
        Self { path, args: Vec::new(), env: Vec::new(), deadline, effect: None }
    }

    /// Adds arguments. No secrets: arguments are public.
    #[must_use]
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Sets the deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Names what it changes; without a name it only reads.
    #[must_use]
    pub fn effect(mut self, effect: Effect) -> Self {
        self.effect = Some(effect);
        self
    }

    fn name(&self) -> String {
        let program = self.path.file_name().unwrap_or(self.path.as_os_str()).to_string_lossy().into_owned();
        let words = self.args.iter().take(3).map(|a| a.to_string_lossy());
        std::iter::once(program.into()).chain(words).collect::<Vec<_>>().join(" ")
    }

    /// Runs it without input.
    pub async fn run(&self) -> Result<Output, Error> {
        self.run_with_input(async |_| Ok(())).await
    }

    /// Runs it; `input` writes its standard input.
    pub async fn run_with_input<F>(&self, input: F) -> Result<Output, Error>
    where
        F: AsyncFnOnce(&mut ChildStdin) -> std::io::Result<()>,
    {
        match self.effect {
            Some(effect) => effect.around_async(self.carry_out(input)).await,
            None => self.carry_out(input).await,
        }
    }

    async fn carry_out<F>(&self, input: F) -> Result<Output, Error>
    where
        F: AsyncFnOnce(&mut ChildStdin) -> std::io::Result<()>,
    {
        let command = self.name();
        let mut child = self
            .command()
            .spawn()
            .map_err(|source| Error::Start { program: self.path.display().to_string(), source })?;
        let mut group = Group(child.id().map(|id| Pid::from_raw(id.cast_signed())));
        let mut stdin = child.stdin.take();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let (out_pipe, err_pipe) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let feed = async {
                let end = match stdin.as_mut() {
                    Some(pipe) => match input(pipe).await {
                        Ok(()) => pipe.shutdown().await,
                        Err(e) => Err(e),
                    },
                    None => Ok(()),
                };
                drop(stdin);
                end
            };
            let (input_end, (), ()) = tokio::join!(feed, collect(out_pipe, &mut out), collect(err_pipe, &mut err));
            (input_end, child.wait().await)
        };
        let ended = tokio::time::timeout(self.deadline, work).await;
        if ended.is_ok() {
            // Reaped: the number may belong to somebody else by now.
            group.0 = None;
        }
        drop(group);
        let (out, err) = (text(&out), text(&err));
        match ended {
            Err(_) => Err(Error::Deadline { command, after: self.deadline, tail: tail(&err, &out) }),
            Ok((_, Err(source))) => Err(Error::Start { program: command, source }),
            Ok((_, Ok(status))) if !status.success() => Err(Error::Failed { command, status, tail: tail(&err, &out) }),
            Ok((Err(source), Ok(_))) => Err(Error::Input { command, source }),
            Ok((Ok(()), Ok(_))) => Ok(Output { stdout: out, stderr: err }),
        }
    }

    fn command(&self) -> Command {
        let mut command = if Path::new(SETPRIV).exists() {
            let mut command = Command::new(SETPRIV);
            command.args(["--pdeathsig", "KILL", "--"]).arg(&self.path);
            command
        } else {
            Command::new(&self.path)
        };
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }
}

/// Ends a process group when dropped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

async fn collect(pipe: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut pipe) = pipe else { return };
    let mut buffer = vec![0; 8192];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * KEEP {
            kept.drain(..kept.len() - KEEP);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Last lines of what a program wrote, errors preferred, as one line.
fn tail(stderr: &str, stdout: &str) -> String {
    let from = if stderr.trim().is_empty() { stdout } else { stderr };
    let lines: Vec<&str> = from.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    if last.is_empty() { "no output".to_owned() } else { redact(&last.join(" | ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_captured_and_a_failure_shows_its_tail() {
        let out = Program::new("/bin/sh").args(["-c", "echo out; echo err >&2"]).run().await.unwrap();
        assert_eq!((out.stdout.as_str(), out.stderr.as_str()), ("out\n", "err\n"));
        let failed = Program::new("/bin/sh").args(["-c", "echo http://a:b@c >&2; exit 3"]).run().await.unwrap_err();
        assert!(failed.to_string().contains("exit status: 3: http://***@c"), "{failed}");
    }

    #[tokio::test]
    async fn input_is_streamed() {
        let out = Program::new("/bin/cat")
            .run_with_input(async |stdin| {
                for _ in 0..100 {
                    stdin.write_all(&[b'x'; 1000]).await?;
                }
                Ok(())
            })
            .await
            .unwrap();
        assert_eq!(out.stdout.len(), 100_000);
    }

    #[tokio::test]
    async fn a_deadline_ends_the_whole_group() {
        let folder = tempfile::tempdir().unwrap();
        let mark = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", mark.display());
        let program = Program::new("/bin/sh").args(["-c", &script]).deadline(Duration::from_millis(500));
        assert!(matches!(program.run().await, Err(Error::Deadline { .. })));
        let pid: i32 = std::fs::read_to_string(mark).unwrap().trim().parse().unwrap();
        let gone = async {
            // A zombie without a reaper still has an entry: ask for its state.
            while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the grandchild ends");
    }

    #[tokio::test]
    async fn a_missing_program_is_named() {
        let error = Program::new("/nonexistent/x").run().await.unwrap_err();
        assert!(error.to_string().contains('x'), "{error}");
    }
}
