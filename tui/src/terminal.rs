//! The terminal: taken over, and given back on every way out.

use std::io::{self, Stdout};
use std::mem::ManuallyDrop;
use std::sync::Once;

use crossterm::cursor::{MoveTo, Show};
use crossterm::execute;
use crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::backend::CrosstermBackend;
use ratatui::layout::Rect;
use ratatui::{Terminal, TerminalOptions, Viewport};

use crate::colours::BasicColours;

type Backend = CrosstermBackend<BasicColours<Stdout>>;

/// The terminal as long as it is ours; dropping this gives it back.
pub struct Screen {
    /// Never dropped: its own way of giving back writes to standard error, which may be the terminal that is gone.
    terminal: ManuallyDrop<Terminal<Backend>>,
}

impl Screen {
    /// Takes the terminal over.
    pub fn open() -> io::Result<Self> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                restore();
                report(info);
                // A panic in a task must not leave a console that looks alive.
                std::process::exit(101);
            }));
        });
        enable_raw_mode()?;
        // Not `Terminal::clear`: it asks for the cursor's place, which serial consoles do not answer.
        let opened = execute!(io::stdout(), EnterAlternateScreen, Clear(ClearType::All)).and_then(|()| {
            let backend = CrosstermBackend::new(BasicColours::new(io::stdout()));
            Terminal::with_options(backend, TerminalOptions { viewport: viewport() })
        });
        match opened {
            Ok(terminal) => Ok(Self { terminal: ManuallyDrop::new(terminal) }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    /// What is drawn on.
    pub fn terminal(&mut self) -> &mut Terminal<Backend> {
        &mut self.terminal
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// The whole terminal; 80×24 on a line that does not know its size.
fn viewport() -> Viewport {
    match crossterm::terminal::size() {
        Ok((columns, rows)) if columns > 0 && rows > 0 => Viewport::Fullscreen,
        _ => Viewport::Fixed(Rect::new(0, 0, 80, 24)),
    }
}

/// Nothing can be done about a terminal that cannot be restored. The Linux console has no alternate screen: what we
/// drew is cleared by hand.
fn restore() {
    let _ = execute!(io::stdout(), Clear(ClearType::All), MoveTo(0, 0), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
