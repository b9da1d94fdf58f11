//! A plan that is being carried out: its stages, and how far each of them is.

use std::time::{Duration, Instant};

use qmesh_net::{
    Downstream, ExpertRoom, LinkWay, LoadShard, Message, PeerWays, PlanEpoch, Route, Sections, ShardPhase, ShardStatus,
    StageIndex, StageReport, Upstream,
};

use super::{
    choice::Choice,
    misconduct::Misconduct,
    planned::PlannedModel,
    slowness::Slowness,
    troubles::Blame,
    ways::{self, Granted, Relays, Side},
    worker::{Joined, WorkerId},
};
use crate::{
    mesh::events::PlanReason,
    plan::{Plan, StagePlan, prediction::Prediction},
};

/// A plan that is being carried out, under its epoch.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) epoch: PlanEpoch,
    pub(super) plan: Plan,
    /// The plan's stages, in order.
    pub(super) stages: Vec<Stage>,
    /// What it is expected to do, where the workers' speeds are known.
    pub(super) prediction: Option<Prediction>,
    pub(super) standing: Standing,
    /// What it was made for.
    pub(super) why: PlanReason,
    began: Instant,
}

/// One stage's worker and what it has said.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) worker: WorkerId,
    pub(super) status: Option<ShardStatus>,
    pub(super) report: StageReport,
    /// Whether it takes longer than it should.
    pub(super) slowness: Slowness,
    /// How its link to the next worker came about.
    pub(super) way: Option<LinkWay>,
    heard: Instant,
    linked: bool,
}

/// How far a pipeline is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Standing {
    /// Its stages fetch and load.
    Loading,
    /// They connect to each other; since when.
    Linking(Instant),
    /// Every link stands; a probe token is under way.
    Linked,
    /// The probe came back.
    Proved,
}

/// What a message changed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Advance {
    /// Nothing that others need to know.
    None,
    /// The last stage is loaded: routes may go out.
    Loaded,
    /// The last link stands.
    Linked,
}

impl Pipeline {
    pub(super) fn new(now: Instant, epoch: PlanEpoch, choice: Choice, why: PlanReason) -> Self {
        let Choice { plan, stages, prediction, bounds } = choice;
        let stage = |(number, worker)| Stage {
            worker,
            status: None,
            report: StageReport::default(),
            slowness: Slowness::new(bounds.as_ref().and_then(|bounds| bounds.get(number).copied())),
            way: None,
            heard: now,
            linked: false,
        };
        let stages = stages.into_iter().enumerate().map(stage).collect();
        Self { epoch, plan, stages, prediction, standing: Standing::Loading, why, began: now }
    }

    pub(super) fn stage_of(&self, worker: WorkerId) -> Option<usize> {
        self.stages.iter().position(|s| s.worker == worker)
    }

    /// How long ago it was begun.
    pub(super) fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    /// How a stage's loading goes. After `Ready` there is nothing more to say.
    pub(super) fn shard_status(
        &mut self,
        now: Instant,
        stage: usize,
        status: ShardStatus,
    ) -> Result<Advance, Misconduct> {
        let stage = &mut self.stages[stage];
        if stage.is_ready() {
            return Err(Misconduct::Twice("the state of a shard that is loaded"));
        }
        stage.heard = now;
        stage.report.peak_memory_bytes = stage.report.peak_memory_bytes.max(status.peak_memory_bytes);
        stage.status = Some(status);
        if self.standing == Standing::Loading && self.stages.iter().all(Stage::is_ready) {
            self.standing = Standing::Linking(now);
            return Ok(Advance::Loaded);
        }
        Ok(Advance::None)
    }

    /// A stage has both its links.
    pub(super) fn linked(&mut self, stage: usize, way: Option<LinkWay>) -> Result<Advance, Misconduct> {
        if !matches!(self.standing, Standing::Linking(_)) {
            return Err(Misconduct::Twice("that its links stand"));
        }
        if std::mem::replace(&mut self.stages[stage].linked, true) {
            return Err(Misconduct::Twice("that its links stand"));
        }
        self.stages[stage].way = way;
        if !self.stages.iter().all(|s| s.linked) {
            return Ok(Advance::None);
        }
        self.standing = Standing::Linked;
        Ok(Advance::Linked)
    }

    /// Who is to blame that the pipeline has not got on for too long, and what for.
    pub(super) fn overdue(&self, now: Instant) -> Option<(Blame, &'static str)> {
        match self.standing {
            Standing::Loading => {
                let silent = self.stages.iter().find(|s| !s.is_ready() && now - s.heard > SILENCE)?;
                Some((Blame::Load(silent.worker), "no progress in loading its layers"))
            }
            Standing::Linking(since) if now - since > LINKING => {
                Some((self.missing_link(), "the link does not come about"))
            }
            Standing::Linking(_) | Standing::Linked | Standing::Proved => None,
        }
    }

    /// Who could not reach whom: of two neighbours that both lack a link, the first has not reached the second.
    pub(super) fn missing_link(&self) -> Blame {
        let unlinked: Vec<usize> = (0..self.stages.len()).filter(|&i| !self.stages[i].linked).collect();
        let pair = unlinked.windows(2).find(|pair| pair[0] + 1 == pair[1]);
        match (pair, unlinked.first()) {
            (Some(pair), _) => Blame::Pair(self.stages[pair[0]].worker, self.stages[pair[1]].worker),
            (None, Some(&one)) => Blame::Worker(self.stages[one].worker),
            (None, None) => Blame::Nobody,
        }
    }

    /// What the worker of a stage shall load; the sections say what else there is to say about it.
    pub(super) fn load(&self, model: &PlannedModel, stage: usize, mut sections: Sections) -> LoadShard {
        let StagePlan { ref layers, experts_in_memory, .. } = self.plan.stages[stage];
        let layers = layers.clone();
        if let Some(each) = experts_in_memory
            && let Err(error) = (ExpertRoom { each: count(each.get()) }).put(&mut sections)
        {
            // A bug: the worker will say that it has no room.
            tracing::error!("a worker is not told how many experts to have in memory: {error}");
        }
        let spec = model.spec.shard(layers.clone());
        let held = model.spec.tensors.iter().zip(&model.hashes);
        let tensor_hashes = held.filter(|(t, _)| model.spec.holds(&layers, t.role)).map(|(_, &h)| h).collect();
        LoadShard {
            epoch: self.epoch,
            stage: StageIndex(index(stage)),
            stages: index(self.stages.len()),
            model_id: model.id,
            model_name: model.name.clone(),
            // A spec is plain numbers and texts: writing it as JSON cannot fail.
            spec_json: serde_json::to_vec(&spec).unwrap_or_default(),
            layers: count(layers.start)..count(layers.end),
            tensor_hashes,
            kv_positions: count(model.kv_positions),
            context: count(model.context),
            chunk_rows: count(model.chunk_rows),
            sections,
        }
    }

    /// Routes from the last stage to the first, so that whoever dials finds the door open.
    pub(super) fn routes<'a>(
        &self,
        relays: Relays<'_>,
        joined: impl Fn(WorkerId) -> Option<&'a Joined>,
    ) -> Vec<(WorkerId, Message)> {
        let last = self.stages.len() - 1;
        let peer = |stage: usize| joined(self.stages[stage].worker);
        let route = |i: usize| {
            let (me, mut neighbours) = (peer(i)?, PeerWays::default());
            let upstream = match i.checked_sub(1) {
                None => Upstream::Coordinator,
                Some(before) => {
                    let link = (self.epoch, before);
                    neighbours.peers.push(ways::way(relays, link, Side::After, me, peer(before)?));
                    Upstream::Worker(peer(before)?.peer)
                }
            };
            let downstream = if i == last {
                Downstream::Coordinator
            } else {
                let next = peer(i + 1)?;
                neighbours.peers.push(ways::way(relays, (self.epoch, i), Side::Before, me, next));
                Downstream::Worker { peer: next.peer, addresses: ways::addresses(me, next) }
            };
            let mut sections = Sections::default();
            if let Err(error) = neighbours.put(&mut sections) {
                // A bug, and no harm where they can dial each other.
                tracing::error!("neighbours are not told of each other: {error}");
            }
            let route = Route { epoch: self.epoch, stage: StageIndex(index(i)), upstream, downstream, sections };
            Some((self.stages[i].worker, Message::Route(route)))
        };
        (0..=last).rev().filter_map(route).collect()
    }

    /// What lets packets pass between neighbours that reach each other in no other way.
    pub(super) fn grants<'a>(
        &self,
        relays: Relays<'_>,
        joined: impl Fn(WorkerId) -> Option<&'a Joined>,
    ) -> Vec<Granted> {
        let pairs = self.stages.windows(2).enumerate();
        let grant = |(stage, pair): (usize, &[Stage])| {
            ways::grant(relays, (self.epoch, stage), joined(pair[0].worker)?, joined(pair[1].worker)?)
        };
        pairs.filter_map(grant).collect()
    }
}

impl Stage {
    pub(super) fn is_ready(&self) -> bool {
        self.status.as_ref().is_some_and(|s| s.phase == ShardPhase::Ready)
    }
}

/// Stages and layers are bounded by the spec, far below the wire's widths.
fn index(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// A stage that loads reports several times a second: after so long a silence it hangs.
pub(super) const SILENCE: Duration = Duration::from_secs(60);
/// How long stages have to connect: it takes milliseconds, or 10 s where it fails.
const LINKING: Duration = Duration::from_secs(20);
