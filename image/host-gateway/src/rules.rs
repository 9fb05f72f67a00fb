//! Packet rules, by `nft`, in one table of our own, replaced as a whole.
//!
//! - Whatever goes from a pod to somewhere outside the pod network leaves with its node's address, because nobody out
//!   there knows a way back to a pod.
//! - What is for a service's address still has it here only where kube-proxy knows no such service, or not yet. It is
//!   refused: the node's gateway would take it for the outside world, and a connection to whoever answers there would
//!   outlive kube-proxy's catching up.

use std::io;
use std::process::{Output, Stdio};

use ipnet::Ipv4Net;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

const TABLE: &str = "host-gateway";

/// The packet filter is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such program.
    #[error("run nft")]
    Run(#[source] io::Error),
    /// It does not take the rules.
    #[error("nft refuses the rules: {0}")]
    Refused(String),
}

/// Has the table for the networks of the cluster's pods and services. Tells whether it wrote.
pub async fn ensure(pods: Ipv4Net, services: Ipv4Net) -> Result<bool, Error> {
    let table = table(pods.trunc(), services.trunc());
    let listed = nft(&["list", "table", "ip", TABLE], "").await?;
    if listed.status.success() && listed.stdout == table.as_bytes() {
        return Ok(false);
    }
    // Declared before it is deleted: the whole replaces what is there, or nothing, in one transaction.
    let rules = format!("table ip {TABLE}\ndelete table ip {TABLE}\n{table}");
    let loaded = nft(&["-f", "-"], &rules).await?;
    if !loaded.status.success() {
        return Err(Error::Refused(String::from_utf8_lossy(&loaded.stderr).trim().to_owned()));
    }
    Ok(true)
}

/// The table as `nft` lists it, which is how it is compared.
fn table(pods: Ipv4Net, services: Ipv4Net) -> String {
    format!(
        "table ip {TABLE} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {pods} ip daddr != {pods} masquerade\n\
         \t}}\n\
         \n\
         \tchain output {{\n\
         \t\ttype filter hook output priority filter; policy accept;\n\
         \t\tip daddr {services} reject\n\
         \t}}\n\
         \n\
         \tchain forward {{\n\
         \t\ttype filter hook forward priority filter; policy accept;\n\
         \t\tip daddr {services} reject\n\
         \t}}\n\
         }}\n"
    )
}

async fn nft(arguments: &[&str], input: &str) -> Result<Output, Error> {
    let mut command = Command::new("nft");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(Error::Run)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes()).await.map_err(Error::Run)?;
    }
    child.wait_with_output().await.map_err(Error::Run)
}
