//! What the mesh says of itself: the one source of `/health`, `/ready`, `/api/status` and the tables after a run. What
//! *happens* in it is in [`events`](super::events).

use qmesh_net::{FoundBy, WayFound};
use serde::{Deserialize, Serialize};

use crate::plan::{Speed, prediction::Prediction};

/// A snapshot of the mesh.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct MeshStatus {
    /// The model's name.
    pub model: String,
    /// Whether tokens can flow.
    pub state: MeshState,
    /// One sentence for people: what it waits for, or what is wrong.
    pub text: String,
    /// The plan's epoch, 0 before the first plan.
    pub epoch: u32,
    /// The most positions a session may hold.
    pub context: usize,
    /// KV positions of all sessions together, and how many are promised.
    pub kv_positions: usize,
    /// See `kv_positions`.
    pub kv_positions_used: usize,
    /// The stages in order; empty without a plan.
    pub stages: Vec<StageStatus>,
    /// Every worker that is connected.
    pub workers: Vec<WorkerStatus>,
    /// Whether workers without a ticket may ask to join.
    #[serde(default)]
    pub open: bool,
    /// Those that do, and wait.
    #[serde(default)]
    pub asking: Vec<AskingStatus>,
    /// What the stages are expected to do, where the workers' speeds are known.
    #[serde(default)]
    pub prediction: Option<Prediction>,
    /// The plan that is being made ready beside the one that serves.
    pub change: Option<ChangeStatus>,
    /// Sequences being computed.
    pub running: usize,
    /// Requests that wait for room.
    pub waiting: usize,
    /// Bytes of tensors that this coordinator has sent, since the start.
    #[serde(default)]
    pub weight_bytes_sent: u64,
    /// Bytes that this coordinator has passed on between workers that do not reach each other, since the start.
    #[serde(default)]
    pub relayed_bytes: u64,
    /// Tokens of prompts, since the start.
    pub prompt_tokens: u64,
    /// Of those, what earlier prompts had left on the stages.
    pub cached_tokens: u64,
    /// Tokens generated, since the start.
    pub generated_tokens: u64,
    /// Tokens drafted, since the start.
    pub drafted_tokens: u64,
    /// Of those, the right ones.
    pub accepted_tokens: u64,
    /// The small model that drafts, where there is one.
    #[serde(default)]
    pub draft_model: Option<DraftStatus>,
    /// How often a sequence gave its room up to older ones, to be computed again later.
    pub preemptions: u64,
    /// The steps of this epoch.
    pub steps: StepsStatus,
    /// Seconds since the start.
    pub uptime_s: u64,
}

/// A small model that drafts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct DraftStatus {
    /// Its name.
    pub model: String,
    /// How far its process is.
    pub state: DraftState,
    /// Memory that its process takes at most, on the coordinator's machine.
    pub memory_bytes: u64,
    /// Threads that it computes with.
    pub threads: usize,
    /// What a drafted token takes, from the question to the answer; `None` before any was measured.
    pub token_ms: Option<f64>,
    /// Tokens that it drafted and that were verified, since the start: part of all that were.
    pub drafted_tokens: u64,
    /// Of those, the right ones.
    pub accepted_tokens: u64,
}

/// How far the process of a model that drafts is.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DraftState {
    /// It reads the model.
    #[default]
    Loading,
    /// It drafts.
    Ready,
    /// It has ended.
    Gone,
}

impl DraftState {
    /// As people and programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Gone => "gone",
        }
    }
}

/// The steps that came back in this epoch, and their times summed: two snapshots tell how it went in between.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct StepsStatus {
    /// How many.
    pub count: u64,
    /// Computing, over all stages.
    pub compute_ms: f64,
    /// Computing, on the slowest stage of each step.
    pub slowest_ms: f64,
    /// Neither computing nor waiting for a stage: links and coordinator.
    pub hops_ms: f64,
}

/// One sequence: a prompt and what is generated after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceStatus {
    /// Its request's number, as events give it.
    pub request: u64,
    /// Where it stands.
    pub phase: SequencePhase,
    /// Of its prompt.
    pub prompt_tokens: usize,
    /// Of those, what was on the stages already.
    pub cached_tokens: usize,
    /// Of prompt and answer, what every stage has computed.
    pub computed_tokens: usize,
    /// Generated so far.
    pub generated_tokens: usize,
    /// The most that may be generated.
    pub max_tokens: usize,
    /// How it is drawn.
    pub temperature: f32,
    /// Key of its noise.
    pub seed: u64,
}

/// Where a sequence stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SequencePhase {
    /// It has no room on the stages.
    Waiting,
    /// It has.
    Running,
}

/// Whether tokens can flow.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MeshState {
    /// For workers.
    Waiting,
    /// Workers fetch and load their shards.
    Loading,
    /// A probe token went through the pipeline.
    Ready,
    /// No plan is possible, or the shards cannot be loaded; `text` says why.
    Failed,
    /// Going down.
    Stopping,
}

impl MeshState {
    /// As people and programs read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Loading => "loading",
            Self::Ready => "ready",
            Self::Failed => "failed",
            Self::Stopping => "stopping",
        }
    }
}

/// One stage of the pipeline.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StageStatus {
    /// From 0.
    pub stage: usize,
    /// The worker's name.
    pub worker: String,
    /// First layer.
    pub first_layer: usize,
    /// One past the last layer.
    pub end_layer: usize,
    /// Bytes of the shard's tensors.
    pub weight_bytes: u64,
    /// Memory that the plan gives it: weights, KV, activations, process.
    pub planned_bytes: u64,
    /// Of these, keys and values of all positions, in whole pages.
    #[serde(default)]
    pub kv_bytes: u64,
    /// Of those, what is promised to sequences and to beginnings that are kept.
    #[serde(default)]
    pub kv_bytes_used: u64,
    /// Peak memory that the worker measured.
    pub peak_bytes: u64,
    /// How far its shard is.
    pub phase: StagePhase,
    /// Bytes fetched or loaded of `phase`.
    pub bytes_done: u64,
    /// Bytes that `phase` has to do.
    pub bytes_total: u64,
    /// Bytes of its tensors that the coordinator has sent for this plan.
    #[serde(default)]
    pub coordinator_bytes: u64,
    /// Bytes of its tensors that other workers have sent for this plan.
    #[serde(default)]
    pub peer_bytes: u64,
    /// Steps computed in this epoch.
    pub steps: u64,
    /// Mean time per step in the blocks.
    pub compute_ms: f64,
    /// The times of its last steps, once it has computed some and where its worker says so.
    #[serde(default)]
    pub recent: Option<RecentStepsStatus>,
    /// Mean time per step to hand its output on.
    pub hop_ms: f64,
    /// Its link to the next stage, where that is on another worker and stands.
    #[serde(default)]
    pub link: Option<LinkStatus>,
}

/// How long a stage's last steps computed, whatever their rows.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct RecentStepsStatus {
    /// How many steps these are.
    pub count: u32,
    /// Half of them took at most so long.
    pub p50_ms: f64,
    /// 95 of 100 took at most so long.
    pub p95_ms: f64,
}

/// A link between two workers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct LinkStatus {
    /// How packets travel.
    pub passage: LinkPassage,
    /// There and back, when it came about.
    pub rtt_ms: f64,
}

/// How packets travel between two workers.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkPassage {
    /// Straight from one to the other.
    Direct,
    /// The coordinator passes them on, and cannot read them.
    Relayed,
}

/// How far the shard of a stage is.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StagePhase {
    /// Its worker was told to load it, and has not answered yet.
    Asked,
    /// Its tensors are read from disk, or come over the network.
    Fetching,
    /// They are packed for computing.
    Loading,
    /// It can compute.
    Ready,
    /// It cannot be loaded.
    Failed,
}

/// One connected worker.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct WorkerStatus {
    /// Its name in the mesh.
    pub name: String,
    /// Its key, shortened.
    pub peer: String,
    /// Where it is connected from.
    pub address: String,
    /// Memory it offers.
    pub memory_bytes: u64,
    /// Threads it computes with.
    pub threads: u32,
    /// Round-trip time of its link.
    pub rtt_ms: f64,
    /// Its stage, if it has one.
    pub stage: Option<usize>,
    /// How fast it computes this model, where that is known.
    #[serde(default)]
    pub speed: Option<Speed>,
    /// What NAT is before it, where that is known.
    #[serde(default)]
    pub nat: Option<String>,
    /// How it has found this coordinator, and in what time, where it says so.
    #[serde(default)]
    pub found: Option<FoundStatus>,
    /// Why it has no stage.
    pub note: Option<String>,
}

/// How a worker has found its coordinator.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct FoundStatus {
    /// Where it was.
    pub by: FoundTier,
    /// Milliseconds from the first attempt there to the connection.
    pub ms: u32,
}

impl FoundStatus {
    /// What the worker has said of it.
    pub(crate) fn way(self) -> WayFound {
        let by = match self.by {
            FoundTier::Address => FoundBy::Address,
            FoundTier::LocalNetwork => FoundBy::LocalNetwork,
            FoundTier::Dht => FoundBy::Dht,
            FoundTier::Call => FoundBy::Call,
            FoundTier::Rendezvous => FoundBy::Rendezvous,
            FoundTier::Relay => FoundBy::Relay,
        };
        WayFound { by, milliseconds: self.ms }
    }
}

/// Where a worker looks for its coordinator, one after the other.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundTier {
    /// At the ticket's addresses, and where it was before.
    Address,
    /// On the local network, by multicast DNS.
    LocalNetwork,
    /// Where the coordinator's record on the DHT says.
    Dht,
    /// Where the coordinator called from: the worker is a rendezvous.
    Call,
    /// Where a rendezvous says.
    Rendezvous,
    /// Behind a rendezvous, which passes the packets on.
    Relay,
}

/// A worker that asks to join.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct AskingStatus {
    /// The name that it has chosen, as anybody can.
    pub name: String,
    /// The code that its screen shows if nobody stands between.
    pub code: String,
    /// Where it is connected from.
    pub address: String,
    /// Whether somebody else is known by this name, or asks by it.
    pub namesake: bool,
}

/// A plan on its way to serve in the place of another.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ChangeStatus {
    /// Its epoch.
    pub epoch: u32,
    /// How far it is.
    pub text: String,
    /// Its stages in order, once they load.
    pub stages: Vec<StageStatus>,
}

impl MeshStatus {
    /// Whether it says something that `older` did not. Time that passes is no news, and neither are a worker's round-trip
    /// time and what is passed on, which change with every packet.
    pub(crate) fn is_news_after(&self, older: &Self) -> bool {
        let lasting = |status: &Self| {
            let workers = status.workers.iter().map(|worker| WorkerStatus { rtt_ms: 0.0, ..worker.clone() }).collect();
            Self { uptime_s: 0, relayed_bytes: 0, workers, ..status.clone() }
        };
        lasting(self) != lasting(older)
    }
}
