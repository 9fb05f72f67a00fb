//! The engine on fake steps.

use edge_api::Instance;
use edge_api::agent::{Phase, SiteFileState, Status};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::journal::Journal;

const NAMES: [(&str, &str); 3] = [("one", "One"), ("two", "Two"), ("three", "Three")];

/// A step over a counter that stands for what exists outside.
struct Fake {
    name: &'static str,
    world: Rc<World>,
}

#[derive(Default)]
struct World {
    /// Steps whose thing exists.
    made: RefCell<Vec<&'static str>>,
    writes: Cell<u32>,
    probes: Cell<u32>,
    /// A step that fails this many times.
    failing: RefCell<BTreeMap<&'static str, u32>>,
    /// How often every step still has to wait for something outside.
    waiting: Cell<u32>,
    /// A step that never ends.
    hanging: Cell<Option<&'static str>>,
}

impl Step for Fake {
    fn name(&self) -> &'static str {
        self.name
    }

    fn interruptible(&self) -> bool {
        true
    }

    fn ensure<'a>(&'a self, run: &'a Run) -> LocalBoxFuture<'a, Result<Verdict, Failure>> {
        Box::pin(async move {
            self.world.probes.set(self.world.probes.get() + 1);
            // As long as a look takes: whoever follows the status sees every state.
            tokio::time::sleep(Duration::from_millis(1)).await;
            if let Some(less) = self.world.waiting.get().checked_sub(1) {
                self.world.waiting.set(less);
                run.working("looks");
                return Ok(Verdict::Waiting { message: "for rain".to_owned(), retry: Duration::from_secs(30) });
            }
            if !self.world.made.borrow().contains(&self.name) {
                run.working("makes it");
                if self.world.hanging.get() == Some(self.name) {
                    std::future::pending::<()>().await;
                }
                if let Some(n @ 1..) = self.world.failing.borrow_mut().get_mut(self.name) {
                    *n -= 1;
                    return Err(Failure::new("at http://u:p@h").hint("look"));
                }
                self.world.writes.set(self.world.writes.get() + 1);
                self.world.made.borrow_mut().push(self.name);
            }
            Ok(Verdict::Ready("there".to_owned()))
        })
    }
}

struct Rig {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
    world: Rc<World>,
    site: watch::Sender<Option<Arc<SiteConfig>>>,
}

impl Rig {
    fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let rig = Self::at(temporary.path());
        Self { _temporary: Some(temporary), ..rig }
    }

    fn at(folder: &std::path::Path) -> Self {
        let site = watch::Sender::new(Some(Arc::new(SiteConfig::default())));
        Self { folder: folder.to_owned(), _temporary: None, world: Rc::default(), site }
    }

    /// Runs a new engine until `done` holds, then drops it wherever it is.
    async fn until(&self, done: impl Fn(&Status) -> bool) -> Status {
        self.until_with(done, |_| {}).await
    }

    async fn until_with(&self, done: impl Fn(&Status) -> bool, act: impl Fn(&Status)) -> Status {
        let board = Board::new(&Instance::default(), String::new(), &NAMES);
        board.edit(|s| s.site_file.state = SiteFileState::Applied);
        let steps = NAMES.map(|(name, _)| Box::new(Fake { name, world: Rc::clone(&self.world) }) as Box<dyn Step>);
        let (_events, receiver) = mpsc::channel(1);
        let engine = Engine::new(
            steps.into(),
            board.clone(),
            self.folder.join("steps.json"),
            Box::new(|site| site.device_id.clone().unwrap_or_default()),
            self.site.subscribe(),
            receiver,
            CancellationToken::new(),
        );
        let mut status = board.subscribe();
        let reached = async {
            loop {
                let now = status.borrow_and_update().clone();
                act(&now);
                if done(&now) {
                    return now;
                }
                status.changed().await.unwrap();
            }
        };
        tokio::select! {
            () = engine.run() => panic!("the engine ended"),
            status = reached => status,
            () = tokio::time::sleep(Duration::from_mins(10)) => panic!("not reached"),
        }
    }
}

fn ready(status: &Status) -> bool {
    status.phase == Phase::Ready
}

#[tokio::test(start_paused = true)]
async fn steps_run_in_order_to_ready() {
    let rig = Rig::new();
    let status = rig.until(ready).await;
    assert_eq!(*rig.world.made.borrow(), ["one", "two", "three"]);
    assert!(status.steps.iter().all(|s| s.attempts == 1 && s.finished >= s.started && s.started.is_some()));
}

#[tokio::test(start_paused = true)]
async fn a_restart_of_a_ready_appliance_writes_nothing_and_keeps_the_times() {
    let rig = Rig::new();
    let first = rig.until(ready).await;
    let record = rig.folder.join("steps.json");
    let written = std::fs::metadata(&record).unwrap().modified().unwrap();
    let second = rig.until(ready).await;
    assert_eq!(rig.world.writes.get(), 3);
    assert_eq!(rig.world.probes.get(), 6, "everything is probed again");
    assert_eq!(first.steps, second.steps);
    assert_eq!(std::fs::metadata(&record).unwrap().modified().unwrap(), written);
}

#[tokio::test(start_paused = true)]
async fn a_wait_is_logged_once() {
    let rig = Rig::new();
    let log = rig.folder.join("edge.log");
    let subscriber = tracing_subscriber::registry().with(Journal::open(&log).unwrap());
    let _logged = tracing::subscriber::set_default(subscriber);
    rig.world.waiting.set(5);
    rig.until(ready).await;
    let log = std::fs::read_to_string(log).unwrap();
    assert_eq!(log.matches("waits: for rain").count(), 1, "{log}");
}

#[tokio::test(start_paused = true)]
async fn killed_anywhere_it_reaches_the_same_end() {
    let rig = Rig::new();
    for name in ["one", "two", "three"] {
        rig.world.hanging.set(Some(name));
        let at = |status: &Status| status.steps.iter().any(|s| s.name == name && s.message == "makes it");
        rig.until(at).await;
    }
    rig.world.hanging.set(None);
    rig.until(ready).await;
    assert_eq!(*rig.world.made.borrow(), ["one", "two", "three"]);
    assert_eq!(rig.world.writes.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn failures_back_off_and_show_reason_hint_and_attempts() {
    let rig = Rig::new();
    rig.world.failing.borrow_mut().insert("two", 3);
    let begun = Instant::now();
    let failed = rig.until(|s| s.phase == Phase::Failing && s.steps[1].attempts == 2).await;
    assert_eq!(failed.steps[1].message, "at http://***@h");
    assert_eq!(failed.steps[1].hint.as_deref(), Some("look"));
    assert_eq!(failed.steps[2].state, StepState::Pending);
    assert_eq!(begun.elapsed().as_secs(), 2, "one pause");
    // The next engine starts counting anew, with one failure left.
    let status = rig.until(ready).await;
    assert_eq!(status.steps[1].attempts, 2);
    assert_eq!([1, 2, 3, 6, 60].map(|n| back_off(n).as_secs()), [2, 4, 8, 60, 60]);
}

#[tokio::test(start_paused = true)]
async fn an_edit_interrupts_and_starts_over() {
    let rig = Rig::new();
    rig.world.hanging.set(Some("two"));
    let world = Rc::clone(&rig.world);
    let site = rig.site.clone();
    let edit = move |status: &Status| {
        if status.steps[1].message == "makes it" && world.hanging.take().is_some() {
            let edited = SiteConfig { device_id: Some("store-2".to_owned()), ..SiteConfig::default() };
            site.send_replace(Some(Arc::new(edited)));
        }
    };
    rig.until_with(ready, edit).await;
    assert_eq!(rig.world.writes.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_is_made_again_at_the_resync() {
    let rig = Rig::new();
    let log = rig.folder.join("edge.log");
    let subscriber = tracing_subscriber::registry().with(Journal::open(&log).unwrap());
    let _logged = tracing::subscriber::set_default(subscriber);
    let world = Rc::clone(&rig.world);
    let installed = RefCell::new(None);
    let doubted = Cell::new(false);
    let look = |status: &Status| {
        if ready(status) && installed.borrow().is_none() {
            installed.replace(Some(status.steps.clone()));
            world.made.borrow_mut().retain(|n| *n != "two");
        }
        let [_, two, three] = &status.steps[..] else { panic!("three steps") };
        if installed.borrow().is_some() && two.state == StepState::Ready && three.state != StepState::Ready {
            doubted.set(true);
        }
    };
    let again = |status: &Status| ready(status) && world.writes.get() == 4;
    let status = rig.until_with(again, look).await;
    assert!(doubted.get(), "what comes after it was not ready until it was probed");
    let installed = installed.take().unwrap();
    assert_eq!(status.steps, installed, "times are those of the installing run");
    let log = std::fs::read_to_string(log).unwrap();
    let of_two: Vec<&str> = log.lines().filter_map(|l| l.split_once(" two ")).map(|(_, text)| text.trim()).collect();
    let [starts, made, mended] = of_two[..] else { panic!("{log}") };
    assert_eq!(starts, "starts");
    assert!(made.starts_with("ready after ") && mended.starts_with("mended in "), "{log}");

    // One that was cut off while it mended is no new installation either.
    world.made.borrow_mut().retain(|n| *n != "two");
    world.hanging.set(Some("two"));
    rig.until(|s| s.steps[1].message == "makes it").await;
    world.hanging.set(None);
    assert_eq!(rig.until(ready).await.steps, installed);

    // For another site it is.
    world.made.borrow_mut().retain(|n| *n != "two");
    let edited = SiteConfig { device_id: Some("store-2".to_owned()), ..SiteConfig::default() };
    rig.site.send_replace(Some(Arc::new(edited)));
    let edited = rig.until(ready).await;
    assert!(edited.steps[1].started > installed[2].finished);
    assert_eq!((&edited.steps[0], &edited.steps[2]), (&installed[0], &installed[2]), "these were as they had to be");
}

#[tokio::test(start_paused = true)]
async fn a_damaged_record_costs_only_times() {
    let rig = Rig::new();
    rig.until(ready).await;
    std::fs::write(rig.folder.join("steps.json"), "{torn").unwrap();
    rig.until(ready).await;
    assert_eq!(rig.world.writes.get(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_record_for_which_there_was_no_space_is_written_when_there_is() {
    let disk = edge_tests::SmallDisk::new(1 << 20).unwrap();
    disk.leave(0).unwrap();
    let rig = Rig::at(disk.path());
    let (full, record) = (Cell::new(true), disk.path().join("steps.json"));
    let world = Rc::clone(&rig.world);
    let look = |status: &Status| {
        if ready(status) && full.take() {
            assert!(!record.exists());
            disk.leave(1 << 20).unwrap();
            world.made.borrow_mut().retain(|n| *n != "two");
        }
    };
    let status = rig.until_with(|status| ready(status) && world.writes.get() == 4, look).await;
    assert!(record.exists(), "nothing of it has changed, but it was not written yet");
    assert_eq!(rig.until(ready).await.steps, status.steps, "times are those of the installing run");
}
