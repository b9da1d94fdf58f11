//! The ticket: one string that tells a worker where its coordinator is, who it is, and that it may join.
//!
//! `qmesh1`, then base32 of `version u8 | critical flags u8 | length u16 of all | coordinator key 32 | secret 16 |
//! expiry u64 if flag 0 | addresses | addresses of rendezvous if flag 1 | first 4 bytes of BLAKE3 of all before`, all of it
//! little-endian; addresses are `count u8 | (length u8 | address) each`.

use std::{fmt, str::FromStr};

use bytes::{Buf, BufMut};
use thiserror::Error;

use crate::{
    ids::PeerId,
    pasted::{self, PastedError, strip_prefix},
    secret::JoinSecret,
    share_link,
};

const PREFIX: &str = "qmesh1";
/// What tickets of every version start with.
const NAME: &str = "qmesh";
const VERSION: u8 = 1;
/// The ticket has an expiry. Readers refuse flags that they do not know.
const FLAG_EXPIRES: u8 = 1;
/// The ticket names rendezvous.
const FLAG_RENDEZVOUS: u8 = 2;

/// What a worker needs to join a mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ticket {
    /// Where to try, each as `host:port`; hints only, since the key decides who answers.
    pub addresses: Vec<String>,
    /// Workers that bring others together with a coordinator that nobody reaches, each as `host:port`.
    pub rendezvous: Vec<String>,
    /// The coordinator's key.
    pub coordinator: PeerId,
    /// The right to join.
    pub secret: JoinSecret,
    /// When the right ends, in seconds since 1970 by the coordinator's clock, which decides.
    pub expires_unix: Option<u64>,
}

/// A text that is not a usable ticket.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum TicketError {
    /// It does not start as tickets do.
    #[error("not a ticket: tickets start with qmesh1")]
    NotATicket,
    /// A ticket of another version.
    #[error("the ticket is of a version or kind that this program does not know: update it")]
    Version,
    /// A character that no ticket has.
    #[error("the ticket has a character it cannot have: copy it again")]
    Character,
    /// The end is missing.
    #[error("the ticket is cut short: copy it again, to its end")]
    Truncated,
    /// The parts are there but wrong.
    #[error("the ticket's checksum is wrong: copy it again")]
    Checksum,
}

impl Ticket {
    /// Reads a ticket, even one that has expired, since the coordinator's clock decides about that. White space (as in a
    /// wrapped line), quotes around it and capital letters do not matter.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let text = pasted::unwrapped(text);
        let body = strip_prefix(&text, PREFIX).ok_or_else(|| match strip_prefix(&text, NAME) {
            Some(rest) if rest.starts_with(|c: char| c.is_ascii_digit()) => TicketError::Version,
            Some(_) | None => TicketError::NotATicket,
        })?;
        let (flags, body) = pasted::read(body, VERSION, FLAG_EXPIRES | FLAG_RENDEZVOUS, &[])?;
        // The checksum holds, so a body that does not fit was written so.
        Self::from_body(&body, flags).ok_or(TicketError::Checksum)
    }

    /// A key for `purpose` that whoever has a ticket of this mesh can make, and nobody else; a new secret makes another one.
    pub fn key_for(&self, purpose: &str) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_derive_key(purpose);
        hasher.update(&self.coordinator.0).update(&self.secret.0);
        *hasher.finalize().as_bytes()
    }

    fn from_body(mut body: &[u8], flags: u8) -> Option<Self> {
        let (mut coordinator, mut secret) = ([0; 32], [0; 16]);
        body.try_copy_to_slice(&mut coordinator).ok()?;
        body.try_copy_to_slice(&mut secret).ok()?;
        let expires_unix = if flags & FLAG_EXPIRES == 0 { None } else { Some(body.try_get_u64_le().ok()?) };
        let addresses = pasted::take_addresses(&mut body)?;
        let rendezvous = if flags & FLAG_RENDEZVOUS == 0 { Vec::new() } else { pasted::take_addresses(&mut body)? };
        body.is_empty().then_some(())?;
        Some(Self { addresses, rendezvous, coordinator: PeerId(coordinator), secret: JoinSecret(secret), expires_unix })
    }

    fn body(&self) -> Vec<u8> {
        let mut out = [&self.coordinator.0[..], &self.secret.0].concat();
        if let Some(expires_unix) = self.expires_unix {
            out.put_u64_le(expires_unix);
        }
        pasted::put_addresses(&self.addresses, &mut out);
        if !self.rendezvous.is_empty() {
            pasted::put_addresses(&self.rendezvous, &mut out);
        }
        out
    }
}

impl From<PastedError> for TicketError {
    fn from(error: PastedError) -> Self {
        match error {
            PastedError::Version => Self::Version,
            PastedError::Character => Self::Character,
            PastedError::Truncated => Self::Truncated,
            PastedError::Checksum => Self::Checksum,
        }
    }
}

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let expires = if self.expires_unix.is_some() { FLAG_EXPIRES } else { 0 };
        let rendezvous = if self.rendezvous.is_empty() { 0 } else { FLAG_RENDEZVOUS };
        let flags = expires | rendezvous;
        write!(f, "{PREFIX}{}", pasted::write(VERSION, flags, &self.body(), &[]))
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        Self::parse(text)
    }
}

/// The text with all tickets and links in it cut short, so that messages about what was typed give no right away.
pub fn without_tickets(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((at, shown)) = find_right(rest) {
        out.push_str(&rest[..at + shown]);
        out.push('…');
        rest = rest[at + shown..].trim_start_matches(|c: char| c.is_ascii_alphanumeric());
    }
    out + rest
}

/// Where something begins that looks like a ticket of any version, or a link to a shared model, and how many bytes of it say
/// nothing that must not be seen.
fn find_right(text: &str) -> Option<(usize, usize)> {
    let shown_at = |at: usize| {
        let rest = text.get(at..).and_then(|text| strip_prefix(text, NAME))?;
        let alphanumerics = |text: &str| text.bytes().take_while(u8::is_ascii_alphanumeric).count();
        match rest.as_bytes().first()? {
            b'0'..=b'9' if alphanumerics(rest) > 1 => Some(PREFIX.len()),
            b':' if alphanumerics(&rest[1..]) > share_link::HASH_CHARS => Some(share_link::SHOWN_CHARS),
            _ => None,
        }
    };
    (0..text.len()).find_map(|at| Some((at, shown_at(at)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::TICKET_ADDRESSES;

    fn ticket() -> Ticket {
        Ticket {
            addresses: vec!["192.168.1.20:7700".into(), "[fe80::1]:7700".into()],
            rendezvous: vec!["mesh.example:4434".into()],
            coordinator: PeerId(std::array::from_fn(|i| i as u8)),
            secret: JoinSecret([0xa5; 16]),
            expires_unix: Some(2_000_000_000),
        }
    }

    #[test]
    fn a_ticket_survives_its_text() {
        let many = Ticket { addresses: vec!["a".repeat(255); TICKET_ADDRESSES], ..ticket() };
        for ticket in [ticket(), Ticket { addresses: vec![], rendezvous: vec![], expires_unix: None, ..ticket() }, many]
        {
            let text = ticket.to_string();
            assert!(text.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{text}");
            assert_eq!(Ticket::parse(&text), Ok(ticket.clone()));
            assert_eq!(Ticket::parse(&format!(" {}\n{}\n", &text[..40], &text[40..])), Ok(ticket));
        }
    }

    #[test]
    fn how_it_was_pasted_does_not_matter() {
        let text = ticket().to_string();
        for pasted in [format!("\"{text}\"\n"), format!(" '{text}'"), format!("“{text}”"), text.to_uppercase()] {
            assert_eq!(Ticket::parse(&pasted), Ok(ticket()), "{pasted}");
        }
    }

    #[test]
    fn messages_give_no_ticket_away() {
        let text = ticket().to_string();
        for said in [text.clone(), text.to_uppercase(), text[..40].to_owned()] {
            let message = without_tickets(&format!("error: '{said}' and qmesh, {said}"));
            assert_eq!(message.to_lowercase(), "error: 'qmesh1…' and qmesh, qmesh1…");
        }
        assert_eq!(without_tickets("qmesh 0.1 at qmesh1, é"), "qmesh 0.1 at qmesh1, é");
        let shown = format!("qmesh:{}", "a".repeat(52));
        assert_eq!(without_tickets(&format!("{shown}bcd, {shown}: é")), format!("{shown}…, {shown}: é"));
    }

    #[test]
    fn no_character_can_change_or_be_missing() {
        let text = ticket().to_string();
        for i in 0..text.len() {
            for other in ['a', 'z', '2', '7', '1', '-', 'é'].into_iter().filter(|c| !text[i..].starts_with(*c)) {
                let changed = format!("{}{other}{}", &text[..i], &text[i + 1..]);
                assert!(Ticket::parse(&changed).is_err(), "{changed}");
            }
            let cut = Ticket::parse(&text[..i]);
            let expected = if i < PREFIX.len() { TicketError::NotATicket } else { TicketError::Truncated };
            assert_eq!(cut, Err(expected), "{i}");
        }
        assert!(Ticket::parse(&format!("{text}a")).is_err());
    }

    #[test]
    fn time_is_the_coordinators_to_judge_and_another_version_is_named() {
        let text = ticket().to_string();
        let past = Ticket { expires_unix: Some(1), ..ticket() };
        assert_eq!(Ticket::parse(&past.to_string()), Ok(past));
        assert_eq!(Ticket::parse(&text.replace("qmesh1", "qmesh2")), Err(TicketError::Version));
        let flagged = format!("{PREFIX}{}", pasted::write(VERSION, 0x80, &ticket().body(), &[]));
        assert_eq!(Ticket::parse(&flagged), Err(TicketError::Version));
        assert!(!format!("{:?}", ticket()).contains("165"), "Debug must not print the secret");
    }
}
