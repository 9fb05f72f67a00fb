//! The state on the screen. Pure: it reads the state and fills the frame.
//!
//! ```text
//! store-1   instance edge                                Installing     header
//! what runs or is waited for
//! accelerator, site file, agent
//! Steps ------------------------------------------------------------    body: one list over all sections
//! > system-cluster   Running   1m05s  [####......]  40%  …
//! Log --------------------------------------------------------------    tail of the log, where there is room
//! Enter details  l log  ? help  q quit                                  footer
//! ```

mod details;
mod header;
mod log;
mod overview;
mod setup;
pub mod theme;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;

use crate::state::{Measure, State, View};
use crate::text::cut;

/// Below this many rows or columns only the phase is shown.
const LEAST: (u16, u16) = (20, 4);

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, state: &State) -> Measure {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let phase = state.status.as_ref().map_or("...", |status| theme::phase(status.phase).0);
        put(frame, Rect { height: area.height.min(1), ..area }, Line::raw(cut(phase, area.width as usize)));
        return Measure::default();
    }
    let header = header::lines(state, area.width as usize, area.height);
    let top = u16::try_from(header.len()).unwrap_or(1);
    for (row, line) in (0..).zip(header) {
        put(frame, row_of(area, row), line);
    }
    let footer = area.height - 1;
    put(frame, row_of(area, footer), header::footer(state, area.width as usize));
    let body = Rect { y: area.y + top, height: footer.saturating_sub(top), ..area };
    match state.view {
        View::Overview => overview::draw(frame, body, state),
        View::Details => scrolled(frame, body, state, &details::lines(state, body.width as usize)),
        View::Help => scrolled(frame, body, state, &details::help(body.width as usize)),
        View::Log => log::draw(frame, body, state),
    }
}

/// A row of an area, counted from its top.
fn row_of(area: Rect, row: u16) -> Rect {
    Rect { y: area.y + row, height: 1, ..area }
}

fn put(frame: &mut Frame<'_>, area: Rect, line: Line<'_>) {
    if area.height > 0 && area.bottom() <= frame.area().bottom() {
        frame.render_widget(line, area);
    }
}

/// Lines from the scrolled one on.
fn scrolled(frame: &mut Frame<'_>, area: Rect, state: &State, lines: &[Line<'static>]) -> Measure {
    let page = area.height as usize;
    let last = lines.len().saturating_sub(page);
    for (row, line) in (0..area.height).zip(lines.iter().skip(state.scroll.min(last))) {
        put(frame, row_of(area, row), line.clone());
    }
    Measure { page, last }
}
