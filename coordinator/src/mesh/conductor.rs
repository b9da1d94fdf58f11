//! Plays roster, openings, prober and scheduler together: a state machine without IO or clock.
//!
//! What happens goes in by its methods. What the machines want of each other goes through one queue of orders, first in
//! the order in which it was asked for; what needs links, listeners or readers comes out as actions
//! ([`Conductor::next_action`]).

mod messages;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Instant,
};

use qmesh_models::footprint::PAGE_POSITIONS;
use qmesh_net::{DraftAnswer, DraftOrder, Frame, Message, OpenSession, PlanEpoch, RelayGrant, SessionId};

use super::{
    config::Formation,
    events::{MeshEvent, RequestEnd},
    formation::{
        Blame, Joined, PlannedModel, WorkerId,
        openings::Openings,
        roster::{self, Roster},
    },
    probe::{self, Prober},
    scheduling::{self, DraftModel, DraftModelState, Limits, Scheduler, StepTotals},
    status::{ChangeStatus, DraftState, DraftStatus, MeshState, MeshStatus, SequenceStatus, StageStatus, StepsStatus},
};
use crate::generate::{GenerateError, GenerateEvent, GenerateRequest};

/// The mesh without its links.
#[derive(Debug)]
pub(crate) struct Conductor {
    model: Arc<PlannedModel>,
    roster: Roster,
    scheduler: Scheduler,
    openings: Openings,
    prober: Prober,
    /// Pipelines that frames may go to.
    fed: BTreeSet<PlanEpoch>,
    stopping: bool,
    started: Instant,
    orders: VecDeque<Order>,
    actions: VecDeque<Action>,
}

/// What is to be done by whoever has the links, the listeners and the readers.
#[derive(Debug)]
pub(crate) enum Action {
    /// On the worker's control stream.
    Send(WorkerId, Message),
    /// The worker broke the protocol: its link is closed with these words.
    HangUp(WorkerId, String),
    /// Packets may pass here between two workers.
    Relay(RelayGrant),
    /// Frames of this epoch go to this worker from now on.
    OpenFrames(WorkerId, PlanEpoch),
    /// No more frames of this epoch come, and no packets pass for it.
    CloseFrames(PlanEpoch),
    /// To the process of the model that drafts.
    Draft(DraftOrder),
    /// To the first stage of the frame's epoch. Where it cannot go, [`Conductor::frames_lost`] wants to know.
    Frame(Frame),
    /// To whoever submitted the session.
    Tell(SessionId, GenerateEvent),
    /// Nobody is told of this session any more.
    TellNoMore(SessionId),
    /// To whoever reads events.
    Publish(MeshEvent),
}

/// What one machine wants of the others.
#[derive(Debug)]
enum Order {
    Roster(roster::Action),
    Scheduler(scheduling::Action),
    Prober(probe::Outcome),
}

impl Conductor {
    pub(crate) fn new(now: Instant, model: PlannedModel, formation: Formation, limits: Limits) -> Self {
        let model = Arc::new(model);
        Self {
            roster: Roster::new(Arc::clone(&model), formation),
            scheduler: Scheduler::new(limits),
            openings: Openings::default(),
            prober: Prober::new(model.spec.vocab),
            fed: BTreeSet::new(),
            stopping: false,
            started: now,
            orders: VecDeque::new(),
            actions: VecDeque::new(),
            model,
        }
    }

    /// What is to be done next; actions are carried out in this order.
    pub(crate) fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The name that a worker gets which would like to be called so.
    pub(crate) fn free_name(&self, wish: &str) -> String {
        self.roster.free_name(wish)
    }

    /// A worker is in, under a name that was free.
    pub(crate) fn joined(&mut self, now: Instant, worker: WorkerId, joined: Joined) {
        self.publish(MeshEvent::WorkerJoined {
            worker: joined.name.clone(),
            address: joined.address.to_string(),
            memory_bytes: joined.memory_bytes,
            threads: joined.threads,
        });
        let actions = self.roster.joined(now, worker, joined);
        self.order(now, actions);
    }

    /// A worker is gone.
    pub(crate) fn left(&mut self, now: Instant, worker: WorkerId, why: &str) {
        if self.roster.has(worker) {
            let name = self.roster.name_of(worker).to_owned();
            self.publish(MeshEvent::WorkerLeft { worker: name, reason: why.to_owned() });
        }
        let actions = self.roster.left(now, worker, why);
        self.order(now, actions);
    }

    /// This machine has another address: these workers have lost it for that, and come back.
    pub(crate) fn displaced(&mut self, now: Instant, workers: &[WorkerId]) {
        for &worker in workers {
            let (worker, reason) = (self.roster.name_of(worker).to_owned(), roster::MOVED.to_owned());
            self.publish(MeshEvent::WorkerLeft { worker, reason });
        }
        let actions = self.roster.displaced(now, workers);
        self.order(now, actions);
    }

    /// Takes a request in.
    ///
    /// # Errors
    /// What is wrong with the request, or with the time at which it comes.
    pub(crate) fn submit(&mut self, now: Instant, request: GenerateRequest) -> Result<SessionId, GenerateError> {
        if self.stopping {
            return Err(GenerateError::ShuttingDown);
        }
        if self.state() != MeshState::Ready {
            return Err(GenerateError::NotReady { text: self.roster.text().to_owned() });
        }
        let (prompt_tokens, max_tokens) = (request.ids.len(), request.max_tokens);
        let key = request.key.as_deref().map(str::to_owned);
        let session = self.scheduler.submit(now, request)?;
        self.publish(MeshEvent::RequestStarted { request: session.0, prompt_tokens, max_tokens, key });
        Ok(session)
    }

    /// Nobody listens to a session any more.
    pub(crate) fn cancel(&mut self, now: Instant, session: SessionId) {
        if self.scheduler.computes(session) {
            self.publish(MeshEvent::RequestEnded { request: session.0, end: RequestEnd::Cancelled });
        }
        let actions = self.scheduler.cancel(session);
        self.order(now, actions);
    }

    /// The model that drafts says something.
    pub(crate) fn draft_answered(&mut self, now: Instant, answer: DraftAnswer) {
        self.scheduler.draft_answered(now, answer);
    }

    /// There is no model that drafts any more.
    pub(crate) fn draft_model_gone(&mut self) {
        self.scheduler.draft_model_gone();
    }

    /// The way to the first stage of an epoch is gone.
    pub(crate) fn frames_lost(&mut self, now: Instant, epoch: PlanEpoch) {
        let first = self.roster.stage_workers(epoch).next();
        let blame = first.map_or(Blame::Nobody, Blame::Worker);
        let actions = self.roster.broken(now, epoch, "the link to the first stage is gone", blame);
        self.order(now, actions);
    }

    /// Time has passed: plans are made, and what has taken too long is given up.
    pub(crate) fn tick(&mut self, now: Instant) {
        let newest = self.roster.newest();
        let actions = self.roster.tick(now);
        if self.roster.newest() > newest {
            self.actions.extend(self.roster.plan_made().map(Action::Publish));
        }
        self.order(now, actions);
        self.check_deadlines(now);
        let text = self.roster.text().to_owned();
        let actions = self.scheduler.expire(now, &text);
        self.order(now, actions);
    }

    /// Fills steps, as far as there is something to fill them with.
    pub(crate) fn pump(&mut self, now: Instant) {
        let actions = self.scheduler.pump(now);
        self.order(now, actions);
    }

    /// Nothing more is taken in.
    pub(crate) fn stop(&mut self) {
        self.stopping = true;
    }

    /// Whether nothing runs and nothing waits.
    pub(crate) fn is_idle(&self) -> bool {
        self.scheduler.is_idle()
    }

    /// What runs and what waits.
    pub(crate) fn sequences(&self) -> Vec<SequenceStatus> {
        self.scheduler.statuses()
    }

    /// What a worker is called, for people.
    pub(crate) fn name_of(&self, worker: WorkerId) -> &str {
        self.roster.name_of(worker)
    }

    /// What the mesh says of itself; round-trip times are the links' to know.
    pub(crate) fn status(&self, now: Instant, rtt_ms: impl Fn(WorkerId) -> f64) -> MeshStatus {
        let totals = self.scheduler.totals;
        MeshStatus {
            model: self.model.name.clone(),
            state: self.state(),
            text: self.roster.text().to_owned(),
            epoch: self.roster.epoch().0,
            context: self.model.context,
            kv_positions: self.model.kv_positions,
            kv_positions_used: self.scheduler.positions_reserved(),
            stages: self.with_kv_used(self.roster.stage_status(), self.scheduler.positions_reserved()),
            workers: self.roster.worker_status(now, rtt_ms),
            prediction: self.roster.prediction(),
            change: self.roster.change(now).map(|change| self.with_followers(change)),
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            // Whoever has links knows.
            open: false,
            asking: Vec::new(),
            weight_bytes_sent: 0,
            relayed_bytes: 0,
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            generated_tokens: totals.generated_tokens,
            drafted_tokens: totals.drafted_tokens,
            accepted_tokens: totals.accepted_tokens,
            draft_model: self.scheduler.draft_model().map(draft_status),
            preemptions: totals.preemptions,
            steps: steps_status(self.scheduler.step_totals),
            uptime_s: now.saturating_duration_since(self.started).as_secs(),
        }
    }

    fn state(&self) -> MeshState {
        if self.stopping {
            MeshState::Stopping
        } else if self.roster.state() == MeshState::Ready && !self.scheduler.serves() {
            MeshState::Loading
        } else {
            self.roster.state()
        }
    }

    /// How many answers have followed to the next pipeline.
    fn with_followers(&self, change: ChangeStatus) -> ChangeStatus {
        match self.scheduler.following() {
            Some((there, all)) => {
                let stages = self.with_kv_used(change.stages, self.scheduler.positions_reserved_next());
                ChangeStatus { text: format!("{}: {there} of {all}", change.text), stages, ..change }
            }
            None => change,
        }
    }

    /// Stages with what so many promised positions take of their KV caches: pages are the same size throughout a stage.
    fn with_kv_used(&self, mut stages: Vec<StageStatus>, positions: usize) -> Vec<StageStatus> {
        let pages = |positions: usize| positions.div_ceil(PAGE_POSITIONS) as u64;
        for stage in &mut stages {
            stage.kv_bytes_used = stage.kv_bytes / pages(self.model.kv_positions).max(1) * pages(positions);
        }
        stages
    }

    /// A stage that lives but answers nothing is as good as lost.
    fn check_deadlines(&mut self, now: Instant) {
        let patience = self.scheduler.patience();
        let late = if let Some(epoch) = self.prober.overdue(now) {
            Some((epoch, self.roster.laggard(epoch), "the probe token does not come back".to_owned()))
        } else if let Some((epoch, stage)) = self.openings.overdue(now, patience) {
            let worker = self.roster.stage_workers(epoch).nth(stage);
            Some((epoch, worker, format!("no answer to a new session within {} s", patience.as_secs())))
        } else {
            let overdue = self.scheduler.overdue(now);
            overdue.map(|(epoch, waited)| {
                (epoch, self.roster.laggard(epoch), format!("no answer to a step within {} s", waited.as_secs()))
            })
        };
        if let Some((epoch, worker, why)) = late {
            let actions = self.roster.broken(now, epoch, &why, worker.map_or(Blame::Nobody, Blame::Worker));
            self.order(now, actions);
        }
    }

    /// Carries out what machines want, and what follows from that, until nothing is left but actions.
    fn order(&mut self, now: Instant, wanted: impl IntoIterator<Item = impl Into<Order>>) {
        self.orders.extend(wanted.into_iter().map(Into::into));
        while let Some(order) = self.orders.pop_front() {
            let then = match order {
                Order::Roster(action) => self.roster_action(now, action),
                Order::Scheduler(action) => self.scheduler_action(now, action),
                Order::Prober(outcome) => self.probe_outcome(now, outcome),
            };
            // What follows from an order comes before the next one.
            then.into_iter().rev().for_each(|order| self.orders.push_front(order));
        }
    }

    fn roster_action(&mut self, now: Instant, action: roster::Action) -> Vec<Order> {
        match action {
            roster::Action::Send(worker, message) => self.actions.push_back(Action::Send(worker, message)),
            roster::Action::Relay(grant) => self.actions.push_back(Action::Relay(grant)),
            roster::Action::OpenFrames(worker, epoch) => {
                self.fed.insert(epoch);
                self.actions.push_back(Action::OpenFrames(worker, epoch));
            }
            roster::Action::Up(epoch, stages) => return vec![self.prober.start(now, epoch, stages).into()],
            roster::Action::Serve(epoch, stages) => self.scheduler.pipeline_up(epoch, stages),
            roster::Action::Follow(epoch, stages) => self.scheduler.successor_up(now, epoch, stages),
            roster::Action::Down(epoch, why) => return self.down(now, epoch, &why),
        }
        Vec::new()
    }

    fn down(&mut self, now: Instant, epoch: PlanEpoch, why: &str) -> Vec<Order> {
        tracing::warn!("plan {epoch} is given up: {why}");
        self.let_go(epoch);
        self.prober.forget(epoch);
        self.scheduler.successor_down(epoch);
        if self.scheduler.is_current(epoch) { orders(self.scheduler.pipeline_down(now, why)) } else { Vec::new() }
    }

    /// Nothing more goes to the pipeline of this epoch.
    fn let_go(&mut self, epoch: PlanEpoch) {
        self.fed.remove(&epoch);
        self.openings.forget(epoch);
        self.actions.push_back(Action::CloseFrames(epoch));
    }

    fn scheduler_action(&mut self, now: Instant, action: scheduling::Action) -> Vec<Order> {
        match action {
            scheduling::Action::Open(open) => self.open(now, open),
            scheduling::Action::Close(epoch, session) => {
                self.actions.push_back(Action::TellNoMore(session));
                self.send_to_stages(epoch, &Message::Close { epoch, session });
            }
            scheduling::Action::Keep(epoch, session, positions) => {
                self.actions.push_back(Action::TellNoMore(session));
                let positions = u32::try_from(positions).unwrap_or(u32::MAX);
                self.send_to_stages(epoch, &Message::Keep { epoch, session, positions });
            }
            scheduling::Action::Mask(mask) => {
                let last = self.roster.stage_workers(mask.epoch).last();
                self.actions.extend(last.map(|worker| Action::Send(worker, Message::Mask(mask))));
            }
            scheduling::Action::Frame(frame) => self.actions.push_back(Action::Frame(frame)),
            scheduling::Action::Draft(order) => self.actions.push_back(Action::Draft(order)),
            scheduling::Action::Deliver(session, event) => {
                self.actions.extend(ended(session, &event).map(Action::Publish));
                self.actions.push_back(Action::Tell(session, event));
            }
            scheduling::Action::Followed(epoch) => return self.followed(epoch),
        }
        Vec::new()
    }

    fn followed(&mut self, epoch: PlanEpoch) -> Vec<Order> {
        tracing::info!("plan {epoch} serves");
        let gone: Vec<PlanEpoch> = self.fed.iter().copied().filter(|&of| of != epoch).collect();
        gone.into_iter().for_each(|of| self.let_go(of));
        orders(self.roster.followed(epoch))
    }

    fn probe_outcome(&mut self, now: Instant, outcome: probe::Outcome) -> Vec<Order> {
        match outcome {
            probe::Outcome::Open(open) => self.open(now, open),
            probe::Outcome::Close(epoch, session) => self.send_to_stages(epoch, &Message::Close { epoch, session }),
            probe::Outcome::Frame(frame) => self.actions.push_back(Action::Frame(frame)),
            probe::Outcome::Passed(epoch) => return orders(self.roster.proved(epoch)),
            probe::Outcome::Failed(epoch, why) => return orders(self.roster.unprovable(now, epoch, &why)),
        }
        Vec::new()
    }

    fn open(&mut self, now: Instant, open: OpenSession) {
        let (epoch, stages) = (open.epoch, self.roster.stage_workers(open.epoch).count());
        self.openings.asked(now, epoch, open.session, stages);
        self.send_to_stages(epoch, &Message::Open(open));
    }

    fn send_to_stages(&mut self, epoch: PlanEpoch, message: &Message) {
        let sends = self.roster.stage_workers(epoch).map(|worker| Action::Send(worker, message.clone()));
        self.actions.extend(sends);
    }

    fn publish(&mut self, event: MeshEvent) {
        self.actions.push_back(Action::Publish(event));
    }
}

/// The end of a request, if this event is it.
fn ended(session: SessionId, event: &GenerateEvent) -> Option<MeshEvent> {
    let end = match event {
        GenerateEvent::Finished(finish) => {
            RequestEnd::Finished { prompt_tokens: finish.prompt_tokens, generated_tokens: finish.generated_tokens }
        }
        GenerateEvent::Failed(error) => RequestEnd::Failed { text: error.to_string() },
        GenerateEvent::Prompt(_)
        | GenerateEvent::Pooled(_)
        | GenerateEvent::Progress { .. }
        | GenerateEvent::Prefilled { .. }
        | GenerateEvent::Token(_) => return None,
    };
    Some(MeshEvent::RequestEnded { request: session.0, end })
}

fn orders(wanted: impl IntoIterator<Item = impl Into<Order>>) -> Vec<Order> {
    wanted.into_iter().map(Into::into).collect()
}

/// What the scheduler knows of the model that drafts; whoever has its process knows the rest.
fn draft_status(model: &DraftModel) -> DraftStatus {
    DraftStatus {
        state: match model.state {
            DraftModelState::Loading => DraftState::Loading,
            DraftModelState::Ready => DraftState::Ready,
            DraftModelState::Gone => DraftState::Gone,
        },
        token_ms: model.token_s().map(|seconds| seconds * 1e3),
        drafted_tokens: model.drafted,
        accepted_tokens: model.accepted,
        ..DraftStatus::default()
    }
}

fn steps_status(totals: StepTotals) -> StepsStatus {
    let StepTotals { steps, compute, slowest, hops } = totals;
    let [compute_ms, slowest_ms, hops_ms] = [compute, slowest, hops].map(|time| time.as_secs_f64() * 1e3);
    StepsStatus { count: steps, compute_ms, slowest_ms, hops_ms }
}

impl From<roster::Action> for Order {
    fn from(action: roster::Action) -> Self {
        Self::Roster(action)
    }
}

impl From<scheduling::Action> for Order {
    fn from(action: scheduling::Action) -> Self {
        Self::Scheduler(action)
    }
}

impl From<probe::Outcome> for Order {
    fn from(outcome: probe::Outcome) -> Self {
        Self::Prober(outcome)
    }
}

#[cfg(test)]
mod tests;
