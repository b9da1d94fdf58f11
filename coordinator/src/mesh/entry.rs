//! Who comes in without a ticket, and who must go: the lobby and the book of keys, played together.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use qmesh_net::{KnownPeers, PeerId, RejectCode, Strangers};
use tokio::{sync::oneshot, task::spawn_blocking};

use super::{
    events::MeshEvent,
    formation::WorkerId,
    lobby::{Lobby, Newcomer},
    members::{Members, Standing},
    status::AskingStatus,
};

/// The lobby, the book, and what those that wait are told.
#[derive(Debug)]
pub(crate) struct Entry {
    lobby: Lobby,
    verdicts: BTreeMap<WorkerId, oneshot::Sender<Verdict>>,
    members: Members,
    /// What the gate goes by.
    known: KnownPeers,
    strangers: Strangers,
    /// When the book was last looked at, and when it was last written down who was here.
    looked: Instant,
    kept: Instant,
}

/// What becomes of a worker that asks.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// It may join.
    Admitted,
    /// It may not.
    Refused {
        /// Whether it may ask again.
        code: RejectCode,
        /// For the person there.
        text: &'static str,
    },
}

impl Entry {
    /// An empty lobby, before a gate that goes by the book.
    pub(crate) fn new(now: Instant, members: Members, known: KnownPeers, strangers: Strangers) -> Self {
        let (lobby, verdicts) = (Lobby::default(), BTreeMap::new());
        let mut entry = Self { lobby, verdicts, members, known, strangers, looked: now, kept: now };
        entry.heed();
        entry
    }

    /// A worker asks. What happened, if it may wait; `is_here` says whether another one has a name.
    pub(crate) fn asks(
        &mut self,
        now: Instant,
        worker: WorkerId,
        newcomer: Newcomer,
        verdict: oneshot::Sender<Verdict>,
        is_here: impl Fn(&str) -> bool,
    ) -> Option<MeshEvent> {
        let before = match self.lobby.enter(now, worker, newcomer.clone()) {
            Ok(before) => before,
            Err(turned_away) => {
                let refused = Verdict::Refused { code: RejectCode::Full, text: turned_away.text() };
                // It may be gone already; so everywhere here.
                drop(verdict.send(refused));
                return None;
            }
        };
        if let Some(before) = before {
            self.tell(before, Verdict::Refused { code: RejectCode::Full, text: ASKS_ANEW });
        }
        self.verdicts.insert(worker, verdict);
        let status = self.status_of(&newcomer, &is_here);
        let AskingStatus { name, code, address, namesake } = status;
        Some(MeshEvent::WorkerAsks { worker: name, code, address, namesake })
    }

    /// It waits no more.
    pub(crate) fn gave_up(&mut self, worker: WorkerId) {
        self.lobby.leave(worker);
        self.verdicts.remove(&worker);
    }

    /// Somebody does not want it; whether it waited.
    pub(crate) fn refuse(&mut self, worker: WorkerId) -> bool {
        let waits = self.verdicts.contains_key(&worker);
        self.tell(worker, Verdict::Refused { code: RejectCode::Secret, text: REFUSED });
        waits
    }

    /// Goes by the book as it is now: who waits and stands in it comes in, or must go.
    pub(crate) fn heed(&mut self) {
        let book = self.members.book();
        self.known.judge(book.keys(Standing::Admitted), book.keys(Standing::Revoked));
        let decided: Vec<_> =
            self.lobby.newcomers().filter_map(|(id, n)| Some((id, book.get(n.peer)?.standing))).collect();
        for (worker, standing) in decided {
            let verdict = match standing {
                Standing::Admitted => Verdict::Admitted,
                Standing::Revoked => Verdict::Refused { code: RejectCode::Secret, text: REVOKED },
            };
            self.tell(worker, verdict);
        }
    }

    /// Time passes; whether the book was changed elsewhere, and is heeded now.
    pub(crate) fn tick(&mut self, now: Instant) -> bool {
        for worker in self.lobby.late(now) {
            self.tell(worker, Verdict::Refused { code: RejectCode::Full, text: UNDECIDED });
        }
        if now.saturating_duration_since(self.kept) >= KEEPING {
            self.kept = now;
            let members = self.members.clone();
            drop(spawn_blocking(move || keep_seen(&members)));
        }
        if now.saturating_duration_since(self.looked) < LOOKING {
            return false;
        }
        self.looked = now;
        let changed = self.members.refresh().inspect_err(|error| tracing::error!("{error}")).unwrap_or(false);
        if changed {
            self.heed();
        }
        changed
    }

    /// A worker is here, or was until now.
    pub(crate) fn saw(&self, peer: PeerId) {
        self.members.saw(peer);
    }

    /// Whether this key must go.
    pub(crate) fn is_revoked(&self, peer: PeerId) -> bool {
        self.members.book().get(peer).is_some_and(|member| member.standing == Standing::Revoked)
    }

    /// Whether workers without a ticket may ask.
    pub(crate) fn is_open(&self) -> bool {
        self.strangers == Strangers::MayAsk
    }

    /// Who waits.
    pub(crate) fn newcomers(&self) -> Vec<(WorkerId, Newcomer)> {
        self.lobby.newcomers().map(|(id, newcomer)| (id, newcomer.clone())).collect()
    }

    /// Who waits, for people.
    pub(crate) fn status(&self, is_here: impl Fn(&str) -> bool) -> Vec<AskingStatus> {
        self.lobby.newcomers().map(|(_, newcomer)| self.status_of(newcomer, &is_here)).collect()
    }

    /// Writes down who was here, once all is over.
    pub(crate) async fn end(&mut self) {
        let members = self.members.clone();
        self.verdicts.clear();
        // A panic in there is its own report.
        drop(spawn_blocking(move || keep_seen(&members)).await);
    }

    fn status_of(&self, newcomer: &Newcomer, is_here: &impl Fn(&str) -> bool) -> AskingStatus {
        let Newcomer { name, peer, code, address } = newcomer;
        let others = self.lobby.newcomers().any(|(_, other)| other.name == *name && other.peer != *peer);
        let known = self.members.book().members().any(|(other, member)| member.name == *name && other != *peer);
        AskingStatus {
            name: name.clone(),
            code: code.to_string(),
            address: address.to_string(),
            namesake: others || known || is_here(name),
        }
    }

    fn tell(&mut self, worker: WorkerId, verdict: Verdict) {
        self.lobby.leave(worker);
        if let Some(listener) = self.verdicts.remove(&worker) {
            drop(listener.send(verdict));
        }
    }
}

fn keep_seen(members: &Members) {
    if let Err(error) = members.keep_seen() {
        tracing::warn!("cannot write down which workers were here: {error}");
    }
}

const REFUSED: &str = "whoever runs the coordinator does not want this worker";
pub(crate) const REVOKED: &str = "whoever runs the coordinator has revoked the key of this worker";
const UNDECIDED: &str = "nobody has decided whether this worker may join";
const ASKS_ANEW: &str = "the same worker asks anew";
/// How often the book is looked at, which other coordinators may have changed.
const LOOKING: Duration = Duration::from_secs(1);
/// How often it is written down who was here.
const KEEPING: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use qmesh_net::{Acquaintance, JoinCode, limits::ASKING_TIME};

    use super::*;

    const NOBODY: fn(&str) -> bool = |_| false;

    struct Scene {
        entry: Entry,
        known: KnownPeers,
        members: Members,
        now: Instant,
    }

    impl Scene {
        fn new(members: Members) -> Self {
            let (known, now) = (KnownPeers::default(), Instant::now());
            let entry = Entry::new(now, members.clone(), known.clone(), Strangers::MayAsk);
            Self { entry, known, members, now }
        }

        fn asks(&mut self, worker: u64, key: u8, name: &str) -> (Option<MeshEvent>, oneshot::Receiver<Verdict>) {
            let (peer, (verdict, told)) = (PeerId([key; 32]), oneshot::channel());
            let code = JoinCode::of(&[worker as u8; 32], peer, peer);
            let newcomer = Newcomer { name: name.to_owned(), peer, code, address: ([10, 0, 0, key], 7).into() };
            (self.entry.asks(self.now, WorkerId(worker), newcomer, verdict, NOBODY), told)
        }
    }

    #[test]
    fn who_is_admitted_comes_in_and_nobody_else() {
        let mut scene = Scene::new(Members::for_now());
        let (event, mut attic) = scene.asks(1, 1, "attic");
        let (_, mut other) = scene.asks(2, 2, "cellar");
        let Some(MeshEvent::WorkerAsks { worker, namesake: false, .. }) = event else { panic!("{event:?}") };
        assert_eq!(worker, "attic");
        scene.entry.heed();
        assert!(attic.try_recv().is_err(), "nobody has decided");
        scene.members.change(|book| book.admit(PeerId([1; 32]), "attic", 1)).unwrap();
        scene.entry.heed();
        assert_eq!(attic.try_recv(), Ok(Verdict::Admitted));
        assert!(other.try_recv().is_err());
        assert_eq!(scene.known.acquaintance(PeerId([1; 32])), Acquaintance::Known);
        assert_eq!(scene.entry.status(NOBODY).len(), 1);
        assert!(scene.entry.refuse(WorkerId(2)) && !scene.entry.refuse(WorkerId(2)));
        assert!(matches!(other.try_recv(), Ok(Verdict::Refused { code: RejectCode::Secret, .. })));
        assert_eq!(scene.known.acquaintance(PeerId([2; 32])), Acquaintance::Stranger);
    }

    #[test]
    fn a_name_that_somebody_has_is_told_from_his() {
        let mut scene = Scene::new(Members::for_now());
        scene.members.change(|book| book.admit(PeerId([9; 32]), "attic", 1)).unwrap();
        let (event, _told) = scene.asks(1, 1, "attic");
        assert!(matches!(event, Some(MeshEvent::WorkerAsks { namesake: true, .. })), "{event:?}");
        let (_, _one) = scene.asks(2, 2, "cellar");
        let (_, _two) = scene.asks(3, 3, "cellar");
        assert!(scene.entry.status(NOBODY).iter().all(|asking| asking.namesake));
        scene.entry.gave_up(WorkerId(2));
        let cellar = |scene: &Scene, is_here: fn(&str) -> bool| {
            scene.entry.status(is_here).iter().find(|asking| asking.name == "cellar").map(|asking| asking.namesake)
        };
        assert_eq!((cellar(&scene, NOBODY), cellar(&scene, |name| name == "cellar")), (Some(false), Some(true)));
    }

    #[tokio::test]
    async fn who_waits_too_long_may_ask_again_and_who_asks_anew_takes_his_own_place() {
        let mut scene = Scene::new(Members::for_now());
        let (_, mut first) = scene.asks(1, 1, "attic");
        let (_, mut second) = scene.asks(2, 1, "attic");
        let again = Ok(Verdict::Refused { code: RejectCode::Full, text: ASKS_ANEW });
        assert_eq!((first.try_recv(), scene.entry.newcomers().len()), (again, 1));
        scene.entry.tick(scene.now + ASKING_TIME);
        assert_eq!(second.try_recv(), Ok(Verdict::Refused { code: RejectCode::Full, text: UNDECIDED }));
        assert!(scene.entry.newcomers().is_empty());
    }

    #[tokio::test]
    async fn what_another_coordinator_decides_holds_here_too() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = Members::open(folder.path()).unwrap();
        let mut scene = Scene::new(Members::open(folder.path()).unwrap());
        let (_, mut attic) = scene.asks(1, 1, "attic");
        elsewhere.change(|book| book.revoke(PeerId([1; 32]), "attic", 1)).unwrap();
        assert!(!scene.entry.tick(scene.now));
        assert!(scene.entry.tick(scene.now + LOOKING));
        assert_eq!(attic.try_recv(), Ok(Verdict::Refused { code: RejectCode::Secret, text: REVOKED }));
        assert!(scene.entry.is_revoked(PeerId([1; 32])));
        let keys = HashSet::from([PeerId([1; 32])]);
        assert_eq!(scene.members.book().keys(Standing::Revoked), keys);
    }
}
