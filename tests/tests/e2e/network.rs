//! The site router and the client behind it.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::{Context, Result};
use edge_api::agent::Phase;
use edge_api::{VirtualMachine, condition};
use edge_tests::inventory::virsh;
use edge_tests::wait::{Seen, eventually};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::appliance::Appliance;
use crate::{PATIENCE, guest};

/// Waits until the client's address, as its status reports it, lies in the range.
pub async fn lease_in_range(appliance: &Appliance, range: RangeInclusive<u8>) -> Result<()> {
    let address = leased(appliance, "client", range).await?;
    println!("    client has {address}");
    Ok(())
}

async fn leased(appliance: &Appliance, name: &str, range: RangeInclusive<u8>) -> Result<Ipv4Addr> {
    let lan = appliance.lan;
    let within = |machine: &VirtualMachine| {
        address(machine).filter(|a| a.octets()[..3] == [192, 168, lan] && range.contains(&a.octets()[3]))
    };
    let what = format!("to have an address 192.168.{lan}.{range:?}");
    let machine = appliance.machine(name, &what, PATIENCE, |machine| within(machine).is_some()).await?;
    within(&machine).context("an address")
}

/// The address on the LAN in the machine's status.
fn address(machine: &VirtualMachine) -> Option<Ipv4Addr> {
    let status = machine.status.as_ref()?;
    let address = status.addresses.iter().find(|address| address.network == "lan")?;
    address.ip.parse().ok()
}

/// Has the client fetch a page from a server on the WAN's bridge; the server must see the router as its visitor.
pub async fn through_the_router(appliance: &Appliance) -> Result<()> {
    let host = Ipv4Addr::new(192, 168, appliance.wan, 1);
    let server = TcpListener::bind((host, 0)).await.context("the WAN's bridge has no address")?;
    let port = server.local_addr()?.port();
    let serve = async {
        let (mut connection, visitor) = server.accept().await?;
        let mut request = vec![0; 4096];
        let read = connection.read(&mut request).await?;
        let page = "HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\nfrom-wan\n";
        connection.write_all(page.as_bytes()).await?;
        connection.shutdown().await?;
        Ok::<_, anyhow::Error>((visitor.ip(), String::from_utf8_lossy(&request[..read]).into_owned()))
    };
    let domain = appliance.instance.libvirt_name("client");
    let url = format!("http://{host}:{port}/proof");
    let arguments = ["-T", "60", "-q", "-O", "-", &url];
    let fetch = guest::must(&domain, "wget", &arguments);
    let both = async { tokio::try_join!(serve, fetch) };
    let ((visitor, request), page) =
        tokio::time::timeout(Duration::from_mins(3), both).await.context("no visitor")??;
    anyhow::ensure!(request.starts_with("GET /proof") && page.contains("from-wan"), "{request:?} {page:?}");
    let router = Ipv4Addr::new(192, 168, appliance.wan, 2);
    anyhow::ensure!(visitor == router, "the server saw {visitor}, not the router's {router}");
    println!("    the server saw {visitor}");
    Ok(())
}

/// Edits the DHCP range; the router restarts with it, and the client's lease follows.
pub async fn range_is_followed(appliance: &Appliance) -> Result<()> {
    let lan = appliance.lan;
    appliance.edit_site(&format!("start: 192.168.{lan}.100"), &format!("start: 192.168.{lan}.160"))?;
    appliance.edit_site(&format!("end: 192.168.{lan}.150"), &format!("end: 192.168.{lan}.180"))?;
    lease_in_range(appliance, 160..=180).await?;
    ready(appliance).await
}

/// A client that starts while the router is off gets no address; once the router is on, it does.
pub async fn no_lease_without_the_router(appliance: &Appliance) -> Result<()> {
    publish(appliance, "router-off", false).await?;
    appliance.edit_site("profile: profile.tar", "profile: router-off.tar")?;
    let router = appliance.instance.libvirt_name("router");
    eventually("the router to be off", PATIENCE, || async {
        let state = virsh(&["domstate", &router])?;
        anyhow::Ok(Seen::when(state.trim() == "shut off", state))
    })
    .await?;
    let waits = |machine: &VirtualMachine| {
        let conditions = machine.status.as_ref().map(|status| &*status.conditions).unwrap_or_default();
        condition::find(conditions, "Ready").is_some_and(|ready| ready.reason == "WaitingForAddress")
    };
    appliance.machine("probe", "to wait for an address", PATIENCE, waits).await?;

    // It asks and asks: so many packets went out, and still it has no address.
    let probe = appliance.instance.libvirt_name("probe");
    eventually("the probe to ask for an address", PATIENCE, || async {
        let sent = guest::must(&probe, "cat", &["/sys/class/net/eth0/statistics/tx_packets"]).await?;
        anyhow::Ok(Seen::when(sent.trim().parse::<u64>()? >= 8, sent))
    })
    .await?;
    let addresses = guest::must(&probe, "ip", &["-4", "addr", "show", "dev", "eth0"]).await?;
    anyhow::ensure!(!addresses.contains("inet "), "the probe has an address without a router:\n{addresses}");
    let machine = appliance.machines().await?.get("probe").await?;
    anyhow::ensure!(waits(&machine) && address(&machine).is_none(), "{:?}", machine.status);

    publish(appliance, "router-on", true).await?;
    appliance.edit_site("profile: router-off.tar", "profile: router-on.tar")?;
    let address = leased(appliance, "probe", 160..=180).await?;
    println!("    with the router on, the probe has {address}");

    // The first profile has no probe: a newer revision that lacks a thing removes it (law 2).
    appliance.edit_site("profile: router-on.tar", "profile: profile.tar")?;
    let machines = appliance.machines().await?;
    eventually("the probe to be gone", PATIENCE, || async {
        let object = machines.get_opt("probe").await?.is_some();
        let domain = virsh(&["list", "--all", "--name"])?.lines().any(|name| name == probe);
        anyhow::Ok(Seen::when(!object && !domain, format!("object: {object}, domain: {domain}")))
    })
    .await?;
    self::ready(appliance).await
}

/// Builds a variant of the profile into the folder of the site file.
async fn publish(appliance: &Appliance, name: &str, router_on: bool) -> Result<()> {
    let source = appliance.site.variant(name, router_on)?;
    let archive = appliance.root.join(format!("conf/{name}.tar"));
    let (source, archive) = (source.to_string_lossy(), archive.to_string_lossy());
    appliance.edgectl(&["profile", "build", &source, "-o", &archive]).await?;
    appliance.edgectl(&["profile", "verify", &archive]).await?;
    Ok(())
}

/// Waits until the agent says Ready.
pub async fn ready(appliance: &Appliance) -> Result<()> {
    eventually("the appliance to be ready", PATIENCE, || async {
        let status = appliance.status().await?;
        anyhow::Ok(Seen::when(status.phase == Phase::Ready, status.message))
    })
    .await?;
    Ok(())
}
