//! Whether somebody answers at a virtual IP address already, before its first machine is made.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpStream;

/// How long an answer may take: the address is on a network of the same host or next to it.
const DEADLINE: Duration = Duration::from_secs(1);
/// An address that nobody has (RFC 5737).
const NOBODY: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// What became of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Answer {
    /// It was taken.
    Taken,
    /// It was refused, which somebody has to do.
    Refused,
    /// Nobody said anything.
    Nothing,
}

/// Whether somebody answers. An answer counts only where an address that nobody has is answered otherwise: some networks
/// have something on the way that speaks for every address.
pub async fn is_answered(address: Ipv4Addr, port: u16) -> bool {
    match ask(address, port).await {
        Answer::Nothing => false,
        answer => ask(NOBODY, port).await != answer,
    }
}

async fn ask(address: Ipv4Addr, port: u16) -> Answer {
    match tokio::time::timeout(DEADLINE, TcpStream::connect(SocketAddr::from((address, port)))).await {
        Ok(Ok(_)) => Answer::Taken,
        Ok(Err(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => Answer::Refused,
        Ok(Err(_)) | Err(_) => Answer::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_host_answers_with_and_without_a_server() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(ask(Ipv4Addr::LOCALHOST, port).await, Answer::Taken);
        drop(listener);
        assert_eq!(ask(Ipv4Addr::LOCALHOST, port).await, Answer::Refused);
        assert!(!is_answered(NOBODY, port).await);
    }
}
