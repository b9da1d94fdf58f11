//! Who is connected and who holds which layers: a state machine without IO or clock.
//!
//! A plan's life: workers join → `plan` gives each a stage → every stage says `Ready` → routes go out → every stage says
//! `Linked` → the pipeline is up. Whatever breaks that chain starts it again under the next epoch.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_models::spec::ModelSpec;
use qmesh_net::{
    Downstream, LoadShard, Message, PeerId, PlanEpoch, Route, ShardPhase, ShardStatus, StageIndex, StageReport,
    Upstream, WireType,
};

use super::{
    Formation, Workers,
    status::{MeshState, StageStatus, WorkerStatus},
};
use crate::plan::{self, Capacity, Plan, PlanInput};

/// A worker's connection, counted from 1: a worker that comes back is another one.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct WorkerId(pub(crate) u64);

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a worker said when it joined.
#[derive(Clone, Debug)]
pub(crate) struct Joined {
    pub(crate) name: String,
    pub(crate) peer: PeerId,
    pub(crate) address: SocketAddr,
    pub(crate) memory_bytes: u64,
    pub(crate) threads: u32,
}

/// The model as the roster needs it.
#[derive(Debug)]
pub(crate) struct PlannedModel {
    pub(crate) name: String,
    pub(crate) id: [u8; 32],
    pub(crate) spec: ModelSpec,
    /// BLAKE3 of every tensor, in the order of `spec.tensors`.
    pub(crate) hashes: Vec<[u8; 32]>,
    pub(crate) context: usize,
    pub(crate) kv_positions: usize,
    pub(crate) chunk_rows: usize,
}

/// What the roster wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// On the worker's control stream.
    Send(WorkerId, Message),
    /// Frames of this epoch shall go to this worker, stage 0.
    OpenFrames(WorkerId, PlanEpoch),
    /// Every link stands.
    Up(PlanEpoch, usize),
    /// Some stage is gone.
    Down(String),
}

/// The workers, and the plan that is being carried out.
#[derive(Debug)]
pub(crate) struct Roster {
    model: Arc<PlannedModel>,
    formation: Formation,
    workers: BTreeMap<WorkerId, Worker>,
    standing: Standing,
    epoch: PlanEpoch,
    plan: Option<Plan>,
    /// The plan's stages, in order.
    stages: Vec<Stage>,
    /// When to plan again: a little after the last join, so that ten joins are one plan.
    plan_at: Option<Instant>,
    text: String,
}

#[derive(Debug)]
struct Worker {
    joined: Joined,
    /// Why it gets no stage.
    unfit: Option<String>,
}

#[derive(Debug)]
struct Stage {
    worker: WorkerId,
    status: Option<ShardStatus>,
    heard: Instant,
    linked: bool,
    report: StageReport,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Standing {
    Waiting,
    Loading,
    Linking(Instant),
    Up,
    Failed,
}

impl Roster {
    pub(crate) fn new(model: Arc<PlannedModel>, formation: Formation) -> Self {
        let text = "waiting for workers".to_owned();
        Self {
            model,
            formation,
            workers: BTreeMap::new(),
            standing: Standing::Waiting,
            epoch: PlanEpoch(0),
            plan: None,
            stages: Vec::new(),
            plan_at: None,
            text,
        }
    }

    /// A worker is in. It gets a stage when the formation says so.
    pub(crate) fn joined(&mut self, now: Instant, worker: WorkerId, joined: Joined) {
        self.workers.insert(worker, Worker { joined, unfit: None });
        let planned = !self.stages.is_empty();
        match self.formation.workers {
            Workers::Exactly(_) if planned => {}
            Workers::Exactly(n) if self.workers.len() >= n => self.plan_at = Some(now),
            Workers::Exactly(n) => self.text = format!("waiting for workers: {} of {n}", self.workers.len()),
            Workers::AtLeast(_) | Workers::WhenItFits => self.plan_at = Some(now + SETTLE),
        }
    }

    /// A worker is gone. If it held a stage, the pipeline is down and the others are planned anew.
    pub(crate) fn left(&mut self, now: Instant, worker: WorkerId, why: &str) -> Vec<Action> {
        let Some(gone) = self.workers.remove(&worker) else { return Vec::new() };
        let Some(stage) = self.stages.iter().position(|s| s.worker == worker) else { return Vec::new() };
        let layers = self.plan.as_ref().map(|p| p.stages[stage].layers.clone()).unwrap_or_default();
        let name = gone.joined.name;
        self.drop_plan(now, format!("lost {name} (layers {}-{}): {why}", layers.start, layers.end.saturating_sub(1)))
    }

    /// How a stage's loading goes.
    pub(crate) fn shard_status(&mut self, now: Instant, worker: WorkerId, status: ShardStatus) -> Vec<Action> {
        if status.epoch != self.epoch || self.standing == Standing::Up {
            return Vec::new();
        }
        let Some(stage) = self.stages.iter_mut().find(|s| s.worker == worker) else { return Vec::new() };
        stage.heard = now;
        let failed = (status.phase == ShardPhase::Failed).then(|| status.text.clone());
        stage.report.peak_memory_bytes = stage.report.peak_memory_bytes.max(status.peak_memory_bytes);
        stage.status = Some(status);
        if let Some(why) = failed {
            return self.unfit(now, worker, why);
        }
        let ready = |s: &Stage| s.status.as_ref().is_some_and(|s| s.phase == ShardPhase::Ready);
        if self.standing == Standing::Loading && self.stages.iter().all(ready) {
            self.standing = Standing::Linking(now);
            return self.routes();
        }
        Vec::new()
    }

    /// A stage has both its links.
    pub(crate) fn linked(&mut self, worker: WorkerId, epoch: PlanEpoch) -> Vec<Action> {
        if epoch != self.epoch || !matches!(self.standing, Standing::Linking(_)) {
            return Vec::new();
        }
        if let Some(stage) = self.stages.iter_mut().find(|s| s.worker == worker) {
            stage.linked = true;
        }
        if !self.stages.iter().all(|s| s.linked) {
            return Vec::new();
        }
        self.standing = Standing::Up;
        self.text = format!("{} stages serve {}", self.stages.len(), self.model.name);
        vec![Action::Up(self.epoch, self.stages.len())]
    }

    /// A stage's counters.
    pub(crate) fn report(&mut self, worker: WorkerId, report: StageReport) {
        if report.epoch == self.epoch
            && let Some(stage) = self.stages.iter_mut().find(|s| s.worker == worker)
        {
            stage.report = report;
        }
    }

    /// The pipeline as it stands does not work: plan again under the next epoch.
    pub(crate) fn broken(&mut self, now: Instant, why: String) -> Vec<Action> {
        if self.stages.is_empty() { Vec::new() } else { self.drop_plan(now, why) }
    }

    /// Plans when it is time, and gives up on what has been silent for too long.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.plan_at.is_some_and(|at| at <= now) {
            self.plan_at = None;
            return self.replan(now);
        }
        match self.standing {
            Standing::Loading => {
                let silent = self.stages.iter().find(|s| !is_ready(s) && now - s.heard > SILENCE).map(|s| s.worker);
                silent.map_or_else(Vec::new, |w| self.unfit(now, w, "no progress in loading its layers".to_owned()))
            }
            Standing::Linking(since) if now - since > LINKING => {
                self.drop_plan(now, "the workers could not reach each other".to_owned())
            }
            Standing::Linking(_) | Standing::Waiting | Standing::Up | Standing::Failed => Vec::new(),
        }
    }

    /// The stage of a worker under the present plan.
    pub(crate) fn stage_of(&self, worker: WorkerId) -> Option<usize> {
        self.stages.iter().position(|s| s.worker == worker)
    }

    /// The workers that hold stages, in order.
    pub(crate) fn stage_workers(&self) -> impl Iterator<Item = WorkerId> {
        self.stages.iter().map(|s| s.worker)
    }

    pub(crate) fn epoch(&self) -> PlanEpoch {
        self.epoch
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn name_of(&self, worker: WorkerId) -> &str {
        self.workers.get(&worker).map_or("a worker", |w| &w.joined.name)
    }

    /// A name that no other worker has: the wish, or the wish with a number.
    pub(crate) fn free_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.workers.values().any(|w| w.joined.name == name);
        let numbered = (2..).map(|n| format!("{wish}-{n}"));
        std::iter::once(wish.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
    }

    pub(crate) fn state(&self) -> MeshState {
        match self.standing {
            Standing::Waiting => MeshState::Waiting,
            Standing::Loading | Standing::Linking(_) => MeshState::Loading,
            Standing::Up => MeshState::Ready,
            Standing::Failed => MeshState::Failed,
        }
    }

    pub(crate) fn stage_status(&self) -> Vec<StageStatus> {
        let planned = self.plan.iter().flat_map(|p| &p.stages);
        planned.zip(&self.stages).enumerate().map(|(i, (planned, stage))| self.one_stage(i, planned, stage)).collect()
    }

    /// Every worker; round-trip times are the links' to know.
    pub(crate) fn worker_status(&self, rtt_ms: impl Fn(WorkerId) -> f64) -> Vec<WorkerStatus> {
        let one = |(&id, worker): (&WorkerId, &Worker)| WorkerStatus {
            name: worker.joined.name.clone(),
            peer: worker.joined.peer.short(),
            address: worker.joined.address.to_string(),
            memory_bytes: worker.joined.memory_bytes,
            threads: worker.joined.threads,
            rtt_ms: rtt_ms(id),
            stage: self.stage_of(id),
        };
        self.workers.iter().map(one).collect()
    }

    fn one_stage(&self, index: usize, planned: &plan::StagePlan, stage: &Stage) -> StageStatus {
        let report = &stage.report;
        let mean_ms = |us: u64| if report.steps == 0 { 0.0 } else { us as f64 / report.steps as f64 / 1e3 };
        StageStatus {
            stage: index,
            worker: self.name_of(stage.worker).to_owned(),
            first_layer: planned.layers.start,
            end_layer: planned.layers.end,
            weight_bytes: planned.weight_bytes,
            planned_bytes: planned.memory_bytes,
            peak_bytes: report.peak_memory_bytes,
            phase: stage.status.as_ref().map_or("asked", |s| phase_name(s.phase)).to_owned(),
            bytes_done: stage.status.as_ref().map_or(0, |s| s.bytes_done),
            bytes_total: stage.status.as_ref().map_or(planned.weight_bytes, |s| s.bytes_total),
            steps: report.steps,
            compute_ms: mean_ms(report.compute_us),
            hop_ms: mean_ms(report.hop_us),
        }
    }

    fn unfit(&mut self, now: Instant, worker: WorkerId, why: String) -> Vec<Action> {
        let text = format!("{}: {why}", self.name_of(worker));
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.unfit = Some(why);
        }
        self.drop_plan(now, text)
    }

    fn drop_plan(&mut self, now: Instant, why: String) -> Vec<Action> {
        let was_up = self.standing == Standing::Up;
        let epoch = self.epoch;
        let unload = |s: Stage| Action::Send(s.worker, Message::Unload { epoch });
        let mut actions: Vec<_> = self.stages.drain(..).map(unload).collect();
        actions.retain(|a| matches!(a, Action::Send(worker, _) if self.workers.contains_key(worker)));
        self.plan = None;
        self.standing = Standing::Waiting;
        self.plan_at = Some(now);
        self.text.clone_from(&why);
        if was_up {
            actions.push(Action::Down(why));
        }
        actions
    }

    /// Gives every fit worker a stage, if the model fits them.
    fn replan(&mut self, now: Instant) -> Vec<Action> {
        let most = match self.formation.workers {
            Workers::Exactly(n) => n,
            Workers::AtLeast(_) | Workers::WhenItFits => usize::MAX,
        };
        let fit = self.workers.iter().filter(|(_, w)| w.unfit.is_none()).map(|(&id, _)| id);
        let fit: Vec<WorkerId> = fit.take(most).collect();
        let enough = match self.formation.workers {
            // Once formed, a smaller mesh that holds the model is better than none.
            Workers::AtLeast(n) | Workers::Exactly(n) => fit.len() >= n || self.epoch.0 > 0,
            Workers::WhenItFits => true,
        };
        if fit.is_empty() || !enough {
            return self.stay(None);
        }
        let (plan, chosen) = match self.solve(&fit) {
            Ok(found) => found,
            Err(error) => return self.stay(Some(error.to_string())),
        };
        let mut actions = if self.stages.is_empty() {
            Vec::new()
        } else {
            self.drop_plan(now, "a worker has joined: the layers are dealt again".to_owned())
        };
        self.plan_at = None;
        self.epoch = PlanEpoch(self.epoch.0 + 1);
        self.standing = Standing::Loading;
        self.text = format!("loading {} into {} workers", self.model.name, plan.stages.len());
        self.stages = plan.stages.iter().map(|s| Stage::new(now, chosen[s.worker])).collect();
        let loads = plan.stages.iter().enumerate();
        actions.extend(loads.map(|(i, s)| Action::Send(chosen[s.worker], Message::Load(self.load(i, &plan)))));
        self.plan = Some(plan);
        actions
    }

    /// No new plan: a standing one goes on.
    fn stay(&mut self, why: Option<String>) -> Vec<Action> {
        if self.stages.is_empty() {
            let unfit = self.workers.values().find_map(|w| w.unfit.as_ref().map(|u| format!("{}: {u}", w.joined.name)));
            self.standing = if why.is_some() || unfit.is_some() { Standing::Failed } else { Standing::Waiting };
            self.text = why.or(unfit).unwrap_or_else(|| self.waiting_text());
        }
        Vec::new()
    }

    fn waiting_text(&self) -> String {
        match self.formation.workers {
            Workers::Exactly(n) | Workers::AtLeast(n) => format!("waiting for workers: {} of {n}", self.workers.len()),
            Workers::WhenItFits => "waiting for workers".to_owned(),
        }
    }

    /// A plan over all of `fit`, or over the largest of them when the small ones cannot hold a layer.
    fn solve(&self, fit: &[WorkerId]) -> Result<(Plan, Vec<WorkerId>), plan::PlanError> {
        let all = self.solve_exactly(fit);
        if all.is_ok() || self.formation.cut.is_some() {
            return all.map(|plan| (plan, fit.to_vec()));
        }
        let mut chosen = fit.to_vec();
        while chosen.len() > 1 {
            let memory = |id: &WorkerId| self.workers.get(id).map(|w| w.joined.memory_bytes);
            let Some(smallest) = (0..chosen.len()).min_by_key(|&i| memory(&chosen[i])) else { break };
            chosen.remove(smallest);
            if let Ok(plan) = self.solve_exactly(&chosen) {
                return Ok((plan, chosen));
            }
        }
        all.map(|plan| (plan, fit.to_vec()))
    }

    fn solve_exactly(&self, chosen: &[WorkerId]) -> Result<Plan, plan::PlanError> {
        let capacity = |id: &WorkerId| {
            let joined = &self.workers[id].joined;
            Capacity { name: joined.name.clone(), memory_bytes: joined.memory_bytes, threads: joined.threads }
        };
        plan::solve(&PlanInput {
            spec: &self.model.spec,
            workers: chosen.iter().map(capacity).collect(),
            kv_positions: self.model.kv_positions,
            context: self.model.context,
            chunk_rows: self.model.chunk_rows,
            cut: self.formation.cut.clone(),
            workload: self.formation.workload,
        })
    }

    fn load(&self, stage: usize, plan: &Plan) -> LoadShard {
        let layers = plan.stages[stage].layers.clone();
        let spec = self.model.spec.shard(layers.clone());
        let held = self.model.spec.tensors.iter().zip(&self.model.hashes);
        let tensor_hashes = held.filter(|(t, _)| self.model.spec.holds(&layers, t.role)).map(|(_, &h)| h).collect();
        LoadShard {
            epoch: self.epoch,
            stage: StageIndex(index(stage)),
            stages: index(plan.stages.len()),
            model_id: self.model.id,
            model_name: self.model.name.clone(),
            // A spec is plain numbers and texts: writing it as JSON cannot fail.
            spec_json: serde_json::to_vec(&spec).unwrap_or_default(),
            layers: (count(layers.start), count(layers.end)),
            tensor_hashes,
            kv_positions: count(self.model.kv_positions),
            context: count(self.model.context),
            chunk_rows: count(self.model.chunk_rows),
            wire: WireType::F32,
        }
    }

    /// Routes from the last stage to the first, so that whoever dials finds the door open.
    fn routes(&self) -> Vec<Action> {
        let peer = |stage: usize| &self.workers[&self.stages[stage].worker].joined;
        let last = self.stages.len() - 1;
        let mut actions: Vec<Action> = (0..=last)
            .rev()
            .map(|i| {
                let upstream = if i == 0 { Upstream::Coordinator } else { Upstream::Worker(peer(i - 1).peer) };
                let downstream = if i == last {
                    Downstream::Coordinator
                } else {
                    let next = peer(i + 1);
                    Downstream::Worker { peer: next.peer, addresses: vec![next.address.to_string()] }
                };
                let route = Route { epoch: self.epoch, stage: StageIndex(index(i)), upstream, downstream };
                Action::Send(self.stages[i].worker, Message::Route(route))
            })
            .collect();
        actions.push(Action::OpenFrames(self.stages[0].worker, self.epoch));
        actions
    }
}

impl Stage {
    fn new(now: Instant, worker: WorkerId) -> Self {
        Self { worker, status: None, heard: now, linked: false, report: StageReport::default() }
    }
}

fn is_ready(stage: &Stage) -> bool {
    stage.status.as_ref().is_some_and(|s| s.phase == ShardPhase::Ready)
}

fn phase_name(phase: ShardPhase) -> &'static str {
    match phase {
        ShardPhase::Fetching => "fetching",
        ShardPhase::Loading => "loading",
        ShardPhase::Ready => "ready",
        ShardPhase::Failed => "failed",
    }
}

/// Stages and layers are bounded by the spec, far below the wire's widths.
fn index(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Joins within this time make one plan.
const SETTLE: Duration = Duration::from_millis(500);
/// A stage that loads says so many times a second; silence this long means that it hangs.
const SILENCE: Duration = Duration::from_secs(60);
/// Dialling a neighbour takes milliseconds, or 10 s when it fails.
const LINKING: Duration = Duration::from_secs(20);

#[cfg(test)]
#[path = "roster_tests.rs"]
mod tests;
