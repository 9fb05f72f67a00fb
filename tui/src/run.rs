//! The loop: an event changes the state, the state is drawn.

use ratatui::Terminal;
use ratatui::backend::Backend;

use crate::draw::draw;
use crate::event::Event;
use crate::state::{Action, Measure, State};

/// Draws, and takes events until one of them, or their end, ends it.
pub fn run<B: Backend>(
    terminal: &mut Terminal<B>,
    mut state: State,
    mut next: impl FnMut() -> Option<Event>,
) -> Result<(), B::Error> {
    loop {
        let mut measure = Measure::default();
        terminal.draw(|frame| measure = draw(frame, &state))?;
        state.measured(measure);
        let Some(event) = next() else { return Ok(()) };
        if state.on(event) == Action::Quit {
            return Ok(());
        }
    }
}
