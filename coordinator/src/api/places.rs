//! Who may be connected: so many at a time, and not all from one address. Connections that say nothing give way to new
//! ones, and a few places are kept for those who only ask how the server is, and for those who have the key.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderMap;
use tokio::sync::Notify;

/// How many connections there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// In all.
    pub(crate) ordinary: usize,
    /// Of those from one address, and requests at a time that proxies forward for one address.
    pub(crate) per_address: usize,
    /// Beyond those, for probes of health and readiness.
    pub(crate) measuring: usize,
    /// Beyond those, for clients that have shown the key.
    pub(crate) authenticated: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { ordinary: 512, per_address: 256, measuring: 32, authenticated: 128 }
    }
}

/// The places of one server. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Places(Arc<Shared>);

/// What there is too much of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Crowd {
    /// Connections, or requests, of the client's address.
    Address,
    /// Connections of everybody.
    Everybody,
}

/// One connection's place, free again once it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    places: Places,
    id: u64,
    peer: IpAddr,
    leave: Arc<Notify>,
}

/// One request on a connection, as long as it is being answered.
#[derive(Debug)]
pub(crate) struct Visit {
    places: Places,
    id: u64,
    /// Who asks, for fairness between clients.
    pub(crate) client: IpAddr,
    /// Whose requests it counts among: a proxy's.
    counted: Option<IpAddr>,
    crowd: Option<Crowd>,
}

#[derive(Debug)]
struct Shared {
    limits: Limits,
    /// Their connections are of many clients, whom they name.
    proxies: Vec<IpAddr>,
    room: Mutex<Room>,
}

#[derive(Debug, Default)]
struct Room {
    /// A counter that orders what happens: what was earlier has a smaller number.
    now: u64,
    connections: BTreeMap<u64, Connection>,
    /// Requests that proxies forward, by the client's address.
    forwarded: HashMap<IpAddr, usize>,
}

#[derive(Debug)]
struct Connection {
    /// Its client's, with what a client can choose of it left out; none for a proxy.
    address: Option<IpAddr>,
    kind: Kind,
    /// Requests being answered.
    requests: usize,
    /// When it last began to be silent.
    silent_since: u64,
    leave: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Ordinary,
    Measuring(Crowd),
    Authenticated,
}

impl Places {
    pub(crate) fn new(limits: Limits, proxies: Vec<IpAddr>) -> Self {
        let proxies = proxies.into_iter().map(|ip| ip.to_canonical()).collect();
        Self(Arc::new(Shared { limits, proxies, room: Mutex::default() }))
    }

    /// A place for a new connection; none while even the kept ones are being used.
    pub(crate) fn enter(&self, peer: IpAddr) -> Option<Place> {
        let (peer, limits) = (peer.to_canonical(), self.0.limits);
        let address = (!self.0.proxies.contains(&peer)).then(|| network(peer));
        let mut room = self.room();
        let of_address = |c: &Connection| c.kind == Kind::Ordinary && address.is_some() && c.address == address;
        let ordinary = |c: &Connection| c.kind == Kind::Ordinary;
        let kind = if !room.make_way(limits.per_address, of_address) {
            Kind::Measuring(Crowd::Address)
        } else if !room.make_way(limits.ordinary, ordinary) {
            Kind::Measuring(Crowd::Everybody)
        } else {
            Kind::Ordinary
        };
        let measuring = |c: &Connection| matches!(c.kind, Kind::Measuring(_));
        if kind != Kind::Ordinary && !room.make_way(limits.measuring, measuring) {
            return None;
        }
        let id = room.tick();
        let leave = Arc::new(Notify::new());
        let connection = Connection { address, kind, requests: 0, silent_since: id, leave: Arc::clone(&leave) };
        room.connections.insert(id, connection);
        drop(room);
        Some(Place { places: self.clone(), id, peer, leave })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.0.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The client that a trusted proxy forwards for, as the nearest of them that we do not trust saw it.
    fn forwarded(&self, headers: &HeaderMap) -> Option<IpAddr> {
        let lists = headers.get_all("x-forwarded-for").into_iter().filter_map(|value| value.to_str().ok());
        let hops: Vec<&str> = lists.flat_map(|list| list.split(',')).map(str::trim).collect();
        let mut hops = hops.into_iter().rev().map_while(hop);
        hops.find(|hop| !self.0.proxies.contains(hop))
    }
}

impl Place {
    /// The other end.
    pub(crate) fn peer(&self) -> IpAddr {
        self.peer
    }

    /// Whether it is one of those that are kept.
    pub(crate) fn is_kept(&self) -> bool {
        let kind = self.places.room().connections.get(&self.id).map(|connection| connection.kind);
        kind.is_some_and(|kind| kind != Kind::Ordinary)
    }

    /// Waits until the place is taken away, for a newer connection.
    pub(crate) async fn taken(&self) {
        self.leave.notified().await;
    }

    /// A request has come on this connection.
    pub(crate) fn visit(&self, headers: &HeaderMap) -> Visit {
        let forwarded = self.places.0.proxies.contains(&self.peer).then(|| self.places.forwarded(headers)).flatten();
        let counted = forwarded.map(network);
        let mut room = self.places.room();
        let mut crowd = None;
        if let Some(connection) = room.connections.get_mut(&self.id) {
            connection.requests += 1;
            if let Kind::Measuring(why) = connection.kind {
                crowd = Some(why);
            }
        }
        if let Some(address) = counted {
            let requests = room.forwarded.entry(address).or_default();
            *requests += 1;
            if *requests > self.places.0.limits.per_address {
                crowd = Some(Crowd::Address);
            }
        }
        drop(room);
        let client = forwarded.unwrap_or(self.peer);
        Visit { places: self.places.clone(), id: self.id, client, counted, crowd }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.room().connections.remove(&self.id);
    }
}

impl Visit {
    /// Why it may not ask for more than health and readiness; nothing where it may.
    pub(crate) fn crowd(&self) -> Option<Crowd> {
        self.crowd
    }

    /// Gives a client that has shown the key a place that is kept for those, if one is free.
    pub(crate) fn has_authenticated(&self) -> bool {
        let most = self.places.0.limits.authenticated;
        let mut room = self.places.room();
        let taken = room.connections.values().filter(|c| c.kind == Kind::Authenticated).count();
        match room.connections.get_mut(&self.id) {
            Some(Connection { kind: kind @ Kind::Measuring(_), .. }) if taken < most => {
                *kind = Kind::Authenticated;
                true
            }
            Some(_) | None => false,
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let mut room = self.places.room();
        let now = room.tick();
        if let Some(connection) = room.connections.get_mut(&self.id) {
            connection.requests -= 1;
            connection.silent_since = now;
        }
        if let Some(address) = self.counted
            && let Some(requests) = room.forwarded.get_mut(&address)
        {
            *requests -= 1;
            if *requests == 0 {
                room.forwarded.remove(&address);
            }
        }
    }
}

impl Room {
    fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Whether one more of these connections may come: the one that has been silent longest goes where there are
    /// `most`.
    fn make_way(&mut self, most: usize, among: impl Fn(&Connection) -> bool) -> bool {
        let these = || self.connections.iter().filter(|(_, connection)| among(connection));
        if these().count() < most {
            return true;
        }
        let silent = these().filter(|(_, connection)| connection.requests == 0);
        let Some(id) = silent.min_by_key(|(_, connection)| connection.silent_since).map(|(&id, _)| id) else {
            return false;
        };
        if let Some(connection) = self.connections.remove(&id) {
            connection.leave.notify_one();
        }
        true
    }
}

/// An address without what its owner can choose of it: a customer has a whole /64 of IPv6.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64)),
        ip @ IpAddr::V4(_) => ip,
    }
}

/// An entry of `X-Forwarded-For`, which may have a port.
fn hop(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let alone = || text.split_once(':').filter(|(_, port)| !port.contains(':')).map_or(text, |(ip, _)| ip);
    bare.unwrap_or_else(alone).parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { ordinary: 3, per_address: 2, measuring: 1, authenticated: 1 };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_taken(place: &Place) -> bool {
        use std::{pin::pin, task};
        pin!(place.taken()).poll(&mut task::Context::from_waker(task::Waker::noop())).is_ready()
    }

    #[test]
    fn the_longest_silent_gives_way() {
        let places = Places::new(LIMITS, vec![]);
        let first = places.enter(ip("10.0.0.1")).unwrap();
        let second = places.enter(ip("10.0.0.1")).unwrap();
        drop(first.visit(&HeaderMap::new()));
        let third = places.enter(ip("10.0.0.1")).unwrap();
        assert!(!is_taken(&first) && is_taken(&second) && !third.is_kept());
        drop(second);
        let others = ["10.0.0.2", "10.0.0.3"].map(|other| places.enter(ip(other)).unwrap());
        assert!(is_taken(&first) && !is_taken(&third) && others.iter().all(|other| !other.is_kept()));
    }

    #[test]
    fn while_all_are_busy_a_place_is_kept_for_probes_and_for_the_key() {
        let places = Places::new(LIMITS, vec![]);
        let none = HeaderMap::new();
        let same = ["10.0.0.1"; 2].map(|address| places.enter(ip(address)).unwrap());
        let busy = same.each_ref().map(|place| place.visit(&none));
        assert!(busy.iter().all(|visit| visit.crowd().is_none()));
        let crowded = places.enter(ip("10.0.0.1")).unwrap();
        assert!(crowded.is_kept());
        let visit = crowded.visit(&none);
        assert_eq!(visit.crowd(), Some(Crowd::Address));
        let other = places.enter(ip("10.0.0.2")).unwrap();
        let also_busy = other.visit(&none);
        assert!(places.enter(ip("10.0.0.3")).is_none(), "the kept place is being used");
        assert!(visit.has_authenticated());
        let last = places.enter(ip("10.0.0.3")).unwrap();
        let probe = last.visit(&none);
        assert_eq!(probe.crowd(), Some(Crowd::Everybody));
        assert!(!probe.has_authenticated(), "one place is kept for the key");
        drop((probe, also_busy, other, visit, crowded, busy, same));
        assert!(places.enter(ip("10.0.0.1")).is_some_and(|place| !place.is_kept()));
    }

    #[test]
    fn a_silent_probe_gives_way_too() {
        let places = Places::new(LIMITS, vec![]);
        let same = ["10.0.0.1"; 2].map(|address| places.enter(ip(address)).unwrap());
        let _busy = same.each_ref().map(|place| place.visit(&HeaderMap::new()));
        let silent = places.enter(ip("10.0.0.1")).unwrap();
        let probe = places.enter(ip("10.0.0.1")).unwrap();
        assert!(is_taken(&silent) && probe.is_kept());
    }

    #[test]
    fn trusted_proxies_stand_for_many() {
        let places = Places::new(LIMITS, vec![ip("10.0.0.9"), ip("10.0.0.8")]);
        let forwarded =
            |list: &str| HeaderMap::from_iter([("x-forwarded-for".parse().unwrap(), list.parse().unwrap())]);
        let proxy = places.enter(ip("::ffff:10.0.0.9")).unwrap();
        for (list, client) in [
            ("203.0.113.7", "203.0.113.7"),
            ("198.51.100.1, 203.0.113.7:4711, 10.0.0.8", "203.0.113.7"),
            ("[2001:db8::7]:80", "2001:db8::7"),
            ("2001:db8::7", "2001:db8::7"),
            ("unknown", "10.0.0.9"),
            ("203.0.113.7, unknown", "10.0.0.9"),
        ] {
            assert_eq!(proxy.visit(&forwarded(list)).client, ip(client), "{list}");
        }
        let more = [0; 2].map(|_| places.enter(ip("10.0.0.9")).unwrap());
        assert!(more.iter().all(|place| !place.is_kept()), "no cap by address");
        // What it forwards for one client counts all the same; a /64 is one client.
        let same: Vec<_> =
            ["2001:db8::1", "2001:db8::2", "2001:db8::3"].map(|of| proxy.visit(&forwarded(of))).into_iter().collect();
        assert_eq!(same.iter().map(Visit::crowd).collect::<Vec<_>>(), [None, None, Some(Crowd::Address)]);
        drop(same);
        assert_eq!(proxy.visit(&forwarded("2001:db8::3")).crowd(), None);
        // Whoever is not trusted cannot say who it is.
        let stranger = places.enter(ip("10.0.0.1"));
        assert_eq!(stranger.unwrap().visit(&forwarded("203.0.113.7")).client, ip("10.0.0.1"));
    }
}
