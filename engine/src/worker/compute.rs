//! The compute thread: owns the shard and every KV cache, takes one command after the other, says what came of it.

use std::{
    any::Any,
    collections::BTreeSet,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use qmesh_net::{Fault, FaultCode, Frame, FrameKind, OpenSession, SessionId, limits::CANDIDATES};
use tokio::sync::mpsc;

use super::{
    assignment::Assignment,
    convert,
    emulation::{Compute, Computer},
    event::Turn,
    store::Weights,
    trails::{SessionTrails, Stray},
};
use crate::{
    error::EngineError,
    shard::{Prefix, Shard},
    step::{Step, StepOutput},
};

/// What the compute thread can be asked.
#[derive(Debug)]
pub(super) enum Command {
    /// Load a shard; there is none.
    Load { turn: Turn, assignment: Arc<Assignment>, weights: Weights },
    /// Serve this turn with the shard that is there, without its sessions.
    Adopt { turn: Turn, assignment: Arc<Assignment> },
    /// Free the shard, if there is one.
    Unload { turn: Turn },
    /// Make room for a session.
    Open { turn: Turn, open: OpenSession },
    /// Free a session, if it is there.
    Close { turn: Turn, session: SessionId },
    /// Free a session, if it is there, but for its first positions.
    Keep { turn: Turn, session: SessionId, positions: usize },
    /// Compute a frame, which has waited since it `arrived`.
    Step { turn: Turn, frame: Frame, arrived: Instant },
}

/// What came of a command. `Close` and `Keep` are not answered.
#[derive(Debug)]
pub(super) enum Done {
    /// So many bytes of the weights are loaded.
    Loading { turn: Turn, bytes_done: u64, bytes_total: u64 },
    /// The shard is there; `took` is `None` where it already was.
    Loaded { turn: Turn, took: Option<Duration> },
    /// It is not.
    NotLoaded { turn: Turn, failure: Failure },
    /// No shard is there.
    Unloaded { turn: Turn },
    /// The session has its room.
    Opened { turn: Turn, session: SessionId, kv_positions_used: u32 },
    /// It has none.
    Refused { turn: Turn, session: SessionId, text: String },
    /// A frame was computed, or not.
    Stepped(Box<Stepped>),
}

/// What came of a frame.
#[derive(Debug)]
pub(super) struct Stepped {
    pub(super) turn: Turn,
    /// What goes on to the next stage.
    pub(super) frame: Option<Frame>,
    /// What failed: single sessions, or the whole.
    pub(super) faults: Vec<Fault>,
    /// Rows computed.
    pub(super) rows: u64,
    /// Time that the step took.
    pub(super) compute: Duration,
    /// Time without anything to do before it.
    pub(super) waited: Duration,
    pub(super) kv_positions_used: u32,
    /// Whether the shard survived it.
    pub(super) shard: ShardState,
}

/// Whether there still is a shard after a step.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum ShardState {
    /// There is.
    Whole,
    /// A panic left it in an unknown state: it is gone.
    Lost,
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("a bug in this program (please report it): {0}")]
    Panic(String),
    #[error("no shard is loaded")]
    NoShard,
}

/// Starts the thread, which lives as long as the sender; `done` is told what comes of each command.
pub(super) fn spawn(
    threads: usize,
    compute: Compute,
    depth: usize,
    done: mpsc::Sender<Done>,
) -> io::Result<mpsc::Sender<Command>> {
    let (sender, mut commands) = mpsc::channel(depth);
    thread::Builder::new().name("qmesh-compute".into()).spawn(move || {
        let mut desk = Desk { threads, compute, done, seat: None, waited: Duration::ZERO };
        loop {
            let since = Instant::now();
            let Some(command) = commands.blocking_recv() else { return };
            desk.waited += since.elapsed();
            let answer = desk.handle(command);
            if answer.is_some_and(|answer| desk.done.blocking_send(answer).is_err()) {
                return;
            }
        }
    })?;
    Ok(sender)
}

/// The thread's belongings.
struct Desk {
    threads: usize,
    compute: Compute,
    done: mpsc::Sender<Done>,
    seat: Option<Seat>,
    waited: Duration,
}

/// A shard at work for one turn.
struct Seat {
    turn: Turn,
    assignment: Arc<Assignment>,
    shard: Computer,
    sessions: BTreeSet<SessionId>,
    trails: SessionTrails,
}

impl Desk {
    fn handle(&mut self, command: Command) -> Option<Done> {
        match command {
            Command::Load { turn, assignment, weights } => Some(self.load(turn, assignment, &weights)),
            Command::Adopt { turn, assignment } => Some(self.adopt(turn, assignment)),
            Command::Unload { turn } => {
                self.seat = None;
                Some(Done::Unloaded { turn })
            }
            Command::Open { turn, open } => Some(self.open(turn, open)),
            Command::Close { turn, session } => {
                self.seat.as_mut().filter(|seat| seat.turn == turn)?.close(session);
                None
            }
            Command::Keep { turn, session, positions } => {
                self.seat.as_mut().filter(|seat| seat.turn == turn)?.keep(session, positions);
                None
            }
            Command::Step { turn, frame, arrived } => Some(Done::Stepped(Box::new(self.step(turn, frame, arrived)))),
        }
    }

    fn load(&mut self, turn: Turn, assignment: Arc<Assignment>, weights: &Weights) -> Done {
        let (since, bytes_total) = (Instant::now(), assignment.weight_bytes());
        let Assignment { spec, layers, kv_positions, .. } = &*assignment;
        // Progress is told best-effort: nobody waits for it, and the answer says how it ended.
        let mut told = |bytes_done| drop(self.done.blocking_send(Done::Loading { turn, bytes_done, bytes_total }));
        let load = || match self.compute {
            Compute::Real => {
                let shard = Shard::load(spec, layers.clone(), *kv_positions, self.threads, weights, &mut told)?;
                Ok(Computer::Shard(Box::new(shard)))
            }
            Compute::Emulated(emulation) => Ok(Computer::Emulated(emulation.stage(spec, layers))),
        };
        match guarded(load) {
            Ok(shard) => {
                let (sessions, trails) = (BTreeSet::new(), SessionTrails::default());
                self.seat = Some(Seat { turn, assignment, shard, sessions, trails });
                self.waited = Duration::ZERO;
                Done::Loaded { turn, took: Some(since.elapsed()) }
            }
            Err(failure) => Done::NotLoaded { turn, failure },
        }
    }

    fn adopt(&mut self, turn: Turn, assignment: Arc<Assignment>) -> Done {
        let Some(seat) = &mut self.seat else { return Done::NotLoaded { turn, failure: Failure::NoShard } };
        for session in seat.sessions.clone() {
            seat.close(session);
        }
        (seat.turn, seat.assignment) = (turn, assignment);
        self.waited = Duration::ZERO;
        Done::Loaded { turn, took: None }
    }

    fn open(&mut self, turn: Turn, open: OpenSession) -> Done {
        let session = open.session;
        let refused = |failure: Failure| Done::Refused { turn, session, text: failure.to_string() };
        let Some(seat) = self.seat.as_mut().filter(|seat| seat.turn == turn) else { return refused(Failure::NoShard) };
        let context = seat.assignment.context;
        if open.max_positions as usize > context {
            let text = format!("{} positions are more than the context of {context}", open.max_positions);
            return Done::Refused { turn, session, text };
        }
        if usize::from(open.sampling.top) > CANDIDATES {
            let text = format!("{} candidates a row are more than {CANDIDATES}", open.sampling.top);
            return Done::Refused { turn, session, text };
        }
        let (sampling, most) = (convert::sampling(open.sampling), open.max_positions as usize);
        let prefix = open.prefix.map(|p| Prefix { session: p.session.0, positions: p.positions as usize });
        match guarded(|| seat.shard.open(session.0, most, sampling, prefix)) {
            Ok(()) => {
                seat.sessions.insert(session);
                seat.trails.open(session, open.prefix);
                Done::Opened { turn, session, kv_positions_used: kv_positions_used(&seat.shard) }
            }
            Err(failure) => refused(failure),
        }
    }

    fn step(&mut self, turn: Turn, frame: Frame, arrived: Instant) -> Stepped {
        let since = Instant::now();
        let waited = std::mem::take(&mut self.waited);
        let nothing = Stepped {
            turn,
            frame: None,
            faults: Vec::new(),
            rows: 0,
            compute: Duration::ZERO,
            waited,
            kv_positions_used: 0,
            shard: ShardState::Whole,
        };
        // A frame of an earlier turn: whoever sent it has a new plan.
        let Some(seat) = self.seat.as_mut().filter(|seat| seat.turn == turn) else { return nothing };
        match guarded(|| Ok(seat.step(&frame))) {
            Ok((frame, rows, faults)) => {
                let kv_positions_used = kv_positions_used(&seat.shard);
                let compute = since.elapsed();
                let queued = since.saturating_duration_since(arrived);
                let frame = frame.map(|frame| Frame { times: frame.times.and_stage(compute, queued), ..frame });
                Stepped { frame, rows, faults, compute, kv_positions_used, ..nothing }
            }
            Err(failure) => {
                let (epoch, code, text) = (seat.assignment.epoch, FaultCode::Internal, failure.to_string());
                self.seat = None;
                Stepped { faults: vec![Fault { epoch, session: None, code, text }], shard: ShardState::Lost, ..nothing }
            }
        }
    }
}

impl Seat {
    /// Computes as much of a frame as can be: a session at fault is taken out, and the others go on.
    fn step(&mut self, frame: &Frame) -> (Option<Frame>, u64, Vec<Fault>) {
        let epoch = self.assignment.epoch;
        let fault = |(session, code), text| Fault { epoch, session, code, text };
        let mut faults = Vec::new();
        let mut step = match convert::to_step(&self.assignment, frame) {
            Ok(step) => step,
            Err(text) => return (None, 0, vec![fault((None, FaultCode::Frame), text)]),
        };
        for stray in self.trails.follow(frame) {
            faults.push(fault((Some(stray.session), FaultCode::Ids), self.disagreement(stray)));
            convert::remove(&mut step, stray.session, self.assignment.spec.hidden);
        }
        let output = loop {
            match self.compute(&step) {
                Ok(output) => break output,
                Err(error) => {
                    let (session, code) = convert::blame(&error);
                    faults.push(fault((session, code), error.to_string()));
                    let width = self.assignment.spec.hidden;
                    if session.and_then(|session| convert::remove(&mut step, session, width)).is_none() {
                        return (None, 0, faults);
                    }
                }
            }
        };
        let rows = step.ids.len() as u64;
        let out = convert::to_frame(&self.assignment, frame, step, output);
        // A hidden frame of no rows has no bytes; what it would say is in the faults.
        let sendable = out.kind == FrameKind::Sampled || rows > 0;
        (sendable.then_some(out), rows, faults)
    }

    fn disagreement(&self, Stray { session, positions }: Stray) -> String {
        let stage = self.assignment.stage.0;
        let sender = stage.checked_sub(1).map_or("the coordinator".to_owned(), |before| format!("stage {before}"));
        format!("{sender} and stage {stage} disagree about the first {positions} ids of session {session}")
    }

    fn close(&mut self, session: SessionId) {
        if !self.sessions.remove(&session) {
            return;
        }
        self.trails.close(session);
        if let Err(failure) = guarded(|| self.shard.close(session.0)) {
            tracing::error!(%session, %failure, "an open session does not close");
        }
    }

    fn keep(&mut self, session: SessionId, positions: usize) {
        if !self.sessions.contains(&session) {
            return;
        }
        self.trails.keep(session, positions);
        if let Err(failure) = guarded(|| self.shard.keep(session.0, positions)) {
            tracing::error!(%session, %failure, "an open session cannot be shortened");
        }
    }

    fn compute(&mut self, step: &Step) -> Result<StepOutput, EngineError> {
        match (step.sequences.is_empty(), self.assignment.is_last()) {
            (true, true) => Ok(StepOutput::Sampled(Vec::new())),
            (true, false) => Ok(StepOutput::Hidden(Vec::new())),
            (false, _) => self.shard.step(step),
        }
    }
}

/// Runs engine code: a panic there fails the command, not the thread.
fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Ok(result?),
        Err(panic) => Err(Failure::Panic(words(&*panic))),
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}

fn kv_positions_used(shard: &Computer) -> u32 {
    u32::try_from(shard.kv_positions_used()).unwrap_or(u32::MAX)
}
