//! How a worker finds a coordinator that nobody reaches by itself: a worker that everybody reaches, the rendezvous, brings the two
//! together.
//!
//! The coordinator calls at its rendezvous every second. So the rendezvous knows where the coordinator's packets come from, its own
//! get in there, and it joins like any worker. Whoever else has the ticket asks the rendezvous, which tells the coordinator
//! ([`Seeker`]); this opens the way for who asks, and has it told where the coordinator is. All of this is hints: who
//! answers is known by its key.
//!
//! A peer that was dialled and is now elsewhere calls in the same way, so that whoever dialled it need not wait until it misses it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::lookup_host,
    task::{AbortHandle, JoinSet},
    time::{interval, sleep, timeout},
};

use crate::{
    aside::{Aside, Kind, RelayTag},
    connection::Connection,
    endpoint::Endpoint,
    error::NetError,
    grant::Seeker,
    ids::PeerId,
    meeting::Meeting,
    question::{Budget, canonical},
    socket::{Heard, SharedSocket},
    ticket::Ticket,
};

/// How often a coordinator calls, which also keeps its NAT's port.
const CALLS: Duration = Duration::from_secs(1);
/// Calls between two look-ups of a rendezvous's name.
const CALLS_PER_LOOKUP: u32 = 60;
/// The time between the first two calls to who has lost this machine; every further one is twice as long.
const FIRST_CALL_BACK: Duration = Duration::from_millis(50);
/// How often they are called: for more than a second.
const CALLS_BACK: u32 = 6;
/// How often a worker asks.
const REPEAT: Duration = Duration::from_millis(250);
/// How long it asks, and waits for calls: by then the rendezvous has asked the coordinator many times.
const PATIENCE: Duration = Duration::from_secs(5);

/// The calls of a coordinator at its rendezvous, for as long as it lives.
pub struct Calling {
    places: Arc<Places>,
    calling: AbortHandle,
}

/// The calls of a coordinator, as a worker hears them.
pub struct Calls(Heard);

/// Those who ask a rendezvous for its coordinator, a hundred a second at most.
pub struct Seekers {
    heard: Heard,
    budget: Budget,
}

/// A coordinator that was found by way of a rendezvous.
#[derive(Debug)]
pub struct Introduced {
    /// To the coordinator.
    pub connection: Connection,
    /// The rendezvous, where that is another machine than this one.
    pub by: Option<Introducer>,
}

/// A rendezvous that has brought the coordinator and this machine together.
#[derive(Debug)]
pub struct Introducer {
    /// Where it is.
    pub address: SocketAddr,
    /// What lets the coordinator's packets in, and keeps the relay: the connection needs it for as long as it lives.
    pub meeting: Meeting,
}

/// Where the rendezvous are, by their names.
type Places = Mutex<BTreeMap<String, SocketAddr>>;

impl Ticket {
    /// What packets about this mesh carry at its rendezvous: whoever has the ticket knows it.
    pub fn rendezvous_tag(&self) -> RelayTag {
        RelayTag(*self.key_for("qmesh rendezvous v1").first_chunk().expect("32 bytes hold 16"))
    }
}

impl Endpoint {
    /// Tells the rendezvous (`host:port`) where this coordinator is, from now on. Call it inside a tokio runtime.
    pub fn keep_calling(&self, rendezvous: Vec<String>, mesh: RelayTag) -> Calling {
        let places = Arc::new(Places::default());
        let calling = tokio::spawn(call(self.clone(), rendezvous, mesh, Arc::clone(&places))).abort_handle();
        Calling { places, calling }
    }

    /// Hears the calls of the mesh's coordinator at this rendezvous.
    pub fn calls(&self, mesh: RelayTag) -> Calls {
        Calls(self.socket().hear(Kind::Call, mesh))
    }

    /// Hears the calls of the peer that this connection was made to, once it is at another address.
    pub fn calls_from(&self, dialled: &Connection) -> Calls {
        self.calls(dialled.call_tag())
    }

    /// Hears who asks for the mesh's coordinator.
    pub fn seekers(&self, mesh: RelayTag) -> Seekers {
        Seekers { heard: self.socket().hear(Kind::Seek, mesh), budget: Budget::default() }
    }

    /// Tells who asked where the coordinator is.
    pub fn introduce(&self, seeker: &Seeker, coordinator: SocketAddr) {
        if let Some(address) = seeker.socket() {
            let payload = canonical(coordinator).to_string();
            let found = Aside { kind: Kind::Found, tag: seeker.tag, payload: payload.as_bytes() };
            self.socket().send_aside(address, found);
        }
    }

    /// Connects to the coordinator of a ticket that names rendezvous: where it calls from, if this machine is one of them; or by
    /// asking them, straight if that can be, and otherwise by the rendezvous. It takes 15 s at most.
    ///
    /// # Errors
    /// No rendezvous answers, or the coordinator does not.
    pub async fn find(&self, ticket: &Ticket) -> Result<Introduced, NetError> {
        let (mesh, coordinator) = (ticket.rendezvous_tag(), ticket.coordinator);
        let mut tries = JoinSet::new();
        let endpoint = self.clone();
        tries.spawn(async move { endpoint.answer_call(mesh, coordinator).await });
        for rendezvous in &ticket.rendezvous {
            let (endpoint, rendezvous) = (self.clone(), rendezvous.clone());
            tries.spawn(async move { endpoint.seek(&rendezvous, mesh, coordinator).await.map_err(Some) });
        }
        let mut texts = Vec::new();
        while let Some(tried) = tries.join_next().await {
            match tried {
                Ok(Ok(introduced)) => return Ok(introduced),
                Ok(Err(Some(NetError::Unreachable { text, .. }))) => texts.push(text),
                Ok(Err(Some(error))) => texts.push(error.to_string()),
                Ok(Err(None)) => {}
                Err(error) => texts.push(error.to_string()),
            }
        }
        Err(NetError::Unreachable { peer: coordinator, text: texts.join("; ") })
    }

    /// Dials the coordinator where it calls from. Who is not called is no rendezvous, which is no error to speak of.
    async fn answer_call(&self, mesh: RelayTag, coordinator: PeerId) -> Result<Introduced, Option<NetError>> {
        let address = timeout(PATIENCE, self.calls(mesh).next()).await.map_err(|_| None)?;
        let connection = self.dial(&[address.to_string()], coordinator).await?;
        Ok(Introduced { connection, by: None })
    }

    /// Asks one rendezvous (`host:port`).
    async fn seek(&self, rendezvous: &str, mesh: RelayTag, coordinator: PeerId) -> Result<Introduced, NetError> {
        let silent = |why: &str| NetError::Unreachable {
            peer: coordinator,
            text: format!("the rendezvous {rendezvous}: {why}"),
        };
        let place = self.place_of(rendezvous).await.ok_or_else(|| silent("the name has no address"))?;
        let tag = RelayTag::random();
        let asking = timeout(PATIENCE, self.ask_for(place, mesh, tag));
        let address = asking.await.map_err(|_| silent("no answer, or it has no link to the coordinator"))?;
        let meeting = self.meet(coordinator, vec![address], Some((place, tag)));
        let connection = meeting.dial(self, &[address.to_string()]).await?;
        Ok(Introduced { connection, by: Some(Introducer { address: place, meeting }) })
    }

    /// Asks until the answer comes.
    async fn ask_for(&self, place: SocketAddr, mesh: RelayTag, tag: RelayTag) -> SocketAddr {
        let mut answers = self.socket().hear(Kind::Found, tag);
        let mut repeat = interval(REPEAT);
        let payload = [&tag.0[..], &self.peer_id().0].concat();
        loop {
            tokio::select! {
                _ = repeat.tick() => {
                    self.socket().send_aside(place, Aside { kind: Kind::Seek, tag: mesh, payload: &payload });
                }
                (from, answer) = answers.next() => {
                    let address = std::str::from_utf8(&answer).ok().and_then(|text| text.parse().ok());
                    if let Some(address) = address.filter(|_| from == canonical(place)) {
                        return address;
                    }
                }
            }
        }
    }

    /// Where a name leads that this socket can send to.
    async fn place_of(&self, name: &str) -> Option<SocketAddr> {
        let is_ipv4 = self.local_addr().is_ipv4();
        let mut resolved = lookup_host(name).await.ok()?;
        resolved.find(|address| address.is_ipv4() || !is_ipv4)
    }
}

impl Calling {
    /// Whether one of the rendezvous is there.
    pub fn is_at(&self, address: SocketAddr) -> bool {
        places(&self.places).values().any(|&place| canonical(place) == canonical(address))
    }
}

impl Calls {
    /// Where the next one comes from. Cancel-safe.
    pub async fn next(&mut self) -> SocketAddr {
        self.0.next().await.0
    }
}

impl Seekers {
    /// The next one; it asks again until it is answered. Cancel-safe.
    pub async fn next(&mut self) -> Seeker {
        loop {
            let (from, payload) = self.heard.next().await;
            if let Some((tag, peer)) = payload.split_first_chunk::<16>()
                && let Ok(peer) = <[u8; 32]>::try_from(peer)
                && self.budget.spend(Instant::now())
            {
                return Seeker { peer: PeerId(peer), tag: RelayTag(*tag), address: from.to_string() };
            }
        }
    }
}

impl fmt::Debug for Calling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Calling").field(&self.places).finish()
    }
}

impl Drop for Calling {
    fn drop(&mut self) {
        self.calling.abort();
    }
}

/// Calls those who have lost this machine, a few times, as what was changed may take a moment until packets pass.
pub(crate) async fn call_back(socket: Arc<SharedSocket>, peers: Vec<(SocketAddr, RelayTag)>) {
    let mut wait = FIRST_CALL_BACK;
    for _ in 0..CALLS_BACK {
        for &(peer, tag) in &peers {
            socket.send_aside(peer, Aside { kind: Kind::Call, tag, payload: &[] });
        }
        sleep(wait).await;
        wait *= 2;
    }
}

async fn call(endpoint: Endpoint, rendezvous: Vec<String>, mesh: RelayTag, known: Arc<Places>) {
    let mut unknown = BTreeSet::new();
    loop {
        for name in &rendezvous {
            match endpoint.place_of(name).await {
                Some(place) => drop(places(&known).insert(name.clone(), place)),
                // It stays where it was, if it was anywhere; that is said once.
                None if unknown.insert(name.clone()) => tracing::warn!("the rendezvous {name} has no address"),
                None => {}
            }
        }
        for _ in 0..CALLS_PER_LOOKUP {
            for &place in places(&known).values() {
                endpoint.socket().send_aside(place, Aside { kind: Kind::Call, tag: mesh, payload: &[] });
            }
            sleep(CALLS).await;
        }
    }
}

fn places(places: &Places) -> MutexGuard<'_, BTreeMap<String, SocketAddr>> {
    places.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admission::Admission,
        grant::Grant,
        identity::Identity,
        ids::PlanEpoch,
        memory::Network,
        relay::{RelayEnd, RelayGrant},
    };

    const MESH: RelayTag = RelayTag([9; 16]);

    fn three() -> (Network, [Endpoint; 3]) {
        let network = Network::new(11);
        let ends = [(); 3].map(|()| network.endpoint(&Identity::ephemeral(), Admission::anyone()).unwrap());
        (network, ends)
    }

    /// What a coordinator and its rendezvous do for the next one that asks.
    async fn introduce(coordinator: &Endpoint, rendezvous: &Endpoint, seekers: &mut Seekers) -> Meeting {
        let (seeker, tag) = (seekers.next().await, RelayTag([5; 16]));
        let address = seeker.socket().unwrap();
        let end = |peer, tag, hosts| RelayEnd { peer, tag, hosts };
        let ends = [end(seeker.peer, seeker.tag, vec![address.ip()]), end(coordinator.peer_id(), tag, vec![])];
        let (bytes_per_second, idle) = (1 << 20, Duration::from_secs(60));
        let grant = Grant::of(&RelayGrant { ends, epoch: PlanEpoch(0), bytes_per_second, idle });
        rendezvous.grant(grant.at_rendezvous(coordinator.local_addr().ip()));
        let meeting = coordinator.meet(seeker.peer, vec![address], Some((rendezvous.local_addr(), tag)));
        rendezvous.introduce(&seeker, coordinator.local_addr());
        meeting
    }

    #[tokio::test(start_paused = true)]
    async fn a_rendezvous_hears_where_the_coordinator_is() {
        let (_network, [coordinator, rendezvous, other]) = three();
        let mut calls = rendezvous.calls(MESH);
        let calling = coordinator.keep_calling(vec![rendezvous.local_addr().to_string()], MESH);
        assert_eq!(calls.next().await, coordinator.local_addr());
        assert_eq!([&rendezvous, &other].map(|end| calling.is_at(end.local_addr())), [true, false]);
        let mut of_another_mesh = rendezvous.calls(RelayTag([8; 16]));
        assert!(timeout(Duration::from_secs(9), of_another_mesh.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_is_brought_together_with_the_coordinator() {
        let (network, [coordinator, rendezvous, worker]) = three();
        let at = rendezvous.local_addr().to_string();
        let mut seekers = rendezvous.seekers(MESH);
        for is_cut in [false, true] {
            if is_cut {
                network.cut(coordinator.local_addr(), worker.local_addr());
            }
            let seeking = worker.seek(&at, MESH, coordinator.peer_id());
            let (met, introduced) = tokio::join!(introduce(&coordinator, &rendezvous, &mut seekers), seeking);
            let Introduced { connection, by } = introduced.unwrap();
            let Introducer { address, meeting } = by.unwrap();
            assert_eq!((connection.peer(), connection.is_relayed()), (coordinator.peer_id(), is_cut));
            assert_eq!(address, rendezvous.local_addr());
            let accepted = coordinator.accept().await.unwrap();
            assert_eq!((accepted.peer(), accepted.is_relayed()), (worker.peer_id(), is_cut));
            drop((met, meeting));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rendezvous_that_is_silent_is_named() {
        let (_network, [coordinator, rendezvous, worker]) = three();
        let at = rendezvous.local_addr().to_string();
        let error = worker.seek(&at, MESH, coordinator.peer_id()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("the rendezvous {at}: no answer")), "{error}");
    }
}
