//! Steps, applications, clusters and machines as one list that scrolls with the selection, and the end of the log below it.

use edge_api::agent::{Application, Cluster, Machine, Phase, Step, StepState};
use edge_api::edge_cluster::TaskState;
use edge_client::cluster::{self as words, TaskRow};
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};

use super::{log, put, row_of, setup, theme};
use crate::state::{Measure, Section, State, place};
use crate::text::{bar, clean, cut, fit, span, width, wrap};

/// Rows that the log gets at least, with its title, where there is room for both.
const LEAST_LOG: usize = 4;
/// Rows of the list below which the log is left out.
const LEAST_LIST: usize = 8;

/// One row of the list.
pub struct Row {
    /// The item it belongs to.
    pub item: Option<(Section, usize)>,
    /// What is shown.
    pub line: Line<'static>,
}

impl Row {
    /// A row that cannot be selected.
    pub fn text(line: impl Into<Line<'static>>) -> Self {
        Self { item: None, line: line.into() }
    }
}

/// Draws the overview.
pub fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) -> Measure {
    let columns = area.width as usize;
    let waiting = state.status.as_ref().is_some_and(|status| status.phase == Phase::WaitingForSite);
    let mut rows = if waiting { setup::rows(state, columns) } else { Vec::new() };
    for section in state.sections() {
        rows.push(Row::text(title(section, state, columns)));
        for index in 0..state.count(section) {
            rows.extend(item(section, index, state, columns));
        }
    }
    let height = area.height as usize;
    let for_log = height.saturating_sub(rows.len()).max(LEAST_LOG);
    let list = if height >= LEAST_LIST + LEAST_LOG { height - for_log } else { height };
    let start = start(&rows, state.selected, list);
    for (row, content) in (0..list).zip(rows.iter().skip(start)) {
        let area = row_of(area, u16::try_from(row).unwrap_or(u16::MAX));
        let first = content.item == Some(state.selected)
            && !(row > 0 && rows.get(start + row - 1).is_some_and(|above| above.item == content.item));
        let line = content.line.clone();
        put(frame, area, if first { line.style(theme::SELECTED) } else { line });
    }
    if list < height {
        let below = Rect {
            y: area.y + u16::try_from(list).unwrap_or(0),
            height: area.height - u16::try_from(list).unwrap_or(0),
            ..area
        };
        log::tail(frame, below, state, rows.len().saturating_sub(start + list));
    }
    Measure { page: list, last: 0 }
}

/// First row that is shown, so that the selected item is seen with as much before it as fits.
fn start(rows: &[Row], selected: (Section, usize), height: usize) -> usize {
    let end = rows.iter().rposition(|row| row.item == Some(selected)).map_or(0, |row| row + 1);
    let first = rows.iter().position(|row| row.item == Some(selected)).unwrap_or(0);
    // Some context below it.
    let wanted = (end + 2).min(rows.len());
    wanted.saturating_sub(height).min(first)
}

fn title(section: Section, state: &State, columns: usize) -> Line<'static> {
    let count = state.count(section);
    let name = match section {
        Section::Site => format!("Site file: {count} error{}", if count == 1 { "" } else { "s" }),
        Section::Steps => "Steps".to_owned(),
        Section::Applications => "System applications".to_owned(),
        Section::Clusters => "Workload clusters".to_owned(),
        Section::Machines => "Virtual machines".to_owned(),
    };
    rule(&name, columns)
}

/// A title with a rule to the right edge.
pub fn rule(name: &str, columns: usize) -> Line<'static> {
    let name = cut(name, columns);
    let rest = columns.saturating_sub(width(&name) + 1);
    Line::styled(format!("{name} {}", "-".repeat(rest)), theme::TITLE)
}

fn item(section: Section, index: usize, state: &State, columns: usize) -> Vec<Row> {
    let Some(status) = &state.status else { return Vec::new() };
    let lines = match section {
        Section::Site => {
            let error = &status.site_file.errors[index];
            let what = if error.field.is_empty() { &error.found } else { &error.field };
            let text = format!("! {:<22} {}: expected {}", place(error), clean(what), clean(&error.expected));
            vec![Line::styled(fit(&text, columns), theme::BAD)]
        }
        Section::Steps => step(&status.steps[index], state, columns),
        Section::Applications => vec![application(&status.applications[index], state, columns)],
        Section::Clusters => cluster(&status.clusters[index], state, columns),
        Section::Machines => vec![machine(&status.machines[index], columns)],
    };
    lines.into_iter().map(|line| Row { item: Some((section, index)), line }).collect()
}

/// Columns of a name and of a word of state, which together are the same everywhere but within a cluster.
type Widths = (usize, usize);
const WIDTHS: Widths = (20, 8);
/// The phases of clusters are longer.
const CLUSTER_WIDTHS: Widths = (15, 13);
/// So are the names of their tasks.
const TASK_WIDTHS: Widths = (32, 8);

/// Mark, name, state and time, then as much of the text as fits.
fn columns_of(
    mark: &str,
    name: &str,
    word: &str,
    style: ratatui::style::Style,
    rest: &str,
    (names, words): Widths,
    columns: usize,
) -> Line<'static> {
    let marks = width(mark) + 1;
    let names = names.min(columns.saturating_sub(12));
    let left = columns.saturating_sub(marks + names + 1 + words);
    Line::from(vec![
        Span::styled(fit(mark, marks), style),
        Span::raw(fit(name, names) + " "),
        Span::styled(fit(word, words), style),
        Span::raw(fit(rest, left)),
    ])
}

fn step(step: &Step, state: &State, columns: usize) -> Vec<Line<'static>> {
    let (mark, word, style) = theme::state(step.state);
    let time = match step.started {
        Some(started) if step.state != StepState::Pending => span(started, step.finished.unwrap_or(state.now)),
        _ => String::new(),
    };
    let progress = match step.progress {
        Some(percent) if step.state == StepState::Running => bar(percent, 10) + "  ",
        _ => String::new(),
    };
    let again = if step.attempts > 1 { format!("(attempt {}) ", step.attempts) } else { String::new() };
    let message = clean(&step.message);
    let rest = format!("{time:<7}{progress}{again}{message}");
    let mut lines = vec![columns_of(mark, &clean(&step.name), word, style, &rest, WIDTHS, columns)];
    let troubled = matches!(step.state, StepState::Failed | StepState::Waiting);
    if troubled && columns >= 60 {
        // The whole reason, where the row above could not hold it, and what to do.
        let room = columns.saturating_sub(4);
        let head = columns.saturating_sub(31 + 7 + again.len());
        if width(&message) > head {
            lines.extend(wrap(&message, room).into_iter().take(3).map(|line| Line::raw(format!("    {line}"))));
        }
        if let Some(hint) = &step.hint {
            let hint = wrap(&format!("hint: {}", clean(hint)), room);
            lines.extend(hint.into_iter().take(2).map(|line| Line::styled(format!("    {line}"), theme::HINT)));
        }
    }
    lines
}

fn application(app: &Application, state: &State, columns: usize) -> Line<'static> {
    let (mark, word, style) = theme::state(app.state);
    let since = app.since.map(|since| span(since, state.now)).unwrap_or_default();
    let version = app.version.as_deref().map(|version| format!(" {}", clean(version))).unwrap_or_default();
    let rest = format!("{since:<7}{}{version}  {}", clean(&app.kind), clean(&app.message));
    columns_of(mark, &clean(&app.name), word, style, &rest, WIDTHS, columns)
}

/// A cluster, with what is at work or has failed now below it.
fn cluster(cluster: &Cluster, state: &State, columns: usize) -> Vec<Line<'static>> {
    let current = words::current(&cluster.tasks);
    let failed = current.iter().any(|row| row.state == TaskState::Failed);
    let (mark, style) = match (cluster.ready, failed) {
        (true, _) => ("+", theme::GOOD),
        (false, true) => ("!", theme::BAD),
        (false, false) => ("*", theme::BUSY),
    };
    let (word, rest) = (format!("{:?}", cluster.phase), clean(&words::summary(cluster)));
    let mut lines = vec![columns_of(mark, &clean(&cluster.name), &word, style, &rest, CLUSTER_WIDTHS, columns)];
    if !cluster.ready {
        lines.extend(current.iter().map(|row| task("  ", row, state, columns)));
    }
    lines
}

/// A task of a cluster, or a part of one.
pub fn task(indent: &str, row: &TaskRow<'_>, state: &State, columns: usize) -> Line<'static> {
    let (mark, style) = theme::task(row.state);
    let since = row.since.map(|since| span(since, state.now)).unwrap_or_default();
    let (word, rest) = (format!("{:?}", row.state), format!("{since:<7}{}", clean(row.message)));
    let mark = format!("{indent}{mark}");
    columns_of(&mark, &clean(&row.indented()), &word, style, &rest, TASK_WIDTHS, columns)
}

fn machine(machine: &Machine, columns: usize) -> Line<'static> {
    let (mark, style) = match (machine.ready, machine.phase.as_str()) {
        (true, _) => ("+", theme::GOOD),
        (false, "Failed") => ("!", theme::BAD),
        (false, _) => ("~", theme::BUSY),
    };
    let rest = if machine.addresses.is_empty() || !machine.ready {
        let addresses = machine.addresses.iter().map(|a| clean(a) + "  ").collect::<String>();
        format!(" {addresses}{}", clean(&machine.message))
    } else {
        format!(" {}", machine.addresses.iter().map(|a| clean(a)).collect::<Vec<_>>().join(", "))
    };
    columns_of(mark, &clean(&machine.name), &clean(&machine.phase), style, &rest, WIDTHS, columns)
}
