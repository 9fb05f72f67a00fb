//! What the console knows and shows. [`State::on`] is the only way it changes; it does no I/O.

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use edge_api::agent::{LogLine, Phase, Status, ValidationError};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::event::Event;

/// Lines of the log that are kept.
pub const LOG_LINES: usize = 1000;

/// What the loop does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Action {
    /// Draw, and go on.
    Draw,
    /// Leave.
    Quit,
}

/// What drawing found out about the size of things.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Measure {
    /// Rows that are seen at once.
    pub page: usize,
    /// Most rows that can be scrolled.
    pub last: usize,
}

/// The connection to the agent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Link {
    /// Not tried yet.
    Connecting,
    /// The agent tells us what changes.
    Live,
    /// What is shown may be old.
    Lost {
        /// When it was lost.
        since: Timestamp,
        /// When it is tried again.
        next: Timestamp,
        /// Why.
        reason: String,
        /// What to do.
        hint: Option<String>,
    },
}

/// What fills the screen.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum View {
    /// Steps, applications, clusters, machines, and the end of the log.
    Overview,
    /// One item of the overview with all its text.
    Details,
    /// The log.
    Log,
    /// The keys.
    Help,
}

/// Part of the overview that is stepped through as one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Section {
    /// Errors of the site file.
    Site,
    /// Steps of the installation.
    Steps,
    /// Layers of the profile.
    Applications,
    /// Workload clusters.
    Clusters,
    /// Virtual machines.
    Machines,
}

/// Everything there is to draw.
#[derive(Debug)]
pub struct State {
    /// Path of the agent's socket.
    pub socket: String,
    /// The time, to the second.
    pub now: Timestamp,
    /// For times of day.
    pub zone: TimeZone,
    /// The connection to the agent.
    pub link: Link,
    /// The newest status.
    pub status: Option<Box<Status>>,
    /// The newest lines of the log, oldest first.
    pub log: VecDeque<LogLine>,
    /// What fills the screen.
    pub view: View,
    /// The item that is selected: its section and place in it. Kept by name over changes where it can be.
    pub selected: (Section, usize),
    /// Rows scrolled: in the log up from its end, in details down from their start.
    pub scroll: usize,
    /// Rows of the body, for paging.
    pub page: usize,
}

impl State {
    /// Nothing is known yet.
    pub fn new(socket: String, now: Timestamp, zone: TimeZone) -> Self {
        Self {
            socket,
            now,
            zone,
            link: Link::Connecting,
            status: None,
            log: VecDeque::new(),
            view: View::Overview,
            selected: (Section::Steps, 0),
            scroll: 0,
            page: 1,
        }
    }

    /// Takes an event in.
    pub fn on(&mut self, event: Event) -> Action {
        match event {
            Event::Quit => return Action::Quit,
            Event::Key(key) => return self.key(key),
            Event::Resize => {}
            Event::Tick(now) => self.now = now,
            Event::Connected(log) => {
                self.link = Link::Live;
                self.log = log.into();
                self.trim();
            }
            Event::Status(status) => self.take(status),
            Event::Log(line) => self.append(line),
            Event::Lost { reason, hint, retry } => {
                let since = match &self.link {
                    Link::Lost { since, .. } => *since,
                    _ => self.now,
                };
                let next = self.now + jiff::SignedDuration::from_secs(i64::try_from(retry).unwrap_or(0));
                self.link = Link::Lost { since, next, reason, hint };
            }
        }
        Action::Draw
    }

    /// Takes in what only drawing could find out.
    pub fn measured(&mut self, measure: Measure) {
        self.page = measure.page.max(1);
        self.scroll = self.scroll.min(measure.last);
    }

    /// The selection stays with the item of the same name.
    fn take(&mut self, status: Box<Status>) {
        let name = self.name_of(self.selected);
        self.status = Some(status);
        let (section, index) = self.selected;
        let same =
            name.and_then(|name| (0..self.count(section)).find(|i| self.name_of((section, *i)) == Some(name.clone())));
        self.selected = match same {
            Some(index) => (section, index),
            None if index < self.count(section) => (section, index),
            None => self.items().first().copied().unwrap_or((Section::Steps, 0)),
        };
        if same.is_none() && self.view == View::Details && self.count(section) == 0 {
            self.view = View::Overview;
        }
    }

    fn append(&mut self, line: LogLine) {
        // The log and the stream overlap where they were joined.
        if self.log.iter().rev().take(50).any(|known| *known == line) {
            return;
        }
        self.log.push_back(line);
        self.trim();
        // Who looks at older lines goes on looking at them.
        if self.view == View::Log && self.scroll > 0 {
            self.scroll += 1;
        }
    }

    fn trim(&mut self) {
        while self.log.len() > LOG_LINES {
            self.log.pop_front();
        }
    }

    /// Sections that are shown, in order.
    pub fn sections(&self) -> Vec<Section> {
        let Some(status) = &self.status else { return Vec::new() };
        let mut sections = Vec::new();
        if !status.site_file.errors.is_empty() {
            sections.push(Section::Site);
        }
        if status.phase != Phase::WaitingForSite {
            sections.push(Section::Steps);
            if !status.applications.is_empty() {
                sections.push(Section::Applications);
            }
            if !status.clusters.is_empty() {
                sections.push(Section::Clusters);
            }
            if !status.machines.is_empty() {
                sections.push(Section::Machines);
            }
        }
        sections
    }

    /// Items of a section.
    pub fn count(&self, section: Section) -> usize {
        self.status.as_ref().map_or(0, |status| match section {
            Section::Site => status.site_file.errors.len(),
            Section::Steps => status.steps.len(),
            Section::Applications => status.applications.len(),
            Section::Clusters => status.clusters.len(),
            Section::Machines => status.machines.len(),
        })
    }

    /// Everything that can be selected, from top to bottom.
    fn items(&self) -> Vec<(Section, usize)> {
        self.sections().into_iter().flat_map(|section| (0..self.count(section)).map(move |i| (section, i))).collect()
    }

    fn name_of(&self, (section, index): (Section, usize)) -> Option<String> {
        let status = self.status.as_ref()?;
        match section {
            Section::Site => status.site_file.errors.get(index).map(place),
            Section::Steps => status.steps.get(index).map(|step| step.name.clone()),
            Section::Applications => status.applications.get(index).map(|app| app.name.clone()),
            Section::Clusters => status.clusters.get(index).map(|cluster| cluster.name.clone()),
            Section::Machines => status.machines.get(index).map(|machine| machine.name.clone()),
        }
    }

    fn key(&mut self, key: KeyEvent) -> Action {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c' | 'd') if control => return Action::Quit,
            _ if control => {}
            KeyCode::Char('q' | 'Q') => return Action::Quit,
            KeyCode::Char('l' | 'L') => self.toggle(View::Log),
            KeyCode::Char('?' | 'h' | 'H') | KeyCode::F(1) => self.toggle(View::Help),
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => self.show(View::Overview),
            _ => match self.view {
                View::Overview => self.overview_key(key.code),
                View::Log => self.scroll_by(key.code, true),
                View::Details | View::Help => self.scroll_by(key.code, false),
            },
        }
        Action::Draw
    }

    fn toggle(&mut self, view: View) {
        self.show(if self.view == view { View::Overview } else { view });
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.scroll = 0;
    }

    fn overview_key(&mut self, code: KeyCode) {
        let items = self.items();
        let Some(last) = items.len().checked_sub(1) else { return };
        let at = items.iter().position(|item| *item == self.selected).unwrap_or(0);
        let target = match code {
            KeyCode::Down | KeyCode::Char('j') => at + 1,
            KeyCode::Up | KeyCode::Char('k') => at.saturating_sub(1),
            KeyCode::PageDown | KeyCode::Char(' ') => at + self.page,
            KeyCode::PageUp => at.saturating_sub(self.page),
            KeyCode::Home | KeyCode::Char('g') => 0,
            KeyCode::End | KeyCode::Char('G') => last,
            KeyCode::Tab => self.section_start(&items, at, true),
            KeyCode::BackTab => self.section_start(&items, at, false),
            KeyCode::Enter | KeyCode::Right => return self.show(View::Details),
            _ => return,
        };
        self.selected = items[target.min(last)];
    }

    /// Place of the first item of the next or the previous section, around the ends.
    fn section_start(&self, items: &[(Section, usize)], at: usize, forward: bool) -> usize {
        let sections = self.sections();
        let own = sections.iter().position(|section| *section == items[at].0).unwrap_or(0);
        let step = if forward { 1 } else { sections.len() - 1 };
        let target = sections[(own + step) % sections.len()];
        items.iter().position(|(section, _)| *section == target).unwrap_or(at)
    }

    fn scroll_by(&mut self, code: KeyCode, from_end: bool) {
        let page = self.page.saturating_sub(1).max(1);
        // Rows towards the start of the text; all of them for usize::MAX.
        let (up, rows) = match code {
            KeyCode::Up | KeyCode::Char('k') => (true, 1),
            KeyCode::Down | KeyCode::Char('j') => (false, 1),
            KeyCode::PageUp => (true, page),
            KeyCode::PageDown | KeyCode::Char(' ') => (false, page),
            KeyCode::Home | KeyCode::Char('g') => (true, usize::MAX),
            KeyCode::End | KeyCode::Char('G' | 'f') => (false, usize::MAX),
            KeyCode::Enter => return self.show(View::Overview),
            _ => return,
        };
        // The log is scrolled up from its end, a text down from its start.
        self.scroll = if up == from_end { self.scroll.saturating_add(rows) } else { self.scroll.saturating_sub(rows) };
    }
}

/// Where an error of the site file is, for people.
pub fn place(error: &ValidationError) -> String {
    if error.line == 0 { "whole file".to_owned() } else { format!("line {}, column {}", error.line, error.column) }
}
