//! The log: its end below the overview, and the whole of it.

use edge_api::agent::LogLine;
use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use ratatui::text::Line;

use super::{overview, put, row_of, theme};
use crate::state::{Measure, State};
use crate::text::{clean, clock, cut, wrap};

/// The newest lines, one row each. `hidden` rows of the list above did not fit.
pub fn tail(frame: &mut Frame<'_>, area: Rect, state: &State, hidden: usize) {
    let columns = area.width as usize;
    let title = if hidden > 0 { format!("Log (above: {hidden} more, Down)") } else { "Log".to_owned() };
    put(frame, row_of(area, 0), overview::rule(&title, columns));
    let rows = area.height.saturating_sub(1) as usize;
    let first = state.log.len().saturating_sub(rows);
    for (row, line) in (1..).zip(state.log.iter().skip(first)) {
        put(frame, row_of(area, row), Line::styled(cut(&text(line, state), columns), theme::level(&line.level)));
    }
}

/// All lines, wrapped, scrolled up from the end.
pub fn draw(frame: &mut Frame<'_>, area: Rect, state: &State) -> Measure {
    let columns = area.width as usize;
    let page = area.height.saturating_sub(1) as usize;
    let rows: Vec<(String, Style)> = state
        .log
        .iter()
        .flat_map(|line| {
            let style = theme::level(&line.level);
            let indent = " ".repeat(10.min(columns / 4));
            let wrapped = wrap(&text(line, state), columns.saturating_sub(indent.len()));
            wrapped
                .into_iter()
                .enumerate()
                .map(move |(index, row)| (if index == 0 { row } else { format!("{indent}{row}") }, style))
        })
        .collect();
    let last = rows.len().saturating_sub(page);
    let up = state.scroll.min(last);
    let title = match (state.log.is_empty(), up) {
        (true, _) => "Log (nothing yet)".to_owned(),
        (false, 0) => "Log (follows)".to_owned(),
        (false, up) => format!("Log ({up} lines up; End follows)"),
    };
    put(frame, row_of(area, 0), overview::rule(&title, columns));
    for (row, (text, style)) in (1..=page).zip(rows.into_iter().skip(last - up)) {
        put(frame, row_of(area, u16::try_from(row).unwrap_or(u16::MAX)), Line::styled(text, style));
    }
    Measure { page, last }
}

/// `12:00:00 error step: message`; the level only where it is none of everyday's.
fn text(line: &LogLine, state: &State) -> String {
    let step = line.step.as_deref().map(|step| format!("{}: ", clean(step))).unwrap_or_default();
    let level = if line.level == "info" { String::new() } else { format!("{} ", clean(&line.level)) };
    format!("{} {level}{step}{}", clock(line.time, &state.zone), clean(&line.message))
}
