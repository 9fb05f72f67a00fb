//! The one place that holds the status. Everybody writes through [`Board`]; readers follow a watch channel.
//!
//! The board derives phase and message from the parts, so that they can never contradict the steps.

use std::sync::Arc;

use edge_api::Instance;
use edge_api::agent::{
    Accelerator, Application, Cluster, Machine, Phase, SiteFile, SiteFileState, Status, Step, StepState,
};
use tokio::sync::watch;

/// Name and title of the steps, in order.
pub const STEPS: [(&str, &str); 7] = [
    ("preflight", "Preflight checks"),
    ("bundle", "Bundle verified"),
    ("system-cluster", "System cluster"),
    ("registry", "Local registry"),
    ("operator", "VM operator"),
    ("cluster-api", "Cluster API"),
    ("system-applications", "System applications"),
];

/// The status, shared.
#[derive(Clone, Debug)]
pub struct Board {
    sender: Arc<watch::Sender<Status>>,
}

impl Board {
    /// A board on which nothing has happened yet.
    pub fn new(instance: &Instance, site_path: String, steps: &[(&str, &str)]) -> Self {
        let status = Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            instance: instance.to_string(),
            device_id: None,
            phase: Phase::WaitingForSite,
            message: String::new(),
            site_file: SiteFile {
                path: site_path,
                state: SiteFileState::Absent,
                errors: Vec::new(),
                needs_reinstall: Vec::new(),
            },
            accelerator: None,
            steps: steps
                .iter()
                .map(|(name, title)| Step {
                    name: (*name).to_owned(),
                    title: (*title).to_owned(),
                    state: StepState::Pending,
                    message: String::new(),
                    hint: None,
                    progress: None,
                    started: None,
                    finished: None,
                    attempts: 0,
                })
                .collect(),
            applications: Vec::new(),
            machines: Vec::new(),
            clusters: Vec::new(),
            upgrade: None,
        };
        let board = Self { sender: Arc::new(watch::Sender::new(status)) };
        board.edit(|_| {});
        board
    }

    /// Follows the status.
    pub fn subscribe(&self) -> watch::Receiver<Status> {
        self.sender.subscribe()
    }

    /// The status now.
    pub fn get(&self) -> Status {
        self.sender.borrow().clone()
    }

    /// Changes the status; readers are woken only where something differs.
    pub fn edit(&self, change: impl FnOnce(&mut Status)) {
        self.sender.send_if_modified(|status| {
            let old = status.clone();
            change(status);
            (status.phase, status.message) = summary(status);
            *status != old
        });
    }

    /// Changes one step.
    pub fn edit_step(&self, name: &str, change: impl FnOnce(&mut Step)) {
        self.edit(|status| {
            if let Some(step) = status.steps.iter_mut().find(|s| s.name == name) {
                change(step);
            }
        });
    }

    /// State of one step now.
    pub fn step(&self, name: &str) -> Option<Step> {
        self.sender.borrow().steps.iter().find(|s| s.name == name).cloned()
    }

    /// Records the accelerator.
    pub fn set_accelerator(&self, accelerator: Accelerator) {
        self.edit(|status| status.accelerator = Some(accelerator));
    }

    /// Records the layers of the profile.
    pub fn set_applications(&self, applications: Vec<Application>) {
        self.edit(|status| status.applications = applications);
    }

    /// Records the machines.
    pub fn set_machines(&self, machines: Vec<Machine>) {
        self.edit(|status| status.machines = machines);
    }

    /// Records the workload clusters.
    pub fn set_clusters(&self, clusters: Vec<Cluster>) {
        self.edit(|status| status.clusters = clusters);
    }
}

/// Phase and message of a status, from its parts.
fn summary(status: &Status) -> (Phase, String) {
    let installed = status.steps.iter().any(|s| s.state != StepState::Pending);
    if !installed && status.site_file.state != SiteFileState::Applied {
        let message = match status.site_file.state {
            SiteFileState::Invalid => format!(
                "{} has {} error(s); correct it, and the installation starts by itself",
                status.site_file.path,
                status.site_file.errors.len()
            ),
            SiteFileState::Absent | SiteFileState::Applied => {
                format!("waits for {}; a commented template lies beside it", status.site_file.path)
            }
        };
        return (Phase::WaitingForSite, message);
    }
    if let Some(step) = status.steps.iter().find(|s| s.state == StepState::Failed) {
        return (Phase::Failing, format!("{}: {}", step.title, step.message));
    }
    if let Some(step) = status.steps.iter().find(|s| s.state != StepState::Ready) {
        let message =
            if step.message.is_empty() { step.title.clone() } else { format!("{}: {}", step.title, step.message) };
        return (Phase::Installing, message);
    }
    // What becomes of workload clusters, and so of their machines, is not part of the site's installation.
    let machines: Vec<_> = status.machines.iter().filter(|machine| machine.cluster.is_none()).collect();
    if let Some(machine) = machines.iter().find(|m| !m.ready) {
        return (Phase::Installing, format!("waits for virtual machine {}: {}", machine.name, machine.message));
    }
    let edit = match status.site_file.state {
        SiteFileState::Invalid => "; the last edit of the site file has errors, the one before stays in force",
        SiteFileState::Absent => "; the site file is gone, the last one stays in force",
        SiteFileState::Applied => "",
    };
    let machines = match machines.len() {
        0 => String::new(),
        1 => ", 1 virtual machine runs as asked".to_owned(),
        n => format!(", {n} virtual machines run as asked"),
    };
    (Phase::Ready, format!("every step is ready{machines}{edit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> Board {
        Board::new(&Instance::default(), "/r/conf/unattended.yaml".to_owned(), &STEPS)
    }

    #[test]
    fn it_waits_for_the_site_first() {
        let status = board().get();
        assert_eq!(status.phase, Phase::WaitingForSite);
        assert!(status.message.contains("waits for /r/conf/unattended.yaml"), "{}", status.message);
    }

    #[test]
    fn phase_follows_steps_and_machines() {
        let board = board();
        board.edit(|s| s.site_file.state = SiteFileState::Applied);
        assert_eq!(board.get().phase, Phase::Installing);
        board.edit_step("registry", |s| {
            s.state = StepState::Failed;
            s.message = "port 10443 is taken".to_owned();
        });
        assert_eq!(board.get().phase, Phase::Failing);
        assert_eq!(board.get().message, "Local registry: port 10443 is taken");
        board.edit(|s| s.steps.iter_mut().for_each(|s| s.state = StepState::Ready));
        assert_eq!(board.get().phase, Phase::Ready);
        let machine = Machine {
            name: "router".to_owned(),
            phase: "Preparing".to_owned(),
            ready: false,
            message: "image is fetched".to_owned(),
            vcpus: 1,
            memory_mib: 256,
            addresses: Vec::new(),
            since: None,
            cluster: None,
        };
        board.set_machines(vec![machine.clone()]);
        assert_eq!(board.get().phase, Phase::Installing);
        board.set_machines(vec![Machine { cluster: Some("shop".to_owned()), ..machine }]);
        assert_eq!(board.get().phase, Phase::Ready, "a cluster's machine is not one of the site's");
    }

    #[test]
    fn readers_wake_only_for_a_difference() {
        let board = board();
        let mut reader = board.subscribe();
        reader.borrow_and_update();
        board.edit_step("bundle", |s| s.progress = None);
        assert!(!reader.has_changed().unwrap());
        board.edit_step("bundle", |s| s.progress = Some(1));
        assert!(reader.has_changed().unwrap());
    }
}
