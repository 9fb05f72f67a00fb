//! One item with all its text, and the keys.

use edge_api::edge_cluster::TaskState;
use edge_client::cluster::{forcing, rows, tally};
use ratatui::style::Style;
use ratatui::text::Line;

use super::overview::{rule, task};
use super::theme;
use crate::state::{Section, State, place};
use crate::text::{clean, clock, span, width, wrap};

/// Column at which a task's message begins.
const MESSAGE: usize = 2 + 33 + 8 + 7;

/// Everything about the selected item.
pub fn lines(state: &State, columns: usize) -> Vec<Line<'static>> {
    let mut page = Page { lines: Vec::new(), columns };
    let (section, index) = state.selected;
    let Some(status) = &state.status else { return page.lines };
    match section {
        Section::Site => {
            if let Some(error) = status.site_file.errors.get(index) {
                page.title(&format!("Error {} of {} of the site file", index + 1, status.site_file.errors.len()));
                page.field("file", &status.site_file.path, theme::PLAIN);
                page.field("place", &place(error), theme::STRONG);
                page.field("field", &error.field, theme::PLAIN);
                page.field("found", &error.found, theme::BAD);
                page.field("expected", &error.expected, theme::GOOD);
                page.field("hint", error.hint.as_deref().unwrap_or_default(), theme::HINT);
            }
        }
        Section::Steps => {
            if let Some(step) = status.steps.get(index) {
                let (_, word, style) = theme::state(step.state);
                page.title(&format!("Step {} of {}: {}", index + 1, status.steps.len(), step.title));
                page.field("name", &step.name, theme::PLAIN);
                page.field("state", word, style);
                page.field("progress", &step.progress.map(|p| format!("{p} %")).unwrap_or_default(), theme::PLAIN);
                if let Some(started) = step.started {
                    page.field("started", &clock(started, &state.zone), theme::PLAIN);
                    let end = step.finished.unwrap_or(state.now);
                    page.field("time", &span(started, end), theme::PLAIN);
                }
                page.field("attempts", &step.attempts.to_string(), theme::PLAIN);
                page.field("message", &step.message, theme::PLAIN);
                page.field("hint", step.hint.as_deref().unwrap_or_default(), theme::HINT);
            }
        }
        Section::Applications => {
            if let Some(app) = status.applications.get(index) {
                let (_, word, style) = theme::state(app.state);
                page.title(&format!("Application {} of {}: {}", index + 1, status.applications.len(), app.name));
                page.field("kind", &app.kind, theme::PLAIN);
                page.field("version", app.version.as_deref().unwrap_or_default(), theme::PLAIN);
                page.field("state", word, style);
                page.field("since", &app.since.map(|s| span(s, state.now)).unwrap_or_default(), theme::PLAIN);
                page.field("message", &app.message, theme::PLAIN);
            }
        }
        Section::Clusters => {
            if let Some(cluster) = status.clusters.get(index) {
                page.title(&format!("Workload cluster {}", cluster.name));
                let ready = if cluster.ready { ("yes", theme::GOOD) } else { ("no", theme::BUSY) };
                page.field("phase", &format!("{:?}", cluster.phase), theme::PLAIN);
                page.field("ready", ready.0, ready.1);
                page.field("since", &cluster.since.map(|s| span(s, state.now)).unwrap_or_default(), theme::PLAIN);
                page.field("version", cluster.version.as_deref().unwrap_or_default(), theme::PLAIN);
                page.field("endpoint", &cluster.endpoint, theme::STRONG);
                page.field("nodes", cluster.nodes.as_deref().unwrap_or_default(), theme::PLAIN);
                page.field("message", &cluster.message, theme::PLAIN);
                page.field("forcing", &forcing(cluster, state.now).unwrap_or_default(), theme::HINT);
                if let Some(tally) = tally(cluster) {
                    page.title(&format!("{tally} done"));
                }
                for row in rows(&cluster.tasks) {
                    page.lines.push(task("", &row, state, columns));
                    // The whole reason, where the row cannot hold it.
                    let troubled = matches!(row.state, TaskState::Running | TaskState::Failed);
                    if troubled && width(row.message) > columns.saturating_sub(MESSAGE) {
                        let room = columns.saturating_sub(4);
                        page.lines.extend(
                            wrap(&clean(row.message), room).into_iter().map(|line| Line::raw(format!("    {line}"))),
                        );
                    }
                }
            }
        }
        Section::Machines => {
            if let Some(machine) = status.machines.get(index) {
                page.title(&format!("Virtual machine {}", machine.name));
                page.field("phase", &machine.phase, theme::PLAIN);
                let ready = if machine.ready { ("yes", theme::GOOD) } else { ("no", theme::BUSY) };
                page.field("ready", ready.0, ready.1);
                page.field("since", &machine.since.map(|s| span(s, state.now)).unwrap_or_default(), theme::PLAIN);
                page.field("vCPUs", &machine.vcpus.to_string(), theme::PLAIN);
                page.field("memory", &format!("{} MiB", machine.memory_mib), theme::PLAIN);
                for address in &machine.addresses {
                    page.field("address", address, theme::STRONG);
                }
                page.field("message", &machine.message, theme::PLAIN);
            }
        }
    }
    page.lines
}

/// The keys.
pub fn help(columns: usize) -> Vec<Line<'static>> {
    let mut page = Page { lines: Vec::new(), columns };
    page.title("Keys");
    for (key, what) in [
        ("Up Down", "select, or scroll (also k, j)"),
        ("PgUp PgDn", "a page up or down"),
        ("Home End", "first or last; in the log End follows new lines"),
        ("Tab", "next part (Shift-Tab: the one before)"),
        ("Enter", "everything about the selected line; again: back"),
        ("l", "log, and back"),
        ("?", "this help, and back"),
        ("Esc", "back to the overview"),
        ("q", "leave; the agent goes on by itself"),
    ] {
        page.field(key, what, theme::PLAIN);
    }
    page.title("Marks");
    for (mark, what, style) in [
        ("+", "ready", theme::GOOD),
        ("*", "at work", theme::BUSY),
        ("~", "waits for something outside", theme::BUSY),
        ("!", "failed; it is tried again by itself", theme::BAD),
        (".", "comes later", theme::PLAIN),
    ] {
        page.field(mark, what, style);
    }
    page.lines
}

struct Page {
    lines: Vec<Line<'static>>,
    columns: usize,
}

impl Page {
    fn title(&mut self, text: &str) {
        self.lines.push(rule(&clean(text), self.columns));
    }

    /// A name and its text, which goes on in the next lines; nothing where there is no text.
    fn field(&mut self, name: &str, text: &str, style: Style) {
        const NAMES: usize = 11;
        if text.is_empty() {
            return;
        }
        let rows = wrap(&clean(text), self.columns.saturating_sub(NAMES));
        for (index, row) in rows.into_iter().enumerate() {
            let name = if index == 0 { name } else { "" };
            self.lines.push(Line::from(vec![
                ratatui::text::Span::raw(format!("{name:<NAMES$}")),
                ratatui::text::Span::styled(row, style),
            ]));
        }
    }
}
