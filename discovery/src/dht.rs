//! Where a coordinator is, for workers in other networks: a record on the DHT of BitTorrent (Mainline, BEP 5 and 44), which nobody
//! runs and everybody may use.
//!
//! The record is found, signed and encrypted by keys that are made of a ticket. Nodes of the DHT see a key, some bytes and the address
//! of whoever asks; they learn neither whose mesh it is nor where. A new ticket makes another record, so whoever had an old one
//! learns nothing more. As everywhere, who answers at an address has to prove the coordinator's key.

#[cfg_attr(feature = "dht", path = "dht/participant.rs")]
#[cfg_attr(not(feature = "dht"), path = "dht/absent.rs")]
mod participant;
mod record;
mod seeking;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use qmesh_net::Ticket;
use thiserror::Error;
use tokio::{
    sync::Mutex,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep_until},
};

pub use self::seeking::DhtSeeker;
use self::{participant::Participant, record::RecordKeys, seeking::Lookout};
use crate::{
    addresses::{ADDRESSES, own_addresses, told_addresses},
    interfaces::Interfaces,
};

/// Which nodes of the DHT are asked first; they name others.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Bootstrap {
    /// The public ones.
    #[default]
    Public,
    /// These, each as `host:port`.
    Nodes(Vec<String>),
}

impl Bootstrap {
    /// These nodes, or the public ones where there are none.
    pub fn of(nodes: &[String]) -> Self {
        if nodes.is_empty() { Self::Public } else { Self::Nodes(nodes.to_vec()) }
    }
}

/// Why the DHT does not help.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DhtError {
    /// There is no socket, or no thread, for it.
    #[error("the DHT cannot be used: {0}")]
    Socket(String),
    /// Nobody answers.
    #[error("no node of the DHT answers; UDP may be blocked, or name others by --dht-bootstrap")]
    NoNodes,
    /// Nodes answer, but none keeps the record.
    #[error("no node of the DHT keeps the record: {0}")]
    NotKept(String),
    /// The record's number has run out, which only somebody with the ticket can do.
    #[error("somebody with the ticket has closed its record on the DHT: make a new one by --new-ticket")]
    Closed,
    /// This program was built without it.
    #[error("this program was built without the DHT (feature `dht`)")]
    Absent,
}

/// The DHT, as this process takes part in it. Nothing is sent before it is asked something. Clones share it.
#[derive(Clone, Debug)]
pub struct Dht {
    bootstrap: Bootstrap,
    participant: Arc<Mutex<Option<Participant>>>,
}

impl Dht {
    /// The DHT that these nodes belong to.
    pub fn new(bootstrap: Bootstrap) -> Self {
        Self { bootstrap, participant: Arc::default() }
    }

    /// Where the coordinator of this ticket says that it is, each as `host:port`; nothing where there is no record.
    ///
    /// # Errors
    /// Nobody answers, or there is no socket.
    pub async fn find(&self, ticket: &Ticket) -> Result<Vec<String>, DhtError> {
        let place = RecordKeys::of(ticket);
        let participant = self.participant().await?;
        let Some((number, value)) = participant.get(&place.public_key()).await else {
            self.begin_anew().await;
            return Ok(Vec::new());
        };
        // What somebody else with the ticket may have written is no record.
        Ok(place.open(number, &value).unwrap_or_default())
    }

    /// Puts where the coordinator is in the place of what the DHT knows of it, under a number above `number`; the number it has.
    async fn put(&self, place: &RecordKeys, addresses: &[String], number: i64) -> Result<i64, DhtError> {
        let participant = self.participant().await?;
        let put =
            async |number| participant.put(place.seed(), &place.seal(number, addresses), number).await.map(|()| number);
        let mut number = number.checked_add(1).ok_or(DhtError::Closed)?.max(now_unix());
        let mut outcome = put(number).await;
        // This machine's clock was ahead once, or somebody else with the ticket has been here.
        if let Err(DhtError::NotKept(_)) = outcome
            && let Some((newest, _)) =
                participant.get(&place.public_key()).await.filter(|(newest, _)| *newest >= number)
        {
            number = newest.checked_add(1).ok_or(DhtError::Closed)?;
            outcome = put(number).await;
        }
        if outcome.is_err() {
            self.begin_anew().await;
        }
        outcome
    }

    /// Looks for nodes the next time: after a long sleep, or in another network, those that it knows do not answer.
    async fn begin_anew(&self) {
        *self.participant.lock().await = None;
    }

    async fn participant(&self) -> Result<Participant, DhtError> {
        let mut held = self.participant.lock().await;
        match &*held {
            Some(participant) => Ok(participant.clone()),
            None => Ok(held.insert(Participant::start(&self.bootstrap).await?).clone()),
        }
    }
}

/// A coordinator's record on the DHT, which is kept right for as long as this lives.
#[derive(Debug)]
pub struct DhtRecord {
    keeping: JoinHandle<()>,
}

/// How it went, the last time that the record was put there.
pub type Kept = Result<Duration, DhtError>;

impl DhtRecord {
    /// Says where the coordinator of `ticket` is, which listens at `listen`: now, when this machine's addresses change, and often enough
    /// that nodes do not forget it. `told` hears how it goes, and `sought` who asks it to send to them, where it is behind a
    /// NAT. Call it inside a tokio runtime.
    pub fn keep(
        dht: Dht,
        ticket: &Ticket,
        listen: SocketAddr,
        told: impl FnMut(Kept) + Send + 'static,
        sought: impl FnMut(DhtSeeker) + Send + 'static,
    ) -> Self {
        let (keys, lookout) = (RecordKeys::of(ticket), Lookout::of(ticket));
        let keeper = Keeper { dht, keys, lookout, advertised: ticket.addresses.clone(), listen };
        Self { keeping: tokio::spawn(keeper.keep(told, sought)) }
    }
}

impl Drop for DhtRecord {
    fn drop(&mut self) {
        // Nodes forget it in two hours; until then it leads to where nobody answers.
        self.keeping.abort();
    }
}

/// What keeps a record.
struct Keeper {
    dht: Dht,
    keys: RecordKeys,
    lookout: Lookout,
    advertised: Vec<String>,
    listen: SocketAddr,
}

impl Keeper {
    async fn keep(mut self, mut told: impl FnMut(Kept) + Send, mut sought: impl FnMut(DhtSeeker) + Send) {
        let mut interfaces = Interfaces::watch();
        let mut looks = interval(LOOKS);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut number = 0;
        loop {
            let begun = Instant::now();
            let outside = match self.dht.participant().await {
                Ok(participant) => participant.public_address().await,
                Err(_) => None,
            };
            let places = whereabouts(self.listen, &self.advertised, outside);
            let outcome = self.dht.put(&self.keys, &places, number).await;
            let next = begun + if outcome.is_ok() && outside.is_some() { REFRESH } else { AGAIN };
            told(outcome.map(|put| {
                number = put;
                begun.elapsed()
            }));
            // Who has its own address on the internet is reached, or not, whoever sends first.
            let is_hidden = outside.is_none_or(|ip| !interfaces.addresses().contains(&ip.into()));
            loop {
                tokio::select! {
                    () = sleep_until(next.into()) => break,
                    _ = interfaces.changed() => break,
                    _ = looks.tick(), if is_hidden => self.lookout.look(&self.dht).await.into_iter().for_each(&mut sought),
                }
            }
        }
    }
}

/// Where to try, the likeliest first: what the owner said, this machine's addresses, and the one that the DHT's nodes see.
fn whereabouts(listen: SocketAddr, advertised: &[String], outside: Option<Ipv4Addr>) -> Vec<String> {
    let is_others = |address: &String| !address.parse().is_ok_and(|a: SocketAddr| a.ip().is_loopback());
    let outside =
        outside.filter(|ip| listen.is_ipv4() && !ip.is_loopback()).map(|ip| format!("{ip}:{}", listen.port()));
    let all = advertised.iter().cloned().chain(told_addresses(listen)).chain(own_addresses(listen)).chain(outside);
    let mut addresses: Vec<String> = Vec::new();
    for address in all.filter(is_others) {
        if !addresses.contains(&address) && addresses.len() < ADDRESSES {
            addresses.push(address);
        }
    }
    addresses
}

fn now_unix() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or_default()
}

/// Nodes forget a record after two hours (BEP 44).
const REFRESH: Duration = Duration::from_secs(30 * 60);
/// How often a coordinator behind a NAT looks for who asks it to send to them.
const LOOKS: Duration = Duration::from_secs(5);
/// How long it waits after a failure.
const AGAIN: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_where_others_reach_it() {
        let listen = "192.168.7.1:5".parse().unwrap();
        let advertised = ["mesh.example:5".to_owned(), "127.0.0.1:5".to_owned()];
        let outside = Some([203, 0, 113, 9].into());
        assert_eq!(whereabouts(listen, &advertised, outside), ["mesh.example:5", "192.168.7.1:5", "203.0.113.9:5"]);
        assert_eq!(whereabouts(listen, &[], None), ["192.168.7.1:5"]);
        let many: Vec<String> = (0..20).map(|port| format!("mesh.example:{port}")).collect();
        assert_eq!(whereabouts(listen, &many, None).len(), ADDRESSES);
    }
}
