//! The book of keys: which workers somebody has admitted, and which are never let in again. Whoever is not in it is a stranger;
//! an empty book means nobody.

mod file;

use std::collections::{BTreeMap, HashSet};

use qmesh_net::PeerId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use self::file::now_unix;
pub use self::file::{Members, MembersError};

/// What was decided about a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Member {
    /// The name that its worker asked by, or had.
    pub name: String,
    /// What was decided.
    pub standing: Standing,
    /// When, in seconds since 1970.
    pub since_unix: u64,
    /// When it was here last, in seconds since 1970.
    pub seen_unix: Option<u64>,
}

/// What was decided about a key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It needs no ticket.
    Admitted,
    /// No ticket helps it.
    Revoked,
}

/// What was decided about all of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Book {
    members: BTreeMap<PeerId, Member>,
}

/// The book has no room for another key.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("{MEMBERS_MOST} keys are remembered, and no more: revoke and forget some (coordinator workers ls)")]
pub struct BookFull;

impl Book {
    /// From now on this key needs no ticket, even if it was revoked.
    ///
    /// # Errors
    /// It is a new one, and there is no room.
    pub fn admit(&mut self, peer: PeerId, name: &str, now_unix: u64) -> Result<(), BookFull> {
        self.decide(peer, name, Standing::Admitted, now_unix)
    }

    /// From now on no ticket helps this key.
    ///
    /// # Errors
    /// It is a new one, and there is no room.
    pub fn revoke(&mut self, peer: PeerId, name: &str, now_unix: u64) -> Result<(), BookFull> {
        self.decide(peer, name, Standing::Revoked, now_unix)
    }

    /// The key is a stranger again.
    pub fn forget(&mut self, peer: PeerId) {
        self.members.remove(&peer);
    }

    /// It was here then.
    pub fn seen(&mut self, peer: PeerId, then_unix: u64) {
        if let Some(member) = self.members.get_mut(&peer) {
            member.seen_unix = member.seen_unix.max(Some(then_unix));
        }
    }

    /// What was decided about this key.
    pub fn get(&self, peer: PeerId) -> Option<&Member> {
        self.members.get(&peer)
    }

    /// All keys, with what was decided about them.
    pub fn members(&self) -> impl Iterator<Item = (PeerId, &Member)> {
        self.members.iter().map(|(peer, member)| (*peer, member))
    }

    /// The keys about which this was decided.
    pub fn keys(&self, standing: Standing) -> HashSet<PeerId> {
        self.members().filter(|(_, member)| member.standing == standing).map(|(peer, _)| peer).collect()
    }

    fn decide(&mut self, peer: PeerId, name: &str, standing: Standing, now_unix: u64) -> Result<(), BookFull> {
        if self.members.len() >= MEMBERS_MOST && !self.members.contains_key(&peer) {
            return Err(BookFull);
        }
        let seen_unix = self.members.get(&peer).and_then(|member| member.seen_unix);
        let member = Member { name: name.to_owned(), standing, since_unix: now_unix, seen_unix };
        self.members.insert(peer, member);
        Ok(())
    }
}

/// Keys that are remembered at most.
const MEMBERS_MOST: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_admitted_revoked_and_forgotten() {
        let [one, other] = [1, 2].map(|byte| PeerId([byte; 32]));
        let mut book = Book::default();
        assert!(book.keys(Standing::Admitted).is_empty() && book.get(one).is_none());
        book.admit(one, "attic", 10).unwrap();
        book.seen(one, 12);
        book.seen(one, 11);
        book.seen(other, 11);
        let member = |standing, since_unix| Member { name: "attic".into(), standing, since_unix, seen_unix: Some(12) };
        assert_eq!(book.get(one), Some(&member(Standing::Admitted, 10)));
        book.revoke(one, "attic", 20).unwrap();
        assert_eq!(book.get(one), Some(&member(Standing::Revoked, 20)));
        assert_eq!((book.keys(Standing::Admitted).len(), book.keys(Standing::Revoked).len()), (0, 1));
        book.forget(one);
        assert_eq!(book, Book::default());
    }

    #[test]
    fn there_is_room_for_so_many_and_those_that_are_there_can_still_be_revoked() {
        let mut book = Book::default();
        let peer = |i: usize| PeerId(std::array::from_fn(|k| (i >> (8 * (k % 8))) as u8));
        (0..MEMBERS_MOST).for_each(|i| book.admit(peer(i), "w", 0).unwrap());
        assert_eq!(book.admit(peer(MEMBERS_MOST), "w", 0), Err(BookFull));
        assert_eq!(book.revoke(peer(0), "w", 0), Ok(()));
        book.forget(peer(0));
        assert_eq!(book.admit(peer(MEMBERS_MOST), "w", 0), Ok(()));
    }
}
