//! Connections to hypervisors, one per URI, made again with back-off whenever they break.
//!
//! ```text
//!            ┌───────────── back-off 1 s … 30 s ◄──────────┐
//!            ▼                                             │
//!       connecting ── open, subscribe ──► connected ── closed by libvirtd or keepalive
//! ```
//! One task per URI; it tells [`Hosts`]' listener of every change, so that controllers need not look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, mpsc, watch};

use super::adapter::Libvirt;
use super::events::{self, HostEvent, Sink};
use super::{Error, Hypervisor};

/// News of one connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct News {
    /// Connection URI.
    pub uri: String,
    /// What happened.
    pub what: What,
}

/// What happened to a connection or behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum What {
    /// Connected: events may have been missed before.
    Connected,
    /// An event from libvirt; [`HostEvent::Closed`] when the connection is gone.
    Event(HostEvent),
}

/// One hypervisor.
pub struct Host {
    uri: String,
    state: watch::Sender<State>,
    closed: Notify,
}

#[derive(Clone)]
enum State {
    Down { since: Instant, reason: String },
    Up(Arc<dyn Hypervisor>),
}

/// A connection that comes back within this time was never away, as far as any status is concerned: a restart of
/// libvirtd, or of this process, is no news.
const PATIENCE: Duration = Duration::from_secs(10);

impl Host {
    /// Runs `work` with the hypervisor on a thread where it may block.
    pub async fn call<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&dyn Hypervisor) -> Result<T, Error> + Send + 'static,
    {
        let hypervisor = self.connected().await?;
        tokio::task::spawn_blocking(move || work(&*hypervisor)).await.map_err(|_| Error::Interrupted)?
    }

    async fn connected(&self) -> Result<Arc<dyn Hypervisor>, Error> {
        let mut states = self.state.subscribe();
        loop {
            let (since, reason) = match states.borrow_and_update().clone() {
                State::Up(hypervisor) => return Ok(hypervisor),
                State::Down { since, reason } => (since, reason),
            };
            let left = PATIENCE.saturating_sub(since.elapsed());
            if !matches!(tokio::time::timeout(left, states.changed()).await, Ok(Ok(()))) {
                return Err(Error::NotConnected { uri: self.uri.clone(), reason });
            }
        }
    }

    /// Notes that the connection is away; the time counts from the first notice.
    fn down(&self, reason: &str) {
        self.state.send_modify(|state| {
            let since = match state {
                State::Down { since, .. } => *since,
                State::Up(_) => Instant::now(),
            };
            *state = State::Down { since, reason: reason.to_owned() };
        });
    }
}

/// All hypervisors that were asked for.
pub struct Hosts {
    known: Mutex<HashMap<String, (Arc<Host>, tokio::task::AbortHandle)>>,
    news: mpsc::UnboundedSender<News>,
}

impl Hosts {
    /// Starts libvirt's event loop. News go to the receiver.
    pub fn new() -> Result<(Self, mpsc::UnboundedReceiver<News>), Error> {
        events::start_event_loop()
            .map_err(|refusal| Error::Call { what: "start libvirt's event loop".to_owned(), refusal })?;
        let (news, receiver) = mpsc::unbounded_channel();
        Ok((Self { known: Mutex::default(), news }, receiver))
    }

    /// The hypervisor at a URI; the first call starts connecting.
    pub fn get(&self, uri: &str) -> Arc<Host> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((host, _)) = known.get(uri) {
            return host.clone();
        }
        let host = Arc::new(Host {
            uri: uri.to_owned(),
            state: watch::Sender::new(State::Down {
                since: Instant::now(),
                reason: "the first connection is being made".to_owned(),
            }),
            closed: Notify::new(),
        });
        let task = tokio::spawn(keep_connected(host.clone(), self.news.clone()));
        known.insert(uri.to_owned(), (host.clone(), task.abort_handle()));
        host
    }

    /// Lets a connection go that no appliance names any more.
    pub fn forget(&self, uri: &str) {
        if let Some((host, task)) = self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(uri) {
            task.abort();
            host.down("no appliance uses it");
        }
    }
}

async fn keep_connected(host: Arc<Host>, news: mpsc::UnboundedSender<News>) {
    let mut wait = Duration::from_secs(1);
    let mut told = false;
    loop {
        let uri = host.uri.clone();
        let sink = sink(&host, &news);
        let opened = tokio::task::spawn_blocking(move || Libvirt::open(&uri, &sink)).await;
        match opened.unwrap_or(Err(Error::Interrupted)) {
            Ok(libvirt) => {
                let libvirt = Arc::new(libvirt);
                host.state.send_replace(State::Up(libvirt.clone()));
                tracing::info!(uri = host.uri, "connected to libvirt");
                wait = Duration::from_secs(1);
                told = true;
                tell(&news, &host.uri, What::Connected);
                // The callback may have come before anybody waited; the connection itself knows.
                while libvirt.is_alive() {
                    if tokio::time::timeout(Duration::from_mins(1), host.closed.notified()).await.is_ok() {
                        break;
                    }
                }
                host.down("libvirtd closed the connection");
                tracing::warn!(uri = host.uri, "lost the connection to libvirt");
                tell(&news, &host.uri, What::Event(HostEvent::Closed));
                // Closing a connection and taking callbacks back may block.
                let _closing = tokio::task::spawn_blocking(move || drop(libvirt));
            }
            Err(error) => {
                let reason = crate::errors::chain(&error);
                tracing::warn!(uri = host.uri, error = reason, "cannot connect to libvirt");
                host.down(&reason);
                // The first failure is news; those after it are not.
                if !std::mem::replace(&mut told, true) {
                    tell(&news, &host.uri, What::Event(HostEvent::Closed));
                }
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(Duration::from_secs(30));
    }
}

fn tell(news: &mpsc::UnboundedSender<News>, uri: &str, what: What) {
    // Nobody listens only while the process ends.
    let _unheard = news.send(News { uri: uri.to_owned(), what });
}

fn sink(host: &Arc<Host>, news: &mpsc::UnboundedSender<News>) -> Sink {
    let (host, news) = (host.clone(), news.clone());
    Arc::new(move |event| {
        if event == HostEvent::Closed {
            // The task tells of it once it has seen it.
            host.closed.notify_one();
        } else {
            tell(&news, &host.uri, What::Event(event));
        }
    })
}
