//! What a worker does and when: a state machine, `handle(now, event) -> actions`. No socket, no clock, no thread.
//!
//! Invariants: at most one assignment is current; what belongs to another turn or epoch changes nothing but the books;
//! `Linked` is told once per turn, when the shard is loaded, the own link stands and the upstream's has arrived; at
//! most [`FRAMES_HELD`] frames are between `Frame` and `Sent`.

mod stage;

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_models::{bytes::ByteCount, footprint::FRAMES_HELD};
use qmesh_net::{
    Fault, FaultCode, Frame, FrameKind, LoadShard, Message, OpenSession, PeerId, PlanEpoch, Route, ShardPhase,
    ShardStatus, Upstream,
};

use self::stage::{Outgoing, Phase, Refetch, Stage, failed};
use super::{
    assignment::Assignment,
    compute::{Command, Done, Failure, ShardState, Stepped},
    event::{Action, Departure, Event, LinkId, Turn},
    store::Weights,
};
use crate::error::EngineError;

/// Links from upstream that may wait for their route.
const ARRIVALS_HELD: usize = 4;
/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// A worker.
#[derive(Debug, Default)]
pub(super) struct Machine {
    turn: Turn,
    coordinator: Option<PeerId>,
    stage: Option<Stage>,
    /// The highest epoch of this coordinator.
    newest: Option<PlanEpoch>,
    /// What the compute thread has loaded, or is loading.
    held: Option<Arc<Assignment>>,
    /// Frames that the compute thread has.
    computing: usize,
    arrivals: VecDeque<(LinkId, PeerId, PlanEpoch)>,
    progress_told: Option<Instant>,
    leaving: bool,
    actions: Vec<Action>,
}

impl Machine {
    /// Takes an event in and says what to do about it.
    pub(super) fn handle(&mut self, now: Instant, event: Event) -> Vec<Action> {
        match event {
            Event::Joined { coordinator } => self.coordinator = Some(coordinator),
            Event::Message(message) => self.message(message),
            Event::Lost => self.lost(),
            Event::Fetching { turn, bytes_done, bytes_total } => {
                self.progress(now, turn, Phase::Fetching, ShardPhase::Fetching, bytes_done, bytes_total);
            }
            Event::Fetched { turn, bytes, weights } => self.fetched(turn, bytes, weights),
            Event::NotFetched { turn, text } => self.fail(turn, text),
            Event::Done(done) => self.done(now, done),
            Event::Arrived { link, peer, epoch } => self.arrived(link, peer, epoch),
            Event::Frame { link, frame } => self.frame(now, link, frame),
            Event::Broken { link, text } => self.incoming_broken(link, &text),
            Event::Outgoing { turn } => self.outgoing(turn),
            Event::Sent { turn, bytes, took } => self.sent(turn, bytes, took),
            Event::OutgoingBroken { turn, text } => self.outgoing_broken(turn, text),
            Event::Tick => self.report(),
            Event::Asked => self.leave(),
        }
        self.depart_if_idle();
        std::mem::take(&mut self.actions)
    }

    /// Whether another frame may be taken in.
    pub(super) fn has_room(&self) -> bool {
        !self.leaving && self.computing + self.stage.as_ref().map_or(0, |stage| stage.sending) < FRAMES_HELD
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
            Message::Ping { stamp } => self.tell(Message::Pong { stamp }),
            Message::Bye { text } => self.act(Action::Leave(Departure::Dismissed(text))),
            Message::Pong { .. } => {}
            other @ (Message::Hello(_)
            | Message::Welcome(_)
            | Message::Reject { .. }
            | Message::ShardStatus(_)
            | Message::Linked { .. }
            | Message::Opened { .. }
            | Message::Refused { .. }
            | Message::Fault(_)
            | Message::StageReport(_)
            | Message::Drain) => tracing::warn!(?other, "ignored a message that no worker expects"),
        }
    }

    fn load(&mut self, load: LoadShard) {
        let epoch = load.epoch;
        if self.newest.is_some_and(|newest| epoch <= newest) {
            if let Some(stage) = self.stage.as_ref().filter(|s| s.assignment.epoch == epoch && s.phase == Phase::Ready)
            {
                let ready = stage.status(ShardPhase::Ready, String::new());
                self.tell(ready);
            }
            return tracing::warn!(%epoch, "ignored a Load that is not new");
        }
        self.forget_stage();
        self.newest = Some(epoch);
        self.turn.0 += 1;
        match Assignment::try_from(load) {
            Ok(assignment) => self.assign(Arc::new(assignment)),
            Err(error) => self.tell(failed(epoch, format!("this plan makes no sense to the worker: {error}"))),
        }
    }

    /// Makes `assignment` current: what the compute thread holds is taken over where it is the same shard, and dropped
    /// before anything else is fetched, so that two shards never share the memory.
    fn assign(&mut self, assignment: Arc<Assignment>) {
        let turn = self.turn;
        let same = self.held.take_if(|held| held.is_same_shard(&assignment)).is_some();
        self.held = same.then(|| Arc::clone(&assignment));
        let (phase, command) = if same {
            (Phase::Loading, Command::Adopt { turn, assignment: Arc::clone(&assignment) })
        } else {
            (Phase::Unloading, Command::Unload { turn })
        };
        self.stage = Some(Stage::new(assignment, phase));
        self.act(Action::Compute(command));
    }

    fn unload(&mut self, epoch: PlanEpoch) {
        if self.current(epoch).is_some() {
            self.forget_stage();
            self.turn.0 += 1;
            self.held = None;
            self.act(Action::Compute(Command::Unload { turn: self.turn }));
        }
    }

    fn lost(&mut self) {
        self.forget_stage();
        self.turn.0 += 1;
        self.newest = None;
        self.coordinator = None;
        self.arrivals.clear();
        self.leaving = false;
    }

    /// Ends what the current assignment set going, except in the compute thread.
    fn forget_stage(&mut self) {
        if self.stage.take().is_some() {
            self.actions.extend([Action::StopFetch, Action::Unlink]);
        }
    }

    fn fetched(&mut self, turn: Turn, bytes: u64, weights: Weights) {
        let Some(stage) = self.in_turn(turn).filter(|stage| stage.phase == Phase::Fetching) else { return };
        stage.phase = Phase::Loading;
        stage.fetched_bytes += bytes;
        let assignment = Arc::clone(&stage.assignment);
        self.held = Some(Arc::clone(&assignment));
        self.act(Action::Compute(Command::Load { turn, assignment, weights }));
    }

    fn progress(&mut self, now: Instant, turn: Turn, during: Phase, phase: ShardPhase, done: u64, total: u64) {
        let due = done >= total || self.progress_told.is_none_or(|told| now - told >= PROGRESS_INTERVAL);
        let Some(stage) = self.in_turn(turn).filter(|stage| due && stage.phase == during) else { return };
        let status = ShardStatus { bytes_done: done, bytes_total: total, ..stage.bare_status(phase) };
        self.progress_told = Some(now);
        self.tell(Message::ShardStatus(status));
    }

    fn fail(&mut self, turn: Turn, text: String) {
        if let Some(stage) = self.in_turn(turn) {
            stage.phase = Phase::Failed;
            let (title, status) = (stage.assignment.title(), stage.status(ShardPhase::Failed, text.clone()));
            self.tell(status);
            self.act(Action::Say(format!("cannot serve {title}: {text}")));
        }
    }

    fn done(&mut self, now: Instant, done: Done) {
        match done {
            Done::Loading { turn, bytes_done, bytes_total } => {
                self.progress(now, turn, Phase::Loading, ShardPhase::Loading, bytes_done, bytes_total);
            }
            Done::Loaded { turn, took } => self.loaded(turn, took),
            Done::NotLoaded { turn, failure } => self.not_loaded(turn, &failure),
            Done::Unloaded { turn } => {
                let Some(stage) = self.in_turn(turn).filter(|stage| stage.phase == Phase::Unloading) else { return };
                stage.phase = Phase::Fetching;
                let assignment = Arc::clone(&stage.assignment);
                self.act(Action::Fetch { turn, assignment });
            }
            Done::Opened { turn, session, kv_positions_used } => {
                let Some(stage) = self.in_turn(turn) else { return };
                stage.report.kv_positions_used = kv_positions_used;
                let epoch = stage.assignment.epoch;
                self.tell(Message::Opened { epoch, session });
            }
            Done::Refused { turn, session, text } => {
                let Some(stage) = self.in_turn(turn) else { return };
                let epoch = stage.assignment.epoch;
                self.tell(Message::Refused { epoch, session, text });
            }
            Done::Stepped(stepped) => self.stepped(*stepped),
        }
    }

    fn not_loaded(&mut self, turn: Turn, failure: &Failure) {
        self.held = None;
        let Some(stage) = self.in_turn(turn) else { return };
        // A damaged tensor is gone from the cache by now: once, it is worth fetching it again.
        let damaged = matches!(failure, Failure::Engine(EngineError::Read { .. }));
        if damaged && stage.refetch == Refetch::Allowed {
            (stage.phase, stage.refetch) = (Phase::Fetching, Refetch::Done);
            let assignment = Arc::clone(&stage.assignment);
            return self.act(Action::Fetch { turn, assignment });
        }
        self.fail(turn, failure.to_string());
    }

    fn loaded(&mut self, turn: Turn, took: Option<Duration>) {
        let Some(stage) = self.in_turn(turn).filter(|stage| stage.phase == Phase::Loading) else { return };
        stage.phase = Phase::Ready;
        let (title, status) = (stage.assignment.title(), stage.status(ShardPhase::Ready, String::new()));
        let line = match (took, stage.fetched_bytes) {
            (None, _) => format!("{title}: still loaded"),
            (Some(took), 0) => format!("{title}: nothing to fetch, loaded in {:.1} s", took.as_secs_f64()),
            (Some(took), bytes) => {
                format!("{title}: fetched {}, loaded in {:.1} s", ByteCount(bytes), took.as_secs_f64())
            }
        };
        self.act(Action::Say(line));
        self.tell(status);
        self.tell_linked();
    }

    fn open(&mut self, open: OpenSession) {
        let (epoch, session, turn) = (open.epoch, open.session, self.turn);
        match self.current(epoch) {
            Some(stage) if stage.phase == Phase::Ready => self.act(Action::Compute(Command::Open { turn, open })),
            Some(_) => {
                self.tell(Message::Refused { epoch, session, text: "the shard is not loaded yet".into() });
            }
            None => {
                self.tell(Message::Refused { epoch, session, text: format!("plan {epoch} is not this worker's plan") });
            }
        }
    }

    fn of_session(&mut self, epoch: PlanEpoch, command: impl FnOnce(Turn) -> Command) {
        let turn = self.turn;
        if self.current(epoch).is_some_and(|stage| stage.phase == Phase::Ready) {
            self.act(Action::Compute(command(turn)));
        }
    }

    fn route(&mut self, route: Route) {
        let (epoch, turn) = (route.epoch, self.turn);
        let Some(stage) = self.current(epoch).filter(|stage| stage.assignment.stage == route.stage) else {
            return tracing::warn!(%epoch, stage = %route.stage, "ignored a Route of another plan or stage");
        };
        if stage.route.is_some() {
            return tracing::warn!(%epoch, "ignored a second Route");
        }
        let (upstream, downstream) = (route.upstream, route.downstream.clone());
        stage.route = Some(route);
        self.act(Action::Link { turn, epoch, upstream, downstream });
        for (link, peer, epoch) in std::mem::take(&mut self.arrivals) {
            self.arrived(link, peer, epoch);
        }
    }

    /// An incoming link is read, kept for a route to come, or refused.
    fn arrived(&mut self, link: LinkId, peer: PeerId, epoch: PlanEpoch) {
        let coordinator = self.coordinator;
        let newest = self.newest;
        if let Some(stage) = self.stage.as_mut().filter(|stage| stage.assignment.epoch == epoch)
            && let Some(route) = &stage.route
        {
            let expected = match route.upstream {
                Upstream::Coordinator => coordinator,
                Upstream::Worker(peer) => Some(peer),
            };
            // Frames have come on the link that stands: a second one could only repeat or reorder them.
            if expected != Some(peer) || stage.last_step.is_some() {
                return self.act(Action::Refuse(link));
            }
            stage.incoming = Some(link);
            self.act(Action::Read(link));
            return self.tell_linked();
        }
        if newest.is_some_and(|newest| epoch < newest) {
            return self.act(Action::Refuse(link));
        }
        self.arrivals.push_back((link, peer, epoch));
        if self.arrivals.len() > ARRIVALS_HELD
            && let Some((oldest, ..)) = self.arrivals.pop_front()
        {
            self.act(Action::Refuse(oldest));
        }
    }

    fn outgoing(&mut self, turn: Turn) {
        if let Some(stage) = self.in_turn(turn) {
            stage.outgoing = Outgoing::Standing;
            self.tell_linked();
        }
    }

    fn tell_linked(&mut self) {
        let Some(stage) = self.stage.as_mut() else { return };
        let stands = stage.outgoing == Outgoing::Standing && stage.incoming.is_some();
        if stands && stage.phase == Phase::Ready && !stage.linked_told {
            stage.linked_told = true;
            let (epoch, index, stages) = (stage.assignment.epoch, stage.assignment.stage, stage.assignment.stages);
            self.tell(Message::Linked { epoch });
            self.act(Action::Say(format!("ready as stage {index} of {stages}")));
        }
    }

    fn frame(&mut self, now: Instant, link: LinkId, frame: Frame) {
        let turn = self.turn;
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.incoming == Some(link)) else { return };
        let current = stage.assignment.epoch;
        if frame.kind == FrameKind::End || frame.epoch < current {
            return;
        }
        let wrong = if frame.epoch > current {
            Some(format!("frame of plan {} on a link of plan {current}", frame.epoch))
        } else if stage.last_step.is_some_and(|last| frame.step <= last) {
            Some(format!("frame {} after frame {}", frame.step, stage.last_step.unwrap_or_default()))
        } else if stage.phase != Phase::Ready || stage.outgoing != Outgoing::Standing {
            Some(format!("frame {} before the stage was ready", frame.step))
        } else {
            None
        };
        if let Some(text) = wrong {
            return self.fault(FaultCode::Frame, text);
        }
        stage.last_step = Some(frame.step);
        self.computing += 1;
        self.act(Action::Compute(Command::Step { turn, frame, arrived: now }));
    }

    fn stepped(&mut self, stepped: Stepped) {
        let Stepped { turn, frame, faults, rows, compute, waited, kv_positions_used, shard } = stepped;
        self.computing = self.computing.saturating_sub(1);
        if shard == ShardState::Lost {
            self.held = None;
        }
        let Some(stage) = self.in_turn(turn) else { return };
        if shard == ShardState::Lost {
            stage.phase = Phase::Failed;
        }
        stage.report.steps += 1;
        stage.report.rows += rows;
        stage.report.compute_us += micros(compute);
        stage.report.wait_us += micros(waited);
        stage.report.kv_positions_used = kv_positions_used;
        let frame = frame.filter(|_| stage.outgoing == Outgoing::Standing);
        stage.sending += usize::from(frame.is_some());
        self.actions.extend(faults.into_iter().map(|fault| Action::Tell(Message::Fault(fault))));
        self.actions.extend(frame.map(Action::Send));
    }

    fn sent(&mut self, turn: Turn, bytes: u64, took: Duration) {
        if let Some(stage) = self.in_turn(turn) {
            stage.sending = stage.sending.saturating_sub(1);
            stage.report.bytes_sent += bytes;
            stage.report.hop_us += micros(took);
        }
    }

    fn incoming_broken(&mut self, link: LinkId, text: &str) {
        self.arrivals.retain(|&(waiting, ..)| waiting != link);
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.incoming == Some(link)) else { return };
        stage.incoming = None;
        // Before the pipeline stands, the upstream dials again by itself.
        if stage.linked_told {
            self.fault(FaultCode::Link, format!("the link from upstream broke: {text}"));
        }
    }

    fn outgoing_broken(&mut self, turn: Turn, text: String) {
        if let Some(stage) = self.in_turn(turn) {
            stage.outgoing = Outgoing::Broken;
            stage.sending = 0;
            self.fault(FaultCode::Link, format!("the link downstream broke: {text}"));
        }
    }

    fn report(&mut self) {
        let Some(stage) = self.stage.as_mut().filter(|stage| stage.report.steps > stage.reported_steps) else { return };
        stage.reported_steps = stage.report.steps;
        let report = stage.report;
        self.tell(Message::StageReport(report));
    }

    fn leave(&mut self) {
        if !self.leaving {
            self.leaving = true;
            self.tell(Message::Drain);
        }
    }

    /// The running step is finished and on its way: nothing keeps a worker that wants to leave.
    fn depart_if_idle(&mut self) {
        let idle = self.computing == 0 && self.stage.as_ref().is_none_or(|stage| stage.sending == 0);
        if self.leaving && idle && self.coordinator.take().is_some() {
            self.report();
            self.tell(Message::Bye { text: "the worker was stopped".into() });
            self.act(Action::Leave(Departure::Asked));
        }
    }

    /// A fault of the whole stage.
    fn fault(&mut self, code: FaultCode, text: String) {
        if let Some(stage) = &self.stage {
            let epoch = stage.assignment.epoch;
            self.tell(Message::Fault(Fault { epoch, session: None, code, text }));
        }
    }

    fn tell(&mut self, message: Message) {
        self.act(Action::Tell(message));
    }

    fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    fn in_turn(&mut self, turn: Turn) -> Option<&mut Stage> {
        self.stage.as_mut().filter(|_| self.turn == turn)
    }

    fn current(&mut self, epoch: PlanEpoch) -> Option<&mut Stage> {
        self.stage.as_mut().filter(|stage| stage.assignment.epoch == epoch)
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
