//! Whole flows on a test screen: events in, pictures out.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use edge_api::agent::{
    Accelerator, Application, Cluster, LogLine, Machine, Phase, SiteFile, SiteFileState, Status, Step, StepState,
    Upgrade, UpgradeState, ValidationError,
};
use insta::assert_snapshot;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;

use crate::draw::draw;
use crate::event::Event;
use crate::state::{Action, Measure, State};

/// A screen with a console on it.
struct Console {
    terminal: Terminal<TestBackend>,
    state: State,
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(seconds)
}

impl Console {
    fn new(columns: u16, rows: u16) -> Self {
        let mut console = Self {
            terminal: Terminal::new(TestBackend::new(columns, rows)).unwrap(),
            state: State::new("/opt/spectrocloud/run/agent.sock".to_owned(), at(0), TimeZone::UTC),
        };
        console.draw();
        console
    }

    fn draw(&mut self) {
        let mut measure = Measure::default();
        self.terminal.draw(|frame| measure = draw(frame, &self.state)).unwrap();
        self.state.measured(measure);
    }

    fn on(&mut self, event: Event) -> Action {
        let action = self.state.on(event);
        self.draw();
        action
    }

    /// Presses keys: letters, or names in brackets.
    fn press(&mut self, keys: &str) -> Action {
        let mut action = Action::Draw;
        for key in keys.split_whitespace() {
            let code = match key {
                "<Up>" => KeyCode::Up,
                "<Down>" => KeyCode::Down,
                "<PgUp>" => KeyCode::PageUp,
                "<PgDn>" => KeyCode::PageDown,
                "<Home>" => KeyCode::Home,
                "<End>" => KeyCode::End,
                "<Tab>" => KeyCode::Tab,
                "<BackTab>" => KeyCode::BackTab,
                "<Enter>" => KeyCode::Enter,
                "<Esc>" => KeyCode::Esc,
                letter => KeyCode::Char(letter.chars().next().unwrap()),
            };
            action = self.on(Event::Key(KeyEvent::new(code, KeyModifiers::NONE)));
        }
        action
    }

    fn status(&mut self, status: Status) {
        self.on(Event::Status(Box::new(status)));
    }

    fn screen(&self) -> String {
        self.terminal.backend().to_string()
    }

    /// Text of a screen's row.
    fn row(&self, row: u16) -> String {
        let buffer = self.terminal.backend().buffer();
        (0..buffer.area.width).map(|column| buffer[(column, row)].symbol()).collect()
    }
}

fn step(name: &str, title: &str, state: StepState, message: &str) -> Step {
    Step {
        name: name.to_owned(),
        title: title.to_owned(),
        state,
        message: message.to_owned(),
        hint: None,
        progress: None,
        started: None,
        finished: None,
        attempts: u32::from(state != StepState::Pending),
    }
}

fn waiting() -> Status {
    Status {
        version: "0.1.0".to_owned(),
        instance: "edge".to_owned(),
        device_id: None,
        phase: Phase::WaitingForSite,
        message: "waiting for the site file".to_owned(),
        site_file: SiteFile {
            path: "/opt/spectrocloud/conf/unattended.yaml".to_owned(),
            state: SiteFileState::Absent,
            errors: Vec::new(),
            needs_reinstall: Vec::new(),
        },
        accelerator: None,
        steps: [
            ("preflight", "Preflight checks"),
            ("bundle", "Bundle verified"),
            ("system-cluster", "System cluster"),
            ("registry", "Local registry"),
            ("operator", "VM operator"),
            ("system-applications", "System applications"),
        ]
        .map(|(name, title)| step(name, title, StepState::Pending, ""))
        .to_vec(),
        applications: Vec::new(),
        machines: Vec::new(),
        clusters: Vec::new(),
        upgrade: None,
    }
}

fn refused() -> Status {
    let mut status = waiting();
    status.site_file.state = SiteFileState::Invalid;
    let error = |line, column, field: &str, found: &str, expected: &str, hint: Option<&str>| ValidationError {
        line,
        column,
        field: field.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
        hint: hint.map(str::to_owned),
    };
    status.site_file.errors = vec![
        error(
            4,
            11,
            "router.lan_ip",
            "`192.168.200.1`",
            "an IPv4 address with prefix length, for instance 192.168.200.1/24",
            Some("add the prefix length of its network, for instance 192.168.200.1/24"),
        ),
        error(
            9,
            1,
            "netwoks",
            "the unknown field `netwoks`",
            "one of `device_id`, `networks`",
            Some("did you mean `networks`?"),
        ),
        error(12, 1, "", "a tab", "spaces", None),
    ];
    status
}

fn installing() -> Status {
    let mut status = waiting();
    status.device_id = Some("store-1".to_owned());
    status.phase = Phase::Installing;
    status.site_file.state = SiteFileState::Applied;
    "filling the local registry".clone_into(&mut status.message);
    status.accelerator = Some(Accelerator { kind: "tcg".to_owned(), reason: "the CPU has no vmx or svm".to_owned() });
    for (index, (message, from, to)) in [
        ("2 CPUs, 16 GiB of memory, 80 GiB free, docker 20.10, libvirt 11.3", 0, 2),
        ("21 artifacts, every digest as recorded", 2, 15),
        ("Kubernetes 1.36.3, node ready", 15, 140),
    ]
    .into_iter()
    .enumerate()
    {
        let step = &mut status.steps[index];
        step.state = StepState::Ready;
        message.clone_into(&mut step.message);
        (step.started, step.finished, step.attempts) = (Some(at(from)), Some(at(to)), 1);
    }
    let registry = &mut status.steps[3];
    registry.state = StepState::Running;
    "pushing pcg-edge.io/vm/router:1".clone_into(&mut registry.message);
    (registry.started, registry.progress, registry.attempts) = (Some(at(140)), Some(40), 1);
    status
}

fn failing() -> Status {
    let mut status = installing();
    status.phase = Phase::Failing;
    "step registry failed; tried again in 20 s".clone_into(&mut status.message);
    let registry = &mut status.steps[3];
    registry.state = StepState::Failed;
    "port 10443 of this host is taken by another program (nginx, process 4711), so the registry cannot be published there"
        .clone_into(&mut registry.message);
    registry.hint = Some("stop that program, or install this appliance as another instance with --instance".to_owned());
    (registry.progress, registry.finished, registry.attempts) = (None, Some(at(150)), 3);
    status
}

fn ready() -> Status {
    let mut status = installing();
    status.phase = Phase::Ready;
    "every step is ready and every machine runs as asked".clone_into(&mut status.message);
    for step in &mut status.steps {
        step.state = StepState::Ready;
        step.progress = None;
        step.started = step.started.or(Some(at(200)));
        step.finished = step.finished.or(Some(at(320)));
    }
    let app = |name: &str, kind: &str, version: Option<&str>| Application {
        name: name.to_owned(),
        kind: kind.to_owned(),
        state: StepState::Ready,
        message: "healthy".to_owned(),
        version: version.map(str::to_owned),
        since: Some(at(250)),
    };
    status.applications = vec![
        app("example-web", "chart", Some("1.0.0")),
        app("site-notes", "manifest", None),
        app("router", "vm", None),
        app("client", "vm", None),
    ];
    let machine = |name: &str, ready, phase: &str, message: &str, addresses: &[&str]| Machine {
        name: name.to_owned(),
        phase: phase.to_owned(),
        ready,
        message: message.to_owned(),
        vcpus: 1,
        memory_mib: 512,
        addresses: addresses.iter().map(|a| (*a).to_owned()).collect(),
        since: Some(at(300)),
        cluster: None,
    };
    status.machines = vec![
        machine("client", true, "Running", "guest agent answers", &["lan 192.168.200.117/24"]),
        machine("router", true, "Running", "guest agent answers", &["wan 192.168.150.2/24", "lan 192.168.200.1/24"]),
    ];
    status
}

/// Ready, with clusters: one that is being made, one that runs, one that goes.
fn clusters() -> Status {
    let mut status = ready();
    let cluster = |value: serde_json::Value| serde_json::from_value::<Cluster>(value).unwrap();
    status.clusters = vec![
        cluster(serde_json::json!({
            "name": "shop", "phase": "Provisioning", "ready": false, "nodes": "0/2", "endpoint": "192.168.150.40",
            "message": "machine shop-general-x7k2p: bootstrap waits for the control plane", "since": at(100),
            "tasks": [
                {"name": "endpoint", "state": "Done", "since": at(110)},
                {"name": "machine shop-cp-4kd8s", "state": "Running", "since": at(150), "message": "bootstrap: kubeadm has not ended",
                    "parts": [
                        {"name": "virtual machine", "state": "Done", "since": at(200)},
                        {"name": "bootstrap", "state": "Running", "since": at(200), "message": "kubeadm has not ended"},
                        {"name": "join", "state": "Pending"},
                    ]},
                {"name": "layer network", "state": "Failed", "since": at(390), "message":
                    "the API server of the cluster does not answer at 192.168.150.40:6443: connection refused\u{1b}[2J"},
                {"name": "layer storage", "state": "Pending"},
            ],
        })),
        cluster(serde_json::json!({
            "name": "tills", "phase": "Running", "ready": true, "nodes": "3/3", "version": "v1.36.3",
            "endpoint": "192.168.150.41", "message": "all machines and layers are ready", "since": at(50),
            "tasks": [{"name": "endpoint", "state": "Done", "since": at(10)}],
        })),
        cluster(serde_json::json!({
            "name": "trial", "phase": "Deleting", "ready": false, "endpoint": "192.168.150.42",
            "message": "waits for these to go: Machine trial-cp-1", "since": at(60), "deletingSince": at(60), "tasks": [],
        })),
    ];
    status
}

#[test]
fn clusters_with_what_they_wait_for() {
    let mut console = connected(80, 24, clusters());
    console.press("<Tab> <Tab>");
    assert_snapshot!("clusters_80x24", console.screen());
    console.press("<Enter>");
    assert_snapshot!("cluster_details", console.screen());
    console.press("<Esc> <Down> <Down> <Enter>");
    assert_snapshot!("cluster_deleting", console.screen());
    assert_snapshot!("clusters_132x43", connected(132, 43, clusters()).screen());
    let mut small = connected(40, 10, clusters());
    small.press("<Tab> <Tab>");
    assert_snapshot!("clusters_40x10", small.screen());
}

fn line(second: i64, level: &str, step: Option<&str>, message: &str) -> LogLine {
    LogLine { time: at(second), level: level.to_owned(), step: step.map(str::to_owned), message: message.to_owned() }
}

fn log() -> Vec<LogLine> {
    let mut log = vec![
        line(0, "info", None, "agent 0.1.0 started"),
        line(1, "info", Some("preflight"), "Ready after 2s"),
        line(15, "info", Some("bundle"), "Ready after 13s"),
        line(140, "info", Some("system-cluster"), "Ready after 2m05s"),
        line(145, "warn", Some("registry"), "a push was interrupted and is tried again"),
        line(
            150,
            "error",
            Some("registry"),
            "port 10443 of this host is taken by another program (nginx, process 4711), so the registry cannot be published there",
        ),
    ];
    log.extend((0..40).map(|n| line(160 + n, "info", Some("registry"), &format!("pushed artifact {n}"))));
    log
}

fn connected(columns: u16, rows: u16, status: Status) -> Console {
    let mut console = Console::new(columns, rows);
    console.on(Event::Connected(log()));
    console.status(status);
    console.on(Event::Tick(at(400)));
    console
}

#[test]
fn setup_from_no_agent_to_a_refused_file_to_installing() {
    let mut console = Console::new(80, 24);
    assert_snapshot!("setup_1_connecting", console.screen());
    console.on(Event::Lost {
        reason: "the agent does not run: nobody listens on /opt/spectrocloud/run/agent.sock".to_owned(),
        hint: Some("start it with `systemctl start edge-agent`".to_owned()),
        retry: 2,
    });
    assert_snapshot!("setup_2_no_agent", console.screen());
    console.on(Event::Connected(vec![line(0, "info", None, "agent 0.1.0 started")]));
    console.status(waiting());
    assert_snapshot!("setup_3_waiting", console.screen());
    console.status(refused());
    assert_snapshot!("setup_4_refused", console.screen());
    console.press("<Down>");
    assert!(console.screen().contains("Enter details"));
    console.press("<Up> <Enter>");
    assert_snapshot!("setup_5_error_details", console.screen());
    console.status(installing());
    console.on(Event::Tick(at(200)));
    assert_snapshot!("setup_6_installing", console.screen());
}

#[test]
fn a_failure_shows_reason_and_hint() {
    let mut console = connected(80, 24, failing());
    assert_snapshot!("failing_overview", console.screen());
    console.press("<Down> <Down> <Down> <Enter>");
    assert_snapshot!("failing_details", console.screen());
    console.press("l");
    assert_snapshot!("failing_log", console.screen());
    console.press("<PgUp> <PgUp> <PgUp>");
    assert_snapshot!("failing_log_scrolled", console.screen());
    console.press("<End> l ?");
    assert_snapshot!("help", console.screen());
    console.press("?");
    assert!(console.screen().contains("Steps ---"));
}

#[test]
fn a_ready_appliance_on_three_sizes() {
    let mut console = connected(80, 24, ready());
    assert_snapshot!("ready_80x24", console.screen());
    console.press("<Tab> <Tab>");
    assert_snapshot!("ready_80x24_machines", console.screen());
    console.press("<Down> <Enter>");
    assert_snapshot!("ready_machine_details", console.screen());
    assert_snapshot!("ready_132x43", connected(132, 43, ready()).screen());
    let mut small = connected(40, 10, ready());
    assert_snapshot!("ready_40x10", small.screen());
    small.press("<End>");
    assert_snapshot!("ready_40x10_end", small.screen());
    assert_snapshot!("ready_12x3", connected(12, 3, ready()).screen());
}

#[test]
fn a_lost_agent_is_said_and_what_was_known_stays() {
    let mut console = connected(80, 24, ready());
    console.on(Event::Lost { reason: "the agent ended the connection".to_owned(), hint: None, retry: 1 });
    console.on(Event::Tick(at(405)));
    console.on(Event::Lost {
        reason: "the agent does not run: nobody listens on /opt/spectrocloud/run/agent.sock".to_owned(),
        hint: Some("start it with `systemctl start edge-agent`".to_owned()),
        retry: 4,
    });
    assert_snapshot!("lost_agent", console.screen());
    console.on(Event::Connected(log()));
    assert!(!console.screen().contains("No answer"));
}

#[test]
fn needs_reinstall_and_a_refused_edit_are_seen_while_ready() {
    let mut status = ready();
    status.site_file = refused().site_file;
    status.site_file.needs_reinstall = vec!["device_id".to_owned(), "proxy".to_owned()];
    let console = connected(80, 24, status);
    assert_snapshot!("refused_edit", console.screen());
}

#[test]
fn an_upgrade_that_went_back_is_seen_until_the_next() {
    let mut status = ready();
    let mut upgrade = Upgrade {
        from: "0.1.0 (Kubernetes v1.36.3)".to_owned(),
        to: "0.1.1 (Kubernetes v1.36.3)".to_owned(),
        state: UpgradeState::Returned,
        message: "not ready after 1800 s (Local registry: no space); the appliance is as before".to_owned(),
    };
    status.upgrade = Some(upgrade.clone());
    assert_snapshot!("returned_upgrade", connected(80, 24, status.clone()).screen());
    upgrade.state = UpgradeState::Done;
    status.upgrade = Some(upgrade);
    assert!(!connected(80, 24, status).screen().contains("Upgrade"));
}

#[test]
fn selection_stays_with_its_item() {
    let mut console = connected(80, 24, ready());
    console.press("<Tab> <Tab> <Down>");
    let mut status = ready();
    let mut new = status.machines[0].clone();
    "added".clone_into(&mut new.name);
    status.machines.insert(0, new);
    console.status(status);
    console.press("<Enter>");
    assert!(console.screen().contains("Virtual machine router"));
    // The machine goes away while its details are shown.
    let mut status = ready();
    status.machines.clear();
    console.status(status);
    assert!(console.screen().contains("Steps ---"));
    console.press("<BackTab> <End> <Home> <PgDn> <PgUp>");
}

#[test]
fn log_is_sanitised_and_follows() {
    let mut console = connected(80, 24, installing());
    console.on(Event::Log(line(300, "info", None, "\x1b[2J\x1b]0;owned\x07 \u{202e}drow 日本語 wide\ttab\nbreak")));
    let shown = console.screen().lines().nth(22).unwrap().split('"').nth(1).unwrap().trim_end().to_owned();
    assert_snapshot!("log_control_characters", shown);
    console.press("l");
    console.press("<Up> <Up>");
    let before = console.row(10);
    for n in 0..5 {
        console.on(Event::Log(line(301 + n, "info", None, &format!("new {n}"))));
    }
    assert_eq!(before, console.row(10), "who reads older lines goes on reading them");
    console.press("<End>");
    assert!(console.row(22).contains("new 4"));
    // The same line twice, from log and stream: shown once.
    let count = console.state.log.len();
    console.on(Event::Log(line(305, "info", None, "new 4")));
    assert_eq!(console.state.log.len(), count);
}

#[test]
fn the_log_is_bounded() {
    let mut console = connected(80, 24, installing());
    for n in 0..3000 {
        console.state.on(Event::Log(line(n, "info", None, &format!("line {n}"))));
    }
    assert_eq!(console.state.log.len(), crate::state::LOG_LINES);
}

#[test]
fn only_eight_colours_and_ascii_of_ours() {
    for (columns, rows) in [(80, 24), (132, 43), (40, 10)] {
        for keys in ["", "<Enter>", "l", "?"] {
            for status in [waiting(), refused(), installing(), failing(), ready(), clusters()] {
                let mut console = connected(columns, rows, status);
                console.press(keys);
                let buffer = console.terminal.backend().buffer();
                for cell in &buffer.content {
                    for colour in [cell.fg, cell.bg] {
                        assert!(
                            matches!(colour, Color::Reset | Color::Red | Color::Green | Color::Yellow | Color::Cyan),
                            "{colour:?}"
                        );
                    }
                    assert!(cell.symbol().is_ascii(), "{:?}", cell.symbol());
                }
            }
        }
    }
}

#[test]
fn quits_by_key_and_by_signal() {
    let mut console = connected(80, 24, ready());
    assert_eq!(console.press("l q"), Action::Quit);
    assert_eq!(console.on(Event::Quit), Action::Quit);
    let control = |c| Event::Key(KeyEvent::new(KeyCode::Char(c), KeyModifiers::CONTROL));
    assert_eq!(console.on(control('c')), Action::Quit);
    assert_eq!(console.on(control('l')), Action::Draw);
}

#[test]
fn the_loop_ends_with_its_events() {
    let mut events = vec![Event::Connected(log()), Event::Status(Box::new(ready())), Event::Quit].into_iter();
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let state = State::new("socket".to_owned(), at(0), TimeZone::UTC);
    crate::run::run(&mut terminal, state, || events.next()).unwrap();
    assert!(terminal.backend().to_string().contains("store-1"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn no_size_and_no_key_panics(
        sizes in proptest::collection::vec((0u16..140, 0u16..50), 1..6),
        keys in proptest::collection::vec(0usize..14, 0..30),
        which in 0usize..6,
    ) {
        const KEYS: [&str; 14] = ["<Up>", "<Down>", "<PgUp>", "<PgDn>", "<Home>", "<End>", "<Tab>", "<BackTab>",
            "<Enter>", "<Esc>", "l", "?", "j", "k"];
        let statuses = [waiting(), refused(), installing(), failing(), ready(), clusters()];
        let mut console = connected(80, 24, statuses[which].clone());
        for (index, key) in keys.iter().enumerate() {
            let (columns, rows) = sizes[index % sizes.len()];
            console.terminal.backend_mut().resize(columns, rows);
            console.on(Event::Resize);
            console.press(KEYS[*key]);
            console.status(statuses[(which + index) % 6].clone());
        }
    }
}
