//! What is wrong with the host is said before anything is made.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::Result;
use edge_tests::Inventory;

use crate::appliance::Appliance;

/// With the registry's port taken, `up` fails at once and names the port; nothing is made.
pub async fn a_taken_port_is_named() -> Result<()> {
    let appliance = Appliance::new("e2eport", 152, 202)?;
    let before = Inventory::take()?;
    let port = appliance.instance.registry_port();
    let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let output = appliance.up()?.output().await?;
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    drop(taken);
    appliance.down().await?;
    anyhow::ensure!(!output.status.success(), "up succeeded with port {port} taken");
    anyhow::ensure!(text.contains("preflight") && text.contains(&port.to_string()), "port {port} is not named");
    let difference = before.difference(&Inventory::take()?);
    anyhow::ensure!(difference.is_empty(), "the host differs:\n{difference}");
    Ok(())
}
