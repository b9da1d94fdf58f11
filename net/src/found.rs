//! How a worker has found its coordinator, and how long that took: a section of `Hello`.

use std::{fmt, time::Duration};

use crate::{
    codec::{Decode, Encode},
    plain_section::plain_section,
};

/// How a worker has found its coordinator.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub enum FoundBy {
    /// At an address that it had.
    #[default]
    Address,
    /// By multicast DNS.
    LocalNetwork,
    /// By the coordinator's record on the DHT.
    Dht,
    /// By the coordinator's call: the worker is a rendezvous.
    Call,
    /// By asking a rendezvous, and then straight.
    Rendezvous,
    /// By asking a rendezvous, which passes the packets on.
    Relay,
}

/// How a worker has found its coordinator, and in what time.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct WayFound {
    /// How.
    pub by: FoundBy,
    /// Milliseconds from the first attempt to the connection.
    pub milliseconds: u32,
}

impl WayFound {
    /// By this, in this time.
    pub fn new(by: FoundBy, time: Duration) -> Self {
        Self { by, milliseconds: u32::try_from(time.as_millis()).unwrap_or(u32::MAX) }
    }
}

plain_section!(
    WayFound,
    /// The tag of its section.
    26,
    /// What the sections of a `Hello` say; `None` where they say nothing of it.
);

impl fmt::Display for WayFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.by {
            FoundBy::Address => "at an address that it had",
            FoundBy::LocalNetwork => "on the local network",
            FoundBy::Dht => "on the DHT",
            FoundBy::Call => "by its call",
            FoundBy::Rendezvous => "by a rendezvous",
            FoundBy::Relay => "by a rendezvous that passes packets on",
        })?;
        write!(f, " in {:.1} s", f64::from(self.milliseconds) / 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{section::Sections, sources::SectionContentError};

    #[test]
    fn its_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!(WayFound::find(&sections), Ok(None));
        let found = WayFound::new(FoundBy::Dht, Duration::from_millis(2104));
        found.put(&mut sections).unwrap();
        assert_eq!(sections.get(26).map(|bytes| bytes.to_vec()), Some(vec![2, 0, 0, 0, 0x38, 8, 0, 0]));
        assert_eq!(WayFound::find(&sections), Ok(Some(found)));
        assert_eq!(found.to_string(), "on the DHT in 2.1 s");
        sections.set(WayFound::TAG, vec![6, 0, 0, 0, 0, 0, 0, 0]);
        assert!(matches!(WayFound::find(&sections), Err(SectionContentError::Malformed { tag: 26, .. })));
    }
}
