//! The people's command line.
fn main() {}
