//! A whole mesh's coordinator without its tasks and clock, for simulations: roster, openings, prober and scheduler, played
//! by the shipped conductor. Whoever simulates plays the network and the time.
//!
//! Workers are named by numbers, as the shipped tasks name connections: a worker that comes back is another number with the
//! same key.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use qmesh_models::spec::ModelSpec;
use qmesh_net::{DraftAnswer, DraftOrder, Frame, Message, PeerId, PlanEpoch, SessionId};

use super::{
    conductor::{Action, Conductor},
    config::{Formation, PrefixReuse, Speculation},
    events::MeshEvent,
    formation::{Joined, PlannedModel, WorkerId},
    scheduling::{DraftLimits, Limits},
    status::MeshStatus,
};
use crate::generate::{GenerateError, GenerateEvent, GenerateRequest};

/// The coordinator of one mesh.
#[derive(Debug)]
pub struct SimulatedCoordinator {
    conductor: Conductor,
}

/// What a simulated mesh is made of.
#[derive(Clone, Debug)]
pub struct SimulatedMesh {
    /// The model's shape, and its tensors.
    pub spec: ModelSpec,
    /// BLAKE3 of each of its tensors.
    pub hashes: Vec<[u8; 32]>,
    /// The most positions of one session.
    pub context: usize,
    /// KV positions of all sessions together.
    pub kv_positions: usize,
    /// The most rows of one step.
    pub chunk_rows: usize,
    /// Requests that may wait for room.
    pub waiting: usize,
    /// How long sequences wait for a lost pipeline to return.
    pub resume: Duration,
    /// When workers become a pipeline.
    pub formation: Formation,
    /// Whether prompts begin with what earlier ones have left on the stages.
    pub prefix_reuse: PrefixReuse,
    /// Whether tokens are drafted.
    pub speculation: Speculation,
    /// Tokens that a small model of the same vocabulary drafts at a time at most, if there is one.
    pub drafter: Option<usize>,
}

/// A worker that is let in.
#[derive(Clone, Debug)]
pub struct SimulatedJoin {
    /// The name that it would like to have.
    pub name: String,
    /// Its key.
    pub peer: PeerId,
    /// Where other workers reach it.
    pub address: SocketAddr,
    /// Memory that it offers.
    pub memory_bytes: u64,
    /// Threads that it computes with.
    pub threads: u32,
}

/// What the coordinator wants done, in order.
#[derive(Debug)]
pub enum CoordinatorOutput {
    /// Say this to a worker.
    Send {
        /// Which.
        worker: u64,
        /// What.
        message: Message,
    },
    /// Close the connection of a worker that broke the protocol.
    HangUp {
        /// Which.
        worker: u64,
        /// How it broke it.
        text: String,
    },
    /// Frames of this epoch go to this worker from now on.
    OpenFrames {
        /// Which.
        worker: u64,
        /// Of which plan.
        epoch: PlanEpoch,
    },
    /// No more frames of this epoch come.
    CloseFrames {
        /// Of which plan.
        epoch: PlanEpoch,
    },
    /// Send a frame to the first stage of its epoch, or call [`SimulatedCoordinator::frames_lost`].
    Frame(Frame),
    /// Order this of the model that drafts.
    Draft(DraftOrder),
    /// Tell whoever asked for a session.
    Tell {
        /// Whose.
        session: SessionId,
        /// What happened to it.
        event: GenerateEvent,
    },
    /// Nobody is told of this session any more.
    TellNoMore {
        /// Which.
        session: SessionId,
    },
    /// Tell whoever reads events.
    Publish(MeshEvent),
}

impl SimulatedCoordinator {
    /// A coordinator without workers.
    pub fn new(now: Instant, mesh: SimulatedMesh) -> Self {
        let SimulatedMesh { spec, hashes, context, kv_positions, chunk_rows, waiting, resume, .. } = mesh;
        let (prefix_reuse, speculation) = (mesh.prefix_reuse.of_model(&spec), mesh.speculation);
        let (vocab, hidden) = (spec.vocab, spec.hidden);
        let (name, id) = (spec.name.clone(), [7; 32]);
        let model = PlannedModel { name, id, spec, hashes, context, kv_positions, chunk_rows };
        let sessions = model.sessions_most();
        let limits = Limits {
            context,
            kv_positions,
            sessions,
            chunk_rows,
            vocab,
            hidden,
            waiting,
            resume,
            prefix_reuse,
            speculation,
            draft_model: mesh.drafter.map(|most| DraftLimits { context, vocab, most }),
        };
        Self { conductor: Conductor::new(now, model, mesh.formation, limits) }
    }

    /// What is to be done next.
    pub fn next_output(&mut self) -> Option<CoordinatorOutput> {
        Some(match self.conductor.next_action()? {
            Action::Send(worker, message) => CoordinatorOutput::Send { worker: worker.0, message },
            Action::HangUp(worker, text) => CoordinatorOutput::HangUp { worker: worker.0, text },
            // Links of the simulation need no relay.
            Action::Relay(_) => return self.next_output(),
            Action::OpenFrames(worker, epoch) => CoordinatorOutput::OpenFrames { worker: worker.0, epoch },
            Action::CloseFrames(epoch) => CoordinatorOutput::CloseFrames { epoch },
            Action::Frame(frame) => CoordinatorOutput::Frame(frame),
            Action::Draft(order) => CoordinatorOutput::Draft(order),
            Action::Tell(session, event) => CoordinatorOutput::Tell { session, event },
            Action::TellNoMore(session) => CoordinatorOutput::TellNoMore { session },
            Action::Publish(event) => CoordinatorOutput::Publish(event),
        })
    }

    /// A worker is in. Says what it is called from now on.
    pub fn joined(&mut self, now: Instant, worker: u64, join: SimulatedJoin) -> String {
        let SimulatedJoin { name, peer, address, memory_bytes, threads } = join;
        let name = self.conductor.free_name(&name);
        let joined = Joined::new(name.clone(), peer, address, memory_bytes, threads);
        self.conductor.joined(now, WorkerId(worker), joined);
        name
    }

    /// A worker is gone.
    pub fn left(&mut self, now: Instant, worker: u64, why: &str) {
        self.conductor.left(now, WorkerId(worker), why);
    }

    /// A worker says something on its control stream.
    pub fn said(&mut self, now: Instant, worker: u64, message: Message) {
        self.conductor.said(now, WorkerId(worker), message);
    }

    /// A frame came from a worker.
    pub fn sampled(&mut self, now: Instant, worker: u64, frame: &Frame) {
        self.conductor.sampled(now, WorkerId(worker), frame);
    }

    /// The model that drafts says something.
    pub fn draft_answered(&mut self, now: Instant, answer: DraftAnswer) {
        self.conductor.draft_answered(now, answer);
    }

    /// The process of the model that drafts has ended.
    pub fn draft_model_gone(&mut self) {
        self.conductor.draft_model_gone();
    }

    /// The way to the first stage of an epoch is gone.
    pub fn frames_lost(&mut self, now: Instant, epoch: PlanEpoch) {
        self.conductor.frames_lost(now, epoch);
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// What is wrong with the request, or with the time at which it comes.
    pub fn submit(&mut self, now: Instant, request: GenerateRequest) -> Result<SessionId, GenerateError> {
        self.conductor.submit(now, request)
    }

    /// Nobody listens to a session any more.
    pub fn cancel(&mut self, now: Instant, session: SessionId) {
        self.conductor.cancel(now, session);
    }

    /// A tenth of a second has passed.
    pub fn tick(&mut self, now: Instant) {
        self.conductor.tick(now);
    }

    /// Fills steps; to be called after whatever happened.
    pub fn pump(&mut self, now: Instant) {
        self.conductor.pump(now);
    }

    /// Whether nothing runs and nothing waits.
    pub fn is_idle(&self) -> bool {
        self.conductor.is_idle()
    }

    /// What the mesh says of itself.
    pub fn status(&self, now: Instant) -> MeshStatus {
        self.conductor.status(now, |_| 0.0)
    }
}
