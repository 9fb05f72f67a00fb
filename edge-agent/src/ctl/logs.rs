//! `edgectl logs`: the log of the appliance, also as it is written.

use std::process::ExitCode;
use std::time::Duration;

use edge_api::agent::LogLine;
use edge_client::{Client, Event, Events};

use super::error::Error;
use super::patiently;
use super::text::{self, Paint, clean, local};

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Go on with new lines until interrupted
    #[arg(short, long)]
    follow: bool,
    /// Last lines to start with
    #[arg(short = 'n', long, value_name = "N", default_value_t = 200)]
    lines: usize,
    /// Format of the result
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Format of the result.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Output {
    /// For people
    Text,
    /// JSON, one object in a line
    Json,
}

pub async fn run(args: &Args, client: &Client) -> Result<ExitCode, Error> {
    let paint = Paint::detect();
    if !args.follow {
        for line in patiently(client.logs(args.lines)).await? {
            show(&line, args.output, paint)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // The stream is opened before the log is read, so that nothing falls between them.
    let mut events = patiently(client.events()).await?;
    let mut shown = client.logs(args.lines).await?;
    for line in &shown {
        show(line, args.output, paint)?;
    }
    loop {
        while let Some(event) = next(&mut events).await? {
            let Event::Log(line) = event else { continue };
            // The log and the stream overlap by a few lines.
            if shown.contains(&line) {
                continue;
            }
            show(&line, args.output, paint)?;
            shown = vec![line];
        }
        events = reconnect(client).await?;
        let last = shown.last().map(|line| line.time);
        let missed: Vec<LogLine> =
            client.logs(1000).await?.into_iter().filter(|line| last.is_none_or(|last| line.time > last)).collect();
        for line in &missed {
            show(line, args.output, paint)?;
        }
        shown.extend(missed);
    }
}

fn show(line: &LogLine, output: Output, paint: Paint) -> Result<(), Error> {
    match output {
        Output::Json => text::json(line, false),
        Output::Text => text::print(&render(line, paint)),
    }
}

/// A line of the log for people.
pub fn render(line: &LogLine, paint: Paint) -> String {
    let level = match line.level.as_str() {
        "error" => paint.red("error"),
        "warn" => paint.yellow("warn "),
        other => format!("{:<5}", clean(other)),
    };
    let step = line.step.as_deref().map(|step| format!("{}: ", clean(step))).unwrap_or_default();
    format!("{}  {level}  {step}{}\n", local(line.time), clean(&line.message))
}

/// The next event; `None` where the connection is gone and may come back.
pub async fn next(events: &mut Events) -> Result<Option<Event>, Error> {
    match events.next().await {
        Ok(event) => Ok(event),
        Err(error) if error.may_pass() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits for the agent to come back, and says so on standard error.
pub async fn reconnect(client: &Client) -> Result<Events, Error> {
    text::complain("the agent is gone (it may be restarting); waiting for it, Ctrl-C ends this command");
    let mut pause = Duration::from_millis(250);
    loop {
        tokio::time::sleep(pause).await;
        match client.events().await {
            Ok(events) => {
                text::complain("the agent is back");
                return Ok(events);
            }
            Err(error) if error.may_pass() => pause = (pause * 2).min(Duration::from_secs(5)),
            Err(error) => return Err(error.into()),
        }
    }
}
