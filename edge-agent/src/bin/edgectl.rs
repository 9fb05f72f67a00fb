//! `edgectl`: the people's command line of an appliance.

use std::process::ExitCode;

fn main() -> ExitCode {
    edge_agent::ctl::main()
}
