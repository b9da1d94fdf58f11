//! Which workers get which layers: the best plan over those that can be relied on. Nothing here changes the roster.

use std::{collections::BTreeMap, time::Instant};

use qmesh_net::PeerId;

use super::{
    planned::PlannedModel,
    troubles::{Severity, Troubles},
    worker::{Worker, WorkerId},
};
use crate::{
    mesh::config::{Formation, Workers},
    plan::{self, Capacity, Plan, PlanError, PlanInput},
};

/// A plan and the worker of each of its stages.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) plan: Plan,
    pub(super) stages: Vec<WorkerId>,
    /// Time of the slowest stage, in the planner's unit.
    pub(super) slowest: u64,
}

/// Everything that a choice depends on.
pub(super) struct Chooser<'a> {
    pub(super) now: Instant,
    pub(super) model: &'a PlannedModel,
    pub(super) formation: &'a Formation,
    pub(super) workers: &'a BTreeMap<WorkerId, Worker>,
    pub(super) troubles: &'a Troubles,
    /// The workers that serve now; they are kept where one of two has to go.
    pub(super) serving: &'a [WorkerId],
}

impl Chooser<'_> {
    /// The best plan over the workers that are steady or, where these cannot hold the model, over all that are fit.
    pub(super) fn choose(&self) -> Result<Choice, PlanError> {
        let candidates = |worst: Option<Severity>| -> Vec<WorkerId> {
            let severity = |w: &Worker| self.troubles.of(self.now, w.joined.peer).map(|t| t.severity);
            let fit = self.workers.iter().filter(|(_, w)| severity(w) <= worst).map(|(&id, _)| id);
            fit.take(self.most()).collect()
        };
        let steady = candidates(None);
        let all = candidates(Some(Severity::Unsteady));
        let chosen = self.over(steady.clone());
        if chosen.is_err() && all != steady { self.over(all) } else { chosen }
    }

    /// The most workers that the formation wants.
    fn most(&self) -> usize {
        match self.formation.workers {
            Workers::Exactly(n) => n,
            Workers::AtLeast(_) | Workers::WhenItFits => usize::MAX,
        }
    }

    /// A plan over these in which no stage hands frames to one that it cannot reach: in another order, or without one
    /// of the two.
    fn over(&self, mut candidates: Vec<WorkerId>) -> Result<Choice, PlanError> {
        loop {
            let choice = self.largest(&candidates)?;
            let Some((from, to)) = self.broken_link(&choice.stages) else { return Ok(choice) };
            let reordered = reorderings(&candidates, from, to).filter_map(|order| self.largest(&order).ok());
            if let Some(choice) = reordered.into_iter().find(|c| self.broken_link(&c.stages).is_none()) {
                return Ok(choice);
            }
            // One that serves stays. Where both do, or neither, the first of the two in the pipeline stays.
            let out = if self.serving.contains(&to) && !self.serving.contains(&from) { from } else { to };
            candidates.retain(|&c| c != out);
        }
    }

    /// The first two neighbours of which one cannot reach the other.
    fn broken_link(&self, stages: &[WorkerId]) -> Option<(WorkerId, WorkerId)> {
        let peer = |id: WorkerId| self.workers.get(&id).map_or(PeerId([0; 32]), |w| w.joined.peer);
        let broken = |pair: &&[WorkerId]| self.troubles.between(self.now, peer(pair[0]), peer(pair[1])).is_some();
        stages.windows(2).find(broken).map(|pair| (pair[0], pair[1]))
    }

    /// A plan over all of these workers or, where there is none, over as many of them as possible, the smallest left
    /// out first.
    fn largest(&self, candidates: &[WorkerId]) -> Result<Choice, PlanError> {
        let all = self.solve(candidates);
        if all.is_ok() || self.formation.cut.is_some() {
            return all;
        }
        let mut chosen = candidates.to_vec();
        while chosen.len() > 1 {
            let memory = |id: &WorkerId| self.workers.get(id).map(|w| w.joined.memory_bytes);
            let Some(smallest) = (0..chosen.len()).min_by_key(|&i| memory(&chosen[i])) else { break };
            chosen.remove(smallest);
            if let Ok(choice) = self.solve(&chosen) {
                return Ok(choice);
            }
        }
        all
    }

    fn solve(&self, chosen: &[WorkerId]) -> Result<Choice, PlanError> {
        let capacity = |id: &WorkerId| {
            let joined = &self.workers[id].joined;
            Capacity { name: joined.name.clone(), memory_bytes: joined.memory_bytes, threads: joined.threads }
        };
        let input = PlanInput {
            spec: &self.model.spec,
            workers: chosen.iter().map(capacity).collect(),
            kv_positions: self.model.kv_positions,
            context: self.model.context,
            chunk_rows: self.model.chunk_rows,
            cut: self.formation.cut.clone(),
            workload: self.formation.workload,
        };
        let plan = plan::solve(&input)?;
        let stages = plan.stages.iter().map(|s| chosen[s.worker]).collect();
        let slowest = plan::slowest_stage(&input, &plan);
        Ok(Choice { plan, stages, slowest })
    }
}

/// The same workers, with one of the two moved to the front or to the end.
fn reorderings(order: &[WorkerId], from: WorkerId, to: WorkerId) -> impl Iterator<Item = Vec<WorkerId>> {
    let moved = |who: WorkerId, first: bool| {
        let mut others: Vec<_> = order.iter().copied().filter(|&w| w != who).collect();
        others.insert(if first { 0 } else { others.len() }, who);
        others
    };
    [moved(to, true), moved(from, false), moved(to, false), moved(from, true)].into_iter()
}
