//! The endpoint: one UDP socket that dials peers and accepts them, each proven by its key.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use quinn::{AsyncUdpSocket, ClientConfig, EndpointConfig, Runtime, ServerConfig, TokioRuntime};
use tokio::{
    net::lookup_host,
    sync::{Mutex, mpsc},
    task::{AbortHandle, JoinSet, yield_now},
    time::{Instant, sleep_until, timeout, timeout_at},
};

use crate::{
    accepted::AcceptedConnections,
    admission::Admission,
    close::CloseCode,
    connection::Connection,
    door::{Door, Place},
    error::{NO_ADDRESS, NetError},
    identity::Identity,
    ids::{PeerId, PlanEpoch},
    limits::{DIAL_DEADLINE, DIALLED_ADDRESSES, DOOR_REMOTE, JOIN_DEADLINE, UNPROVEN_ADDRESSES, WAITING_HANDSHAKES},
    question::Second,
    relay::RelayGrant,
    rendezvous,
    socket::SharedSocket,
    tls,
    transport::{self, Reach},
};

/// How long an address is tried before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(250);
/// How long `closed` waits for peers to take leave.
const LEAVE: Duration = Duration::from_secs(2);
/// Bytes buffered of one handshake that waits for its turn.
const INCOMING_BYTES: u64 = 64 << 10;
/// Bytes buffered of all handshakes that wait.
const INCOMING_BYTES_TOTAL: u64 = 1 << 20;

/// A socket with an identity. Clones share it; when the last is dropped it accepts no more, but connections live on.
#[derive(Clone, Debug)]
pub struct Endpoint(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    quic: quinn::Endpoint,
    socket: Arc<SharedSocket>,
    local_addr: SocketAddr,
    identity: Identity,
    admission: Admission,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    connections: AcceptedConnections,
    acceptor: AbortHandle,
}

impl Endpoint {
    /// Opens a socket at `addr` (port 0: any) that accepts whom `admission` does. Call it inside a tokio runtime.
    pub fn bind(addr: SocketAddr, identity: &Identity, admission: Admission) -> Result<Self, NetError> {
        let fail = |source: io::Error| {
            let taken = source.kind() == io::ErrorKind::AddrInUse;
            if taken { NetError::AddressInUse { address: addr } } else { NetError::Bind { address: addr, source } }
        };
        let socket = transport::socket(addr).and_then(|socket| TokioRuntime.wrap_udp_socket(socket)).map_err(fail)?;
        // Without it, peers learn less of what lies between.
        let second = Second::bind(addr).ok();
        Self::over_both((socket, second), transport::endpoint(identity), identity, admission)
    }

    /// An endpoint over any socket.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn over(
        socket: Arc<dyn AsyncUdpSocket>,
        config: EndpointConfig,
        identity: &Identity,
        admission: Admission,
    ) -> Result<Self, NetError> {
        Self::over_both((socket, None), config, identity, admission)
    }

    fn over_both(
        (socket, second): (Arc<dyn AsyncUdpSocket>, Option<Second>),
        config: EndpointConfig,
        identity: &Identity,
        admission: Admission,
    ) -> Result<Self, NetError> {
        let setup = |text: String| NetError::Setup { text };
        let local_addr = socket.local_addr().map_err(|error| setup(error.to_string()))?;
        let tls = tls::server(identity, admission.clone()).map_err(|error| setup(error.to_string()))?;
        let mut server = ServerConfig::with_crypto(Arc::new(tls));
        server.max_incoming(WAITING_HANDSHAKES);
        server.incoming_buffer_size(INCOMING_BYTES).incoming_buffer_size_total(INCOMING_BYTES_TOTAL);
        let runtime = Arc::new(TokioRuntime);
        let socket = Arc::new(SharedSocket::new(socket, second));
        let quic =
            quinn::Endpoint::new_with_abstract_socket(config, Some(server.clone()), Arc::clone(&socket) as _, runtime);
        let quic = quic.map_err(|error| setup(error.to_string()))?;
        let (accepted_in, accepted) = mpsc::channel(DOOR_REMOTE);
        let connections = AcceptedConnections::default();
        let acceptor = Acceptor {
            quic: quic.clone(),
            server,
            local_peer: identity.peer_id(),
            admission: admission.clone(),
            door: Door::default(),
            accepted: accepted_in,
            connections: connections.clone(),
        };
        let acceptor = tokio::spawn(acceptor.run()).abort_handle();
        let (accepted, identity) = (Mutex::new(accepted), identity.clone());
        Ok(Self(Arc::new(Inner { quic, socket, local_addr, identity, admission, accepted, connections, acceptor })))
    }

    /// The address it listens on, with the real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.0.local_addr
    }

    /// Its key's public half.
    pub fn peer_id(&self) -> PeerId {
        self.0.identity.peer_id()
    }

    /// Whom it accepts.
    pub fn admission(&self) -> &Admission {
        &self.0.admission
    }

    /// Takes note of this machine's addresses now. Connections that were made to it at others are closed at once, as their
    /// peers reach nobody there any more, and the peers are called from where it is ([`Endpoint::calls_from`]); those that it
    /// made go on. Returns these peers. Call it inside a tokio runtime.
    pub fn is_at(&self, addresses: &BTreeSet<IpAddr>) -> BTreeSet<PeerId> {
        let left = self.0.connections.close_elsewhere(addresses);
        if !left.is_empty() {
            let calls = left.iter().map(|left| (left.remote_address(), left.call_tag())).collect();
            tokio::spawn(rendezvous::call_back(Arc::clone(self.socket()), calls));
        }
        left.iter().map(Connection::peer).collect()
    }

    /// Passes packets on between two peers, who reach each other in no other way.
    pub fn grant(&self, grant: RelayGrant) {
        self.0.socket.grant(grant);
    }

    /// Passes nothing on any more that was granted for this plan.
    pub fn revoke(&self, epoch: PlanEpoch) {
        self.0.socket.revoke(epoch);
    }

    /// Bytes of others' packets that were passed on so far.
    pub fn relayed_bytes(&self) -> u64 {
        self.0.socket.passed_bytes()
    }

    pub(crate) fn socket(&self) -> &Arc<SharedSocket> {
        &self.0.socket
    }

    /// Connects to `expect`, at the first of the addresses (`host:port`) that it answers at, within 10 s.
    ///
    /// That the peer accepts our key shows only when it answers on a stream.
    pub async fn dial(&self, addresses: &[String], expect: PeerId) -> Result<Connection, NetError> {
        let start = Instant::now();
        let mut attempts = JoinSet::new();
        for (i, address) in (0..).zip(addresses.iter().take(DIALLED_ADDRESSES)) {
            let (endpoint, address) = (self.clone(), address.clone());
            attempts.spawn(async move {
                sleep_until(start + STAGGER * i).await;
                let attempt = timeout_at(start + DIAL_DEADLINE, endpoint.dial_one(&address, expect)).await;
                attempt.unwrap_or(Err(unreachable(expect, &address, "no answer")))
            });
        }
        let (mut silent, mut wrong) = (vec![], None);
        while let Some(attempt) = attempts.join_next().await {
            match attempt {
                Ok(Ok(connection)) => return Ok(connection),
                Ok(Err(NetError::Unreachable { text, .. })) => silent.push(text),
                Ok(Err(error)) => wrong = Some(error),
                Err(error) => silent.push(error.to_string()),
            }
        }
        // Somebody who answers wrongly is better news than addresses that do not answer.
        let text = if silent.is_empty() { NO_ADDRESS.into() } else { silent.join("; ") };
        Err(wrong.unwrap_or(NetError::Unreachable { peer: expect, text }))
    }

    /// The next peer that connected and proved an admitted key; `None` once the endpoint is closed. Cancel-safe.
    pub async fn accept(&self) -> Option<Connection> {
        self.0.accepted.lock().await.recv().await
    }

    /// Closes every connection and accepts no more.
    pub fn close(&self, code: CloseCode, text: &str) {
        self.0.quic.close(code.to_varint(), text.as_bytes());
    }

    /// After `close`: waits, for at most 2 s, until the peers know.
    pub async fn closed(&self) {
        let _ = timeout(LEAVE, self.0.quic.wait_idle()).await;
    }

    async fn dial_one(&self, address: &str, expect: PeerId) -> Result<Connection, NetError> {
        let resolved = lookup_host(address).await;
        let resolved = resolved.map_err(|error| unreachable(expect, address, &format!("cannot resolve ({error})")))?;
        let mut outcome = Err(unreachable(expect, address, "the name has no address"));
        for socket_address in resolved {
            outcome = self.dial_address(address, socket_address, expect).await;
            match outcome {
                Err(NetError::Unreachable { .. }) => {}
                Ok(_) | Err(_) => break,
            }
        }
        outcome
    }

    pub(crate) async fn dial_address(
        &self,
        name: &str,
        address: SocketAddr,
        expect: PeerId,
    ) -> Result<Connection, NetError> {
        if address.is_ipv6() && self.local_addr().is_ipv4() {
            return Err(unreachable(expect, name, "an IPv6 address, and --listen is IPv4's ([::]:0 is IPv6's)"));
        }
        let seen = Arc::new(OnceLock::new());
        let tls = tls::client(&self.0.identity, expect, seen.clone());
        let tls = tls.map_err(|error| NetError::Setup { text: error.to_string() })?;
        let mut config = ClientConfig::new(Arc::new(tls));
        config.transport_config(transport::transport(Reach::of(address)));
        let connecting = self.0.quic.connect_with(config, address, tls::SERVER_NAME);
        let connecting = connecting.map_err(|error| unreachable(expect, name, &error.to_string()))?;
        let error = match connecting.await {
            Ok(quic) => return Connection::new(quic, self.peer_id()),
            Err(error) => NetError::connection(expect, error),
        };
        Err(match (seen.get(), error) {
            (Some(found), _) if *found != expect => NetError::WrongKey { address, expected: expect, found: *found },
            (_, NetError::Lost { .. }) => unreachable(expect, name, "no answer"),
            (_, NetError::Closed { text, .. } | NetError::Transport { text, .. }) => unreachable(expect, name, &text),
            (_, error) => error,
        })
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The task holds the endpoint too, whose socket would otherwise stay open.
        self.acceptor.abort();
    }
}

/// Runs handshakes side by side, each with a place at the door.
struct Acceptor {
    quic: quinn::Endpoint,
    server: ServerConfig,
    local_peer: PeerId,
    admission: Admission,
    door: Door,
    accepted: mpsc::Sender<Connection>,
    connections: AcceptedConnections,
}

/// What a peer still has to prove once its handshake is over.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    /// Nothing: its key is one of those admitted.
    Admitted,
    /// That it may join.
    Guest,
}

impl Acceptor {
    async fn run(self) {
        let mut handshakes = JoinSet::new();
        while let Some(incoming) = self.quic.accept().await {
            while handshakes.try_join_next().is_some() {}
            if self.door.waiting() >= UNPROVEN_ADDRESSES && !incoming.remote_address_validated() {
                // Asking a dialler to prove its address costs nothing, and takes nobody's place.
                let _ = incoming.retry();
            } else {
                handshakes.spawn(self.handshake(incoming));
            }
            // A handshake's arithmetic is done on the thread that serves the mesh: let other work come in between.
            yield_now().await;
        }
    }

    fn handshake(&self, incoming: quinn::Incoming) -> impl Future<Output = ()> + use<> {
        let standing = if self.admission.is_open() { Standing::Guest } else { Standing::Admitted };
        let address = incoming.remote_address();
        let (mut server, reach) = (self.server.clone(), Reach::of(address));
        server.transport_config(match standing {
            Standing::Admitted => transport::transport(reach),
            Standing::Guest => transport::guest_transport(reach),
        });
        let place = self.door.enter(address.ip());
        let (local_peer, accepted, connections) = (self.local_peer, self.accepted.clone(), self.connections.clone());
        async move {
            match shake_hands(incoming, server, &place).await {
                Ok(quic) => {
                    let connection = match standing {
                        Standing::Admitted => Connection::new(quic, local_peer),
                        Standing::Guest => Connection::guest(quic, local_peer, place),
                    };
                    match connection {
                        Ok(connection) => {
                            connections.remember(&connection);
                            drop(accepted.send(connection).await);
                        }
                        Err(error) => tracing::debug!(%address, %error, "refused a peer"),
                    }
                }
                // Anybody can cause this as often as they like, so it is worth a line to those who debug and no more.
                Err(why) => tracing::debug!(%address, why, "no handshake"),
            }
        }
    }
}

/// A connection whose peer has shown a key that is admitted, or why there is none.
async fn shake_hands(
    incoming: quinn::Incoming,
    server: ServerConfig,
    place: &Place,
) -> Result<quinn::Connection, String> {
    let handshake = async { incoming.accept_with(Arc::new(server))?.await };
    tokio::select! {
        biased;
        done = timeout(JOIN_DEADLINE, handshake) => match done {
            Ok(done) => done.map_err(|error| error.to_string()),
            Err(_) => Err("it took too long".to_owned()),
        },
        () = place.lost() => Err("others came, and there was no place left".to_owned()),
    }
}

fn unreachable(peer: PeerId, address: &str, text: &str) -> NetError {
    NetError::Unreachable { peer, text: format!("{address}: {text}") }
}

#[cfg(test)]
mod tests {
    use quinn::crypto::rustls::QuicClientConfig;

    use super::*;
    use crate::memory::Network;

    #[tokio::test]
    async fn connections_end_with_the_address_that_they_were_made_to() {
        let [near, far] = [(); 2]
            .map(|()| Endpoint::bind(([0, 0, 0, 0], 0).into(), &Identity::ephemeral(), Admission::anyone()).unwrap());
        let at = |host: &str| vec![format!("{host}:{}", far.local_addr().port())];
        let stays = near.dial(&at("127.0.0.1"), far.peer_id()).await.unwrap();
        let goes = near.dial(&at("127.0.0.2"), far.peer_id()).await.unwrap();
        let (one, other) = (far.accept().await.unwrap(), far.accept().await.unwrap());
        if one.local_ip().is_none() {
            return eprintln!("SKIPPED: this system does not say at which address a packet came");
        }
        let mut calls = [&stays, &goes].map(|dialled| near.calls_from(dialled));
        let left = far.is_at(&[one.local_ip().unwrap()].into());
        assert_eq!(left, [near.peer_id()].into());
        assert!(matches!(other.closed().await, NetError::ClosedHere { .. }));
        let [of_who_stays, of_who_goes] = &mut calls;
        assert_eq!(of_who_goes.next().await.port(), far.local_addr().port());
        assert!(timeout(Duration::from_millis(50), of_who_stays.next()).await.is_err());
        assert!(matches!(goes.closed().await, NetError::Closed { .. }));
        // Who has dialled stays wherever it is.
        near.is_at(&BTreeSet::new());
        assert!(timeout(Duration::from_millis(50), stays.closed()).await.is_err());
        assert!(timeout(Duration::from_millis(50), one.closed()).await.is_err());
    }

    #[tokio::test]
    async fn an_address_of_the_other_ip_version_is_told_from_silence() {
        let here = Endpoint::bind(([127, 0, 0, 1], 0).into(), &Identity::ephemeral(), Admission::anyone()).unwrap();
        let error = here.dial(&["[::1]:9".to_owned()], PeerId([1; 32])).await.unwrap_err();
        assert!(matches!(&error, NetError::Unreachable { text, .. } if text.contains("IPv6")), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn another_protocol_is_told_from_silence() {
        let network = Network::new(1);
        let (here, there) = (Identity::ephemeral(), Identity::ephemeral());
        let here = network.endpoint(&here, Admission::anyone()).unwrap();
        let there = network.endpoint(&there, Admission::anyone()).unwrap();
        let mut tls = tls::client_config(&here.0.identity, there.peer_id(), Arc::default()).unwrap();
        tls.alpn_protocols = vec![b"qmesh/2".to_vec()];
        let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
        let connecting = here.0.quic.connect_with(config, there.local_addr(), tls::SERVER_NAME).unwrap();
        let error = NetError::connection(there.peer_id(), connecting.await.unwrap_err());
        assert!(matches!(error, NetError::Version { .. }), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wrong_answer_does_not_hide_the_right_address() {
        let network = Network::new(2);
        let [a, b, c] = [(); 3].map(|()| network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap());
        let addresses = [b.local_addr().to_string(), c.local_addr().to_string()];
        assert_eq!(a.dial(&addresses, c.peer_id()).await.unwrap().peer(), c.peer_id());
        assert!(matches!(a.dial(&addresses[..1], c.peer_id()).await, Err(NetError::WrongKey { .. })));
    }
}
