//! The compute thread: owns every shard and KV cache, takes one command after the other, says what came of it.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
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
    emulation::Computer,
    event::Turn,
    trails::{SessionTrails, Stray},
};
use crate::{
    error::EngineError,
    shard::{PackedTensors, Prefix},
    step::{Step, StepOutput},
};

/// What the compute thread can be asked. What is for a turn that has no shard changes nothing.
#[derive(Debug)]
pub(super) enum Command {
    /// Compute this turn's steps with a shard.
    Seat { turn: Turn, assignment: Arc<Assignment>, computer: Computer },
    /// Free the turn's shard and its sessions, if there are any.
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

/// What came of it, here or where shards are loaded. `Seat`, `Close` and `Keep` are not answered.
#[derive(Debug)]
pub(super) enum Done {
    /// So many of the bytes that no other shard had are loaded.
    Loading { turn: Turn, bytes_done: u64, bytes_total: u64 },
    /// The shard is there.
    Loaded { turn: Turn, loaded: Loaded, took: Duration },
    /// It is not.
    NotLoaded { turn: Turn, failure: Failure },
    /// No shard of this turn is there.
    Unloaded { turn: Turn },
    /// The session has its room.
    Opened { turn: Turn, session: SessionId, kv_positions_used: u32 },
    /// It has none.
    Refused { turn: Turn, session: SessionId, text: String },
    /// A frame was computed, or not.
    Stepped(Box<Stepped>),
    /// The compute thread ended, and another one, without any shard, has taken its place.
    Ended,
}

/// A shard that was loaded.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) computer: Computer,
    /// What it holds.
    pub(super) tensors: PackedTensors,
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
    #[error("cannot start the thread that loads it: {0}")]
    Thread(String),
}

/// Starts the thread, which lives as long as the sender; the receiver is told what comes of each command, and ends when the
/// thread does. So many of each may wait.
pub(super) fn spawn(depth: usize) -> io::Result<(mpsc::Sender<Command>, mpsc::Receiver<Done>)> {
    let ((sender, mut commands), (done, answers)) = (mpsc::channel(depth), mpsc::channel(depth));
    thread::Builder::new().name("qmesh-compute".into()).spawn(move || {
        let mut desk = Desk { seats: BTreeMap::new(), waited: Duration::ZERO };
        loop {
            let since = Instant::now();
            let Some(command) = commands.blocking_recv() else { return };
            desk.waited += since.elapsed();
            let answer = desk.handle(command);
            if answer.is_some_and(|answer| done.blocking_send(answer).is_err()) {
                return;
            }
        }
    })?;
    Ok((sender, answers))
}

/// The thread's belongings.
struct Desk {
    seats: BTreeMap<Turn, Seat>,
    waited: Duration,
}

/// A shard at work for one turn.
struct Seat {
    assignment: Arc<Assignment>,
    shard: Computer,
    sessions: BTreeSet<SessionId>,
    trails: SessionTrails,
}

impl Desk {
    fn handle(&mut self, command: Command) -> Option<Done> {
        match command {
            Command::Seat { turn, assignment, computer } => {
                let (sessions, trails) = (BTreeSet::new(), SessionTrails::default());
                self.seats.insert(turn, Seat { assignment, shard: computer, sessions, trails });
                self.waited = Duration::ZERO;
                None
            }
            Command::Unload { turn } => {
                self.seats.remove(&turn);
                Some(Done::Unloaded { turn })
            }
            Command::Open { turn, open } => Some(self.open(turn, open)),
            Command::Close { turn, session } => {
                self.seats.get_mut(&turn)?.close(session);
                None
            }
            Command::Keep { turn, session, positions } => {
                self.seats.get_mut(&turn)?.keep(session, positions);
                None
            }
            Command::Step { turn, frame, arrived } => Some(Done::Stepped(Box::new(self.step(turn, frame, arrived)))),
        }
    }

    fn open(&mut self, turn: Turn, open: OpenSession) -> Done {
        let session = open.session;
        let refused = |failure: Failure| Done::Refused { turn, session, text: failure.to_string() };
        let Some(seat) = self.seats.get_mut(&turn) else { return refused(Failure::NoShard) };
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
        // A frame of a turn that is over: whoever sent it has a new plan.
        let Some(seat) = self.seats.get_mut(&turn) else { return nothing };
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
                self.seats.remove(&turn);
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
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Failure> {
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
