//! Follows the agent: connects, passes on what it tells, and connects again with growing pauses.

use std::time::Duration;

use edge_client::{Client, Error};
use tokio::sync::mpsc::Sender;

use crate::event::Event;
use crate::state::LOG_LINES;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// Runs until nobody listens any more.
pub async fn follow(client: Client, sender: Sender<Event>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let lost = match once(&client, &sender, &mut pause).await {
            Ok(()) => None,
            Err(Stop::Nobody) => return,
            Err(Stop::Agent(error)) => Some(error),
        };
        let reason = lost.as_ref().map_or_else(|| "the agent ended the connection".to_owned(), Error::to_string);
        let event = Event::Lost { reason, hint: lost.and_then(|error| error.hint()), retry: pause.as_secs() };
        if sender.send(event).await.is_err() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

enum Stop {
    Nobody,
    Agent(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Agent(error)
    }
}

/// One connection, until the agent ends it.
async fn once(client: &Client, sender: &Sender<Event>, pause: &mut Duration) -> Result<(), Stop> {
    // The stream first: what is logged meanwhile comes twice, and the state drops one of the two.
    let mut events = client.events().await?;
    let log = client.logs(LOG_LINES).await?;
    sender.send(Event::Connected(log)).await.map_err(|_| Stop::Nobody)?;
    while let Some(event) = events.next().await? {
        *pause = FIRST_PAUSE;
        let event = match event {
            edge_client::Event::Status(status) => Event::Status(status),
            edge_client::Event::Log(line) => Event::Log(line),
        };
        sender.send(event).await.map_err(|_| Stop::Nobody)?;
    }
    Ok(())
}
