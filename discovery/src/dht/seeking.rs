//! Workers that reach their coordinator nowhere, as both are behind NATs, and ask it by the DHT to send to them: so both send, and
//! both their NATs let the other one in.

use std::net::SocketAddr;

use qmesh_net::{PeerId, Ticket};

use super::{Dht, DhtError, now_unix, record::RecordKeys, whereabouts};
use crate::{addresses::ADDRESSES, names::is_dialable};

/// A worker that asks its coordinator to send to it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DhtSeeker {
    /// Its key, by its own account.
    pub peer: PeerId,
    /// Where it is, each as `IP:port`: on its own networks, and as the DHT's nodes see it if its NAT keeps the port.
    pub addresses: Vec<SocketAddr>,
}

/// What a coordinator looks for.
pub(super) struct Lookout {
    keys: RecordKeys,
    /// Of the last record that it has heeded.
    number: i64,
}

impl Dht {
    /// Asks the coordinator of this ticket, which looks now and then, to send to the worker `peer`, whose socket is at `listen`.
    ///
    /// # Errors
    /// Nobody answers, or nobody keeps it.
    pub async fn seek(&self, ticket: &Ticket, peer: PeerId, listen: SocketAddr) -> Result<(), DhtError> {
        let outside = self.participant().await?.public_address().await;
        let lines: Vec<String> = [peer.to_string()].into_iter().chain(whereabouts(listen, &[], outside)).collect();
        self.put(&RecordKeys::of_seekers(ticket), &lines, 0).await.map(drop)
    }
}

impl Lookout {
    pub(super) fn of(ticket: &Ticket) -> Self {
        Self { keys: RecordKeys::of_seekers(ticket), number: now_unix() - EARLIER }
    }

    /// Who has asked since the last look.
    pub(super) async fn look(&mut self, dht: &Dht) -> Option<DhtSeeker> {
        let (number, value) = dht.participant().await.ok()?.get(&self.keys.public_key()).await?;
        if number <= self.number {
            return None;
        }
        self.number = number;
        seeker(&self.keys.lines(number, &value)?)
    }
}

/// What the lines of a record say.
fn seeker(lines: &[String]) -> Option<DhtSeeker> {
    let (peer, addresses) = lines.split_first()?;
    let addresses = addresses.iter().filter(|line| is_dialable(line)).filter_map(|line| line.parse().ok());
    Some(DhtSeeker { peer: peer.parse().ok()?, addresses: addresses.take(ADDRESSES).collect() })
}

/// Numbers are seconds: who has asked within this before the coordinator began may still wait.
const EARLIER: i64 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seeker_is_a_key_and_addresses() {
        let peer = PeerId([7; 32]);
        let lines = [peer.to_string(), "198.51.100.7:4433".to_owned(), "mesh.example:1".to_owned(), "odd".to_owned()];
        let addresses = vec!["198.51.100.7:4433".parse().unwrap()];
        assert_eq!(seeker(&lines), Some(DhtSeeker { peer, addresses }));
        assert_eq!((seeker(&lines[1..]), seeker(&[])), (None, None));
    }
}
