//! Foreign programs, each behind one narrow port (D8): captured output, a deadline, a cancellation.

pub mod docker;
pub mod firewall;
pub mod kind;
pub mod process;
