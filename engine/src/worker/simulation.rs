//! A whole worker without its threads, tasks and clock, for simulations: the state machine that decides, and the shards that
//! carry out what it decides. Whoever simulates plays the network and the time, and gives a backend that is cheap.
//!
//! What comes in and goes out are the types of `qmesh_net`, times and numbers: a stage's turn, and the number that whoever
//! simulates gives an incoming link. Nothing here decides: [`SimulatedWorker::handle`] is the shipped state machine, and
//! [`SimulatedWorker::compute`] is what the shipped compute thread does with a command.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_net::{Downstream, Frame, Message, PeerId, PlanEpoch, Route, Upstream};

use super::{
    compute::{Command, Done, LoadRequest, Shards},
    links::{LinkId, LinkNews},
    state::{Action, Departure, Event, WorkerState},
    tensors::{FetchNews, FetchRequest, Origins, TensorPlaces, needed_together},
    turn::Turn,
};
use crate::backend::Backend;

/// A worker, from the first time it joins a mesh until its process ends.
pub struct SimulatedWorker {
    state: WorkerState,
    backend: Arc<dyn Backend>,
    shards: Shards,
    /// What the compute thread is still to do, in order.
    commands: VecDeque<Command>,
    /// What came of the command that it is at.
    done: Option<Done>,
    /// What is being loaded.
    loads: BTreeMap<u64, LoadRequest>,
}

/// What happens to a worker.
#[derive(Debug)]
pub enum WorkerInput {
    /// A coordinator let it in.
    Joined {
        /// The coordinator's key.
        coordinator: PeerId,
    },
    /// The coordinator said something.
    Message(Message),
    /// The connection to the coordinator is gone, and with it all links and fetches.
    Lost,
    /// A fetch goes on: the coordinator may have to hear that it does.
    Fetching {
        /// Of which turn.
        turn: u64,
        /// Bytes at hand.
        bytes_done: u64,
        /// Bytes wanted.
        bytes_total: u64,
    },
    /// A turn's tensors are at hand.
    Fetched {
        /// Of which turn.
        turn: u64,
        /// Bytes that came over the network.
        bytes: u64,
    },
    /// They are not.
    NotFetched {
        /// Of which turn.
        turn: u64,
        /// Why.
        text: String,
    },
    /// Somebody opened a link to this worker.
    LinkArrived {
        /// Its number from now on.
        link: u64,
        /// Who.
        peer: PeerId,
        /// For frames of which plan.
        epoch: PlanEpoch,
    },
    /// An incoming link broke.
    UpstreamBroken {
        /// Which.
        link: u64,
        /// Why.
        text: String,
    },
    /// The link that [`WorkerOutput::Link`] asked for stands.
    DownstreamStands {
        /// Of which turn.
        turn: u64,
    },
    /// It broke, or did not come about.
    DownstreamBroken {
        /// Of which turn.
        turn: u64,
        /// Why.
        text: String,
    },
    /// A frame is in the send buffer.
    Sent {
        /// Of which turn.
        turn: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// A frame came in.
    Frame {
        /// On which link.
        link: u64,
        /// The frame.
        frame: Frame,
    },
    /// A second has passed.
    Tick,
    /// Its user wants it to leave.
    Asked,
}

/// What a worker wants done, in order.
#[derive(Debug)]
pub enum WorkerOutput {
    /// Tell the coordinator.
    Tell(Message),
    /// Get a turn's tensors, if the memory allows it.
    Fetch {
        /// Of which turn.
        turn: u64,
        /// Bytes that the worker's process takes with this shard and those that stay beside it.
        needed_bytes: u64,
        /// Bytes of tensors that no other shard has.
        bytes: u64,
    },
    /// Stop getting them.
    StopFetch {
        /// Of which turn.
        turn: u64,
    },
    /// Load a shard: call [`SimulatedWorker::load`] when that is done.
    Load {
        /// Of which turn.
        turn: u64,
        /// Bytes to be read.
        bytes: u64,
    },
    /// Let the upstream in, and make the link downstream.
    Link {
        /// Of which turn.
        turn: u64,
        /// Of which plan.
        epoch: PlanEpoch,
        /// Who sends.
        upstream: Upstream,
        /// Who receives.
        downstream: Downstream,
    },
    /// End both links of a turn in order.
    Unlink {
        /// Of which turn.
        turn: u64,
    },
    /// Read a turn's frames from this link, and from no other.
    Read {
        /// Of which turn.
        turn: u64,
        /// From which link.
        link: u64,
    },
    /// Drop this incoming link.
    Refuse {
        /// Which.
        link: u64,
    },
    /// Send a frame downstream.
    Send {
        /// Of which turn.
        turn: u64,
        /// The frame.
        frame: Frame,
    },
    /// One line for the person at the worker.
    Say(String),
    /// Leave the coordinator, for this reason.
    Leave(String),
}

impl SimulatedWorker {
    /// A worker that has not joined yet.
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        let (state, shards) = (WorkerState::default(), Shards::default());
        let (commands, done, loads) = (VecDeque::new(), None, BTreeMap::new());
        Self { state, backend, shards, commands, done, loads }
    }

    /// Takes in what happened, and says what is to be done about it.
    pub fn handle(&mut self, now: Instant, input: WorkerInput) -> Vec<WorkerOutput> {
        let lost = matches!(input, WorkerInput::Lost);
        let outputs = self.event(now, event(input));
        // Who has no coordinator has nobody to tell, and no links: only the shards go on.
        if lost { Vec::new() } else { outputs }
    }

    /// Loads what [`WorkerOutput::Load`] asked for; it `took` so long.
    pub fn load(&mut self, now: Instant, turn: u64, took: Duration) -> Vec<WorkerOutput> {
        let Some(request) = self.loads.remove(&turn) else { return Vec::new() };
        let mut heard = Vec::new();
        let mut answer = request.run(&*self.backend, &mut |progress| heard.push(progress));
        if let Done::Loaded { took: measured, .. } = &mut answer {
            *measured = took;
        }
        heard.into_iter().chain([answer]).flat_map(|done| self.event(now, Event::Done(done))).collect()
    }

    /// Rows of the command that is next for the compute thread, 0 for one without rows; `None` where nothing is to be done,
    /// or where it is at a command already.
    pub fn next_rows(&self) -> Option<usize> {
        let next = self.commands.front().filter(|_| self.done.is_none())?;
        Some(if let Command::Step { frame, .. } = next { frame.rows() } else { 0 })
    }

    /// Begins the next command, which takes so long; before it there was nothing to do for the time `waited`. Whether
    /// [`SimulatedWorker::computed`] is to be called when the time is over: some commands are not answered.
    pub fn compute(&mut self, now: Instant, took: Duration, waited: Duration) -> bool {
        let Some(command) = self.commands.pop_front() else { return false };
        self.shards.waited(waited);
        let mut times = [now, now + took].into_iter();
        self.done = self.shards.handle(command, &mut || times.next().unwrap_or(now + took));
        self.done.is_some()
    }

    /// The command that was begun is done.
    pub fn computed(&mut self, now: Instant) -> Vec<WorkerOutput> {
        let done = self.done.take();
        done.map(|done| self.event(now, Event::Done(done))).unwrap_or_default()
    }

    /// Whether another frame of this turn may be taken in.
    pub fn has_room(&self, turn: u64) -> bool {
        self.state.has_room(Turn(turn))
    }

    /// Frames taken in whose results have not left, and commands that wait.
    pub fn held(&self) -> usize {
        self.state.frames_held() + self.state.queued() + self.commands.len() + self.loads.len()
    }

    fn event(&mut self, now: Instant, event: Event) -> Vec<WorkerOutput> {
        let actions = self.state.handle(now, event);
        actions.into_iter().filter_map(|action| self.output(action)).collect()
    }

    fn output(&mut self, action: Action) -> Option<WorkerOutput> {
        Some(match action {
            Action::Tell(message) => WorkerOutput::Tell(message),
            Action::Fetch(request) => self.fetch(&request),
            Action::StopFetch { turn } => WorkerOutput::StopFetch { turn: turn.0 },
            // Tensors cost nothing here, so nobody asks another worker for them.
            Action::Offer(_) => return None,
            Action::Load(request) => {
                let (turn, bytes) = (request.turn.0, request.bytes_total);
                self.loads.insert(turn, request);
                WorkerOutput::Load { turn, bytes }
            }
            Action::Compute(command) => {
                self.commands.push_back(command);
                return None;
            }
            Action::Link { turn, route: Route { epoch, upstream, downstream, .. }, .. } => {
                WorkerOutput::Link { turn: turn.0, epoch, upstream, downstream }
            }
            Action::Unlink { turn } => WorkerOutput::Unlink { turn: turn.0 },
            Action::Read { turn, link } => WorkerOutput::Read { turn: turn.0, link: link.0 },
            Action::Refuse(link) => WorkerOutput::Refuse { link: link.0 },
            Action::Send { turn, frame } => WorkerOutput::Send { turn: turn.0, frame },
            // Nobody asks: speeds have no meaning where time is only played.
            Action::Measure(_) | Action::Rendezvous(_) => return None,
            Action::Say(line) => WorkerOutput::Say(line),
            Action::Leave(Departure::Asked) => WorkerOutput::Leave("its user wants it to".to_owned()),
            Action::Leave(Departure::Dismissed(text)) => WorkerOutput::Leave(text),
        })
    }

    fn fetch(&self, request: &FetchRequest) -> WorkerOutput {
        let FetchRequest { turn, assignment, taken_over, beside, .. } = request;
        let beside = beside.iter().map(|other| &**other);
        let needed_bytes = needed_together(assignment, beside, self.backend.threads().get()).0;
        let tensors = assignment.spec.tensors.iter();
        let bytes = tensors.filter(|tensor| !taken_over.contains_key(&tensor.role)).map(|tensor| tensor.bytes).sum();
        WorkerOutput::Fetch { turn: turn.0, needed_bytes, bytes }
    }
}

impl fmt::Debug for SimulatedWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimulatedWorker").field("state", &self.state).finish_non_exhaustive()
    }
}

fn event(input: WorkerInput) -> Event {
    let link = LinkId;
    match input {
        WorkerInput::Joined { coordinator } => Event::Joined { coordinator },
        WorkerInput::Message(message) => Event::Message(message),
        WorkerInput::Lost => Event::Lost,
        WorkerInput::Fetching { turn, bytes_done, bytes_total } => {
            let origins = Origins::coordinator(bytes_done);
            Event::Fetch(FetchNews::Progress { turn: Turn(turn), bytes_done, bytes_total, origins })
        }
        WorkerInput::Fetched { turn, bytes } => {
            let (origins, places) = (Origins::coordinator(bytes), TensorPlaces::default());
            Event::Fetch(FetchNews::Fetched { turn: Turn(turn), origins, places })
        }
        WorkerInput::NotFetched { turn, text } => Event::Fetch(FetchNews::Failed { turn: Turn(turn), text }),
        WorkerInput::LinkArrived { link: number, peer, epoch } => {
            Event::Link(LinkNews::Arrived { link: link(number), peer, epoch })
        }
        WorkerInput::UpstreamBroken { link: number, text } => {
            Event::Link(LinkNews::UpstreamBroken { link: link(number), text })
        }
        WorkerInput::DownstreamStands { turn } => {
            Event::Link(LinkNews::DownstreamStands { turn: Turn(turn), way: None })
        }
        WorkerInput::DownstreamBroken { turn, text } => {
            Event::Link(LinkNews::DownstreamBroken { turn: Turn(turn), text })
        }
        WorkerInput::Sent { turn, bytes } => {
            Event::Link(LinkNews::Sent { turn: Turn(turn), bytes, took: Duration::ZERO })
        }
        WorkerInput::Frame { link: number, frame } => Event::Frame { link: link(number), frame },
        WorkerInput::Tick => Event::Tick,
        WorkerInput::Asked => Event::Asked,
    }
}
