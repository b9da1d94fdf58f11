//! From one plan to the next: whether it is worth it, what is loaded beside what, and what is unloaded.

use std::{
    mem,
    time::{Duration, Instant},
};

use qmesh_models::footprint::Footprints;
use qmesh_net::{Grant, Message, PeerId, PlanEpoch};

use super::{Action, Pause, Roster};
use crate::{
    mesh::{
        config::Workers,
        events::PlanReason,
        formation::{
            choice::{Choice, Chooser},
            pipeline::{Pipeline, Stage},
            sources::{self, Dealt, Recipient},
            ways::{Granted, Relays},
            worker::{Held, Worker, WorkerId},
        },
    },
    plan::{Goal, Plan, PlanError, StagePlan},
};

impl Roster {
    /// A round trip to a worker takes so long at best: plans to come count on it.
    pub(crate) fn timed(&mut self, worker: WorkerId, rtt: Duration) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.joined.rtt_ms = rtt.as_secs_f64() * 1e3;
        }
    }

    /// Gives the workers stages, if the model fits them and the change is worth it.
    pub(super) fn replan(&mut self, now: Instant, pause: Pause) -> Vec<Action> {
        // When somebody who was left out may be asked again, a better plan may be had.
        self.plan_at = self.troubles.next_end(now);
        // Once formed, a smaller mesh that holds the model is better than none.
        let enough = self.workers.len() >= self.formation.workers.least() || self.newest.0 > 0;
        if self.workers.is_empty() || !enough {
            return self.stay(now, None);
        }
        if let Some(text) = self.missing_pin() {
            return self.stay(now, Some(text));
        }
        let choice = match self.chooser(now).choose() {
            Ok(choice) => self.or_as_before(now, choice),
            Err(PlanError::NoWorkers) => return self.stay(now, None),
            Err(error) => return self.stay(now, Some(error.to_string())),
        };
        match self.worth(now, &choice) {
            Worth::Change => {}
            Worth::Same => return self.settle(None),
            Worth::TooLittle(why) => return self.settle(Some(why)),
        }
        self.standby = None;
        if pause == Pause::Announce && self.serving.is_some() && !self.has_room(&choice) {
            self.pause_at = Some(now + ANNOUNCED);
            return Vec::new();
        }
        self.begin(now, choice)
    }

    /// The last plan instead, where nothing serves, its workers are back, and the new one is not worth that layers change hands.
    fn or_as_before(&self, now: Instant, choice: Choice) -> Choice {
        let (None, None, Some((plan, peers))) = (&self.serving, &self.next, &self.last) else { return choice };
        let chooser = self.chooser(now);
        let again = self.workers_of(peers).and_then(|workers| chooser.again(plan, workers));
        let before = again.filter(|before| self.has_room(before));
        let Some(before) = before else { return choice };
        let is_short =
            before.stages.len() < self.formation.workers.least() && choice.stages.len() > before.stages.len();
        let was = chooser.cost(&before.plan, &before.stages);
        if is_short || pays(was, chooser.cost(&choice.plan, &choice.stages)) { choice } else { before }
    }

    /// A worker for each of these keys, if all are here. A key is there twice where a worker came back before its old connection
    /// was known to be lost: then two stages had it, and one worker is not enough.
    fn workers_of(&self, peers: &[PeerId]) -> Option<Vec<WorkerId>> {
        let mut found = Vec::with_capacity(peers.len());
        for peer in peers {
            let mut of_peer = self.workers.iter().filter(|(_, worker)| worker.joined.peer == *peer).map(|(&id, _)| id);
            found.push(of_peer.find(|id| !found.contains(id))?);
        }
        Some(found)
    }

    /// Whom a pin names that is not here.
    fn missing_pin(&self) -> Option<String> {
        let here = |name: &str| self.workers.values().any(|worker| worker.joined.name == name);
        let (name, layers) = self.formation.pins.iter().find(|(name, _)| !here(name))?;
        Some(format!("waiting for {name}, which is pinned to layers {}-{}", layers.start, layers.end.saturating_sub(1)))
    }

    pub(super) fn chooser(&self, now: Instant) -> Chooser<'_> {
        let Self { model, formation, workers, troubles, speeds, relayed, .. } = self;
        Chooser { now, model, formation, workers, troubles, speeds, relayed }
    }

    /// Whether a plan is worth more than the present one, which serves or is being made ready.
    fn worth(&self, now: Instant, choice: &Choice) -> Worth {
        let Some(present) = self.serving.as_ref().or(self.next.as_ref()) else { return Worth::Change };
        let workers: Vec<WorkerId> = present.stages.iter().map(|s| s.worker).collect();
        let layers = |plan: &Plan| plan.stages.iter().map(|s| s.layers.clone()).collect::<Vec<_>>();
        if workers == choice.stages && layers(&present.plan) == layers(&choice.plan) {
            return Worth::Same;
        }
        let missing =
            present.stages.len() < self.formation.workers.least() && choice.stages.len() > present.stages.len();
        let chooser = self.chooser(now);
        let before = chooser.cost(&present.plan, &workers);
        let after = chooser.cost(&choice.plan, &choice.stages);
        if self.serving.is_none() || missing || pays(before, after) {
            return Worth::Change;
        }
        let gain = (100.0 * (before as f64 / after.max(1) as f64 - 1.0)).max(0.0);
        Worth::TooLittle(match self.formation.goal {
            Goal::Latency => format!("a standby: with it a token would come {gain:.0} % faster"),
            Goal::Balanced | Goal::Throughput => {
                format!("a standby: with it the slowest stage would be {gain:.0} % faster")
            }
        })
    }

    /// Starts to carry a plan out: beside what serves where there is room for both, else in its place.
    fn begin(&mut self, now: Instant, choice: Choice) -> Vec<Action> {
        let why = match (self.newest, &self.serving) {
            (PlanEpoch(0), _) => PlanReason::First,
            (_, Some(_)) => PlanReason::Better,
            (_, None) => PlanReason::Lost,
        };
        let mut actions = Vec::new();
        if let Some(epoch) = self.next.take().map(|p| p.epoch) {
            // Nobody has used it yet.
            actions.push(Action::Down(epoch, "a better plan takes its place".to_owned()));
            actions.extend(self.unload(|_, held| held == epoch));
        }
        if !self.has_room(&choice)
            && let Some(serving) = self.serving.take()
        {
            let pause = "the layers are dealt again, for which not every worker has room beside its old ones";
            actions.push(Action::Down(serving.epoch, pause.to_owned()));
        }
        // A shard that serves nobody any more stays only where tensors can be taken from it, and where none serves beside it:
        // a worker has two at most, and cannot know which of them makes way for the new one.
        let (live, serving) = (self.live(), self.serving_workers());
        let crowded = self.crowded(&choice);
        let goes = |worker| crowded.contains(&worker) || serving.contains(&worker);
        actions.extend(self.unload(|worker, held| !live.contains(&held) && goes(worker)));
        self.newest = PlanEpoch(self.newest.0 + 1);
        self.failed = false;
        if self.serving.is_none() {
            self.text = format!("loading {} into {} workers", self.model.name, choice.stages.len());
        }
        let next = Pipeline::new(now, self.newest, choice, why);
        let dealt = self.deal(&next);
        for (stage, (planned, place)) in next.plan.stages.iter().zip(&next.stages).enumerate() {
            if let Some(worker) = self.workers.get_mut(&place.worker) {
                let StagePlan { ref layers, experts_in_memory, .. } = *planned;
                worker.holds.push(Held { epoch: next.epoch, layers: layers.clone(), experts_in_memory });
            }
            let sections = dealt.get(stage).map(Dealt::sections).unwrap_or_default();
            actions.push(Action::Send(place.worker, Message::Load(next.load(&self.model, stage, sections))));
        }
        let peers = next.stages.iter().filter_map(|s| self.workers.get(&s.worker)).map(|w| w.joined.peer);
        self.last = Some((next.plan.clone(), peers.collect()));
        self.next = Some(next);
        actions
    }

    /// Who of a plan's workers can have its tensors from whom.
    fn deal(&self, next: &Pipeline) -> Vec<Dealt> {
        let recipient = |(planned, place): (&StagePlan, &Stage)| {
            let Worker { joined, stocks, .. } = self.workers.get(&place.worker)?;
            Some(Recipient { joined, layers: planned.layers.clone(), stocks })
        };
        // Without one of its workers a plan is given up at once, whoever may ask whom.
        let recipients: Option<Vec<_>> = next.plan.stages.iter().zip(&next.stages).map(recipient).collect();
        recipients.map(|recipients| sources::deal(&self.model, &recipients)).unwrap_or_default()
    }

    /// Every stage of the next pipeline is loaded: they may connect to each other, and nobody takes tensors from old
    /// shards any more.
    pub(super) fn link(&mut self, epoch: PlanEpoch) -> Vec<Action> {
        let Some(pipeline) = self.pipeline(epoch) else { return Vec::new() };
        let mut actions = self.grants(pipeline);
        let joined = |worker| self.workers.get(&worker).map(|w| &w.joined);
        let routes = pipeline.routes(self.relays(), joined).into_iter();
        actions.extend(routes.map(|(worker, route)| Action::Send(worker, route)));
        actions.extend(pipeline.stages.first().map(|first| Action::OpenFrames(first.worker, epoch)));
        actions.extend(self.unload_the_dead());
        actions
    }

    /// Packets may pass between neighbours of a pipeline, from where they are now.
    pub(super) fn grants(&self, pipeline: &Pipeline) -> Vec<Action> {
        let joined = |worker| self.workers.get(&worker).map(|w| &w.joined);
        let action = |Granted { grant, by }: Granted| match by {
            None => Action::Relay(grant),
            Some(rendezvous) => Action::Send(rendezvous, Message::Grant(Grant::of(&grant))),
        };
        pipeline.grants(self.relays(), joined).into_iter().map(action).collect()
    }

    /// Who may pass packets on: of several rendezvous the one that came first.
    fn relays(&self) -> Relays<'_> {
        let mut workers = self.workers.iter().map(|(&id, worker)| (id, &worker.joined));
        Relays { relaying: &self.formation.relaying, rendezvous: workers.find(|(_, joined)| joined.is_rendezvous) }
    }

    /// There is no new plan. A pipeline that stands goes on; where there is none, the text says why.
    fn stay(&mut self, now: Instant, why: Option<String>) -> Vec<Action> {
        if self.serving.is_some() || self.next.is_some() {
            return self.settle(why);
        }
        let troubled = self.workers.values().find_map(|w| {
            let trouble = self.troubles.of(now, w.joined.peer)?;
            Some(format!("{}: {}", w.joined.name, trouble.why))
        });
        self.failed = why.is_some() || troubled.is_some();
        self.text = why.or(troubled).unwrap_or_else(|| self.waiting_text());
        Vec::new()
    }

    /// What serves goes on as it is; the others stand by.
    fn settle(&mut self, standby: Option<String>) -> Vec<Action> {
        self.standby = standby;
        self.unload_the_dead()
    }

    fn waiting_text(&self) -> String {
        match self.formation.workers {
            Workers::Exactly(n) | Workers::AtLeast(n) => format!("waiting for workers: {} of {n}", self.workers.len()),
            Workers::WhenItFits => "waiting for workers".to_owned(),
        }
    }

    fn serving_workers(&self) -> Vec<WorkerId> {
        self.serving.iter().flat_map(|p| &p.stages).map(|s| s.worker).collect()
    }

    fn live(&self) -> Vec<PlanEpoch> {
        self.serving.iter().chain(&self.next).map(|p| p.epoch).collect()
    }

    pub(super) fn unload_the_dead(&mut self) -> Vec<Action> {
        let live = self.live();
        self.unload(|_, held| !live.contains(&held))
    }

    /// Unloads what workers hold, where `gone` says so.
    fn unload(&mut self, gone: impl Fn(WorkerId, PlanEpoch) -> bool) -> Vec<Action> {
        let mut actions = Vec::new();
        for (&id, worker) in &mut self.workers {
            let (out, kept) = mem::take(&mut worker.holds).into_iter().partition(|held| gone(id, held.epoch));
            worker.holds = kept;
            let out: Vec<Held> = out;
            actions.extend(out.iter().map(|held| Action::Send(id, Message::Unload { epoch: held.epoch })));
        }
        actions
    }

    /// Whether every worker has room for its new stage beside what it holds for the pipeline that serves.
    fn has_room(&self, choice: &Choice) -> bool {
        let footprints = Footprints::new(&self.model.spec);
        let fits = |id: &WorkerId| self.workers.get(id).is_some_and(|w| self.fits_beside(&footprints, *id, w, choice));
        choice.stages.iter().all(fits)
    }

    /// Workers that have to give up shards of dead pipelines at once: they get no stage of this choice, from which
    /// tensors could be taken over, or have no room for it beside what they hold.
    fn crowded(&self, choice: &Choice) -> Vec<WorkerId> {
        let footprints = Footprints::new(&self.model.spec);
        let takes_all = |(id, worker): &(&WorkerId, &Worker)| {
            choice.stages.contains(*id) && self.fits_beside(&footprints, **id, worker, choice)
        };
        self.workers.iter().filter(|entry| !takes_all(entry)).map(|(&id, _)| id).collect()
    }

    /// Whether a worker has room for all that it holds and for its stage of this choice, if it has one.
    fn fits_beside(&self, footprints: &Footprints<'_>, id: WorkerId, worker: &Worker, choice: &Choice) -> bool {
        let held = worker.holds.iter().map(|held| (held.layers.clone(), held.experts_in_memory));
        let new = choice.stages.iter().position(|&w| w == id).map(|s| &choice.plan.stages[s]);
        let shards = held.chain(new.map(|stage| (stage.layers.clone(), stage.experts_in_memory)));
        let demand = |(layers, experts)| self.model.demand(layers, experts, worker.joined.threads);
        let demands: Vec<_> = shards.map(demand).collect();
        footprints.shards(&demands).total_bytes() <= worker.joined.memory_bytes
    }
}

/// Whether a plan of this cost is worth that layers change hands.
fn pays(before: u64, after: u64) -> bool {
    after <= before - before / WORTH
}

/// What a new plan is worth beside the present one.
enum Worth {
    Change,
    Same,
    /// Less than the change costs; the text says so to people.
    TooLittle(String),
}

/// A change pays if the time of the slowest stage falls by at least this part of it: by a seventh, which makes it at
/// least 15 % faster.
const WORTH: u64 = 7;
/// How long before it comes a pause is announced.
pub(super) const ANNOUNCED: Duration = Duration::from_secs(5);
