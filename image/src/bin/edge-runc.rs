//! An OCI runtime for hosts whose bounding set lacks capabilities that docker asks for: drops them, then becomes runc.
//!
//! `dockerd --add-runtime edge-runc=<this file> --default-runtime edge-runc`. `EDGE_RUNC` names another runc.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use edge_image::runc;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(target) = runc::target(&args)
        && let Err(error) = runc::bounding_set().and_then(|bounding| runc::edit(&target, bounding))
    {
        eprintln!("edge-runc: {error}");
        return ExitCode::FAILURE;
    }
    let program = std::env::var_os("EDGE_RUNC").unwrap_or_else(|| "runc".into());
    let error = Command::new(&program).args(args).exec();
    eprintln!("edge-runc: cannot run {}: {error}", program.display());
    ExitCode::FAILURE
}
