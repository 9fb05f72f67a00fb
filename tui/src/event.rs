//! What can happen, and where it comes from.

use std::io;
use std::time::Duration;

use crossterm::event::{Event as Input, EventStream, KeyEvent, KeyEventKind};
use edge_api::agent::{LogLine, Status};
use edge_client::Client;
use futures::StreamExt;
use jiff::Timestamp;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::agent;

/// Something happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has another size.
    Resize,
    /// A second went by.
    Tick(Timestamp),
    /// The agent answers; the last lines of its log.
    Connected(Vec<LogLine>),
    /// A new status.
    Status(Box<Status>),
    /// A new line of the log.
    Log(LogLine),
    /// The agent does not answer; the next attempt comes in so many seconds.
    Lost {
        /// Why.
        reason: String,
        /// What to do.
        hint: Option<String>,
        /// Seconds until the next attempt.
        retry: u64,
    },
    /// The terminal or the process is to end.
    Quit,
}

/// Starts every source of events on the runtime's thread. All of them feed one channel, which gives their order.
pub fn sources(runtime: &Runtime, client: Client) -> io::Result<Receiver<Event>> {
    let (sender, receiver) = channel(256);
    let _context = runtime.enter();
    for kind in [SignalKind::terminate(), SignalKind::hangup(), SignalKind::interrupt(), SignalKind::quit()] {
        let mut signal = signal(kind)?;
        let sender = sender.clone();
        runtime.spawn(async move {
            signal.recv().await;
            let _ = sender.send(Event::Quit).await;
        });
    }
    runtime.spawn(keys(sender.clone()));
    runtime.spawn(clock(sender.clone()));
    runtime.spawn(agent::follow(client, sender));
    Ok(receiver)
}

async fn keys(sender: Sender<Event>) {
    let mut stream = EventStream::new();
    loop {
        let event = match stream.next().await {
            Some(Ok(Input::Key(key))) if key.kind != KeyEventKind::Release => Event::Key(key),
            Some(Ok(Input::Resize(..))) => Event::Resize,
            Some(Ok(_)) => continue,
            // The terminal is gone.
            Some(Err(_)) | None => Event::Quit,
        };
        let last = matches!(event, Event::Quit);
        if sender.send(event).await.is_err() || last {
            return;
        }
    }
}

/// Times since a step began are shown to the second.
async fn clock(sender: Sender<Event>) {
    let mut interval = tokio::time::interval(Duration::from_secs(1));
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        if sender.send(Event::Tick(Timestamp::now())).await.is_err() {
            return;
        }
    }
}
