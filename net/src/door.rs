//! The door: connections that have not yet proved that they may join. They cost little, and their number is bounded.
//!
//! A newcomer is never turned away. Where all places are taken, one that waits must go instead: the oldest connection of
//! the address that has the most. A peer that means to join says hello with its first packets, so it has long left the
//! door when it would be the oldest; those that only stand there go.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{
    limits::{DOOR_LOOPBACK, DOOR_PER_ADDRESS, DOOR_REMOTE},
    origin::Origin,
};

/// The places at the door of one endpoint. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Door(Arc<Mutex<Places>>);

/// A place at the door, until dropped.
#[derive(Debug)]
pub(crate) struct Place {
    door: Door,
    number: u64,
    turned_away: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Places {
    /// In the order of their coming.
    waiting: BTreeMap<u64, Waiting>,
    next: u64,
}

#[derive(Debug)]
struct Waiting {
    from: Origin,
    turned_away: Arc<Notify>,
}

impl Door {
    /// A place for a connection from `address`. Where there is none, another connection loses its own.
    pub(crate) fn enter(&self, address: IpAddr) -> Place {
        let mut places = self.places();
        let from = Origin::of(address);
        if let Some(number) = places.in_the_way(from)
            && let Some(waiting) = places.waiting.remove(&number)
        {
            waiting.turned_away.notify_one();
        }
        let (number, turned_away) = (places.next, Arc::new(Notify::new()));
        places.next += 1;
        places.waiting.insert(number, Waiting { from, turned_away: Arc::clone(&turned_away) });
        Place { door: self.clone(), number, turned_away }
    }

    /// How many connections wait.
    pub(crate) fn waiting(&self) -> usize {
        self.places().waiting.len()
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Waits until the place is taken away.
    pub(crate) async fn lost(&self) {
        self.turned_away.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.door.places().waiting.remove(&self.number);
    }
}

impl Places {
    /// Which connection must go before one more from there can come, if any must.
    fn in_the_way(&self, from: Origin) -> Option<u64> {
        let oldest = |from: Origin| self.waiting.iter().find(|(_, w)| w.from == from).map(|(&number, _)| number);
        let same_kind = self.waiting.values().map(|w| w.from).filter(|other| other.is_loopback() == from.is_loopback());
        let mut counts: HashMap<Origin, usize> = HashMap::new();
        same_kind.for_each(|other| *counts.entry(other).or_default() += 1);
        if counts.get(&from).is_some_and(|&count| count >= DOOR_PER_ADDRESS) {
            return oldest(from);
        }
        let most = if from.is_loopback() { DOOR_LOOPBACK } else { DOOR_REMOTE };
        if counts.values().sum::<usize>() < most {
            return None;
        }
        let crowd = counts.values().max().copied()?;
        let crowded = |w: &Waiting| counts.get(&w.from) == Some(&crowd);
        self.waiting.iter().find(|(_, waiting)| crowded(waiting)).map(|(&number, _)| number)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn is_lost(place: &Place) -> bool {
        pin!(place.lost()).poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn one_address_has_only_so_many_places_and_the_oldest_goes() {
        let door = Door::default();
        let mut places: Vec<_> = (0..DOOR_PER_ADDRESS).map(|_| door.enter(ip("192.0.2.1"))).collect();
        let other = door.enter(ip("192.0.2.2"));
        assert!(!places.iter().chain([&other]).any(is_lost));
        places.push(door.enter(ip("::ffff:192.0.2.1")));
        assert!(is_lost(&places[0]) && !places[1..].iter().chain([&other]).any(is_lost));
        assert_eq!(door.waiting(), DOOR_PER_ADDRESS + 1);
        drop((places, other));
        assert_eq!(door.waiting(), 0);
        // One machine has all addresses of an IPv6 network.
        let places: Vec<_> = (0..=DOOR_PER_ADDRESS).map(|i| door.enter(ip(&format!("2001:db8::{i}")))).collect();
        assert!(is_lost(&places[0]));
    }

    #[test]
    fn at_the_limit_the_address_with_the_most_gives_way() {
        let door = Door::default();
        let alone = door.enter(ip("198.51.100.1"));
        let crowd: Vec<_> = (0..DOOR_REMOTE - 1).map(|i| door.enter(ip(&format!("192.0.2.{}", i / 2)))).collect();
        let late = door.enter(ip("198.51.100.2"));
        assert_eq!(
            (door.waiting(), is_lost(&alone), is_lost(&late), is_lost(&crowd[0])),
            (DOOR_REMOTE, false, false, true)
        );
    }

    #[test]
    fn loopback_keeps_places_of_its_own() {
        let door = Door::default();
        let here = door.enter(ip("127.0.0.1"));
        let crowd: Vec<_> =
            (0..2 * DOOR_REMOTE).map(|i| door.enter(ip(&format!("10.0.{}.{}", i / 256, i % 256)))).collect();
        assert_eq!((door.waiting(), is_lost(&here)), (DOOR_REMOTE + 1, false));
        let also: Vec<_> = (0..DOOR_LOOPBACK).map(|i| door.enter(ip(&format!("127.0.1.{i}")))).collect();
        assert!(is_lost(&here) && also.iter().chain(&crowd[DOOR_REMOTE..]).all(|place| !is_lost(place)));
    }
}
