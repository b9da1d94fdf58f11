//! Where the API listens: at every address of a host.

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    task::Poll,
};

use thiserror::Error;
use tokio::net::{TcpListener, TcpStream, lookup_host};

/// The sockets that connections come in by; at least one.
#[derive(Debug)]
pub struct Listeners(Vec<TcpListener>);

/// Why the API cannot listen.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The name has no address.
    #[error("cannot find an address of `{host}`: {text}")]
    Unknown {
        /// The name.
        host: String,
        /// What the system said.
        text: String,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {error}")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
}

impl Listeners {
    /// Binds every address of `host`, an IP address or a name. Port 0 takes a free one, the same on all of them.
    ///
    /// # Errors
    /// A name without an address, a port in use, or no address that this machine has.
    pub async fn bind(host: &str, port: u16) -> Result<Self, ListenError> {
        let mut port = port;
        let mut sockets = Vec::new();
        let mut absent = None;
        for ip in addresses(host).await? {
            let address = SocketAddr::new(ip, port);
            let fail = |error| ListenError::Bind { address, error };
            match TcpListener::bind(address).await {
                Ok(socket) => {
                    port = socket.local_addr().map_err(fail)?.port();
                    sockets.push(socket);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied) => {
                    return Err(fail(error));
                }
                // Names may have addresses that the machine has not: `localhost` without IPv6.
                Err(error) => absent = Some(fail(error)),
            }
        }
        match absent {
            Some(error) if sockets.is_empty() => Err(error),
            Some(_) | None => Ok(Self(sockets)),
        }
    }

    /// Where they listen.
    ///
    /// # Errors
    /// The system does not say.
    pub fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.0.iter().map(TcpListener::local_addr).collect()
    }

    /// The next connection by any of them.
    pub(crate) async fn accept(&self) -> io::Result<(TcpStream, SocketAddr)> {
        poll_fn(|cx| {
            let next = self.0.iter().map(|socket| socket.poll_accept(cx)).find(Poll::is_ready);
            next.unwrap_or(Poll::Pending)
        })
        .await
    }
}

impl From<TcpListener> for Listeners {
    fn from(socket: TcpListener) -> Self {
        Self(vec![socket])
    }
}

/// The addresses of a host, each once. `localhost` is this machine, whatever a resolver says.
async fn addresses(host: &str) -> Result<Vec<IpAddr>, ListenError> {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse() {
        return Ok(vec![ip]);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let unknown = |text: String| ListenError::Unknown { host: host.to_owned(), text };
    let found = lookup_host((host, 0)).await.map_err(|error| unknown(error.to_string()))?;
    let mut ips = Vec::new();
    for ip in found.map(|address| address.ip()) {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    if ips.is_empty() { Err(unknown("it has none".to_owned())) } else { Ok(ips) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_all_of_its_addresses() {
        assert_eq!(
            addresses("LocalHost").await.unwrap(),
            [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()]
        );
        assert_eq!(addresses("[::1]").await.unwrap(), [IpAddr::from(Ipv6Addr::LOCALHOST)]);
        assert_eq!(addresses("0.0.0.0").await.unwrap(), [IpAddr::from(Ipv4Addr::UNSPECIFIED)]);
        assert!(matches!(addresses("no such name").await, Err(ListenError::Unknown { .. })));
    }

    #[tokio::test]
    async fn every_address_takes_connections_at_one_port() {
        let listeners = Listeners::bind("localhost", 0).await.unwrap();
        let addresses = listeners.addresses().unwrap();
        assert!(addresses.iter().all(|address| address.ip().is_loopback() && address.port() == addresses[0].port()));
        for address in addresses {
            let (accepted, _connected) = tokio::join!(listeners.accept(), TcpStream::connect(address));
            assert_eq!(accepted.unwrap().0.local_addr().unwrap(), address);
        }
        let port = listeners.addresses().unwrap()[0].port();
        let taken = Listeners::bind("localhost", port).await.unwrap_err().to_string();
        assert!(taken.starts_with(&format!("cannot listen on 127.0.0.1:{port}: ")), "{taken}");
    }
}
