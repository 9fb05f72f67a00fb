//! `edgectl profile`: archives of system profiles, built and checked without an agent.

use std::fmt::Write as _;
use std::io::{IsTerminal, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use edge_profiles::{LayerKind, Limits, ProfileSummary};

use super::error::Error;
use super::text::{self, Cell, Paint, clean, table};

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Make an archive of a profile's folder; the same folder always gives the same archive
    #[command(after_help = "Example:
  edgectl profile build ./profile -o store.tar")]
    Build {
        /// Folder with profile.yaml
        dir: PathBuf,
        /// Archive to write [default: the folder's name with .tar]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Check an archive as the agent does, and show its layers
    #[command(after_help = "Example:
  edgectl profile verify store.tar")]
    Verify {
        /// The archive
        file: PathBuf,
    },
}

pub fn run(command: &Command) -> Result<ExitCode, Error> {
    match command {
        Command::Build { dir, output } => {
            let out = match output {
                Some(out) => out.clone(),
                None => archive_name(dir)?,
            };
            let digest = patiently("building the archive", || edge_profiles::build_archive(dir, &out))?;
            text::print(&format!("{}  {digest}\n", out.display()))?;
        }
        Command::Verify { file } => {
            let summary =
                patiently("checking the archive", || edge_profiles::verify_archive(file, &Limits::default()))?;
            text::print(&describe(&summary, Paint::detect()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn archive_name(dir: &Path) -> Result<PathBuf, Error> {
    let full = dir.canonicalize().map_err(|error| Error::read(dir, error))?;
    let name = full.file_name().ok_or_else(|| Error::Other {
        message: "the folder has no name to call the archive after".to_owned(),
        hint: Some("name the archive with -o".to_owned()),
    })?;
    let mut name = name.to_owned();
    name.push(".tar");
    Ok(PathBuf::from(name))
}

fn describe(summary: &ProfileSummary, paint: Paint) -> String {
    let mut out = String::new();
    let title = format!("{} {}", clean(&summary.name), clean(&summary.version));
    let _ = writeln!(out, "{}  {}", paint.bold(&title), summary.digest);
    if let Some(description) = &summary.description {
        let _ = writeln!(out, "{}", clean(description));
    }
    out.push('\n');
    let rows = summary
        .layers
        .iter()
        .enumerate()
        .map(|(index, layer)| {
            let kind = match layer.kind {
                LayerKind::Chart => "chart",
                LayerKind::Manifest => "manifest",
                LayerKind::Vm => "vm",
            };
            let order = (index + 1).to_string();
            vec![
                Cell::from(order),
                Cell::from(&layer.name),
                Cell::from(kind),
                Cell::from(layer.version.as_deref().unwrap_or("-")),
            ]
        })
        .collect();
    out + &table(&["ORDER", "LAYER", "KIND", "VERSION"], rows, paint)
}

/// Does something and, where it takes longer than two seconds, says on standard error that it goes on.
fn patiently<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (done, finished) = channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let start = Instant::now();
            let terminal = std::io::stderr().is_terminal();
            let mut wait = Duration::from_secs(2);
            let mut said = false;
            while finished.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                let line = format!("{what} … {} s", start.elapsed().as_secs());
                // Nobody may be reading any more; that is no reason to stop the work.
                let mut err = std::io::stderr().lock();
                let _ =
                    if terminal { write!(err, "\r{line}").and_then(|()| err.flush()) } else { writeln!(err, "{line}") };
                wait = Duration::from_secs(if terminal { 1 } else { 10 });
                said = true;
            }
            if said && terminal {
                let _ = write!(std::io::stderr().lock(), "\r\x1b[K");
            }
        });
        let result = work();
        drop(done);
        result
    })
}
