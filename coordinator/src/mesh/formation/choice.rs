//! Which workers get which layers: the best plan over those that can be relied on. Nothing here changes the roster.

use std::{collections::BTreeMap, time::Instant};

use qmesh_net::{PeerId, limits::GRANT_BYTES_PER_SECOND};

use super::{
    machines,
    planned::PlannedModel,
    speeds::Speeds,
    troubles::{Severity, Troubles},
    worker::{Joined, Worker, WorkerId},
};
use crate::{
    mesh::config::{Formation, Measuring, Workers},
    plan::{
        self, Capacity, End, Link, Links, Plan, PlanError, PlanInput, StagePlan,
        prediction::{Prediction, StepBound, predict, step_bounds},
    },
};

/// A plan and the worker of each of its stages.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) plan: Plan,
    pub(super) stages: Vec<WorkerId>,
    /// What it is expected to do, where the workers' speeds are known.
    pub(super) prediction: Option<Prediction>,
    /// What each stage's steps may take at most, where the workers' speeds are known.
    pub(super) bounds: Option<Vec<StepBound>>,
}

/// Everything that a choice depends on.
pub(super) struct Chooser<'a> {
    pub(super) now: Instant,
    pub(super) model: &'a PlannedModel,
    pub(super) formation: &'a Formation,
    pub(super) workers: &'a BTreeMap<WorkerId, Worker>,
    pub(super) troubles: &'a Troubles,
    pub(super) speeds: &'a Speeds,
    /// Round-trip times of links that were relayed, in milliseconds.
    pub(super) relayed: &'a BTreeMap<(PeerId, PeerId), f64>,
}

impl Chooser<'_> {
    /// The best plan over the workers that are steady and have CPUs for themselves or, where these cannot hold the model, over
    /// all that are steady, or else over all that are fit.
    pub(super) fn choose(&self) -> Result<Choice, PlanError> {
        let first = |workers: &[WorkerId]| workers.iter().copied().take(self.most()).collect::<Vec<_>>();
        let (steady, all) = (self.candidates(None), self.candidates(Some(Severity::Unsteady)));
        let mut attempts = vec![first(&self.uncrowded(&steady)), first(&steady), first(&all)];
        attempts.dedup();
        let mut chosen = Err(PlanError::NoWorkers);
        for attempt in attempts {
            chosen = self.over(&attempt);
            if chosen.is_ok() {
                break;
            }
        }
        chosen
    }

    /// With whom a worker shares the CPUs that it would compute on, and need not: the name of whoever was here before it.
    pub(super) fn crowded(&self) -> BTreeMap<WorkerId, &str> {
        let asked_for = |id: &WorkerId| {
            self.workers.get(id).is_some_and(|worker| self.formation.pins.contains_key(&worker.joined.name))
        };
        let steady = self.candidates(None);
        let joined = steady.iter().filter_map(|id| Some((*id, &self.workers.get(id)?.joined)));
        let mut crowded = machines::crowded(joined);
        crowded.retain(|id, _| !asked_for(id));
        let rest = steady.len() - crowded.len();
        // So many were asked for, or stages of an explicit cut; and where nobody measures, all that can work do.
        let wanted = self.formation.workers.least().max(self.formation.cut.as_ref().map_or(0, |cut| cut.len() + 1));
        if rest < wanted || self.formation.measuring == Measuring::Off { BTreeMap::new() } else { crowded }
    }

    fn uncrowded(&self, steady: &[WorkerId]) -> Vec<WorkerId> {
        let crowded = self.crowded();
        steady.iter().copied().filter(|id| !crowded.contains_key(id)).collect()
    }

    /// Who is not excluded, and has given no more trouble than this.
    fn candidates(&self, worst: Option<Severity>) -> Vec<WorkerId> {
        let severity = |w: &Worker| self.troubles.of(self.now, w.joined.peer).map(|t| t.severity);
        let wanted = |w: &Worker| severity(w) <= worst && !self.formation.excluded.contains(&w.joined.name);
        self.workers.iter().filter(|(_, w)| wanted(w)).map(|(&id, _)| id).collect()
    }

    /// What the goal is to make small, of a plan whose stages are these workers, by what is known now.
    pub(super) fn cost(&self, plan: &Plan, stages: &[WorkerId]) -> u64 {
        self.input(stages).map_or(u64::MAX, |input| plan::cost(&input, &renumbered(plan)))
    }

    /// A plan that was made before, for the workers that are to have its stages now; `None` where one of them is not steady.
    pub(super) fn again(&self, plan: &Plan, stages: Vec<WorkerId>) -> Option<Choice> {
        let steady = self.candidates(None);
        let are_steady = stages.iter().all(|id| steady.contains(id)) && self.broken_link(&stages).is_none();
        let input = self.input(&stages).filter(|_| are_steady)?;
        Some(self.foreseen(&input, renumbered(plan), stages))
    }

    /// The most workers that the formation wants.
    fn most(&self) -> usize {
        match self.formation.workers {
            Workers::Exactly(n) => n,
            Workers::AtLeast(_) | Workers::WhenItFits => usize::MAX,
        }
    }

    /// The best plan over these workers. An explicit cut goes to them in an order in which each can reach the next.
    fn over(&self, candidates: &[WorkerId]) -> Result<Choice, PlanError> {
        let Some(input) = self.input(candidates) else { return Err(PlanError::NoWorkers) };
        let chosen = self.solve(&input, candidates);
        let (Ok(choice), true) = (&chosen, self.formation.cut.is_some()) else { return chosen };
        let Some((from, to)) = self.broken_link(&choice.stages) else { return chosen };
        let orders = reorderings(candidates, from, to);
        let reordered = orders.filter_map(|order| self.solve(&self.input(&order)?, &order).ok());
        let mut sound = reordered.filter(|choice| self.broken_link(&choice.stages).is_none());
        sound.next().map_or(chosen, Ok)
    }

    /// The first two neighbours of which one cannot reach the other.
    fn broken_link(&self, stages: &[WorkerId]) -> Option<(WorkerId, WorkerId)> {
        stages.windows(2).map(|pair| (pair[0], pair[1])).find(|(from, to)| self.is_broken(*from, *to))
    }

    fn is_broken(&self, from: WorkerId, to: WorkerId) -> bool {
        let peer = |id: WorkerId| self.workers.get(&id).map_or(PeerId([0; 32]), |w| w.joined.peer);
        self.troubles.between(self.now, peer(from), peer(to)).is_some()
    }

    fn solve(&self, input: &PlanInput<'_>, candidates: &[WorkerId]) -> Result<Choice, PlanError> {
        let plan = plan::solve(input)?;
        let stages = plan.stages.iter().map(|s| candidates[s.worker]).collect();
        Ok(self.foreseen(input, plan, stages))
    }

    /// A plan with what is expected of it.
    fn foreseen(&self, input: &PlanInput<'_>, plan: Plan, stages: Vec<WorkerId>) -> Choice {
        let streams = (self.model.kv_positions / self.model.context.max(1)).max(1);
        let prediction = predict(input, &plan, streams);
        let bounds = step_bounds(input, &plan);
        Choice { plan, stages, prediction, bounds }
    }

    /// What is known to be relayed takes as long as it took, and shares the relay's rate.
    fn set_relayed(&self, workers: &[&Joined], links: &mut Links) {
        let place = |peer: PeerId| workers.iter().position(|joined| joined.peer == peer).map(End::Worker);
        for (&(from, to), &rtt_ms) in self.relayed {
            if let (Some(from), Some(to)) = (place(from), place(to))
                && links.between(from, to).is_some()
            {
                links.set(from, to, Link { rtt_ms, bytes_per_s: Some(GRANT_BYTES_PER_SECOND as f64) });
            }
        }
    }

    /// The planner's input with these workers; `None` where one of them is gone.
    pub(super) fn input(&self, candidates: &[WorkerId]) -> Option<PlanInput<'_>> {
        let workers: Option<Vec<&Joined>> =
            candidates.iter().map(|id| self.workers.get(id).map(|worker| &worker.joined)).collect();
        let workers = workers?;
        let mut links = Links::default();
        for (number, joined) in workers.iter().enumerate() {
            links.set_own(number, Link { rtt_ms: joined.rtt_ms, bytes_per_s: None });
            let others = candidates.iter().enumerate().filter(|(_, other)| self.is_broken(candidates[number], **other));
            others.for_each(|(other, _)| links.cut(End::Worker(number), End::Worker(other)));
        }
        self.set_relayed(&workers, &mut links);
        let capacity = |joined: &&Joined| Capacity {
            name: joined.name.clone(),
            memory_bytes: joined.memory_bytes,
            threads: joined.threads,
            speed: self.speeds.of(joined),
        };
        let mut capacities: Vec<Capacity> = workers.iter().map(capacity).collect();
        machines::share_memory(&workers, &mut capacities);
        machines::even_out(&workers, &mut capacities);
        plan::even_out(&mut capacities);
        let named = |name: &String| workers.iter().position(|joined| joined.name == *name);
        let pins = self.formation.pins.iter().filter_map(|(name, layers)| Some((named(name)?, layers.clone())));
        let PlannedModel { ref spec, kv_positions, context, chunk_rows, .. } = *self.model;
        Some(PlanInput {
            pins: pins.collect(),
            links,
            cut: self.formation.cut.clone(),
            stages_least: self.formation.workers.least(),
            goal: self.formation.goal,
            workload: self.formation.workload,
            experts: self.formation.experts,
            ..PlanInput::new(spec, capacities, kv_positions, context, chunk_rows)
        })
    }
}

/// The plan whose workers are numbered as its stages are.
fn renumbered(plan: &Plan) -> Plan {
    let stages = plan.stages.iter().enumerate().map(|(worker, stage)| StagePlan { worker, ..stage.clone() });
    Plan { stages: stages.collect(), ..plan.clone() }
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
