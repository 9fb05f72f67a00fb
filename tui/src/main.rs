//! `edge-tui`: the console of an appliance, on the agent's socket alone.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_tui::main()
}
