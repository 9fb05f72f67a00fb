//! docker, by its command line: networks, images and containers of one instance.

use std::net::Ipv4Addr;
use std::time::Duration;

use serde::Deserialize;
use tokio::process::ChildStdin;

use super::process::{Error, Program};
use crate::effects::Effect;

/// Label on what this project makes, with the instance's name.
pub const LABEL: &str = "pcg-edge.io/instance";

/// The docker command.
#[derive(Clone, Debug)]
pub struct Docker {
    program: String,
}

/// A container, as far as it matters here.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container {
    /// Its ID.
    pub id: String,
    /// ID of its image.
    pub image: String,
    /// Whether it runs.
    pub running: bool,
    /// Ports of the host that it is bound to.
    pub host_ports: Vec<u16>,
    /// Paths of the host that are mounted into it, with the path that it sees.
    pub mounts: Vec<(String, String)>,
    /// Names of its volumes.
    pub volumes: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerJson {
    id: String,
    image: String,
    state: StateJson,
    host_config: HostConfigJson,
    #[serde(default)]
    mounts: Vec<MountJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MountJson {
    #[serde(default)]
    source: String,
    destination: String,
    /// Of a volume.
    name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct StateJson {
    running: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HostConfigJson {
    #[serde(default)]
    port_bindings: Option<std::collections::BTreeMap<String, Option<Vec<BindingJson>>>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BindingJson {
    host_port: String,
}

impl Default for Docker {
    fn default() -> Self {
        Self { program: "docker".to_owned() }
    }
}

impl Docker {
    fn command<const N: usize>(&self, args: [&str; N]) -> Program {
        Program::new(&self.program).args(args)
    }

    /// Version of the server; fails where it does not answer.
    pub async fn server_version(&self) -> Result<String, Error> {
        let program = self.command(["version", "--format", "{{.Server.Version}}"]).deadline(Duration::from_secs(15));
        Ok(program.run().await?.stdout.trim().to_owned())
    }

    /// Subnet of a network; `None` where there is no such network.
    pub async fn network_subnet(&self, name: &str) -> Result<Option<String>, Error> {
        let format = "{{range .IPAM.Config}}{{.Subnet}} {{end}}";
        let found = absent(self.command(["network", "inspect", "--format", format, name]).run().await)?;
        Ok(found.map(|text| text.trim().to_owned()))
    }

    /// Makes a bridge network with a pinned /24.
    pub async fn create_network(&self, name: &str, instance: &str, subnet: Ipv4Addr) -> Result<(), Error> {
        let [a, b, c, _] = subnet.octets();
        let label = format!("{LABEL}={instance}");
        let subnet = format!("{subnet}/24");
        let gateway = format!("{a}.{b}.{c}.1");
        let args = ["network", "create", "--driver", "bridge", "--subnet", &subnet, "--gateway", &gateway];
        self.command(args).args(["--label", &label, name]).effect(Effect::CreateDockerNetwork).run().await.map(drop)
    }

    /// Removes a network; tells whether there was one.
    pub async fn remove_network(&self, name: &str) -> Result<bool, Error> {
        let program = self.command(["network", "rm", name]).effect(Effect::RemoveDockerNetwork);
        Ok(absent(program.run().await)?.is_some())
    }

    /// ID of an image; `None` where there is no such image.
    pub async fn image_id(&self, reference: &str) -> Result<Option<String>, Error> {
        let found = absent(self.command(["image", "inspect", "--format", "{{.Id}}", reference]).run().await)?;
        Ok(found.map(|text| text.trim().to_owned()))
    }

    /// Names with tags of the images of a repository.
    pub async fn images(&self, repository: &str) -> Result<Vec<String>, Error> {
        let text =
            self.command(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", repository]).run().await?.stdout;
        Ok(text.lines().map(str::to_owned).collect())
    }

    /// Removes a name of an image, and the image with its last name; tells whether there was one.
    pub async fn remove_image(&self, reference: &str) -> Result<bool, Error> {
        let program = self.command(["image", "rm", reference]).effect(Effect::RemoveImage);
        Ok(absent(program.deadline(Duration::from_mins(2)).run().await)?.is_some())
    }

    /// Removes an image by its ID where it has no name any more; tells whether it did.
    pub async fn remove_untagged_image(&self, id: &str) -> Result<bool, Error> {
        let names = absent(self.command(["image", "inspect", "--format", "{{len .RepoTags}}", id]).run().await)?;
        if names.is_none_or(|names| names.trim() != "0") {
            return Ok(false);
        }
        self.remove_image(id).await
    }

    /// Loads an archive that `write` streams.
    pub async fn load<F>(&self, write: F) -> Result<(), Error>
    where
        F: AsyncFnOnce(&mut ChildStdin) -> std::io::Result<()>,
    {
        let program = self.command(["load", "--quiet"]).effect(Effect::LoadImage);
        program.deadline(Duration::from_mins(30)).run_with_input(write).await.map(drop)
    }

    /// A container; `None` where there is none of that name.
    pub async fn container(&self, name: &str) -> Result<Option<Container>, Error> {
        let Some(text) = absent(self.command(["container", "inspect", "--format", "{{json .}}", name]).run().await)?
        else {
            return Ok(None);
        };
        let json: ContainerJson = serde_json::from_str(&text).map_err(|e| Error::Start {
            program: "docker container inspect".to_owned(),
            source: std::io::Error::new(std::io::ErrorKind::InvalidData, e),
        })?;
        let volumes = json.mounts.iter().filter_map(|m| m.name.clone()).collect();
        let mounts = json.mounts.into_iter().map(|m| (m.source, m.destination)).collect();
        let bindings = json.host_config.port_bindings.unwrap_or_default();
        let host_ports = bindings.into_values().flatten().flatten().filter_map(|b| b.host_port.parse().ok()).collect();
        let ContainerJson { id, image, state, .. } = json;
        Ok(Some(Container { id, image, running: state.running, host_ports, mounts, volumes }))
    }

    /// Starts a stopped container.
    pub async fn start(&self, name: &str) -> Result<(), Error> {
        let program = self.command(["container", "start", name]).effect(Effect::StartNode);
        program.deadline(Duration::from_mins(2)).run().await.map(drop)
    }

    /// Runs a shell script in a container.
    pub async fn run_in(&self, name: &str, script: &str) -> Result<(), Error> {
        let program = self.command(["container", "exec", name, "/bin/sh", "-c", script]).effect(Effect::RunInNode);
        program.deadline(Duration::from_mins(2)).run().await.map(drop)
    }

    /// Runs a program of an image to its end, with a folder of the host and no network, in a container of this name.
    pub async fn run_once(&self, name: &str, image: &str, mount: (&str, &str), words: &[&str]) -> Result<(), Error> {
        let (program, args) = words.split_first().unwrap_or((&"", &[]));
        let volume = format!("{}:{}", mount.0, mount.1);
        let words = ["container", "run", "--rm", "--name", name, "--network", "none", "--volume", &volume];
        let command = self.command(words).args(["--entrypoint", program, image]).args(args);
        command.effect(Effect::RunOnce).deadline(Duration::from_mins(5)).run().await.map(drop)
    }

    /// Last lines of what a container wrote.
    pub async fn logs(&self, name: &str, lines: u32) -> Result<String, Error> {
        let output = self.command(["container", "logs", "--tail", &lines.to_string(), name]).run().await?;
        Ok(output.stdout + &output.stderr)
    }

    /// Removes a container with its anonymous volumes; tells whether there was one.
    pub async fn remove_container(&self, name: &str) -> Result<bool, Error> {
        let program = self.command(["container", "rm", "--force", "--volumes", name]).effect(Effect::RemoveContainer);
        let existed = self.container(name).await?.is_some();
        absent(program.deadline(Duration::from_mins(3)).run().await)?;
        Ok(existed)
    }

    /// Removes a volume; tells whether there was one.
    pub async fn remove_volume(&self, name: &str) -> Result<bool, Error> {
        let program = self.command(["volume", "rm", name]).effect(Effect::RemoveVolume);
        Ok(absent(program.deadline(Duration::from_mins(2)).run().await)?.is_some())
    }
}

/// Turns "no such …" into `None`: not-found is an answer.
fn absent(result: Result<super::process::Output, Error>) -> Result<Option<String>, Error> {
    match result {
        Ok(output) => Ok(Some(output.stdout)),
        Err(Error::Failed { tail, .. }) if is_absent(&tail) => Ok(None),
        Err(e) => Err(e),
    }
}

fn is_absent(text: &str) -> bool {
    let text = text.to_lowercase();
    text.contains("no such") || (text.contains("network") && text.contains("not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn not_found_is_told_from_other_failures() {
        assert!(is_absent("Error: No such network: x"));
        assert!(is_absent("Error response from daemon: network pcg-x not found"));
        assert!(is_absent("Error: No such image: a:b"));
        assert!(!is_absent("Cannot connect to the Docker daemon at unix:///var/run/docker.sock."));
    }
}
