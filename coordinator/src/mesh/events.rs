//! What happens in the mesh, as it happens: typed events on a bus that the mesh's thread publishes to, and that the
//! terminal, the API and tests read. What the mesh *is* at a time is in [`status`](super::status).
//!
//! The bus is bounded and waits for nobody: a reader that stays behind loses the oldest events and is told how many.

use std::{fmt, sync::Arc};

use qmesh_models::bytes::ByteCount;
use serde::Serialize;
use tokio::sync::broadcast::{self, error::RecvError};

use super::status::{MeshState, StagePhase};

/// Something that happened. As JSON an event is an object of its fields; its [name](MeshEvent::name) stands beside it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
#[serde(untagged)]
pub enum MeshEvent {
    /// A worker has joined.
    WorkerJoined {
        /// Its name in the mesh.
        worker: String,
        /// Where it is connected from.
        address: String,
        /// Memory that it offers.
        memory_bytes: u64,
        /// Threads that it computes with.
        threads: u32,
    },
    /// A worker without a ticket asks to join, and waits until somebody decides.
    WorkerAsks {
        /// The name that it has chosen, as anybody can.
        worker: String,
        /// The code that its screen shows if nobody stands between.
        code: String,
        /// Where it is connected from.
        address: String,
        /// Whether somebody else is known by this name, or asks by it.
        namesake: bool,
    },
    /// A worker has gone.
    WorkerLeft {
        /// Its name in the mesh.
        worker: String,
        /// Why, as far as the coordinator knows.
        reason: String,
    },
    /// A worker is at another address.
    WorkerMoved {
        /// Its name in the mesh.
        worker: String,
        /// Where it is connected from now.
        address: String,
    },
    /// A worker has taken longer than it should for some seconds: something else computes there, or it has become too hot.
    WorkerSlow {
        /// Its name in the mesh.
        worker: String,
        /// Its stage, from 0.
        stage: usize,
        /// How many times as long as by its own measurement its steps may take at most.
        times: f64,
    },
    /// The mesh is in another state, serves under another plan, or has something else to say of the state it is in.
    PhaseChanged {
        /// Whether tokens can flow.
        state: MeshState,
        /// Of the plan that serves or is loaded, 0 before the first one.
        epoch: u32,
        /// One sentence for people.
        text: String,
    },
    /// A plan was made: its stages begin to load.
    PlanMade {
        /// The plan's.
        epoch: u32,
        /// What it was made for.
        why: PlanReason,
        /// Its stages in order.
        stages: Vec<PlannedStage>,
    },
    /// A plan is going to take the place of the one that serves.
    ChangeAnnounced {
        /// Of the plan to come.
        epoch: u32,
        /// How it comes about, in one sentence for people.
        text: String,
    },
    /// A stage is further with fetching or loading its layers.
    LoadProgress {
        /// The plan's.
        epoch: u32,
        /// From 0.
        stage: usize,
        /// The worker that holds the stage.
        worker: String,
        /// What it is doing.
        phase: StagePhase,
        /// Bytes fetched or loaded of this phase.
        bytes_done: u64,
        /// Bytes that this phase has to do.
        bytes_total: u64,
    },
    /// A request was taken.
    RequestStarted {
        /// Counted from 1 for as long as the mesh runs.
        request: u64,
        /// Of its prompt.
        prompt_tokens: usize,
        /// The most that it may generate.
        max_tokens: usize,
        /// The name of the key by which it was asked for, where keys have names.
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<String>,
    },
    /// A request is over.
    RequestEnded {
        /// As in `RequestStarted`.
        request: u64,
        /// How.
        end: RequestEnd,
    },
    /// How fast tokens came during the last second or so; all zero once after the last of them.
    TokenRates {
        /// Tokens of prompts that are done, per second.
        prompt_per_s: f64,
        /// Generated tokens per second.
        generated_per_s: f64,
        /// Requests being computed.
        running: usize,
        /// Requests that wait for room.
        waiting: usize,
    },
    /// A worker reported that something failed, or broke the protocol.
    FaultSeen {
        /// Its name in the mesh.
        worker: String,
        /// What it said, or did.
        text: String,
    },
}

/// What a plan was made for.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanReason {
    /// It is the first one.
    First,
    /// It is better than the one that serves, which goes on until this one is ready.
    Better,
    /// Nothing serves: the plan before was given up.
    Lost,
}

impl PlanReason {
    fn sentence(self) -> &'static str {
        match self {
            Self::First => "it is the first",
            Self::Better => "it is better than the one that serves",
            Self::Lost => "a worker was lost",
        }
    }
}

/// One stage of a plan.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct PlannedStage {
    /// The worker that is to hold it.
    pub worker: String,
    /// First layer.
    pub first_layer: usize,
    /// One past the last layer.
    pub end_layer: usize,
}

impl fmt::Display for PlannedStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}–{}", self.worker, self.first_layer, self.end_layer.saturating_sub(1))
    }
}

/// How a request ended.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RequestEnd {
    /// It came to its end.
    Finished {
        /// Of its prompt.
        prompt_tokens: usize,
        /// Tokens generated, an end-of-generation token included.
        generated_tokens: usize,
    },
    /// It did not.
    Failed {
        /// Why.
        text: String,
    },
    /// Nobody listened any more.
    Cancelled,
}

impl MeshEvent {
    /// The event's kind in snake case: the name of a server-sent event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::WorkerJoined { .. } => "worker_joined",
            Self::WorkerAsks { .. } => "worker_asks",
            Self::WorkerLeft { .. } => "worker_left",
            Self::WorkerMoved { .. } => "worker_moved",
            Self::WorkerSlow { .. } => "worker_slow",
            Self::PhaseChanged { .. } => "phase_changed",
            Self::PlanMade { .. } => "plan_made",
            Self::ChangeAnnounced { .. } => "change_announced",
            Self::LoadProgress { .. } => "load_progress",
            Self::RequestStarted { .. } => "request_started",
            Self::RequestEnded { .. } => "request_ended",
            Self::TokenRates { .. } => "token_rates",
            Self::FaultSeen { .. } => "fault_seen",
        }
    }

    /// What happened, for people; `None` where numbers tell more than words.
    pub fn sentence(&self) -> Option<String> {
        let sentence = match self {
            Self::WorkerJoined { worker, address, memory_bytes, threads } => {
                let memory = ByteCount(*memory_bytes);
                format!("{worker} has joined from {address}: {memory}, {threads} threads.")
            }
            Self::WorkerAsks { worker, code, address, namesake: false } => {
                format!("{worker} at {address} asks to join, with the code {code}.")
            }
            Self::WorkerAsks { worker, code, address, namesake: true } => format!(
                "Somebody at {address} asks to join as {worker}, with the code {code}: another worker has that name."
            ),
            Self::WorkerLeft { worker, reason } => format!("{worker} has gone: {reason}."),
            Self::WorkerMoved { worker, address } => format!("{worker} is at another address now: {address}."),
            Self::WorkerSlow { worker, times, .. } => {
                format!("{worker} takes {times:.1} times as long as it measured: does something else compute there?")
            }
            Self::PhaseChanged { state, text, .. } => format!("The mesh is {}: {text}.", state.name()),
            Self::PlanMade { epoch, why, stages } => {
                let stages: Vec<String> = stages.iter().map(PlannedStage::to_string).collect();
                format!("Plan {epoch} was made, as {}: {}.", why.sentence(), stages.join(", "))
            }
            Self::ChangeAnnounced { epoch, text } => format!("Plan {epoch} will take over: {text}."),
            Self::FaultSeen { worker, text } => format!("{worker}: {text}."),
            Self::RequestEnded { request, end: RequestEnd::Failed { text } } => {
                format!("Request {request} failed: {text}.")
            }
            Self::LoadProgress { .. }
            | Self::RequestStarted { .. }
            | Self::RequestEnded { end: RequestEnd::Finished { .. } | RequestEnd::Cancelled, .. }
            | Self::TokenRates { .. } => return None,
        };
        Some(sentence)
    }
}

/// An event as readers of the API get it: its fields, and the sentence that people read, where there is one.
#[derive(Debug, Serialize)]
pub(crate) struct ToldEvent<'a> {
    #[serde(flatten)]
    event: &'a MeshEvent,
    #[serde(skip_serializing_if = "Option::is_none")]
    sentence: Option<String>,
}

impl<'a> From<&'a MeshEvent> for ToldEvent<'a> {
    fn from(event: &'a MeshEvent) -> Self {
        Self { event, sentence: event.sentence() }
    }
}

/// Where events are published. Readers learn of its end.
#[derive(Debug)]
pub(crate) struct EventBus {
    sender: broadcast::Sender<Arc<MeshEvent>>,
}

/// Where readers of a bus come from; it does not keep the bus alive.
#[derive(Clone, Debug)]
pub(crate) struct EventSource {
    sender: broadcast::WeakSender<Arc<MeshEvent>>,
}

/// Reads what happens, from the time at which it was made.
#[derive(Debug)]
pub struct EventReader {
    /// None where the mesh was over already.
    receiver: Option<broadcast::Receiver<Arc<MeshEvent>>>,
}

/// What a reader hears.
#[derive(Clone, Debug, PartialEq)]
pub enum Heard {
    /// The next event.
    Event(Arc<MeshEvent>),
    /// So many events were lost, as they were not read in time; what comes next is the oldest one that is left.
    Lost(u64),
}

impl EventBus {
    pub(crate) fn new() -> Self {
        Self { sender: broadcast::Sender::new(EVENTS_KEPT) }
    }

    /// Tells every reader; nobody need read.
    pub(crate) fn publish(&self, event: MeshEvent) {
        if self.sender.receiver_count() > 0 {
            // The last reader may have gone just now.
            drop(self.sender.send(Arc::new(event)));
        }
    }

    pub(crate) fn source(&self) -> EventSource {
        EventSource { sender: self.sender.downgrade() }
    }
}

impl EventSource {
    pub(crate) fn subscribe(&self) -> EventReader {
        EventReader { receiver: self.sender.upgrade().map(|sender| sender.subscribe()) }
    }
}

impl EventReader {
    /// The next event, or how many were lost before it; `None` once the mesh is over.
    pub async fn next(&mut self) -> Option<Heard> {
        match self.receiver.as_mut()?.recv().await {
            Ok(event) => Some(Heard::Event(event)),
            Err(RecvError::Lagged(lost)) => Some(Heard::Lost(lost)),
            Err(RecvError::Closed) => None,
        }
    }
}

/// Events that a reader may be behind by: some seconds of a busy mesh.
const EVENTS_KEPT: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(number: usize) -> MeshEvent {
        MeshEvent::FaultSeen { worker: "a".to_owned(), text: number.to_string() }
    }

    #[tokio::test]
    async fn a_reader_hears_what_happens_from_now_on_until_the_end() {
        let bus = EventBus::new();
        bus.publish(fault(0));
        let source = bus.source();
        let mut reader = source.subscribe();
        bus.publish(fault(1));
        assert_eq!(reader.next().await, Some(Heard::Event(Arc::new(fault(1)))));
        drop(bus);
        assert_eq!(reader.next().await, None);
        assert_eq!(source.subscribe().next().await, None);
    }

    #[tokio::test]
    async fn a_reader_that_stays_behind_is_told_how_much_it_lost() {
        let bus = EventBus::new();
        let mut reader = bus.source().subscribe();
        (0..EVENTS_KEPT + 5).for_each(|number| bus.publish(fault(number)));
        assert_eq!(reader.next().await, Some(Heard::Lost(5)));
        assert_eq!(reader.next().await, Some(Heard::Event(Arc::new(fault(5)))));
    }

    #[test]
    fn an_event_is_an_object_of_its_fields() {
        let ended = MeshEvent::RequestEnded { request: 7, end: RequestEnd::Failed { text: "lost".to_owned() } };
        let json = serde_json::to_string(&ended).unwrap();
        assert_eq!(
            (ended.name(), json.as_str()),
            ("request_ended", r#"{"request":7,"end":{"failed":{"text":"lost"}}}"#)
        );
        let told = serde_json::to_string(&ToldEvent::from(&ended)).unwrap();
        let sentence = r#","sentence":"Request 7 failed: lost."}"#;
        assert_eq!(told, format!("{}{sentence}", json.strip_suffix('}').unwrap()));
        let cancelled = MeshEvent::RequestEnded { request: 8, end: RequestEnd::Cancelled };
        assert_eq!(serde_json::to_string(&ToldEvent::from(&cancelled)).unwrap(), r#"{"request":8,"end":"cancelled"}"#);
    }
}
