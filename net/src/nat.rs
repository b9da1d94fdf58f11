//! What kind of NAT is before a machine, as far as it shows: a section of `Hello`.

use std::{fmt, net::SocketAddr};

use crate::{
    codec::{Decode, Encode},
    plain_section::plain_section,
    survey::Survey,
};

/// What kind of NAT is before a machine.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub enum Nat {
    /// There is one, and nothing more is known of it.
    #[default]
    Unknown,
    /// None: packets come from an address that the machine has.
    None,
    /// One that lets everybody in who sends to the port.
    Open,
    /// One that has the same port for every destination, and lets in who was sent something.
    Keeps,
    /// One that has another port for every destination.
    Changes,
}

impl Nat {
    /// What a survey says of a machine whose own addresses these are.
    pub fn of(survey: &Survey, own: &[SocketAddr]) -> Self {
        match survey {
            Survey { seen, .. } if own.contains(seen) || seen.ip().is_loopback() => Self::None,
            Survey { unasked: true, .. } => Self::Open,
            Survey { seen, seen_again: Some(again), .. } if seen == again => Self::Keeps,
            Survey { seen_again: Some(_), .. } => Self::Changes,
            Survey { seen_again: None, .. } => Self::Unknown,
        }
    }
}

plain_section!(
    Nat,
    /// The tag of its section.
    18,
    /// What the sections of a `Hello` say; `None` where they say nothing of it.
);

impl fmt::Display for Nat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "a NAT of an unknown kind",
            Self::None => "no NAT",
            Self::Open => "a NAT that lets everybody in",
            Self::Keeps => "a NAT that has the same port for every destination",
            Self::Changes => "a NAT that has another port for every destination",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{section::Sections, sources::SectionContentError};

    #[test]
    fn a_survey_tells_nats_apart() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let survey =
            |again: Option<&str>, unasked| Survey { seen: at("198.51.100.1:7"), seen_again: again.map(at), unasked };
        let own = [at("192.168.0.2:7")];
        let kind = |survey| Nat::of(&survey, &own);
        assert_eq!(kind(survey(Some("198.51.100.1:7"), false)), Nat::Keeps);
        assert_eq!(kind(survey(Some("198.51.100.1:8"), false)), Nat::Changes);
        assert_eq!(kind(survey(None, false)), Nat::Unknown);
        assert_eq!(kind(survey(Some("198.51.100.1:7"), true)), Nat::Open);
        assert_eq!(Nat::of(&survey(None, false), &[at("198.51.100.1:7")]), Nat::None);
    }

    #[test]
    fn its_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!(Nat::find(&sections), Ok(None));
        for (number, nat) in (0_u32..).zip([Nat::Unknown, Nat::None, Nat::Open, Nat::Keeps, Nat::Changes]) {
            nat.put(&mut sections).unwrap();
            assert_eq!(sections.get(18).map(|bytes| bytes.to_vec()), Some(number.to_le_bytes().to_vec()));
            assert_eq!(Nat::find(&sections), Ok(Some(nat)));
        }
        sections.set(Nat::TAG, vec![9, 0, 0, 0]);
        assert!(matches!(Nat::find(&sections), Err(SectionContentError::Malformed { tag: 18, .. })));
    }
}
