//! `edgectl reset`: the box as it came from the factory.

use std::process::ExitCode;

use super::error::Error;
use super::{Place, USAGE, text};
use crate::engine::chain;
use crate::paths::Paths;
use crate::remove;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// Go on where virtual machines cannot be removed, and say what was left
    #[arg(long)]
    force: bool,
}

pub async fn run(args: &Args, place: &Place) -> Result<ExitCode, Error> {
    let (root, instance) = (place.root(), place.instance.clone());
    if !Paths::new(&root).join("state").exists() {
        return Err(Error::Other {
            message: format!("there is no appliance in {}", root.display()),
            hint: Some("--instance or --root names another one".to_owned()),
        });
    }
    let what = format!("appliance {instance} in {}, with every cluster, virtual machine, disk and key", root.display());
    if !args.yes && !text::confirmed(&what, instance.as_str())? {
        return Ok(ExitCode::from(USAGE));
    }
    let site_file = Paths::new(&root).site_file();
    let options = remove::Options { root, instance, keep_data: false, force: args.force, end_agent: true };
    let left = remove::run(&options).await.map_err(|error| Error::Other { message: chain(&error), hint: None })?;
    for what in &left {
        text::complain(&format!("left: {what}"));
    }
    if !left.is_empty() {
        return Ok(ExitCode::FAILURE);
    }
    text::print(&format!(
        "the box is as it came from the factory; the agent, started again, waits for {}\n",
        site_file.display()
    ))?;
    Ok(ExitCode::SUCCESS)
}
