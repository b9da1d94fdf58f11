//! The lobby: workers without a ticket that wait until somebody decides. A state machine without IO or clock.
//!
//! Strangers cost little: so many wait, each for so long, and whoever asks again and again is told to come back later.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use qmesh_net::{JoinCode, Origin, PeerId, limits::ASKING_TIME};

use super::formation::WorkerId;

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct Lobby {
    waiting: BTreeMap<WorkerId, Waiting>,
    /// Who came lately, and when, the oldest first.
    lately: VecDeque<(Instant, Origin)>,
}

/// A worker that asks to be let in.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Newcomer {
    /// The name that it would like; anybody can choose any.
    pub(crate) name: String,
    pub(crate) peer: PeerId,
    /// What its screen shows.
    pub(crate) code: JoinCode,
    pub(crate) address: SocketAddr,
}

#[derive(Debug)]
struct Waiting {
    newcomer: Newcomer,
    since: Instant,
}

/// Why a worker cannot even wait.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TurnedAway {
    /// All places are taken, or all of its address.
    Crowd,
    /// Too many came lately, from its address or in all.
    TooOften,
}

impl TurnedAway {
    /// For the person at the worker.
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Crowd => "too many workers ask to be let in: try again later",
            Self::TooOften => "workers have asked to be let in too often: try again in some minutes",
        }
    }
}

impl Lobby {
    /// A worker asks. One that asks with the same key already gives way to it, and is returned.
    ///
    /// # Errors
    /// There is no place for it.
    pub(crate) fn enter(
        &mut self,
        now: Instant,
        worker: WorkerId,
        newcomer: Newcomer,
    ) -> Result<Option<WorkerId>, TurnedAway> {
        let origin = Origin::of(newcomer.address.ip());
        self.lately.retain(|(at, _)| now.saturating_duration_since(*at) < LATELY);
        let before = self.waiting.iter().find(|(_, other)| other.newcomer.peer == newcomer.peer).map(|(id, _)| *id);
        let others = self.waiting.iter().filter(|(id, _)| Some(**id) != before);
        let same = others.clone().filter(|(_, other)| Origin::of(other.newcomer.address.ip()) == origin).count();
        if others.count() >= PLACES || same >= PLACES_OF_ADDRESS {
            return Err(TurnedAway::Crowd);
        }
        let often = self.lately.iter().filter(|(_, other)| *other == origin).count();
        if often >= LATELY_OF_ADDRESS || self.lately.len() >= LATELY_MOST {
            return Err(TurnedAway::TooOften);
        }
        self.lately.push_back((now, origin));
        if let Some(before) = before {
            self.waiting.remove(&before);
        }
        self.waiting.insert(worker, Waiting { newcomer, since: now });
        Ok(before)
    }

    /// It waits no more.
    pub(crate) fn leave(&mut self, worker: WorkerId) {
        self.waiting.remove(&worker);
    }

    /// Who has waited for too long, and does so no more.
    pub(crate) fn late(&mut self, now: Instant) -> Vec<WorkerId> {
        let is_late = |waiting: &Waiting| now.saturating_duration_since(waiting.since) >= ASKING_TIME;
        let late: Vec<_> = self.waiting.iter().filter(|(_, waiting)| is_late(waiting)).map(|(id, _)| *id).collect();
        late.iter().for_each(|id| self.leave(*id));
        late
    }

    /// All that wait, in the order of their coming.
    pub(crate) fn newcomers(&self) -> impl Iterator<Item = (WorkerId, &Newcomer)> {
        self.waiting.iter().map(|(id, waiting)| (*id, &waiting.newcomer))
    }
}

/// Workers that may wait: more than anybody could tell apart.
const PLACES: usize = 32;
/// Of one address.
const PLACES_OF_ADDRESS: usize = 4;
/// What counts as lately.
const LATELY: Duration = Duration::from_secs(300);
/// How often workers of one address may ask in this time.
const LATELY_OF_ADDRESS: usize = 10;
/// How often all together may: each is a line on the terminal.
const LATELY_MOST: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn newcomer(key: u8, address: [u8; 4]) -> Newcomer {
        let peer = PeerId([key; 32]);
        Newcomer {
            name: "attic".into(),
            peer,
            code: JoinCode::of(&[key; 32], peer, peer),
            address: (address, 7).into(),
        }
    }

    #[test]
    fn one_address_has_only_so_many_places_and_so_many_tries() {
        let (mut lobby, now) = (Lobby::default(), Instant::now());
        let mut next = 0;
        let mut enter = |lobby: &mut Lobby, at, key, address| {
            next += 1;
            lobby.enter(at, WorkerId(next), newcomer(key, address))
        };
        let crowd = [192, 0, 2, 1];
        for key in 0..PLACES_OF_ADDRESS as u8 {
            assert_eq!(enter(&mut lobby, now, key, crowd), Ok(None));
        }
        assert_eq!(enter(&mut lobby, now, 100, crowd), Err(TurnedAway::Crowd));
        assert_eq!(enter(&mut lobby, now, 101, [192, 0, 2, 2]), Ok(None));
        // The same key again takes the place that it has.
        assert_eq!(enter(&mut lobby, now, 0, crowd), Ok(Some(WorkerId(1))));
        for _ in PLACES_OF_ADDRESS + 1..LATELY_OF_ADDRESS {
            assert!(enter(&mut lobby, now, 0, crowd).is_ok());
        }
        assert_eq!(enter(&mut lobby, now, 0, crowd), Err(TurnedAway::TooOften));
        assert_eq!(enter(&mut lobby, now, 102, [192, 0, 2, 2]), Ok(None), "others may still ask");
        assert!(enter(&mut lobby, now + LATELY, 0, crowd).is_ok());
    }

    #[test]
    fn all_together_have_only_so_many_places_and_tries() {
        let (mut lobby, now) = (Lobby::default(), Instant::now());
        let address = |i: usize| [10, 0, 0, i as u8];
        for i in 0..PLACES {
            assert_eq!(lobby.enter(now, WorkerId(i as u64), newcomer(i as u8, address(i))), Ok(None));
        }
        assert_eq!(lobby.enter(now, WorkerId(99), newcomer(99, address(99))), Err(TurnedAway::Crowd));
        (0..PLACES).for_each(|i| lobby.leave(WorkerId(i as u64)));
        for i in PLACES..LATELY_MOST {
            assert!(lobby.enter(now, WorkerId(i as u64), newcomer(i as u8, address(i))).is_ok());
            lobby.leave(WorkerId(i as u64));
        }
        assert_eq!(lobby.enter(now, WorkerId(99), newcomer(99, address(99))), Err(TurnedAway::TooOften));
        assert_eq!(lobby.newcomers().count(), 0);
    }

    #[test]
    fn nobody_waits_for_ever() {
        let (mut lobby, now) = (Lobby::default(), Instant::now());
        lobby.enter(now, WorkerId(1), newcomer(1, [10, 0, 0, 1])).unwrap();
        let later = now + ASKING_TIME / 2;
        lobby.enter(later, WorkerId(2), newcomer(2, [10, 0, 0, 2])).unwrap();
        assert_eq!(lobby.late(later), []);
        assert_eq!(lobby.late(now + ASKING_TIME), [WorkerId(1)]);
        assert_eq!(lobby.newcomers().map(|(id, _)| id).collect::<Vec<_>>(), [WorkerId(2)]);
    }
}
