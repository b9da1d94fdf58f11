//! What is said of workers' disks: which weights stay on them, and how quickly they are read.

use crate::{
    codec::{Decode, Encode},
    plain_section::plain_section,
};

/// How many of each layer's experts the receiver has in memory at a time; it reads the others from its disk when rows need
/// them. A section of `Load`.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct ExpertRoom {
    /// So many; at least 1.
    pub each: u32,
}

/// How quickly a worker reads from the disk that its tensors are on. A section of `Measured`.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct DiskRate {
    /// Of what is not in memory yet.
    pub bytes_per_s: u64,
}

plain_section!(
    ExpertRoom,
    /// The tag of its section: odd, as who does not know it has no room for all experts.
    9,
    /// What the sections of a `Load` say; `None` where all experts are to be in memory.
);

plain_section!(
    DiskRate,
    /// The tag of its section.
    20,
    /// What the sections of a `Measured` say; `None` where they say nothing of it.
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{section::Sections, sources::SectionContentError};

    #[test]
    fn their_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!((ExpertRoom::find(&sections), DiskRate::find(&sections)), (Ok(None), Ok(None)));
        let (room, rate) = (ExpertRoom { each: 258 }, DiskRate { bytes_per_s: 1 << 33 });
        room.put(&mut sections).unwrap();
        rate.put(&mut sections).unwrap();
        assert_eq!(sections.get(9).map(|bytes| &bytes[..]), Some(&[2, 1, 0, 0][..]));
        assert_eq!(sections.get(20).map(|bytes| &bytes[..]), Some(&[0, 0, 0, 0, 2, 0, 0, 0][..]));
        assert_eq!((ExpertRoom::find(&sections), DiskRate::find(&sections)), (Ok(Some(room)), Ok(Some(rate))));
    }

    #[test]
    fn who_does_not_know_the_room_refuses_the_load() {
        let mut sections = Sections::default();
        ExpertRoom { each: 1 }.put(&mut sections).unwrap();
        assert!(sections.understood(&[2, 4, 8]).is_err());
        sections.set(ExpertRoom::TAG, vec![0; 3]);
        assert!(matches!(ExpertRoom::find(&sections), Err(SectionContentError::Malformed { tag: 9, .. })));
    }
}
