//! The console of an appliance: setup, progress and what runs.
//!
//! ```text
//! keys, size ─┐
//! agent ──────┼─► one channel of Event ─► State::on ─► draw(&State)      all I/O but drawing is in tasks
//! clock ──────┤                              └─ Action: go on, or quit
//! signals ────┘
//! ```
//!
//! Everything shown comes from the agent's socket API. Eight colours and ASCII, because the box's own screen is often a
//! bare Linux console of 80×24.

mod agent;
mod args;
mod colours;
mod draw;
mod event;
mod run;
mod state;
mod terminal;
mod text;

#[cfg(test)]
mod tests;

pub use args::main;
