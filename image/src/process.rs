//! Foreign programs: captured output, the tail of it on failure, and an end to all of them on interrupt.
//!
//! Each child leads a process group of its own. [`on_interrupt`] starts a thread that passes the first SIGINT, SIGTERM
//! or SIGHUP on as SIGTERM to every group (mmdebstrap then unmounts and cleans up); callers see
//! [`Error::Interrupted`], remove their staging folders and return. What is still there after ten seconds is killed.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How many lines of output an error shows.
const TAIL: usize = 30;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static CANCELLED: AtomicBool = AtomicBool::new(false);
static GROUPS: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// A program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It could not be started.
    #[error("cannot run {program}; {hint}")]
    Start {
        /// Program name.
        program: String,
        /// What to do.
        hint: String,
        /// Why.
        source: io::Error,
    },
    /// It failed.
    #[error("{command}\nended with {status}; the end of its output:\n{tail}\n{hint}")]
    Failed {
        /// The command line.
        command: String,
        /// Exit status or signal.
        status: ExitStatus,
        /// Last lines of its output.
        tail: String,
        /// What to do.
        hint: String,
    },
    /// Somebody asked us to stop.
    #[error("interrupted")]
    Interrupted,
}

/// Ends every child when this process is asked to end. Call once, first.
pub fn on_interrupt() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        for _ in signals.forever() {
            if INTERRUPTED.swap(true, Ordering::SeqCst) {
                continue;
            }
            signal_groups(Signal::SIGTERM);
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_secs(10));
                signal_groups(Signal::SIGKILL);
            });
        }
    });
    Ok(())
}

/// Whether an interrupt has arrived.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Ends every child, as an interrupt does: another part of the work has failed.
pub fn cancel() {
    CANCELLED.store(true, Ordering::SeqCst);
    signal_groups(Signal::SIGTERM);
}

/// Whether to stop: interrupted or cancelled.
pub fn stopping() -> bool {
    interrupted() || CANCELLED.load(Ordering::SeqCst)
}

/// Fails once an interrupt has arrived; for work in this process that takes seconds.
pub fn check_interrupt() -> Result<(), Error> {
    if stopping() { Err(Error::Interrupted) } else { Ok(()) }
}

fn groups() -> std::sync::MutexGuard<'static, BTreeSet<i32>> {
    GROUPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn signal_groups(signal: Signal) {
    for group in groups().iter() {
        let _ = killpg(Pid::from_raw(*group), signal);
    }
}

/// A command line to run.
#[derive(Debug)]
pub struct Tool {
    program: String,
    args: Vec<OsString>,
    envs: Vec<(String, OsString)>,
    dir: Option<PathBuf>,
    stdin: Option<std::fs::File>,
    hint: String,
}

impl Tool {
    /// A program from PATH, and the Debian package that has it.
    pub fn new(program: impl Into<String>, package: &str) -> Self {
        let hint = if package.is_empty() { String::new() } else { format!("it is in Debian's package {package}") };
        Self { program: program.into(), args: vec![], envs: vec![], dir: None, stdin: None, hint }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs in this folder.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Reads this file as standard input.
    #[must_use]
    pub fn stdin(mut self, file: std::fs::File) -> Self {
        self.stdin = Some(file);
        self
    }

    /// What to do when it fails.
    #[must_use]
    pub fn hint(mut self, hint: &str) -> Self {
        hint.clone_into(&mut self.hint);
        self
    }

    /// Runs to the end; output is shown only on failure.
    pub fn run(self) -> Result<(), Error> {
        self.output().map(drop)
    }

    /// Runs to the end and returns standard output.
    pub fn output(self) -> Result<String, Error> {
        let (program, hint, command) = (self.program.clone(), self.hint.clone(), self.command_line());
        let mut child = self.start()?;
        let (stdout, stderr) = (child.0.stdout.take(), child.0.stderr.take());
        let (captured, errors) = std::thread::scope(|scope| {
            let errors = scope.spawn(|| stderr.map_or_else(VecDeque::new, last_lines));
            let mut captured = Vec::new();
            if let Some(mut pipe) = stdout {
                let _ = pipe.read_to_end(&mut captured);
            }
            (captured, errors.join().unwrap_or_default())
        });
        let status = child.wait().map_err(|source| Error::Start { program, hint: hint.clone(), source })?;
        check_interrupt()?;
        let captured = String::from_utf8_lossy(&captured).into_owned();
        if status.success() {
            return Ok(captured);
        }
        let mut tail = last_lines(captured.as_bytes());
        tail.extend(errors);
        let tail = tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n");
        Err(Error::Failed { command, status, tail, hint })
    }

    /// Starts it with both outputs piped. Dropping the result ends it.
    pub fn start(self) -> Result<Running, Error> {
        check_interrupt()?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.envs).process_group(0);
        command.stdin(self.stdin.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        // Held until the group is listed, so that an interrupt in between cannot miss it.
        let mut groups = groups();
        let child =
            command.spawn().map_err(|source| Error::Start { program: self.program, hint: self.hint, source })?;
        groups.insert(child.id() as i32);
        Ok(Running(child))
    }

    fn command_line(&self) -> String {
        let quote = |arg: &OsString| {
            let text = arg.to_string_lossy();
            if text.contains(char::is_whitespace) { format!("'{text}'") } else { text.into_owned() }
        };
        std::iter::once(self.program.clone()).chain(self.args.iter().map(quote)).collect::<Vec<_>>().join(" ")
    }
}

/// A program under way.
#[derive(Debug)]
pub struct Running(pub Child);

impl Running {
    /// Waits for its end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.0.wait();
        groups().remove(&(self.0.id() as i32));
        status
    }

    /// Asks it to end and waits.
    pub fn stop(mut self) -> io::Result<ExitStatus> {
        let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        self.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = killpg(Pid::from_raw(self.0.id() as i32), Signal::SIGKILL);
            let _ = self.0.wait();
        }
        groups().remove(&(self.0.id() as i32));
    }
}

fn last_lines(pipe: impl Read) -> VecDeque<String> {
    let mut tail = VecDeque::new();
    for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_captured_and_a_failure_shows_its_tail_and_what_to_do() {
        assert_eq!(Tool::new("sh", "").args(["-c", "echo out; echo err >&2"]).output().unwrap(), "out\n");
        let script = "for i in $(seq 100); do echo line $i; done; echo broken >&2; exit 3";
        let error = Tool::new("sh", "").args(["-c", script]).hint("try again").run().unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("  broken"), "{error}");
        assert!(error.contains("line 100") && !error.contains("line 70\n") && error.ends_with("try again"), "{error}");
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = Tool::new("no-such-program", "some-package").run().unwrap_err().to_string();
        assert_eq!(error, "cannot run no-such-program; it is in Debian's package some-package");
    }

    #[test]
    fn a_dropped_child_is_ended() {
        let running = Tool::new("sleep", "").arg("600").start().unwrap();
        let pid = running.0.id();
        drop(running);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
