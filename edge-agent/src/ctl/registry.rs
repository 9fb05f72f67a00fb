//! `edgectl registry`: where the local registry is and how to log in.

use std::process::ExitCode;

use edge_api::Instance;
use edge_api::names::REGISTRY_PULL_USER;

use super::error::Error;
use super::text::{self, clean};
use crate::durable;
use crate::node;
use crate::paths::Paths;

/// File below the agent's root with the password of the pull login.
const PASSWORD: &str = "state/registry-pull";
/// File below the agent's root with the certificate of the appliance's authority.
const AUTHORITY: &str = "ca/ca.crt";

#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Address and pull login of the local registry
    #[command(after_help = "The password itself is printed only with --show-password, by itself, so that it can be
handed on without being seen:
  edgectl registry credentials --show-password | docker login --username pull --password-stdin HOST:PORT")]
    Credentials {
        /// Print the password and nothing else
        #[arg(long)]
        show_password: bool,
    },
}

pub fn run(command: &Command, paths: &Paths, instance: &Instance) -> Result<ExitCode, Error> {
    let Command::Credentials { show_password } = command;
    let file = paths.join(PASSWORD);
    if *show_password {
        let password = std::fs::read_to_string(&file).map_err(|error| Error::read(&file, error))?;
        text::print(&format!("{}\n", password.trim_end()))?;
        return Ok(ExitCode::SUCCESS);
    }
    if !file.exists() {
        return Err(Error::Other {
            message: format!("there is no pull login yet: {} does not exist", clean(&file.display().to_string())),
            hint: Some("it is made by the step `registry`; `edgectl status` shows how far that is".to_owned()),
        });
    }
    // The node's plan says which port the agent was given; it is older than the login.
    let plan = durable::read_json(&paths.kind_config()).ok().flatten();
    let port = plan.as_ref().and_then(node::registry_port).unwrap_or_else(|| instance.registry_port());
    let authority = paths.join(AUTHORITY);
    text::print(&format!(
        "address      localhost:{port} (HTTPS)\nuser         {REGISTRY_PULL_USER}\npassword     in {}, or --show-password\nauthority    {}\n",
        file.display(),
        authority.display(),
    ))?;
    Ok(ExitCode::SUCCESS)
}
