//! First and last lines of the screen.

use edge_api::agent::{SiteFileState, Status, UpgradeState};
use ratatui::text::{Line, Span};

use super::theme;
use crate::state::{Link, Section, State, View};
use crate::text::{clean, cut, fit, span, width, wrap};

/// The header: one line on a low screen, three to six on a higher one.
pub fn lines(state: &State, columns: usize, rows: u16) -> Vec<Line<'static>> {
    let mut lines = vec![title(state, columns)];
    if let Link::Lost { since, next, reason, hint } = &state.link {
        let gone = span(*since, state.now);
        let soon = span(state.now, *next);
        let text = format!("No answer from the agent for {gone}, next try in {soon}: {}", clean(reason));
        let most = if rows < 16 { 1 } else { 3 };
        lines.extend(wrapped(&text, columns, most).map(|line| Line::styled(line, theme::BAD)));
        if rows >= 16
            && let Some(hint) = hint
        {
            lines.extend(wrapped(&clean(hint), columns, 2).map(|line| Line::styled(line, theme::HINT)));
        }
    }
    if rows < 16 {
        return lines;
    }
    match &state.status {
        Some(status) => {
            lines.push(Line::raw(cut(&clean(&status.message), columns)));
            lines.push(Line::raw(cut(&facts(status), columns)));
            lines.extend(attention(status, columns));
        }
        None if state.link == Link::Connecting => lines.push(Line::raw(format!("Connecting to {} ...", state.socket))),
        None => {}
    }
    lines
}

fn wrapped(text: &str, columns: usize, most: usize) -> impl Iterator<Item = String> + use<> {
    wrap(text, columns).into_iter().take(most)
}

fn title(state: &State, columns: usize) -> Line<'static> {
    let (name, instance, phase, style) = match &state.status {
        Some(status) => {
            let (phase, style) = theme::phase(status.phase);
            let name = status.device_id.as_deref().map_or_else(|| "PCG-Edge".to_owned(), clean);
            (name, format!("  instance {}", clean(&status.instance)), phase, style)
        }
        None => ("PCG-Edge".to_owned(), String::new(), "No status yet", theme::BUSY),
    };
    let (phase, style) = match state.link {
        // What is shown is the last that was known.
        Link::Lost { .. } if state.status.is_some() => (format!("{phase} (old)"), theme::BAD),
        _ => (phase.to_owned(), style),
    };
    let room = columns.saturating_sub(width(&phase) + 1);
    let name = cut(&name, room);
    let rest = fit(&instance, room - width(&name));
    Line::from(vec![
        Span::styled(name, theme::STRONG),
        Span::raw(rest + " "),
        Span::styled(cut(&phase, columns), style),
    ])
}

fn facts(status: &Status) -> String {
    let accelerator = match &status.accelerator {
        Some(accelerator) => format!("{} ({})", clean(&accelerator.kind), clean(&accelerator.reason)),
        None => "not known yet".to_owned(),
    };
    let file = match status.site_file.state {
        SiteFileState::Absent => "absent",
        SiteFileState::Invalid => "refused",
        SiteFileState::Applied => "applied",
    };
    format!("agent {} | site file {file} | accelerator {accelerator}", clean(&status.version))
}

/// What an edit of the site file asks of somebody, and an upgrade that is not done.
fn attention(status: &Status, columns: usize) -> impl Iterator<Item = Line<'static>> + use<> {
    let fields = &status.site_file.needs_reinstall;
    let edit =
        (!fields.is_empty()).then(|| (format!("Needs a reinstall to take effect: {}", fields.join(", ")), theme::BUSY));
    let upgrade = status.upgrade.as_ref().filter(|upgrade| upgrade.state != UpgradeState::Done).map(|upgrade| {
        let style = if upgrade.state == UpgradeState::Returned { theme::BAD } else { theme::BUSY };
        (format!("Upgrade to {}: {}", upgrade.to, upgrade.message), style)
    });
    edit.into_iter().chain(upgrade).map(move |(text, style)| Line::styled(cut(&clean(&text), columns), style))
}

/// The keys that do something now.
pub fn footer(state: &State, columns: usize) -> Line<'static> {
    let text = match state.view {
        View::Overview if state.sections().is_empty() => "l log  ? help  q quit",
        View::Overview if state.sections() == [Section::Site] => "Up/Down select  Enter details  l log  ? help  q quit",
        View::Overview => "Up/Down select  Tab next part  Enter details  l log  ? help  q quit",
        View::Details => "Up/Down scroll  Esc back  l log  ? help  q quit",
        View::Log => "Up/Down scroll  End newest  l back  ? help  q quit",
        View::Help => "Esc back  l log  q quit",
    };
    // The right end tells the most needed keys.
    let text = if width(text) > columns { "l log  ? help  q quit" } else { text };
    Line::styled(fit(text, columns), theme::SELECTED)
}
