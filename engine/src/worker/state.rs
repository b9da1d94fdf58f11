//! What a worker does and when: a state machine, `handle(now, event) -> actions`. No socket, no clock, no thread.
//!
//! Invariants:
//!
//! - at most [`SHARDS_MOST`] plans have a stage here, each with its own turn;
//! - what belongs to another turn or epoch changes no stage;
//! - a stage's tensors are fetched only when what made way for it has left the memory;
//! - `Linked` is told once per turn: when the shard is loaded, the link downstream stands, and the one from upstream came in;
//! - at most [`FRAMES_HELD`] frames of a turn are between [`Event::Frame`] and `LinkNews::Sent`.

mod event;
mod flow;
mod masks;
mod recent;
mod stage;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_models::footprint::FRAMES_HELD;
use qmesh_net::{FaultCode, LoadShard, Message, OpenSession, PeerId, PlanEpoch, ShardPhase};

pub(crate) use self::event::{Action, Departure, Event};
use self::stage::{Readiness, Stage, failed};
use super::{
    assignment::Assignment,
    compute::{Command, Done, Failure, LoadRequest, Loaded},
    links::LinkId,
    rendezvous::Errand,
    tensors::{FetchNews, FetchRequest, Holding, Offer, Origins, Scrutiny, TensorPlaces, take_over},
    turn::Turn,
};
use crate::error::EngineError;

/// Plans that a worker has stages of at a time: the one that serves, and the one that comes up beside it.
pub(crate) const SHARDS_MOST: usize = 2;

/// All that a worker knows of its coordinator, its stages and their links.
#[derive(Debug, Default)]
pub(crate) struct WorkerState {
    /// The last one given.
    turn: Turn,
    coordinator: Option<PeerId>,
    /// In the order of their turns.
    stages: Vec<Stage>,
    /// The highest epoch of this coordinator.
    newest: Option<PlanEpoch>,
    /// What was loaded for a coordinator that is gone, until the next one says what it wants.
    kept: Vec<Holding>,
    /// Turns that the compute thread was told to forget, and has not yet.
    unloading: BTreeSet<Turn>,
    /// Turns that were given up while they were loaded.
    abandoned: BTreeSet<Turn>,
    /// Whose step the compute thread was given last.
    last_fed: Turn,
    /// Links that came before their route.
    arrivals: VecDeque<Arrival>,
    leaving: bool,
    /// The plans whose tensors are offered to others, and whether all of these are at hand.
    offered: Vec<(Turn, Readiness)>,
    actions: Vec<Action>,
}

/// A link from upstream: who sends frames on it, and of which plan.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    link: LinkId,
    peer: PeerId,
    epoch: PlanEpoch,
}

impl WorkerState {
    /// Takes an event in and says what to do about it.
    pub(crate) fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Joined { coordinator } => self.coordinator = Some(coordinator),
            Event::Message(message) => self.message(message),
            Event::Lost => self.lost(),
            Event::Fetch(news) => self.fetch_news(now, news),
            Event::Done(done) => self.done(now, done),
            Event::Link(news) => self.link_news(news),
            Event::Frame { link, frame } => self.frame(now, link, frame),
            Event::Tick => self.report(),
            Event::Asked => self.leave(),
        }
        self.depart_if_idle();
        self.offer_tensors();
        std::mem::take(&mut self.actions)
    }

    fn message(&mut self, message: Message) {
        match message {
            Message::Load(load) => self.load(load),
            Message::Route(route) => self.route(route),
            Message::Open(open) => self.open(open),
            Message::Close { epoch, session } => self.of_session(epoch, |turn| Command::Close { turn, session }),
            Message::Keep { epoch, session, positions } => {
                self.of_session(epoch, |turn| Command::Keep { turn, session, positions: positions as usize });
            }
            Message::Unload { epoch } => self.unload(epoch),
            Message::Measure(measure) => self.act(Action::Measure(measure)),
            Message::Mask(mask) => self.mask(mask),
            Message::Introduce(seeker) => self.act(Action::Rendezvous(Errand::Introduce(seeker))),
            Message::Grant(grant) => self.act(Action::Rendezvous(Errand::Grant(grant))),
            Message::Revoke { epoch } => self.act(Action::Rendezvous(Errand::Revoke(epoch))),
            Message::Bye { text } => self.act(Action::Leave(Departure::Dismissed(text))),
            other @ (Message::Hello(_)
            | Message::Welcome(_)
            | Message::Reject { .. }
            | Message::ShardStatus(_)
            | Message::Linked { .. }
            | Message::Opened { .. }
            | Message::Refused { .. }
            | Message::Fault(_)
            | Message::StageReport(_)
            | Message::Measured(_)
            | Message::Moved { .. }
            | Message::Sought(_)
            | Message::Drain) => tracing::warn!(?other, "ignored a message that no worker expects"),
        }
    }

    fn fetch_news(&mut self, now: Instant, news: FetchNews) {
        match news {
            FetchNews::Progress { turn, bytes_done, bytes_total, origins } => {
                if let Some(stage) = self.in_turn(turn) {
                    stage.coming = origins;
                }
                self.progress(now, turn, Readiness::Fetching, bytes_done, bytes_total);
            }
            FetchNews::DiskFull { turn, text } | FetchNews::Source { turn, text } => self.hindered(turn, text),
            FetchNews::Fetched { turn, origins, places } => self.fetched(turn, &origins, places),
            FetchNews::Failed { turn, text } => self.fail(turn, text),
        }
    }

    fn load(&mut self, load: LoadShard) {
        let epoch = load.epoch;
        if self.newest.is_some_and(|newest| epoch <= newest) {
            if let Some(stage) = self.of_epoch(epoch).filter(|stage| stage.readiness == Readiness::Ready) {
                let ready = stage.status(ShardPhase::Ready, String::new());
                self.tell(ready);
            }
            return tracing::warn!(%epoch, "ignored a Load that is not new");
        }
        self.newest = Some(epoch);
        match Assignment::try_from(load) {
            Ok(assignment) => self.assign(Arc::new(assignment)),
            Err(error) => self.tell(failed(epoch, format!("this plan makes no sense to the worker: {error}"))),
        }
    }

    /// Begins a stage beside those that are there. It takes over the tensors that any of them has, also of those that
    /// make way for it.
    fn assign(&mut self, assignment: Arc<Assignment>) {
        let held = self.stages.iter().filter_map(|stage| stage.holding.as_ref());
        let taken_over = take_over(&assignment, self.kept.iter().chain(held));
        self.kept.clear();
        self.make_place();
        self.turn.0 += 1;
        self.stages.push(Stage::new(self.turn, assignment, taken_over));
        self.fetch_if_free();
        self.review_arrivals();
    }

    /// Forgets what has failed, and then, where there are too many, the stage that serves least: one that never came up,
    /// or the one whose last frame is longest ago.
    fn make_place(&mut self) {
        while let Some(failed) = self.stages.iter().position(|stage| stage.readiness == Readiness::Failed) {
            self.forget(failed);
        }
        while self.stages.len() >= SHARDS_MOST {
            let service = |at: &usize| {
                let stage = &self.stages[*at];
                (stage.linked_told, stage.last_frame, stage.turn)
            };
            let Some(least) = (0..self.stages.len()).min_by_key(service) else { return };
            self.forget(least);
        }
    }

    /// Ends a stage and all that it set going. Its frames go nowhere, and its links are no fault of anybody.
    fn forget(&mut self, at: usize) -> Stage {
        let stage = self.stages.remove(at);
        let turn = stage.turn;
        match stage.readiness {
            Readiness::Waiting => {}
            Readiness::Fetching => self.act(Action::StopFetch { turn }),
            Readiness::Loading => drop(self.abandoned.insert(turn)),
            Readiness::Ready | Readiness::Failed => {
                self.unloading.insert(turn);
                self.act(Action::Compute(Command::Unload { turn }));
            }
        }
        if stage.route.is_some() {
            self.act(Action::Unlink { turn });
        }
        stage
    }

    fn unload(&mut self, epoch: PlanEpoch) {
        if let Some(at) = self.stages.iter().position(|stage| stage.epoch() == epoch) {
            self.forget(at);
            self.review_arrivals();
            self.fetch_if_free();
        }
    }

    fn lost(&mut self) {
        while !self.stages.is_empty() {
            let stage = self.forget(0);
            self.kept.extend(stage.holding);
        }
        self.newest = None;
        self.coordinator = None;
        self.arrivals.clear();
        self.leaving = false;
    }

    /// Starts what waits, as soon as nothing is on its way out of the memory.
    fn fetch_if_free(&mut self) {
        if !self.unloading.is_empty() || !self.abandoned.is_empty() {
            return;
        }
        for at in 0..self.stages.len() {
            if self.stages[at].readiness == Readiness::Waiting {
                self.fetch(at);
            }
        }
    }

    fn fetch(&mut self, at: usize) {
        let others =
            self.stages.iter().enumerate().filter(|(i, stage)| *i != at && stage.readiness != Readiness::Failed);
        let beside = others.map(|(_, stage)| Arc::clone(&stage.assignment)).collect();
        let stage = &mut self.stages[at];
        stage.readiness = Readiness::Fetching;
        let (turn, scrutiny) = (stage.turn, stage.scrutiny);
        let (assignment, taken_over) = (Arc::clone(&stage.assignment), Arc::clone(&stage.taken_over));
        self.act(Action::Fetch(FetchRequest { turn, assignment, taken_over, beside, scrutiny }));
    }

    fn fetched(&mut self, turn: Turn, origins: &Origins, places: TensorPlaces) {
        let Some(stage) = self.in_turn(turn).filter(|stage| stage.readiness == Readiness::Fetching) else { return };
        stage.readiness = Readiness::Loading;
        stage.coming = Origins::default();
        stage.fetched.add(origins);
        let request = LoadRequest {
            turn,
            assignment: Arc::clone(&stage.assignment),
            places,
            taken_over: Arc::clone(&stage.taken_over),
            bytes_total: stage.own_bytes(),
            wanted: Arc::downgrade(&stage.wanted),
        };
        self.act(Action::Load(request));
    }

    fn progress(&mut self, now: Instant, turn: Turn, during: Readiness, done: u64, total: u64) {
        if let Some(status) = self.in_turn(turn).and_then(|stage| stage.progress(now, during, done, total)) {
            self.tell(status);
        }
    }

    /// It goes on: the coordinator hears why it takes so long.
    fn hindered(&mut self, turn: Turn, text: String) {
        if let Some(stage) = self.in_turn(turn).filter(|stage| stage.readiness == Readiness::Fetching) {
            let status = stage.status(ShardPhase::Fetching, text.clone());
            self.tell(status);
            self.act(Action::Say(text));
        }
    }

    fn fail(&mut self, turn: Turn, text: String) {
        if let Some(stage) = self.in_turn(turn) {
            stage.readiness = Readiness::Failed;
            stage.taken_over = Arc::default();
            let (title, status) = (stage.assignment.title(), stage.status(ShardPhase::Failed, text.clone()));
            self.tell(status);
            self.act(Action::Say(format!("cannot serve {title}: {text}")));
        }
    }

    fn done(&mut self, now: Instant, done: Done) {
        match done {
            Done::Loading { turn, bytes_done, bytes_total } => {
                self.progress(now, turn, Readiness::Loading, bytes_done, bytes_total);
            }
            Done::Loaded { turn, loaded, took } if self.abandoned.remove(&turn) => {
                tracing::debug!(?turn, ?took, "loaded what nobody wants any more");
                drop(loaded);
                self.fetch_if_free();
            }
            Done::NotLoaded { turn, .. } if self.abandoned.remove(&turn) => self.fetch_if_free(),
            Done::Loaded { turn, loaded, took } => self.loaded(turn, loaded, took),
            Done::NotLoaded { turn, failure } => self.not_loaded(turn, &failure),
            Done::Unloaded { turn } => {
                self.unloading.remove(&turn);
                self.fetch_if_free();
            }
            Done::Opened { turn, session, kv_positions_used } => {
                let Some(stage) = self.in_turn(turn) else { return };
                stage.report.kv_positions_used = kv_positions_used;
                let epoch = stage.epoch();
                self.tell(Message::Opened { epoch, session });
            }
            Done::Refused { turn, session, text } => {
                let Some(stage) = self.in_turn(turn) else { return };
                let epoch = stage.epoch();
                self.tell(Message::Refused { epoch, session, text });
            }
            Done::Stepped(stepped) => self.stepped(*stepped),
            Done::Ended => self.thread_ended(),
        }
    }

    fn not_loaded(&mut self, turn: Turn, failure: &Failure) {
        let Some(at) = self.stages.iter().position(|stage| stage.turn == turn) else { return };
        // Damage seldom comes alone: once, all of the cache's tensors are looked at, and what is wrong is fetched anew.
        let damaged = matches!(failure, Failure::Engine(EngineError::Read { .. }));
        if damaged && self.stages[at].scrutiny == Scrutiny::Lengths {
            self.stages[at].scrutiny = Scrutiny::Contents;
            return self.fetch(at);
        }
        self.fail(turn, failure.to_string());
    }

    fn loaded(&mut self, turn: Turn, loaded: Loaded, took: Duration) {
        let Some(stage) = self.in_turn(turn).filter(|stage| stage.readiness == Readiness::Loading) else { return };
        stage.readiness = Readiness::Ready;
        let Loaded { shard, tensors } = loaded;
        let assignment = Arc::clone(&stage.assignment);
        stage.holding = Some(Holding { assignment: Arc::clone(&assignment), tensors });
        let (title, status) = (assignment.title(), stage.status(ShardPhase::Ready, String::new()));
        let line = stage.loaded_line(&title, took);
        // They are in the shard now.
        stage.taken_over = Arc::default();
        self.act(Action::Compute(Command::Activate { turn, assignment, shard }));
        self.act(Action::Say(line));
        self.tell(status);
        self.tell_linked(turn);
    }

    fn open(&mut self, open: OpenSession) {
        let (epoch, session) = (open.epoch, open.session);
        match self.of_epoch(epoch) {
            Some(stage) if stage.readiness == Readiness::Ready => {
                let turn = stage.turn;
                self.command(turn, Command::Open { turn, open });
            }
            Some(_) => {
                self.tell(Message::Refused { epoch, session, text: "the shard is not loaded".into() });
            }
            None => {
                self.tell(Message::Refused { epoch, session, text: format!("plan {epoch} is not this worker's plan") });
            }
        }
    }

    fn of_session(&mut self, epoch: PlanEpoch, command: impl FnOnce(Turn) -> Command) {
        if let Some(stage) = self.of_epoch(epoch).filter(|stage| stage.readiness == Readiness::Ready) {
            let turn = stage.turn;
            self.command(turn, command(turn));
        }
    }

    /// The compute thread is gone, and every shard with it; another one takes its place.
    fn thread_ended(&mut self) {
        let text = "the compute thread ended: a bug in this program (please report it)";
        for stage in self.stages.iter_mut().filter(|stage| stage.readiness == Readiness::Ready) {
            stage.lose_shard();
            self.actions.push(stage.fault(FaultCode::Internal, text.into()));
        }
        self.act(Action::Say(text.into()));
        self.unloading.clear();
        self.fetch_if_free();
    }

    fn report(&mut self) {
        let news = self.stages.iter_mut().filter_map(Stage::news);
        self.actions.extend(news.map(Action::Tell));
    }

    fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.tell(Message::Drain);
        }
    }

    /// The running steps are finished and on their way: nothing keeps a worker that wants to leave.
    fn depart_if_idle(&mut self) {
        let idle = self.stages.iter().all(|stage| stage.frames_held() == 0);
        if self.leaving && idle && self.coordinator.take().is_some() {
            self.report();
            self.tell(Message::Bye { text: "the worker was stopped".into() });
            self.act(Action::Leave(Departure::Asked));
        }
    }

    /// Says who may ask for tensors here and which are still to come, whenever that has changed.
    fn offer_tensors(&mut self) {
        let asked = self.stages.iter().filter(|stage| !stage.assignment.askers.is_empty());
        let now: Vec<_> = asked.clone().map(|stage| (stage.turn, stage.readiness)).collect();
        if now == self.offered {
            return;
        }
        let askers = asked.clone().flat_map(|stage| stage.assignment.askers.iter().copied()).collect();
        let ways = asked.clone().flat_map(|stage| stage.assignment.asker_ways.iter().cloned()).collect();
        let coming = asked.filter(|stage| stage.is_fetching()).map(|stage| Arc::clone(&stage.assignment)).collect();
        self.offered = now;
        self.act(Action::Offer(Offer { askers, ways, coming }));
    }

    fn tell(&mut self, message: Message) {
        self.act(Action::Tell(message));
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn in_turn(&mut self, turn: Turn) -> Option<&mut Stage> {
        self.stages.iter_mut().find(|stage| stage.turn == turn)
    }

    fn of_epoch(&mut self, epoch: PlanEpoch) -> Option<&mut Stage> {
        self.stages.iter_mut().find(|stage| stage.epoch() == epoch)
    }
}

#[cfg(test)]
mod tests;
