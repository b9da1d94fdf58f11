//! The record: under which key it lies, and its bytes, which say nothing to who has no ticket.

use qmesh_net::Ticket;
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};

use crate::names::is_dialable;

/// Where a ticket's record lies on the DHT, and what it is signed and encrypted with.
pub(super) struct RecordKeys {
    seed: [u8; 32],
    sealing: [u8; 32],
}

impl RecordKeys {
    pub(super) fn of(ticket: &Ticket) -> Self {
        Self { seed: ticket.key_for("qmesh dht signing v1"), sealing: ticket.key_for("qmesh dht sealing v1") }
    }

    /// Of the record by which workers ask the ticket's coordinator to send to them; the last one that asked has it.
    pub(super) fn of_seekers(ticket: &Ticket) -> Self {
        Self {
            seed: ticket.key_for("qmesh dht seekers signing v1"),
            sealing: ticket.key_for("qmesh dht seekers sealing v1"),
        }
    }

    /// Of the key that signs it (Ed25519). It has nothing to do with the coordinator's own.
    pub(super) fn seed(&self) -> &[u8; 32] {
        &self.seed
    }

    /// What it is found by.
    pub(super) fn public_key(&self) -> [u8; 32] {
        let pair = Ed25519KeyPair::from_seed_unchecked(&self.seed).expect("32 bytes are a seed");
        pair.public_key().as_ref().try_into().expect("an Ed25519 key has 32 bytes")
    }

    /// The record with this number: a nonce, and lines of addresses, filled up so that their length says nothing.
    pub(super) fn seal(&self, number: i64, addresses: &[String]) -> Vec<u8> {
        let mut text = Vec::with_capacity(TEXT_BYTES);
        for address in addresses {
            if text.len() + address.len() < TEXT_BYTES {
                text.extend_from_slice(address.as_bytes());
                text.push(b'\n');
            }
        }
        text.resize(TEXT_BYTES, b'\n');
        // A number is used once with a key, but for clocks that go back: the nonce is random beside it.
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).expect("the system has random numbers, which keys were made of");
        self.key()
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(number.to_le_bytes()), &mut text)
            .expect("some hundred bytes are not too long");
        [&nonce[..], &text].concat()
    }

    /// The addresses that a record with this number says; `None` if it was not sealed by this ticket.
    pub(super) fn open(&self, number: i64, value: &[u8]) -> Option<Vec<String>> {
        let lines = self.lines(number, value)?;
        Some(lines.into_iter().filter(|line| is_dialable(line)).take(crate::addresses::ADDRESSES).collect())
    }

    /// The lines of a record with this number.
    pub(super) fn lines(&self, number: i64, value: &[u8]) -> Option<Vec<String>> {
        let (nonce, sealed) = value.split_first_chunk::<NONCE_LEN>()?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let text = self.key().open_in_place(nonce, Aad::from(number.to_le_bytes()), &mut sealed).ok()?;
        let lines = std::str::from_utf8(text).ok()?.split('\n').filter(|line| !line.is_empty());
        Some(lines.map(str::to_owned).collect())
    }

    fn key(&self) -> LessSafeKey {
        LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, &self.sealing).expect("the key has 32 bytes"))
    }
}

/// Bytes of addresses. With nonce and tag a record has 540: nodes take no more than 1,000 (BEP 44).
const TEXT_BYTES: usize = 512;

#[cfg(test)]
mod tests {
    use qmesh_net::{JoinSecret, PeerId};

    use super::*;

    fn ticket() -> Ticket {
        let (coordinator, secret) = (PeerId([7; 32]), JoinSecret::random());
        Ticket { addresses: vec![], rendezvous: vec![], coordinator, secret, expires_unix: None }
    }

    #[test]
    fn who_has_the_ticket_reads_it_and_nobody_else_or_later() {
        let (place, other) = (RecordKeys::of(&ticket()), RecordKeys::of(&ticket()));
        assert_ne!(place.public_key(), other.public_key());
        let addresses = ["192.168.1.2:4433".to_owned(), "[fd00::1]:4433".to_owned(), "mesh.example:1".to_owned()];
        let sealed = place.seal(9, &addresses);
        assert_eq!(place.open(9, &sealed), Some(addresses.to_vec()));
        assert_eq!((place.open(10, &sealed), other.open(9, &sealed)), (None, None), "another number, another ticket");
        assert_ne!(place.seal(9, &addresses), sealed, "nothing can be told from two alike");
        for byte in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[byte] ^= 1;
            assert_eq!(place.open(9, &changed), None, "byte {byte}");
            assert_eq!(place.open(9, &sealed[..byte]), None, "{byte} bytes");
        }
    }

    #[test]
    fn it_fits_and_its_length_says_nothing() {
        let place = RecordKeys::of(&ticket());
        let long: Vec<String> = (1..9).map(|n| format!("{}.{}:{n}", "a".repeat(50), "b".repeat(49))).collect();
        let (much, little) = (place.seal(1, &long), place.seal(1, &[]));
        assert_eq!((much.len(), little.len()), (540, 540));
        assert_eq!((place.open(1, &much).unwrap(), place.open(1, &little).unwrap()), (long[..4].to_vec(), vec![]));
    }

    #[test]
    fn what_is_no_address_is_left_out() {
        let place = RecordKeys::of(&ticket());
        let sealed = place.seal(1, &["\u{1b}[31m:1".to_owned(), "no port".to_owned(), "a:1".to_owned()]);
        assert_eq!(place.open(1, &sealed), Some(vec!["a:1".to_owned()]));
    }
}
