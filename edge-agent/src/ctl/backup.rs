//! `edgectl backup` and `edgectl restore`.

use std::path::PathBuf;
use std::process::ExitCode;

use jiff::Timestamp;

use super::error::Error;
use super::{Place, telling, text};
use crate::backup;
use crate::paths::Paths;

#[derive(clap::Args, Debug)]
pub struct MakeArgs {
    /// File to write [default: the instance's name and the time, in the current folder]
    file: Option<PathBuf>,
}

#[derive(clap::Args, Debug)]
pub struct RestoreArgs {
    /// The backup
    file: PathBuf,
}

pub async fn make(args: &MakeArgs, place: &Place) -> Result<ExitCode, Error> {
    let named = || format!("{}-{}.backup", place.instance, Timestamp::now().strftime("%Y%m%dT%H%M%SZ")).into();
    let out = args.file.clone().unwrap_or_else(named);
    let paths = Paths::new(place.root());
    let manifest = telling("backing up", backup::make(&paths, &place.instance, &out)).await?;
    let size = std::fs::metadata(&out).map_err(|error| Error::read(&out, error))?.len();
    let (what, kib) = (text::clean(&manifest.of_what()), size.div_ceil(1024));
    text::print(&format!("{}  {what}, {kib} KiB; it holds keys, so keep it like one\n", out.display()))?;
    Ok(ExitCode::SUCCESS)
}

pub async fn restore(args: &RestoreArgs, place: &Place) -> Result<ExitCode, Error> {
    let paths = Paths::new(place.root());
    let restored = telling("restoring", backup::restore(&paths, &place.instance, &args.file)).await?;
    let (what, made) = (text::clean(&restored.manifest.of_what()), text::local(restored.manifest.made));
    let site_file = if restored.kept_site_file { "the site file of this box" } else { "the backup's site file" };
    text::print(&format!("{what} as of {made}, with {site_file}; start the agent, and it makes the system cluster\n"))?;
    Ok(ExitCode::SUCCESS)
}
