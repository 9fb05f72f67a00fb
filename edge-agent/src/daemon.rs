//! Puts the daemon together: lock, tree, log, server, followers, engine; and takes it apart in order.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use edge_api::Instance;
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, fmt};

use crate::durable;
use crate::engine::{Engine, chain};
use crate::journal::Journal;
use crate::machines::{self, Objects};
use crate::paths::Paths;
use crate::server::Server;
use crate::site_follow::{self, Follower};
use crate::status::{Board, STEPS};
use crate::steps;
use crate::upgrade;
use crate::world::{Identity, World};

/// Longest wait for an agent that is asked to end.
const END_DEADLINE: Duration = Duration::from_mins(1);

/// What the daemon is told on its command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Root of its state.
    pub root: PathBuf,
    /// Instance (D11).
    pub instance: Instance,
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Port of the API server on the host's loopback.
    pub api_port: u16,
    /// Port of the registry on the host.
    pub registry_port: u16,
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// By a signal.
    Stopped,
    /// To give its place to the program that an upgrade has put into its own.
    Renewed,
}

/// The daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another agent has this root.
    #[error("{} is in use by another agent (process {pid})", root.display())]
    InUse {
        /// The root.
        root: PathBuf,
        /// Its process ID, as far as known.
        pid: String,
    },
    /// The root belongs to another instance.
    #[error("{} belongs to instance {found}, not {wanted}", root.display())]
    OtherInstance {
        /// The root.
        root: PathBuf,
        /// Whose it is.
        found: String,
        /// Who asked.
        wanted: String,
    },
    /// The system cluster lies on another root.
    #[error("container {node} has its data in {data}, not below {}: give the right --root", root.display())]
    OtherRoot {
        /// Its container.
        node: String,
        /// Where its data are.
        data: String,
        /// The root that was given.
        root: PathBuf,
    },
    /// A file could not be read or written.
    #[error(transparent)]
    File(#[from] durable::Error),
    /// Something else of the operating system.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// Takes the lock of a root; it is held as long as the returned value lives.
pub fn lock(paths: &Paths) -> Result<Flock<File>, Error> {
    let path = paths.lock();
    let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let file = file.map_err(io(format!("open {}", path.display())))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| Error::InUse {
        root: paths.root().to_owned(),
        pid: std::fs::read_to_string(paths.pid()).map_or_else(|_| "unknown".to_owned(), |p| p.trim().to_owned()),
    })
}

/// Takes the lock of a root from a running agent, which is asked to end. Until it is given back, none can start there.
pub async fn take_over(paths: &Paths) -> Result<Flock<File>, Error> {
    let begun = Instant::now();
    loop {
        let pid: i32 = match lock(paths) {
            Err(Error::InUse { pid, .. }) if begun.elapsed() < END_DEADLINE => pid.parse().unwrap_or_default(),
            other => return other,
        };
        // It may have taken the lock, and not yet written its number over that of its predecessor.
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if pid > 1 && name.trim() == "edge-agent" {
            let _it_ended_by_itself = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// A root belongs to one instance for good: everything on the host carries its name.
pub fn claim(paths: &Paths, instance: &Instance) -> Result<(), Error> {
    let path = paths.join("state/instance");
    match durable::read(&path, 64)? {
        Some(found) if found != instance.as_str().as_bytes() => Err(Error::OtherInstance {
            root: paths.root().to_owned(),
            found: String::from_utf8_lossy(&found).into_owned(),
            wanted: instance.to_string(),
        }),
        Some(_) => Ok(()),
        None => Ok(durable::write(&path, instance.as_str().as_bytes(), 0o600)?),
    }
}

/// Runs the daemon until a signal or an upgrade ends it.
pub async fn run(options: Options) -> Result<End, Error> {
    let Options { root, instance, bundle, api_port, registry_port } = options;
    let paths = Paths::new(root);
    paths.ensure()?;
    let _lock = lock(&paths)?;
    claim(&paths, &instance)?;
    if upgrade::begin_life(&paths, &bundle)? {
        return Ok(End::Renewed);
    }
    let journal = Journal::open(&paths.log()).map_err(io(format!("open {}", paths.log().display())))?;
    log_to(&journal);
    let told = tokio::spawn(tell_number(paths.clone()));
    // They are for people, and are written by the next start.
    if let Err(e) = site_follow::write_examples(&paths) {
        error!("{}", chain(&e));
    }

    let identity = Identity::ensure(&paths)?;
    let board = Board::new(&instance, paths.site_file().display().to_string(), &STEPS);
    let cancel = CancellationToken::new();
    // The socket answers until the engine has ended: its end by itself is an error.
    let stop_serving = CancellationToken::new();
    let (wake, events) = mpsc::channel(1);
    let objects = Objects::default();
    let follower = Follower::new(paths.clone(), board.clone())?;
    let site = follower.subscribe();
    info!("edge-agent {} starts, instance {instance}, root {}", env!("CARGO_PKG_VERSION"), paths.root().display());

    let world = World::new(paths.clone(), instance, (api_port, registry_port), bundle, identity, board.clone());
    let world = Arc::new(world);
    if let Some(record) = upgrade::Record::load(&paths, &world.given_bundle)? {
        world.set_bundle(record.bundle());
        board.edit(|status| status.upgrade = Some(record.told()));
    }
    let server = Server {
        paths: paths.clone(),
        board: board.clone(),
        journal,
        objects: objects.clone(),
        clients: world.clients(),
        bundle: world.given_bundle.clone(),
        wake: wake.clone(),
        now: Timestamp::now,
        cancel: stop_serving.clone(),
    };
    let server = tokio::spawn(server.run());
    let follow_objects = tokio::spawn(machines::follow(world.clients(), objects, board.clone(), wake.clone()));
    let follow_site = tokio::spawn(follower.run());
    let engine =
        Engine::new(steps::all(&world), board, paths.steps(), steps::basis(&world), site, events, cancel.clone())
            .settled({
                let world = world.clone();
                move || {
                    if upgrade::settle(&world) {
                        let _it_is_awake_already = wake.try_send(());
                    }
                }
            });

    let mut terminate = signal(SignalKind::terminate()).map_err(io("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io("listen for SIGINT"))?;
    let ended = {
        let (cancel, renew) = (cancel.clone(), world.renew.clone());
        async move {
            tokio::select! {
                _ = terminate.recv() => info!("SIGTERM: stops"),
                _ = interrupt.recv() => info!("SIGINT: stops"),
                () = renew.cancelled() => info!("gives way to the program that an upgrade has put in its place"),
            }
            cancel.cancel();
        }
    };
    let mut server = server;
    tokio::select! {
        ((), ()) = async { tokio::join!(engine.run(), ended) } => {}
        end = &mut server => {
            let why = match end {
                Ok(Err(e)) => e,
                Ok(Ok(())) => std::io::Error::other("it ended by itself"),
                Err(e) => std::io::Error::other(e),
            };
            return Err(Error::Io { what: format!("serve {}", paths.socket().display()), source: why });
        }
    }
    follow_objects.abort();
    follow_site.abort();
    stop_serving.cancel();
    if let Ok(Err(e)) = server.await {
        error!("{}", chain(&e));
    }
    told.abort();
    durable::remove_file(&paths.pid())?;
    info!("edge-agent has stopped");
    let _ = std::io::stderr().flush();
    Ok(if world.renew.is_cancelled() { End::Renewed } else { End::Stopped })
}

/// Writes who has the root, for whoever wants it to end. A full disk must not keep the agent from starting.
async fn tell_number(paths: Paths) {
    while let Err(e) = durable::write(&paths.pid(), format!("{}\n", std::process::id()).as_bytes(), 0o644) {
        error!("{}", chain(&e));
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
}

/// Everything goes to the journal, and to standard error as `RUST_LOG` says.
fn log_to(journal: &Journal) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,kube_client=off,kube_runtime=off,edge_agent=info"));
    // Where standard error is gone, a complaint about that would end the daemon.
    let terminal = fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    let terminal = terminal.log_internal_errors(false).with_filter(filter);
    let _ = tracing_subscriber::registry().with(journal.clone()).with(terminal).try_init();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_root_is_taken_over_when_its_agent_has_ended() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path());
        paths.ensure().unwrap();
        let held = lock(&paths).unwrap();
        // A number that is no agent's is left alone.
        std::fs::write(paths.pid(), format!("{}\n", std::process::id())).unwrap();
        let ending = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(held);
        };
        let (taken, ()) = tokio::join!(take_over(&paths), ending);
        let taken = taken.unwrap();
        assert!(matches!(lock(&paths), Err(Error::InUse { .. })));
        drop(taken);
    }

    #[test]
    fn a_root_has_one_agent_and_one_instance() {
        let folder = tempfile::tempdir().unwrap();
        let paths = Paths::new(folder.path());
        paths.ensure().unwrap();
        let held = lock(&paths).unwrap();
        assert!(matches!(lock(&paths), Err(Error::InUse { .. })));
        drop(held);
        let again = lock(&paths).unwrap();
        drop(again);
        claim(&paths, &Instance::default()).unwrap();
        claim(&paths, &Instance::default()).unwrap();
        assert!(matches!(claim(&paths, &"other".parse().unwrap()), Err(Error::OtherInstance { .. })));
    }
}
