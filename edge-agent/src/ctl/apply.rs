//! `edgectl apply`: puts a site file in force and, where wanted, follows until the appliance is Ready.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use edge_api::agent::{Phase, Status, StepState, ValidationReport};
use edge_client::{Client, Event};
use tokio::time::Instant;

use super::error::Error;
use super::text::{self, Paint, clean, span};
use super::{NOT_READY, check, logs, patiently};
use crate::site;

/// How long a Ready from before a change may still be shown after it.
const SETTLE: Duration = Duration::from_secs(5);

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Site file; `-` reads standard input
    file: PathBuf,
    /// Follow the steps until the appliance is Ready
    #[arg(short, long)]
    watch: bool,
}

pub async fn run(args: &Args, client: &Client) -> Result<ExitCode, Error> {
    let bytes = check::read(&args.file)?;
    let name = check::name(&args.file);
    let config = match site::load_bytes(&bytes) {
        Ok(config) => config,
        Err(errors) => {
            text::seen(text::print(&check::report(&name, &bytes, &errors, Paint::detect())))?;
            return Ok(ExitCode::FAILURE);
        }
    };
    let answer = patiently(client.apply(bytes.clone())).await?;
    if !answer.errors.is_empty() {
        // The agent may be of another version, or know more about the box.
        text::seen(text::print(&check::report(&name, &bytes, &answer.errors, Paint::detect())))?;
        return Ok(ExitCode::FAILURE);
    }
    text::seen(text::print(&outcome(&name, &answer, &site::notes(&config))))?;
    if args.watch {
        let changed = !(answer.live.is_empty() && answer.needs_reinstall.is_empty());
        return match until_ready(client, changed).await {
            // Nobody follows any more; it is in force, and how far it got is not known here.
            Err(error) if error.is_closed_pipe() => Ok(ExitCode::from(NOT_READY)),
            ended => ended,
        };
    }
    Ok(ExitCode::SUCCESS)
}

fn outcome(name: &str, answer: &ValidationReport, notes: &[String]) -> String {
    let mut out = format!("{name}: applied\n");
    let list = |fields: &[String]| clean(&fields.join(", "));
    if answer.live.is_empty() && answer.needs_reinstall.is_empty() {
        out.push_str("no field of a running appliance changed\n");
    }
    if !answer.live.is_empty() {
        let _ = writeln!(out, "takes effect now:  {}", list(&answer.live));
    }
    if !answer.needs_reinstall.is_empty() {
        let _ = writeln!(out, "needs a reinstall: {}", list(&answer.needs_reinstall));
    }
    for note in notes {
        let _ = writeln!(out, "note: {note}");
    }
    out
}

/// One line for every change of a step's, an application's or a machine's state.
async fn until_ready(client: &Client, changed: bool) -> Result<ExitCode, Error> {
    let start = Instant::now();
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    // Without a change Ready is Ready; with one, it counts once something moved or nothing does for a while.
    let mut moved = !changed;
    let mut events = client.events().await?;
    let mut last: Option<Status> = None;
    loop {
        let event = tokio::time::timeout(SETTLE, logs::next(&mut events)).await;
        match event {
            Ok(Ok(Some(Event::Status(status)))) => {
                moved |= status.phase != Phase::Ready;
                for (key, line) in lines(&status) {
                    if shown.get(&key) != Some(&line) {
                        let time = jiff::Zoned::now().strftime("%H:%M:%S").to_string();
                        text::print(&format!("{time}  {line}\n"))?;
                        shown.insert(key, line);
                    }
                }
                last = Some(*status);
            }
            Ok(Ok(Some(Event::Log(_)))) | Err(_) => {}
            Ok(Ok(None)) => events = logs::reconnect(client).await?,
            Ok(Err(error)) => return Err(error),
        }
        moved |= start.elapsed() >= SETTLE;
        if let Some(status) = last.as_ref().filter(|status| moved && status.phase == Phase::Ready) {
            text::seen(text::print(&format!("Ready: {}\n", clean(&status.message))))?;
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn lines(status: &Status) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for step in status.steps.iter().filter(|step| step.state != StepState::Pending) {
        let time = match (step.state, step.started, step.finished) {
            (StepState::Ready | StepState::Failed, Some(from), Some(to)) => format!(" after {}", span(from, to)),
            _ => String::new(),
        };
        let mut line = format!("{:<20} {:?}{time}", clean(&step.name), step.state);
        // Messages of a running step follow its progress; a line for each would be noise.
        if step.state != StepState::Running && step.state != StepState::Ready {
            let _ = write!(line, ": {}", clean(&step.message));
        }
        if let Some(hint) = &step.hint {
            let _ = write!(line, "  (hint: {})", clean(hint));
        }
        lines.push((format!("step/{}", step.name), line));
    }
    for app in status.applications.iter().filter(|app| app.state != StepState::Pending) {
        lines.push((format!("application/{}", app.name), format!("  {:<18} {:?}", clean(&app.name), app.state)));
    }
    for machine in &status.machines {
        let addresses = if machine.addresses.is_empty() {
            String::new()
        } else {
            format!("  {}", clean(&machine.addresses.join(", ")))
        };
        let ready = if machine.ready { ", ready" } else { "" };
        let line = format!("  {:<18} {}{ready}{addresses}", clean(&machine.name), clean(&machine.phase));
        lines.push((format!("machine/{}", machine.name), line));
    }
    lines
}
