//! The kernel's routing table, by netlink.

use std::io;
use std::net::Ipv4Addr;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use ipnet::Ipv4Net;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_multicast_connection};

use crate::plan::{Changes, Routes, changes};

/// Routing protocol of our routes, by which we know them. A number that iproute2 has no name for.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);

/// The routing table is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("open a netlink socket")]
    Open(#[source] io::Error),
    /// It cannot be read.
    #[error("list the routes")]
    List(#[source] rtnetlink::Error),
    /// Routes that cannot be set or removed; all others are as they should be.
    #[error("{}", .0.join("; "))]
    Write(Vec<String>),
}

/// The main routing table of this network namespace.
pub struct Table {
    handle: Handle,
}

impl Table {
    /// Opens it. The stream says that somebody else changed something in it or in the node's addresses (with which the
    /// kernel removes routes in silence), and ends with the connection.
    pub fn open() -> Result<(Self, impl Stream<Item = ()> + Unpin + use<>), Error> {
        let (connection, handle, messages) =
            new_multicast_connection(&[MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Ifaddr]).map_err(Error::Open)?;
        tokio::spawn(connection);
        Ok((Self { handle }, messages.map(drop)))
    }

    /// Our routes.
    pub async fn ours(&self) -> Result<Routes, Error> {
        let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
        let all: Vec<RouteMessage> =
            self.handle.route().get(query).execute().try_collect().await.map_err(Error::List)?;
        Ok(all.iter().filter_map(ours).collect())
    }

    /// Has exactly these routes as ours. Tells what it changed.
    pub async fn ensure(&self, wanted: &Routes) -> Result<Changes, Error> {
        let planned = changes(&self.ours().await?, wanted);
        let Changes { remove, set } = &planned;
        let mut failed = Vec::new();
        for (net, via) in remove {
            if let Err(error) = self.handle.route().del(message(*net, *via)).execute().await {
                failed.push(format!("remove the route to {net} via {via}: {error}"));
            }
        }
        for (net, via) in set {
            if let Err(error) = self.handle.route().add(message(*net, *via)).replace().execute().await {
                failed.push(format!("set the route to {net} via {via}: {error}"));
            }
        }
        if failed.is_empty() { Ok(planned) } else { Err(Error::Write(failed)) }
    }
}

fn message(net: Ipv4Net, via: Ipv4Addr) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new().protocol(PROTOCOL);
    builder.destination_prefix(net.network(), net.prefix_len()).gateway(via).build()
}

fn ours(message: &RouteMessage) -> Option<(Ipv4Net, Ipv4Addr)> {
    if message.header.protocol != PROTOCOL || message.header.table != RouteHeader::RT_TABLE_MAIN {
        return None;
    }
    let find = |pick: fn(&RouteAttribute) -> Option<Ipv4Addr>| message.attributes.iter().find_map(pick);
    let net = find(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    let via = find(|attribute| match attribute {
        RouteAttribute::Gateway(RouteAddress::Inet(address)) => Some(*address),
        _ => None,
    })?;
    Some((Ipv4Net::new(net, message.header.destination_prefix_length).ok()?, via))
}
