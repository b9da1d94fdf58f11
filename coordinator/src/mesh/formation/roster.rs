//! Who is connected and who holds which layers: a state machine without IO or clock.
//!
//! A plan's life: workers join → `plan` gives each a stage → every stage says `Ready` → routes go out → every stage
//! says `Linked` → a probe token comes back → the pipeline serves. A change of plan does all that beside the pipeline
//! that serves, which goes on until the sequences have followed; only then its shards are unloaded. What fails is
//! remembered (`troubles`), and left out of the next plan.

mod change;
mod report;
mod returning;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_net::{
    LinkWay, Measured, Message, Passage, PeerId, PlanEpoch, RelayGrant, ShardPhase, ShardStatus, StageReport,
};

pub(crate) use self::returning::MOVED;
use self::returning::Returning;
use super::{
    misconduct::Misconduct,
    pipeline::{Advance, Pipeline, Stage, Standing},
    planned::PlannedModel,
    speeds::Speeds,
    troubles::{Blame, Troubles},
    worker::{Joined, Worker, WorkerId},
};
use crate::{
    mesh::config::{Formation, Workers},
    plan::Plan,
};

/// What the roster wants done.
#[derive(Debug)]
pub(crate) enum Action {
    /// On the worker's control stream.
    Send(WorkerId, Message),
    /// Packets may pass here between two workers.
    Relay(RelayGrant),
    /// Frames of this epoch shall go to this worker, stage 0.
    OpenFrames(WorkerId, PlanEpoch),
    /// Every link of this epoch stands: time for a probe.
    Up(PlanEpoch, usize),
    /// The probe came back, and nothing else serves: sequences may run on these stages.
    Serve(PlanEpoch, usize),
    /// The probe came back: sequences shall follow to these stages, and then serve there.
    Follow(PlanEpoch, usize),
    /// This epoch's pipeline is gone.
    Down(PlanEpoch, String),
}

/// The workers, the pipeline that serves, and the one that is to take its place.
#[derive(Debug)]
pub(crate) struct Roster {
    model: Arc<PlannedModel>,
    formation: Formation,
    workers: BTreeMap<WorkerId, Worker>,
    serving: Option<Pipeline>,
    /// The pipeline that is loading, linking or being followed to.
    next: Option<Pipeline>,
    newest: PlanEpoch,
    /// When to plan again: a little after the last join, so that ten joins are one plan.
    plan_at: Option<Instant>,
    /// When a change that makes everybody wait is carried out.
    pause_at: Option<Instant>,
    troubles: Troubles,
    speeds: Speeds,
    /// The round-trip times of links that were relayed, from whom to whom, in milliseconds.
    relayed: BTreeMap<(PeerId, PeerId), f64>,
    /// The last plan that was begun, and the keys of its stages.
    last: Option<(Plan, Vec<PeerId>)>,
    /// Who is waited for before it is planned anew.
    returning: Option<Returning>,
    /// Plans in a row whose probe failed.
    failed_probes: u32,
    /// Whether there is no plan although workers are here; `text` says why.
    failed: bool,
    text: String,
    /// Why workers without layers have none.
    standby: Option<String>,
}

/// Whether a change that makes everybody wait is announced first.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Pause {
    Announce,
    Now,
}

impl Roster {
    pub(crate) fn new(model: Arc<PlannedModel>, formation: Formation) -> Self {
        let speeds = Speeds::new(&model.spec, formation.measuring);
        Self {
            model,
            formation,
            workers: BTreeMap::new(),
            serving: None,
            next: None,
            newest: PlanEpoch(0),
            plan_at: None,
            pause_at: None,
            troubles: Troubles::default(),
            speeds,
            relayed: BTreeMap::new(),
            last: None,
            returning: None,
            failed_probes: 0,
            failed: false,
            text: "waiting for workers".to_owned(),
            standby: None,
        }
    }

    /// A worker is in. It gets a stage when the formation says so.
    pub(crate) fn joined(&mut self, now: Instant, worker: WorkerId, joined: Joined) -> Vec<Action> {
        self.speeds.ask(worker, &joined);
        let peer = joined.peer;
        self.workers.insert(worker, Worker { joined, since: now, holds: Vec::new(), stocks: Vec::new() });
        self.failed_probes = self.failed_probes.min(PROBES_MOST - 1);
        let planned = self.next.as_ref().or(self.serving.as_ref()).map(|p| p.stages.len());
        match self.formation.workers {
            Workers::Exactly(n) if planned.is_some_and(|stages| stages >= n) => {}
            Workers::Exactly(n) if self.workers.len() >= n => self.plan_at = Some(now),
            Workers::Exactly(n) if planned.is_none() => {
                self.text = format!("waiting for workers: {} of {n}", self.workers.len());
                // Where there was a plan before, this worker may be all that is missing.
                self.plan_at = (self.newest.0 > 0).then_some(now);
            }
            Workers::Exactly(_) | Workers::AtLeast(_) | Workers::WhenItFits => self.plan_at = Some(now + SETTLE),
        }
        self.is_back(now, peer);
        self.questions(now)
    }

    /// Who is asked now how fast it is.
    fn questions(&mut self, now: Instant) -> Vec<Action> {
        self.speeds.turns(now).into_iter().map(|(worker, question)| Action::Send(worker, question)).collect()
    }

    /// A worker says how fast it is.
    ///
    /// # Errors
    /// It was not asked.
    pub(crate) fn measured(
        &mut self,
        now: Instant,
        worker: WorkerId,
        measured: Measured,
    ) -> Result<Vec<Action>, Misconduct> {
        let Some(Worker { joined, .. }) = self.workers.get(&worker) else { return Ok(Vec::new()) };
        if !self.speeds.answered(worker, joined, measured) {
            return Err(Misconduct::Unasked("how fast it is"));
        }
        // It may come after a plan that did without it.
        if !self.speeds.pending(now) && self.newest.0 > 0 {
            self.plan_at = Some(now);
        }
        Ok(self.questions(now))
    }

    /// A worker is gone. If it held a stage, that pipeline is down and the others are planned anew.
    pub(crate) fn left(&mut self, now: Instant, worker: WorkerId, why: &str) -> Vec<Action> {
        let Some(gone) = self.workers.remove(&worker) else { return Vec::new() };
        self.speeds.gone(worker);
        let Joined { name, peer, .. } = gone.joined;
        self.troubles.gone(now, peer);
        let pipelines = self.serving.iter().chain(&self.next);
        let held = pipelines.filter_map(|p| Some((p.epoch, p.plan.stages[p.stage_of(worker)?].layers.clone())));
        let held: Vec<_> = held.collect();
        if !held.is_empty() || now - gone.since < STEADY {
            self.troubles.unsteady(
                now,
                peer,
                format!("it was lost {} s after it had come", (now - gone.since).as_secs()),
            );
        }
        let lost = |layers: Range<usize>| {
            format!("lost {name} (layers {}-{}): {why}", layers.start, layers.end.saturating_sub(1))
        };
        held.into_iter().flat_map(|(epoch, layers)| self.drop_pipeline(now, epoch, lost(layers))).collect()
    }

    /// A worker is at another address. Links to it that broke just now broke for that.
    pub(crate) fn moved(
        &mut self,
        now: Instant,
        worker: WorkerId,
        address: SocketAddr,
        own: Vec<SocketAddr>,
    ) -> Vec<Action> {
        let Some(Worker { joined, .. }) = self.workers.get_mut(&worker) else { return Vec::new() };
        (joined.address, joined.own, joined.nat) = (address, own, None);
        let peer = joined.peer;
        self.troubles.gone(now, peer);
        // Where a plan has failed for its address, the next one need not.
        if self.serving.is_none() && self.next.is_none() && self.newest.0 > 0 {
            self.plan_at = Some(now);
        }
        // Packets are passed on from where it is now; what goes straight needs no grant, and is not harmed by one.
        let pipelines = self.serving.iter().chain(&self.next).filter(|pipeline| pipeline.stage_of(worker).is_some());
        pipelines.flat_map(|pipeline| self.grants(pipeline)).collect()
    }

    /// A stage says how its loading goes.
    ///
    /// # Errors
    /// The worker has no stage in this plan, or has said already that it is loaded.
    pub(crate) fn shard_status(
        &mut self,
        now: Instant,
        worker: WorkerId,
        status: ShardStatus,
    ) -> Result<Vec<Action>, Misconduct> {
        let (epoch, phase, text) = (status.epoch, status.phase, status.text.clone());
        let Some(stage) = self.stage_in(worker, epoch)? else { return Ok(Vec::new()) };
        let Some(pipeline) = self.pipeline_mut(epoch) else { return Ok(Vec::new()) };
        let layers = pipeline.plan.stages[stage].layers.clone();
        let advance = pipeline.shard_status(now, stage, status)?;
        if phase == ShardPhase::Ready
            && let Some(worker) = self.workers.get_mut(&worker)
        {
            worker.stock(layers);
        }
        if phase == ShardPhase::Failed {
            return Ok(self.broken(now, epoch, &text, Blame::Load(worker)));
        }
        Ok(if advance == Advance::Loaded { self.link(epoch) } else { Vec::new() })
    }

    /// A stage says that both its links stand.
    ///
    /// # Errors
    /// The worker has no stage in this plan, or has said so already.
    pub(crate) fn linked(
        &mut self,
        worker: WorkerId,
        epoch: PlanEpoch,
        way: Option<LinkWay>,
    ) -> Result<Vec<Action>, Misconduct> {
        let Some(stage) = self.stage_in(worker, epoch)? else { return Ok(Vec::new()) };
        if let Some(way) = way {
            self.remember_way(epoch, stage, way);
        }
        let Some(pipeline) = self.pipeline_mut(epoch) else { return Ok(Vec::new()) };
        let stages = pipeline.stages.len();
        let advance = pipeline.linked(stage, way)?;
        Ok(if advance == Advance::Linked { vec![Action::Up(epoch, stages)] } else { Vec::new() })
    }

    /// A probe token has come through the pipeline of this epoch.
    pub(crate) fn proved(&mut self, epoch: PlanEpoch) -> Vec<Action> {
        let Some(next) = self.next.as_mut().filter(|p| p.epoch == epoch) else { return Vec::new() };
        next.standing = Standing::Proved;
        self.failed_probes = 0;
        let stages = next.stages.len();
        if self.serving.is_some() {
            return vec![Action::Follow(epoch, stages)];
        }
        let mut actions = vec![Action::Serve(epoch, stages)];
        actions.extend(self.serve_next());
        actions
    }

    /// The sequences have followed: what served until now is unloaded.
    pub(crate) fn followed(&mut self, epoch: PlanEpoch) -> Vec<Action> {
        if self.next.as_ref().is_some_and(|p| p.epoch == epoch) { self.serve_next() } else { Vec::new() }
    }

    /// A stage says what it has computed so far. How many times as long as it should it takes, where that is news.
    pub(crate) fn report(&mut self, worker: WorkerId, report: StageReport) -> Option<f64> {
        let pipeline = self.pipeline_mut(report.epoch)?;
        let number = pipeline.stage_of(worker).filter(|&stage| stage == usize::from(report.stage.0))?;
        let stage = &mut pipeline.stages[number];
        stage.report = report;
        stage.slowness.judge(&stage.report)
    }

    /// The pipeline of this epoch does not work: plan again under the next one, without who is to blame.
    pub(crate) fn broken(&mut self, now: Instant, epoch: PlanEpoch, why: &str, blame: Blame) -> Vec<Action> {
        if self.pipeline(epoch).is_none() {
            return Vec::new();
        }
        let peer = |worker| self.workers.get(&worker).map(|w| w.joined.peer);
        let text = match blame {
            Blame::Nobody => why.to_owned(),
            Blame::Worker(worker) | Blame::Load(worker) => format!("{}: {why}", self.name_of(worker)),
            Blame::Pair(from, to) => {
                format!("{} cannot reach {}: {why}", self.name_of(from), self.name_of(to))
            }
        };
        match blame {
            Blame::Nobody => {}
            Blame::Worker(worker) => {
                if let Some(peer) = peer(worker) {
                    self.troubles.unsteady(now, peer, why.to_owned());
                }
            }
            Blame::Load(worker) => {
                if let Some(peer) = peer(worker) {
                    self.troubles.unfit(now, peer, why.to_owned());
                }
            }
            Blame::Pair(from, to) => {
                let why = format!("{why}{}", self.nats_of(from, to));
                if let (Some(from), Some(to)) = (peer(from), peer(to)) {
                    self.troubles.unreachable(now, from, to, why);
                }
            }
        }
        self.drop_pipeline(now, epoch, text)
    }

    /// No probe comes through the pipeline of this epoch; under a second plan in a row that is final.
    pub(crate) fn unprovable(&mut self, now: Instant, epoch: PlanEpoch, why: &str) -> Vec<Action> {
        self.failed_probes += 1;
        let actions = self.broken(now, epoch, &format!("the probe token failed: {why}"), Blame::Nobody);
        if self.failed_probes >= PROBES_MOST {
            self.plan_at = None;
            self.failed = self.serving.is_none();
        }
        actions
    }

    /// A stage says that one of its links broke, or never came about.
    pub(crate) fn link_broken(&mut self, now: Instant, worker: WorkerId, epoch: PlanEpoch, why: &str) -> Vec<Action> {
        let Some(pipeline) = self.pipeline(epoch) else { return Vec::new() };
        let blame = match pipeline.standing {
            // A stage dials the next one only, so the link to that one is meant.
            Standing::Loading | Standing::Linking(_) => {
                let stage = pipeline.stage_of(worker);
                let to = stage.and_then(|s| pipeline.stages.get(s + 1)).map(|s| s.worker);
                to.map_or(Blame::Nobody, |to| Blame::Pair(worker, to))
            }
            // A neighbour may know of a lost worker before we do.
            Standing::Linked | Standing::Proved => Blame::Nobody,
        };
        let text = format!("{}: {why}", self.name_of(worker));
        self.broken(now, epoch, if blame == Blame::Nobody { &text } else { why }, blame)
    }

    /// Plans when it is time, and gives up on what has been silent for too long.
    pub(crate) fn tick(&mut self, now: Instant) -> Vec<Action> {
        if self.pause_at.is_some_and(|at| at <= now) {
            self.pause_at = None;
            return self.replan(now, Pause::Now);
        }
        let questions = self.questions(now);
        if !questions.is_empty() {
            return questions;
        }
        // A change beside a pipeline that serves is brought to its end before the next one.
        let busy = self.next.is_some() && self.serving.is_some();
        let measured = !self.speeds.pending(now) && !self.awaits_returns(now);
        if !busy && measured && self.plan_at.is_some_and(|at| at <= now) {
            self.plan_at = None;
            return self.replan(now, Pause::Announce);
        }
        let Some(next) = &self.next else { return Vec::new() };
        let epoch = next.epoch;
        let overdue = next.overdue(now);
        overdue.map_or_else(Vec::new, |(blame, why)| self.broken(now, epoch, why, blame))
    }

    /// The stage of a worker in the plan of an epoch; `None` where that plan is over, so that what it says is late.
    ///
    /// # Errors
    /// It has no stage there, or there was no such plan.
    pub(crate) fn stage_in(&self, worker: WorkerId, epoch: PlanEpoch) -> Result<Option<usize>, Misconduct> {
        match self.pipeline(epoch) {
            Some(pipeline) => pipeline.stage_of(worker).map(Some).ok_or(Misconduct::NoStage(epoch)),
            None if epoch <= self.newest => Ok(None),
            None => Err(Misconduct::NoPlan(epoch)),
        }
    }

    /// Whether samples of this epoch may come from this worker; `false` where they are late.
    ///
    /// # Errors
    /// It does not hold the last stage.
    pub(crate) fn may_sample(&self, worker: WorkerId, epoch: PlanEpoch) -> Result<bool, Misconduct> {
        let Some(stage) = self.stage_in(worker, epoch)? else { return Ok(false) };
        let last = self.pipeline(epoch).map_or(0, |p| p.stages.len() - 1);
        if stage == last { Ok(true) } else { Err(Misconduct::NotLast(stage)) }
    }

    /// The workers that hold the stages of an epoch, in order.
    pub(crate) fn stage_workers(&self, epoch: PlanEpoch) -> impl Iterator<Item = WorkerId> {
        self.pipeline(epoch).into_iter().flat_map(|p| &p.stages).map(|s| s.worker)
    }

    /// The first stage that is behind: it has computed fewer steps than those before it, as far as it has said.
    pub(crate) fn laggard(&self, epoch: PlanEpoch) -> Option<WorkerId> {
        let pipeline = self.pipeline(epoch)?;
        let most = pipeline.stages.first()?.report.steps;
        let behind = pipeline.stages.iter().find(|s| s.report.steps < most);
        behind.or(pipeline.stages.first()).map(|s| s.worker)
    }

    /// Whether a worker is in.
    pub(crate) fn has(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// The epoch of the newest plan; 0 before the first one.
    pub(crate) fn newest(&self) -> PlanEpoch {
        self.newest
    }

    /// What a worker is called, for people.
    pub(crate) fn name_of(&self, worker: WorkerId) -> &str {
        self.workers.get(&worker).map_or("a worker", |w| &w.joined.name)
    }

    /// A name that no other worker has: the wish, or the wish with a number.
    pub(crate) fn free_name(&self, wish: &str) -> String {
        let taken = |name: &str| self.workers.values().any(|w| w.joined.name == name);
        let numbered = (2..).map(|n| format!("{wish}-{n}"));
        std::iter::once(wish.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_default()
    }

    /// What is known of the NATs between two workers.
    fn nats_of(&self, from: WorkerId, to: WorkerId) -> String {
        let nat = |worker| Some((self.name_of(worker), self.workers.get(&worker)?.joined.nat?));
        let said: Vec<_> = [from, to].into_iter().filter_map(nat).collect();
        let said: Vec<_> = said.iter().map(|(name, nat)| format!("{name} is behind {nat}")).collect();
        if said.is_empty() { String::new() } else { format!(" ({})", said.join("; ")) }
    }

    /// How two workers reach each other counts for the plans to come.
    fn remember_way(&mut self, epoch: PlanEpoch, stage: usize, way: LinkWay) {
        let Some(pair) = self.pipeline(epoch).and_then(|pipeline| pipeline.stages.get(stage..stage + 2)) else {
            return;
        };
        let peer = |stage: &Stage| self.workers.get(&stage.worker).map(|worker| worker.joined.peer);
        let (Some(from), Some(to)) = (peer(&pair[0]), peer(&pair[1])) else { return };
        match way.passage {
            Passage::Direct => drop(self.relayed.remove(&(from, to))),
            // More pairs than a mesh has: all of them are learnt anew.
            Passage::Relayed if self.relayed.len() >= RELAYED_MOST => self.relayed.clear(),
            Passage::Relayed => drop(self.relayed.insert((from, to), way.rtt_us as f64 / 1e3)),
        }
    }

    fn pipeline(&self, epoch: PlanEpoch) -> Option<&Pipeline> {
        self.serving.iter().chain(&self.next).find(|p| p.epoch == epoch)
    }

    fn pipeline_mut(&mut self, epoch: PlanEpoch) -> Option<&mut Pipeline> {
        self.serving.iter_mut().chain(&mut self.next).find(|p| p.epoch == epoch)
    }

    /// Gives up a pipeline. Its shards stay until the next plan has taken over the tensors that it needs.
    fn drop_pipeline(&mut self, now: Instant, epoch: PlanEpoch, why: String) -> Vec<Action> {
        self.plan_at = Some(now);
        self.pause_at = None;
        if self.next.take_if(|p| p.epoch == epoch).is_none() && self.serving.take_if(|p| p.epoch == epoch).is_none() {
            return Vec::new();
        }
        let mut actions = Vec::new();
        if self.serving.is_none() {
            self.text.clone_from(&why);
            // The sequences that were following to the next pipeline go on there.
            if let Some(next) = self.next.as_ref().filter(|p| p.standing == Standing::Proved) {
                actions.push(Action::Serve(next.epoch, next.stages.len()));
                actions.extend(self.serve_next());
            }
        }
        actions.insert(0, Action::Down(epoch, why));
        actions
    }

    /// What serves now is unloaded, and what was next serves.
    fn serve_next(&mut self) -> Vec<Action> {
        let Some(next) = self.next.take() else { return Vec::new() };
        let serve = if next.stages.len() == 1 { "stage serves" } else { "stages serve" };
        self.text = format!("{} {serve} {}", next.stages.len(), self.model.name);
        self.serving = Some(next);
        self.unload_the_dead()
    }
}

/// Relayed pairs that are remembered.
const RELAYED_MOST: usize = 4096;
/// Joins within this time make one plan.
const SETTLE: Duration = Duration::from_millis(500);
/// A worker that stays for a shorter time is unsteady.
const STEADY: Duration = Duration::from_secs(60);
/// So many plans in a row may fail their probe; after that the fault is the model's.
const PROBES_MOST: u32 = 2;

#[cfg(test)]
mod tests;
