//! What lies between this machine and others, as a peer sees it: where packets come from, whether towards others they come from
//! there too, and whether packets get in that nobody asked for.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::{interval, sleep_until};

use crate::{
    aside::{Aside, Kind, RelayTag},
    endpoint::Endpoint,
    question::{Answer, QUESTION_BYTES, canonical},
    socket::{Heard, SharedSocket},
};

/// How often something is asked.
const REPEAT: Duration = Duration::from_millis(100);
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_millis(500);
/// How a peer sees this machine.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Survey {
    /// Where packets to the peer come from.
    pub seen: SocketAddr,
    /// Where packets to the peer's second socket come from, if that one answers.
    pub seen_again: Option<SocketAddr>,
    /// Whether a packet got in from a socket that this machine had sent nothing to.
    pub unasked: bool,
}

impl Endpoint {
    /// Where packets of this endpoint come from, as the peer at this address sees it; `None` if it does not say.
    pub async fn seen_from(&self, peer: SocketAddr) -> Option<SocketAddr> {
        let mut asking = Asking::new(self, peer);
        asking.ask(peer, &[Kind::Question], |answers| answers.asked.is_some()).await;
        asking.answers.asked.map(|answer| answer.seen)
    }

    /// How the peer at this address sees this machine; `None` if it does not say. It takes a second at most.
    pub async fn survey(&self, peer: SocketAddr) -> Option<Survey> {
        let mut asking = Asking::new(self, peer);
        asking
            .ask(peer, &[Kind::Question, Kind::QuestionToOther], |answers| answers.asked.is_some() && answers.unasked)
            .await;
        let Answer { other_port, seen } = asking.answers.asked?;
        let unasked = asking.answers.unasked;
        if other_port > 0 {
            // Only now, as this opens the way for its answers.
            let other = SocketAddr::new(peer.ip(), other_port);
            asking.ask(other, &[Kind::Question], |answers| answers.again.is_some()).await;
        }
        Some(Survey { seen, seen_again: asking.answers.again.map(|answer| answer.seen), unasked })
    }
}

/// A survey that is under way.
struct Asking {
    socket: Arc<SharedSocket>,
    peer: SocketAddr,
    tag: RelayTag,
    received: Heard,
    answers: Answers,
}

#[derive(Default)]
struct Answers {
    /// Of the socket that was asked first.
    asked: Option<Answer>,
    /// Of the other one, to which nothing had been sent.
    unasked: bool,
    /// Of the other one, when it was asked.
    again: Option<Answer>,
}

impl Asking {
    fn new(endpoint: &Endpoint, peer: SocketAddr) -> Self {
        let (tag, socket) = (RelayTag::random(), Arc::clone(endpoint.socket()));
        let received = socket.hear(Kind::Answer, tag);
        Self { socket, peer: canonical(peer), tag, received, answers: Answers::default() }
    }

    /// Asks until there is enough, or for so long as answers are waited for.
    async fn ask(&mut self, whom: SocketAddr, what: &[Kind], enough: impl Fn(&Answers) -> bool) {
        let until = tokio::time::Instant::now() + PATIENCE;
        let mut repeat = interval(REPEAT);
        let payload = [0; QUESTION_BYTES];
        while !enough(&self.answers) {
            tokio::select! {
                () = sleep_until(until) => return,
                _ = repeat.tick() => {
                    for &kind in what {
                        self.socket.send_aside(whom, Aside { kind, tag: self.tag, payload: &payload });
                    }
                }
                (from, payload) = self.received.next() => {
                    if let Some(answer) = Answer::parse(&payload) {
                        self.take(canonical(whom), from, answer);
                    }
                }
            }
        }
    }

    fn take(&mut self, whom: SocketAddr, from: SocketAddr, answer: Answer) {
        if from == self.peer {
            self.answers.asked = Some(answer);
        } else if from == whom {
            self.answers.again = Some(answer);
        } else if from.ip() == self.peer.ip() && whom == self.peer {
            self.answers.unasked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admission::Admission, identity::Identity};

    #[tokio::test]
    async fn without_a_nat_all_of_it_is_seen() {
        let listen = "127.0.0.1:0".parse().unwrap();
        let [here, there] =
            [(); 2].map(|()| Endpoint::bind(listen, &Identity::ephemeral(), Admission::only([])).unwrap());
        let seen = here.local_addr();
        assert_eq!(here.seen_from(there.local_addr()).await, Some(seen));
        let survey = here.survey(there.local_addr()).await;
        assert_eq!(survey, Some(Survey { seen, seen_again: Some(seen), unasked: true }));
        let nobody = std::net::UdpSocket::bind(listen).unwrap().local_addr().unwrap();
        assert_eq!(here.survey(nobody).await, None);
    }
}
