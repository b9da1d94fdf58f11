//! Questions from where they come, and answers: every endpoint has a second socket for them, whose packets come from a port that
//! the other side has sent nothing to.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::UdpSocket, task::AbortHandle};

use crate::aside::{Aside, Kind, RelayTag};

/// Least bytes of a question's payload. No answer is longer, so that nobody can have more sent than they send.
pub(crate) const QUESTION_BYTES: usize = 64;
/// Questions that a socket answers in a second.
const ANSWERS_PER_SECOND: u32 = 100;
/// Longest packet that the second socket reads.
const PACKET_BYTES: usize = 256;

/// An answer: where the question came from, and the port of the answering endpoint's second socket.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Answer {
    pub(crate) other_port: u16,
    pub(crate) seen: SocketAddr,
}

/// The second socket of an endpoint.
#[derive(Debug)]
pub(crate) struct Second {
    socket: Arc<UdpSocket>,
    port: u16,
    answering: AbortHandle,
}

/// So many answers a second, whoever asks.
#[derive(Debug, Default)]
pub(crate) struct Budget(Option<(Instant, u32)>);

impl Answer {
    pub(crate) fn bytes(self) -> Vec<u8> {
        [&self.other_port.to_le_bytes()[..], self.seen.to_string().as_bytes()].concat()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let (port, seen) = bytes.split_first_chunk()?;
        Some(Self { other_port: u16::from_le_bytes(*port), seen: std::str::from_utf8(seen).ok()?.parse().ok()? })
    }
}

impl Second {
    /// A socket beside the one at `first`. Call it inside a tokio runtime.
    pub(crate) fn bind(first: SocketAddr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind(SocketAddr::new(first.ip(), 0))?;
        socket.set_nonblocking(true)?;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let port = socket.local_addr()?.port();
        let answering = tokio::spawn(answer(Arc::clone(&socket))).abort_handle();
        Ok(Self { socket, port, answering })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Answers from this socket what the first one was asked.
    pub(crate) fn answer(&self, to: SocketAddr, tag: RelayTag) {
        let payload = Answer { other_port: 0, seen: canonical(to) }.bytes();
        let packet = Aside { kind: Kind::Answer, tag, payload: &payload }.bytes();
        // It may get lost on its way as well: whoever needs it asks again.
        let _ = self.socket.try_send_to(&packet, to);
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

impl Budget {
    /// Whether one more may be answered.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        match &mut self.0 {
            Some((since, count)) if now.saturating_duration_since(*since) < Duration::from_secs(1) => {
                *count += 1;
                *count <= ANSWERS_PER_SECOND
            }
            window => {
                *window = Some((now, 1));
                true
            }
        }
    }
}

/// The same address, without the form that sockets of both families give those of IPv4.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Answers questions on the second socket.
async fn answer(socket: Arc<UdpSocket>) {
    let (mut buffer, mut budget) = ([0; PACKET_BYTES], Budget::default());
    loop {
        // Errors are those of packets that were sent.
        let Ok((bytes, from)) = socket.recv_from(&mut buffer).await else { continue };
        let Some(Aside { kind: Kind::Question, tag, payload }) = Aside::parse(&buffer[..bytes]) else { continue };
        if payload.len() >= QUESTION_BYTES && budget.spend(Instant::now()) {
            let payload = Answer { other_port: 0, seen: canonical(from) }.bytes();
            let _ = socket.try_send_to(&Aside { kind: Kind::Answer, tag, payload: &payload }.bytes(), from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_survives_and_is_no_longer_than_a_question() {
        let longest = "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535".parse().unwrap();
        let answer = Answer { other_port: 258, seen: longest };
        let bytes = answer.bytes();
        assert_eq!((Answer::parse(&bytes), bytes[..2].to_vec()), (Some(answer), vec![2, 1]));
        assert!(bytes.len() <= QUESTION_BYTES);
        for cut in 0..bytes.len() {
            assert_ne!(Answer::parse(&bytes[..cut]), Some(answer));
        }
    }

    #[test]
    fn only_so_many_are_answered_in_a_second() {
        let (mut budget, start) = (Budget::default(), Instant::now());
        let answered = (0..1000).filter(|_| budget.spend(start)).count();
        assert_eq!(answered, ANSWERS_PER_SECOND as usize);
        assert!(budget.spend(start + Duration::from_secs(1)));
    }
}
