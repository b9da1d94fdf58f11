//! The masks of one frame: those that have come for the rows that wait for one, and those that have not.

use std::collections::{BTreeMap, BTreeSet};

use qmesh_net::{Frame, MaskedRows, SessionId, TokenMask};

/// A row, by its session and its position there.
pub(crate) type Place = (SessionId, u32);

/// What may follow the rows of a frame that wait for a mask.
#[derive(Debug, Default)]
pub(crate) struct StepMasks {
    come: BTreeMap<Place, TokenMask>,
    missing: BTreeSet<Place>,
}

impl StepMasks {
    /// Those of a frame, none of which has come.
    pub(crate) fn of(frame: &Frame) -> Self {
        Self { come: BTreeMap::new(), missing: MaskedRows::places(frame).into_iter().collect() }
    }

    /// Takes a mask in; `false` where no row waits for it, or no longer.
    pub(crate) fn take(&mut self, place: Place, mask: TokenMask) -> bool {
        let waits = self.missing.remove(&place);
        if waits {
            self.come.insert(place, mask);
        }
        waits
    }

    /// Whether all have come.
    pub(crate) fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// How many have come.
    pub(crate) fn len(&self) -> usize {
        self.come.len()
    }

    /// The masks that have come, and the sessions that lack one.
    pub(crate) fn into_parts(self) -> (BTreeMap<Place, TokenMask>, BTreeSet<SessionId>) {
        (self.come, self.missing.into_iter().map(|(session, _)| session).collect())
    }
}
