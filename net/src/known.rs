//! How a coordinator stands to keys: which come back without a ticket, and which do not come at all.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{ids::PeerId, limits::KNOWN_PEERS};

/// Keys that joined while this process lives, as many as [`KNOWN_PEERS`], and those that its owner has judged. Clones share
/// them.
#[derive(Clone, Debug, Default)]
pub struct KnownPeers(Arc<Mutex<Remembered>>);

/// How the coordinator stands to a key.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Acquaintance {
    /// It needs a ticket, or must ask.
    Stranger,
    /// It has joined before, or was admitted: it needs neither.
    Known,
    /// It was sent away for good, whatever ticket it has.
    Revoked,
}

#[derive(Debug, Default)]
struct Remembered {
    joined: HashSet<PeerId>,
    /// In the order of their joining.
    order: VecDeque<PeerId>,
    admitted: HashSet<PeerId>,
    revoked: HashSet<PeerId>,
}

impl KnownPeers {
    /// From now on this key needs no ticket, for as long as this process lives; the one that joined first is forgotten where
    /// there are too many.
    pub fn remember(&self, peer: PeerId) {
        let mut remembered = self.remembered();
        if !remembered.joined.insert(peer) {
            return;
        }
        remembered.order.push_back(peer);
        if remembered.order.len() > KNOWN_PEERS
            && let Some(oldest) = remembered.order.pop_front()
        {
            remembered.joined.remove(&oldest);
        }
    }

    /// From now on exactly these keys are admitted without a ticket, and exactly those are revoked. A revoked one that joined
    /// before is no acquaintance any more, should it be forgotten later.
    pub fn judge(&self, admitted: HashSet<PeerId>, revoked: HashSet<PeerId>) {
        let mut remembered = self.remembered();
        let Remembered { joined, order, .. } = &mut *remembered;
        joined.retain(|peer| !revoked.contains(peer));
        order.retain(|peer| !revoked.contains(peer));
        (remembered.admitted, remembered.revoked) = (admitted, revoked);
    }

    /// How the coordinator stands to this key.
    pub fn acquaintance(&self, peer: PeerId) -> Acquaintance {
        let remembered = self.remembered();
        if remembered.revoked.contains(&peer) {
            Acquaintance::Revoked
        } else if remembered.admitted.contains(&peer) || remembered.joined.contains(&peer) {
            Acquaintance::Known
        } else {
            Acquaintance::Stranger
        }
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_keys_are_known() {
        let known = KnownPeers::default();
        let peer = |i: usize| PeerId(std::array::from_fn(|k| (i >> (8 * (k % 8))) as u8));
        (0..=KNOWN_PEERS).for_each(|i| known.remember(peer(i)));
        known.remember(peer(KNOWN_PEERS));
        let is_known = |i| known.acquaintance(peer(i)) == Acquaintance::Known;
        assert!(!is_known(0) && is_known(1) && is_known(KNOWN_PEERS));
    }

    #[test]
    fn nobody_is_known_until_somebody_is() {
        use Acquaintance::{Known, Revoked, Stranger};

        let known = KnownPeers::default();
        let [joined, admitted, revoked, stranger] = [1, 2, 3, 4].map(|byte| PeerId([byte; 32]));
        let all = || [joined, admitted, revoked, stranger].map(|peer| known.acquaintance(peer));
        assert_eq!(all(), [Stranger; 4]);
        known.remember(joined);
        known.remember(revoked);
        known.judge(HashSet::from([admitted]), HashSet::from([revoked]));
        assert_eq!(all(), [Known, Known, Revoked, Stranger]);
        // Who was sent away does not come back by having been here.
        known.judge(HashSet::new(), HashSet::new());
        assert_eq!(all(), [Known, Stranger, Stranger, Stranger]);
    }
}
