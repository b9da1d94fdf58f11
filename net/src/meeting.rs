//! Two peers that reach each other where one could not reach the other: both send at the same time, and so both their NATs
//! let the other's packets in. Whoever dials also learns by what it gets where the other one's packets come from, which a NAT may have
//! chosen for this destination alone.

use std::{collections::BTreeSet, fmt, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep, timeout},
};

use crate::{
    aside::{Kind, RelayTag},
    connection::Connection,
    endpoint::Endpoint,
    error::NetError,
    ids::PeerId,
    limits::DIAL_DEADLINE,
    socket::{Heard, SharedSocket},
};

/// The time between the first two packets; every further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest of them: NATs forget a way that nothing used for half a minute.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// How long addresses are tried before the relay is tried beside them.
const DIRECT_FIRST: Duration = Duration::from_secs(2);
/// Whoever knocks from an address that has been dialled for so long is dialled there anew.
const OPENED_LATE: Duration = Duration::from_secs(1);
/// Addresses that a peer may knock from and be dialled at: anybody who knows both keys can name one.
const LEARNED_MOST: usize = 4;

/// This side of a meeting: for as long as it lives, a peer's packets can come in.
pub struct Meeting {
    peer: PeerId,
    socket: Arc<SharedSocket>,
    /// The address of the peer behind the relay.
    far: Option<SocketAddr>,
    knocks: Mutex<Heard>,
    knocking: AbortHandle,
}

impl Endpoint {
    /// Opens the way for `peer`, which may be at any of these addresses, or behind a relay. Call it inside a tokio runtime.
    pub fn meet(&self, peer: PeerId, addresses: Vec<SocketAddr>, relay: Option<(SocketAddr, RelayTag)>) -> Meeting {
        let socket = Arc::clone(self.socket());
        let far = relay.map(|(relay, tag)| socket.reach(relay, tag));
        let knocks = Mutex::new(socket.hear(Kind::Knock, tag_of_knocks(peer, self.peer_id())));
        let tag = tag_of_knocks(self.peer_id(), peer);
        let knocking = tokio::spawn(knock(Arc::clone(&socket), addresses, tag, far)).abort_handle();
        Meeting { peer, socket, far, knocks, knocking }
    }
}

impl Meeting {
    /// Connects to the peer at the first of the addresses that it answers at, or where it knocks from; if it does so nowhere
    /// within 2 s, by the relay. In all it takes 10 s at most.
    ///
    /// # Errors
    /// It answers nowhere.
    pub async fn dial(&self, endpoint: &Endpoint, addresses: &[String]) -> Result<Connection, NetError> {
        tokio::select! {
            outcome = self.dial_known(endpoint, addresses) => outcome,
            connection = self.dial_learned(endpoint, addresses) => Ok(connection),
        }
    }

    async fn dial_known(&self, endpoint: &Endpoint, addresses: &[String]) -> Result<Connection, NetError> {
        let direct = endpoint.dial(addresses, self.peer);
        let Some(far) = self.far else { return direct.await };
        let relayed = async {
            sleep(DIRECT_FIRST).await;
            let dialled = timeout(DIAL_DEADLINE - DIRECT_FIRST, endpoint.dial_address("its relay", far, self.peer));
            dialled
                .await
                .unwrap_or_else(|_| Err(NetError::Unreachable { peer: self.peer, text: "its relay: no answer".into() }))
        };
        tokio::pin!(direct, relayed);
        let (first, second) = tokio::select! {
            outcome = &mut direct => match outcome {
                Ok(connection) => return Ok(connection),
                Err(error) => (error, relayed.await),
            },
            outcome = &mut relayed => match outcome {
                Ok(connection) => return Ok(connection),
                Err(error) => (error, direct.await),
            },
        };
        second.map_err(|second| match (first, second) {
            (NetError::Unreachable { peer, text }, NetError::Unreachable { text: more, .. }) => {
                NetError::Unreachable { peer, text: format!("{text}; {more}") }
            }
            // Who answers wrongly is better news than silence.
            (first, NetError::Unreachable { .. }) => first,
            (_, second) => second,
        })
    }

    /// Dials wherever else the peer's packets come from, for as long as nobody answers there.
    async fn dial_learned(&self, endpoint: &Endpoint, known: &[String]) -> Connection {
        let mut knocks = self.knocks.lock().await;
        let known: BTreeSet<SocketAddr> = known.iter().filter_map(|address| address.parse().ok()).collect();
        let (mut learned, mut dials) = (BTreeSet::new(), JoinSet::new());
        let late = Instant::now() + OPENED_LATE;
        loop {
            tokio::select! {
                Some(dialled) = dials.join_next() => if let Ok(Ok(connection)) = dialled {
                    return connection;
                },
                (from, _) = knocks.next() => {
                    // A known address is being dialled; if nobody has answered there for long, it has only now been opened.
                    let is_early = known.contains(&from) && Instant::now() < late;
                    if !is_early && learned.len() < LEARNED_MOST && learned.insert(from) {
                        let (endpoint, peer) = (endpoint.clone(), self.peer);
                        dials.spawn(async move { endpoint.dial_address("where it knocks from", from, peer).await });
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meeting({})", self.peer.short())
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.knocking.abort();
        if let Some(far) = self.far {
            self.socket.leave(far);
        }
    }
}

/// What the packets carry that one of two peers sends to open the way for the other: only who knows both keys can tell whose they are.
fn tag_of_knocks(from: PeerId, to: PeerId) -> RelayTag {
    let mut hasher = blake3::Hasher::new_derive_key("qmesh knock v1");
    hasher.update(&from.0).update(&to.0);
    RelayTag(*hasher.finalize().as_bytes().first_chunk().expect("32 bytes hold 16"))
}

async fn knock(socket: Arc<SharedSocket>, addresses: Vec<SocketAddr>, tag: RelayTag, far: Option<SocketAddr>) {
    let mut wait = FIRST_WAIT;
    loop {
        addresses.iter().for_each(|&address| socket.knock(address, tag));
        if let Some(far) = far {
            socket.check_in(far);
        }
        sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::Admission,
        identity::Identity,
        ids::PlanEpoch,
        memory::Network,
        relay::{RelayEnd, RelayGrant},
    };

    const A: RelayTag = RelayTag([1; 16]);
    const B: RelayTag = RelayTag([2; 16]);

    #[tokio::test(start_paused = true)]
    async fn two_that_cannot_reach_each_other_meet_by_a_relay_that_knows_both() {
        let network = Network::new(7);
        let [a, b, relay] = [(); 3].map(|()| network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap());
        network.cut(a.local_addr(), b.local_addr());
        let end = |endpoint: &Endpoint, tag| RelayEnd {
            peer: endpoint.peer_id(),
            tag,
            hosts: vec![endpoint.local_addr().ip()],
        };
        let ends = [end(&a, A), end(&b, B)];
        let (bytes_per_second, idle) = (1 << 30, Duration::from_secs(60));
        relay.grant(RelayGrant { ends, epoch: PlanEpoch(1), bytes_per_second, idle });
        let accepts = b.meet(a.peer_id(), vec![a.local_addr()], Some((relay.local_addr(), B)));
        let dials = a.meet(b.peer_id(), vec![], Some((relay.local_addr(), A)));
        let connection = dials.dial(&a, &[b.local_addr().to_string()]).await.unwrap();
        assert_eq!((connection.peer(), connection.is_relayed()), (b.peer_id(), true));
        let accepted = b.accept().await.unwrap();
        assert_eq!((accepted.peer(), accepted.is_relayed()), (a.peer_id(), true));
        assert!(relay.relayed_bytes() > 3000, "a handshake: {}", relay.relayed_bytes());
        relay.revoke(PlanEpoch(1));
        assert!(matches!(connection.closed().await, NetError::Lost { .. }));
        drop((accepts, dials));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_knocks_from_an_unknown_address_is_dialled_there() {
        let network = Network::new(9);
        let [a, b] = [(); 2].map(|()| network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap());
        let accepts = b.meet(a.peer_id(), vec![a.local_addr()], None);
        let dials = a.meet(b.peer_id(), vec![], None);
        // Nobody is at the address that the dialler knows.
        let connection = dials.dial(&a, &["127.0.0.1:9".to_owned()]).await.unwrap();
        assert_eq!((connection.peer(), connection.remote_address()), (b.peer_id(), b.local_addr()));
        drop(accepts);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_answers_at_an_address_is_not_relayed() {
        let network = Network::new(8);
        let [a, b, relay] = [(); 3].map(|()| network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap());
        let dials = a.meet(b.peer_id(), vec![b.local_addr()], Some((relay.local_addr(), A)));
        let connection = dials.dial(&a, &[b.local_addr().to_string()]).await.unwrap();
        assert!(!connection.is_relayed() && relay.relayed_bytes() == 0);
        network.cut(a.local_addr(), b.local_addr());
        let error = dials.dial(&a, &[b.local_addr().to_string()]).await.unwrap_err().to_string();
        assert!(error.contains("its relay: no answer") && error.contains(&b.local_addr().to_string()), "{error}");
    }
}
