//! `edgectl status`: steps, applications, machines and clusters, once or as they change.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::process::ExitCode;

use edge_api::agent::{Phase, SiteFileState, Status, StepState};
use edge_client::{Client, Event};
use jiff::Timestamp;

use super::error::Error;
use super::text::{self, Cell, Paint, clean, span, table};
use super::{Format, NOT_READY, cluster, logs, patiently};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Format of the result
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Go on, with a new status after every change, until interrupted
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(args: &Args, client: &Client) -> Result<ExitCode, Error> {
    if args.watch {
        return watch(args, client).await;
    }
    let status = patiently(client.status()).await?;
    text::seen(match args.output {
        Format::Table => text::print(&render(&status, Timestamp::now(), Paint::detect())),
        Format::Json => text::json(&status, true),
        Format::Yaml => text::yaml(&status),
    })?;
    Ok(code(&status))
}

fn code(status: &Status) -> ExitCode {
    if status.phase == Phase::Ready { ExitCode::SUCCESS } else { ExitCode::from(NOT_READY) }
}

async fn watch(args: &Args, client: &Client) -> Result<ExitCode, Error> {
    let terminal = std::io::stdout().is_terminal();
    let paint = Paint::detect();
    let mut first = true;
    // The first connection must succeed; later ones may take their time.
    let mut events = patiently(client.events()).await?;
    loop {
        while let Some(event) = logs::next(&mut events).await? {
            let Event::Status(status) = event else { continue };
            let written = match args.output {
                Format::Table if terminal => {
                    let screen = render(&status, Timestamp::now(), paint).replace('\n', "\x1b[K\n");
                    text::print(&format!("{}\x1b[H{screen}\x1b[J", if first { "\x1b[2J" } else { "" }))
                }
                Format::Table => {
                    let part = if first { "" } else { "\n" };
                    text::print(&format!("{part}{}", render(&status, Timestamp::now(), paint)))
                }
                Format::Json => text::json(&status, false),
                Format::Yaml => text::print("---\n").and_then(|()| text::yaml(&status)),
            };
            match written {
                Err(error) if error.is_closed_pipe() => return Ok(code(&status)),
                written => written?,
            }
            first = false;
        }
        events = logs::reconnect(client).await?;
    }
}

/// The whole status as text.
pub fn render(status: &Status, now: Timestamp, paint: Paint) -> String {
    let mut out = String::new();
    let name = status.device_id.as_deref().map_or_else(|| "(no site file yet)".to_owned(), clean);
    let phase = match status.phase {
        Phase::Ready => paint.green("Ready"),
        Phase::Failing => paint.red("Failing"),
        Phase::Installing => paint.yellow("Installing"),
        Phase::WaitingForSite => paint.yellow("WaitingForSite"),
    };
    let _ = writeln!(out, "{}  {phase}", paint.bold(&name));
    if !status.message.is_empty() {
        let _ = writeln!(out, "{}", clean(&status.message));
    }
    let _ = writeln!(out, "\ninstance     {}  (agent {})", clean(&status.instance), clean(&status.version));
    let state = match status.site_file.state {
        SiteFileState::Absent => "absent",
        SiteFileState::Invalid => "invalid",
        SiteFileState::Applied => "applied",
    };
    let _ = writeln!(out, "site file    {}  ({state})", clean(&status.site_file.path));
    if let Some(accelerator) = &status.accelerator {
        let _ = writeln!(out, "accelerator  {}  ({})", clean(&accelerator.kind), clean(&accelerator.reason));
    }
    if let Some(upgrade) = &status.upgrade {
        let _ =
            writeln!(out, "upgrade      to {}  ({:?}: {})", clean(&upgrade.to), upgrade.state, clean(&upgrade.message));
    }
    for error in &status.site_file.errors {
        let field = if error.field.is_empty() { String::new() } else { format!(" {}:", clean(&error.field)) };
        let _ = writeln!(
            out,
            "{} line {}, column {}:{field} found {}, expected {}",
            paint.red("  error"),
            error.line,
            error.column,
            clean(&error.found),
            clean(&error.expected)
        );
        if let Some(hint) = &error.hint {
            let _ = writeln!(out, "        hint: {}", clean(hint));
        }
    }
    if !status.site_file.needs_reinstall.is_empty() {
        let fields = status.site_file.needs_reinstall.join(", ");
        let _ = writeln!(out, "{}: {}", paint.yellow("needs a reinstall to take effect"), clean(&fields));
    }
    out.push('\n');
    out.push_str(&steps(status, now, paint));
    applications(&mut out, status, now, paint);
    machines(&mut out, status, now, paint);
    if !status.clusters.is_empty() {
        out.push('\n');
        out.push_str(&cluster::list(&status.clusters, now, paint));
    }
    out
}

fn steps(status: &Status, now: Timestamp, paint: Paint) -> String {
    let mut rows = Vec::new();
    for step in &status.steps {
        let time = match (step.started, step.finished) {
            (Some(started), finished) if step.state != StepState::Pending => span(started, finished.unwrap_or(now)),
            _ => "-".to_owned(),
        };
        let mut message = clean(&step.message);
        if let Some(progress) = step.progress.filter(|_| step.state == StepState::Running) {
            message = format!("{progress:>3}%  {message}");
        }
        if step.attempts > 1 {
            let _ = write!(message, "  (attempt {})", step.attempts);
        }
        rows.push(vec![Cell::from(&step.name), state(step.state, paint), Cell::from(time), Cell::from(message)]);
        if let Some(hint) = &step.hint {
            rows.push(vec![Cell::from(""), Cell::from(""), Cell::from(""), Cell::from(format!("hint: {hint}"))]);
        }
    }
    table(&["STEP", "STATE", "TIME", "MESSAGE"], rows, paint)
}

fn state(state: StepState, paint: Paint) -> Cell {
    let (text, shown) = match state {
        StepState::Pending => ("Pending", "Pending".to_owned()),
        StepState::Running => ("Running", paint.yellow("Running")),
        StepState::Waiting => ("Waiting", paint.yellow("Waiting")),
        StepState::Failed => ("Failed", paint.red("Failed")),
        StepState::Ready => ("Ready", paint.green("Ready")),
    };
    Cell::painted(text, shown)
}

/// How long ago something was; `-` where it was not.
pub fn since(time: Option<Timestamp>, now: Timestamp) -> String {
    time.map_or_else(|| "-".to_owned(), |time| span(time, now))
}

fn applications(out: &mut String, status: &Status, now: Timestamp, paint: Paint) {
    if status.applications.is_empty() {
        return;
    }
    let rows = status
        .applications
        .iter()
        .map(|app| {
            vec![
                Cell::from(&app.name),
                Cell::from(&app.kind),
                Cell::from(app.version.as_deref().unwrap_or("-")),
                state(app.state, paint),
                Cell::from(since(app.since, now)),
                Cell::from(&app.message),
            ]
        })
        .collect();
    out.push('\n');
    out.push_str(&table(&["APPLICATION", "KIND", "VERSION", "STATE", "SINCE", "MESSAGE"], rows, paint));
}

fn machines(out: &mut String, status: &Status, now: Timestamp, paint: Paint) {
    if status.machines.is_empty() {
        return;
    }
    let rows = status
        .machines
        .iter()
        .map(|machine| {
            let ready = if machine.ready { "yes" } else { "no" };
            let shown = if machine.ready { paint.green(ready) } else { paint.yellow(ready) };
            let addresses = machine.addresses.join(", ");
            vec![
                Cell::from(&machine.name),
                Cell::from(&machine.phase),
                Cell::painted(ready, shown),
                Cell::from(machine.vcpus.to_string()),
                Cell::from(format!("{} MiB", machine.memory_mib)),
                Cell::from(since(machine.since, now)),
                Cell::from(if addresses.is_empty() { "-".to_owned() } else { addresses }),
                Cell::from(&machine.message),
            ]
        })
        .collect();
    out.push('\n');
    let headings = ["MACHINE", "PHASE", "READY", "CPUS", "MEMORY", "SINCE", "ADDRESSES", "MESSAGE"];
    out.push_str(&table(&headings, rows, paint));
}
