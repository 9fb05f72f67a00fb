//! Words, marks and colours: the eight colours that every terminal has, and marks of ASCII.

use edge_api::agent::{Phase, StepState};
use edge_api::edge_cluster::TaskState;
use ratatui::style::{Color, Modifier, Style};

pub const PLAIN: Style = Style::new();
pub const STRONG: Style = Style::new().add_modifier(Modifier::BOLD);
pub const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);
pub const TITLE: Style = Style::new().fg(Color::Cyan);
pub const GOOD: Style = Style::new().fg(Color::Green);
pub const BUSY: Style = Style::new().fg(Color::Yellow);
pub const BAD: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
pub const HINT: Style = Style::new().fg(Color::Cyan);

/// Word and colour of the appliance's phase.
pub fn phase(phase: Phase) -> (&'static str, Style) {
    match phase {
        Phase::WaitingForSite => ("Waiting for site file", BUSY),
        Phase::Installing => ("Installing", BUSY),
        Phase::Failing => ("Failing", BAD),
        Phase::Ready => ("Ready", GOOD),
    }
}

/// Mark, word and colour of a step's or application's state.
pub fn state(state: StepState) -> (&'static str, &'static str, Style) {
    match state {
        StepState::Pending => (".", "Pending", PLAIN),
        StepState::Running => ("*", "Running", BUSY),
        StepState::Waiting => ("~", "Waiting", BUSY),
        StepState::Failed => ("!", "Failed", BAD),
        StepState::Ready => ("+", "Ready", GOOD),
    }
}

/// Mark and colour of a cluster's task.
pub fn task(state: TaskState) -> (&'static str, Style) {
    match state {
        TaskState::Pending => (".", PLAIN),
        TaskState::Running => ("*", BUSY),
        TaskState::Failed => ("!", BAD),
        TaskState::Done => ("+", GOOD),
    }
}

/// Colour of a log level.
pub fn level(level: &str) -> Style {
    match level {
        "error" => BAD,
        "warn" => BUSY,
        _ => PLAIN,
    }
}
