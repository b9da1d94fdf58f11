//! What is said of the time that attention takes a worker.

use crate::{
    codec::{Decode, Encode},
    plain_section::plain_section,
};

/// What keys and values cost a row of a prompt that meets them. A section of `Measured`.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct AttentionTime {
    /// Picoseconds for 1024 bytes of them.
    pub ps_per_kib: u64,
}

plain_section!(
    AttentionTime,
    /// The tag of its section.
    28,
    /// What the sections of a `Measured` say; `None` where they say nothing of it.
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::section::Sections;

    #[test]
    fn its_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!(AttentionTime::find(&sections), Ok(None));
        let time = AttentionTime { ps_per_kib: 258 };
        time.put(&mut sections).unwrap();
        assert_eq!(sections.get(28).map(|bytes| &bytes[..]), Some(&[2, 1, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!(AttentionTime::find(&sections), Ok(Some(time)));
    }
}
