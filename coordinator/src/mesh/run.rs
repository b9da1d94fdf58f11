//! The task that feeds the state machines and carries out what they say: small and dull.

mod messages;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_net::{CloseCode, Endpoint, Frame, Gate, Message, OpenSession, PlanEpoch, SessionId};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::MissedTickBehavior,
};

use super::{
    MeshConfig,
    links::{self, Event, Link},
    openings::Openings,
    probe::{Outcome, Probe},
    roster::{self, Blame, PlannedModel, Roster, WorkerId},
    scheduler::{self, Limits, Scheduler},
    status::{ChangeStatus, MeshState, MeshStatus},
    weights::Weights,
};
use crate::generate::{GenerateError, GenerateEvent, SUBMISSIONS_WAITING, Submission};

/// The mesh's state and everything it talks to.
pub(crate) struct MeshTask {
    endpoint: Endpoint,
    weights: Weights,
    gate: Gate,
    model: Arc<PlannedModel>,
    roster: Roster,
    scheduler: Scheduler,
    links: BTreeMap<WorkerId, Link>,
    /// To stage 0 of each pipeline that stands.
    frames: BTreeMap<PlanEpoch, mpsc::Sender<Frame>>,
    openings: Openings,
    listeners: BTreeMap<SessionId, mpsc::Sender<GenerateEvent>>,
    /// What listeners are told once the next steps are on their way.
    news: VecDeque<News>,
    probe: Option<Probe>,
    stopping: bool,
    started: Instant,
}

/// What a session's listener is told.
enum News {
    Happened(SessionId, GenerateEvent),
    /// Nothing more comes.
    Over(SessionId),
}

impl MeshTask {
    pub(crate) fn new(endpoint: Endpoint, gate: Gate, config: &MeshConfig, planned: PlannedModel) -> Self {
        let limits = Limits {
            context: planned.context,
            kv_positions: planned.kv_positions,
            chunk_rows: planned.chunk_rows,
            vocab: planned.spec.vocab,
            waiting: SUBMISSIONS_WAITING,
            resume: RESUME,
            prefix_reuse: config.prefix_reuse,
            speculation: config.speculation,
        };
        let model = Arc::new(planned);
        Self {
            endpoint,
            weights: Weights::new(Arc::clone(&config.model), &model.hashes),
            gate,
            roster: Roster::new(Arc::clone(&model), config.formation.clone()),
            model,
            scheduler: Scheduler::new(limits),
            links: BTreeMap::new(),
            frames: BTreeMap::new(),
            openings: Openings::default(),
            listeners: BTreeMap::new(),
            news: VecDeque::new(),
            probe: None,
            stopping: false,
            started: Instant::now(),
        }
    }

    /// Runs until `stopped`, then drains.
    pub(crate) async fn run(
        mut self,
        mut submitted: mpsc::Receiver<Submission>,
        status: watch::Sender<Arc<MeshStatus>>,
        mut stopped: oneshot::Receiver<()>,
    ) {
        let (events, mut happened) = mpsc::channel(EVENTS_WAITING);
        let (endpoint, gate) = (self.endpoint.clone(), self.gate.clone());
        let accepting = links::accept(endpoint, gate, self.weights.clone(), self.model.name.clone(), events);
        let accepting = tokio::spawn(accepting);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline = None;
        while !(self.stopping && (self.scheduler.is_idle() || deadline.is_some_and(|d| Instant::now() > d))) {
            tokio::select! {
                Some(event) = happened.recv() => self.event(event),
                Some(submission) = submitted.recv() => self.submission(submission),
                _ = ticks.tick() => {
                    self.tick();
                    status.send_replace(Arc::new(self.status()));
                }
                _ = &mut stopped, if !self.stopping => {
                    self.stopping = true;
                    deadline = Some(Instant::now() + DRAINING);
                }
            }
            self.pump();
            self.tell();
        }
        self.leave(&status).await;
        accepting.abort();
    }

    /// What the mesh says of itself.
    pub(crate) fn status(&self) -> MeshStatus {
        let now = Instant::now();
        let rtt_ms = |id: WorkerId| self.links.get(&id).map_or(0.0, |l| l.connection.rtt().as_secs_f64() * 1e3);
        let state = if self.stopping {
            MeshState::Stopping
        } else if self.roster.state() == MeshState::Ready && !self.scheduler.serves() {
            MeshState::Loading
        } else {
            self.roster.state()
        };
        let totals = self.scheduler.totals;
        MeshStatus {
            model: self.model.name.clone(),
            state,
            text: self.roster.text().to_owned(),
            epoch: self.roster.epoch().0,
            context: self.model.context,
            kv_positions: self.model.kv_positions,
            kv_positions_used: self.scheduler.positions_reserved(),
            stages: self.roster.stage_status(),
            workers: self.roster.worker_status(now, rtt_ms),
            change: self.roster.change(now).map(|change| self.with_followers(change)),
            running: self.scheduler.running(),
            waiting: self.scheduler.waiting(),
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            generated_tokens: totals.generated_tokens,
            drafted_tokens: totals.drafted_tokens,
            accepted_tokens: totals.accepted_tokens,
            steps: self.scheduler.step_totals.into(),
            uptime_s: self.started.elapsed().as_secs(),
        }
    }

    /// How many answers have followed to the next pipeline.
    fn with_followers(&self, change: ChangeStatus) -> ChangeStatus {
        match self.scheduler.following() {
            Some((there, all)) => ChangeStatus { text: format!("{}: {there} of {all}", change.text), ..change },
            None => change,
        }
    }

    fn event(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Arrived { worker, joined, link, name } => {
                let named = self.roster.free_name(&joined.name);
                if name.send(named.clone()).is_ok() {
                    self.links.insert(worker, link);
                    self.roster.joined(now, worker, roster::Joined { name: named, ..joined });
                }
            }
            Event::Control { worker, message } => {
                if let Err(misconduct) = self.control(now, worker, message) {
                    self.hang_up(worker, &misconduct.to_string());
                }
            }
            Event::Frame { worker, frame } => {
                if let Err(why) = self.frame(now, worker, &frame) {
                    self.hang_up(worker, &why);
                }
            }
            Event::Left { worker, why } => {
                self.links.remove(&worker);
                let actions = self.roster.left(now, worker, &why);
                self.roster_actions(now, actions);
            }
        }
    }

    fn submission(&mut self, submission: Submission) {
        let Submission { request, events } = submission;
        let refused = if self.stopping {
            Some(GenerateError::ShuttingDown)
        } else if self.status().state != MeshState::Ready {
            Some(GenerateError::NotReady { text: self.roster.text().to_owned() })
        } else {
            None
        };
        let taken = refused.map_or_else(|| self.scheduler.submit(Instant::now(), request), Err);
        match taken {
            Ok(session) => {
                self.listeners.insert(session, events);
            }
            // Whoever asked may be gone already.
            Err(error) => drop(events.try_send(GenerateEvent::Failed(error))),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        let actions = self.roster.tick(now);
        self.roster_actions(now, actions);
        self.check_deadlines(now);
        let text = self.roster.text().to_owned();
        let actions = self.scheduler.expire(now, &text);
        self.scheduler_actions(now, actions);
        let gone: Vec<_> = self.listeners.iter().filter(|(_, l)| l.is_closed()).map(|(&s, _)| s).collect();
        for session in gone {
            self.cancel(now, session);
        }
    }

    /// A stage that lives but answers nothing is as good as lost.
    fn check_deadlines(&mut self, now: Instant) {
        let patience = self.scheduler.patience();
        let late = if let Some(probe) = self.probe.as_ref().filter(|probe| probe.is_overdue(now)) {
            Some((probe.epoch(), self.roster.laggard(probe.epoch()), "the probe token does not come back".to_owned()))
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
            self.roster_actions(now, actions);
        }
    }

    fn pump(&mut self) {
        let now = Instant::now();
        let actions = self.scheduler.pump(now);
        self.scheduler_actions(now, actions);
    }

    /// Listeners wait on other threads, whose waking takes time: the stages come first.
    fn tell(&mut self) {
        let now = Instant::now();
        while let Some(news) = self.news.pop_front() {
            match news {
                News::Happened(session, event) => self.deliver(now, session, event),
                News::Over(session) => drop(self.listeners.remove(&session)),
            }
        }
    }

    fn cancel(&mut self, now: Instant, session: SessionId) {
        self.listeners.remove(&session);
        let actions = self.scheduler.cancel(session);
        self.scheduler_actions(now, actions);
    }

    fn roster_actions(&mut self, now: Instant, actions: Vec<roster::Action>) {
        for action in actions {
            match action {
                roster::Action::Send(worker, message) => self.send(worker, message),
                roster::Action::OpenFrames(worker, epoch) => {
                    let frames = self.links.get(&worker).map(|link| link.open_frames(epoch));
                    self.frames.extend(frames.map(|frames| (epoch, frames)));
                }
                roster::Action::Up(epoch, stages) => {
                    let (probe, open) = Probe::start(now, epoch, stages, self.model.spec.vocab);
                    self.probe = Some(probe);
                    self.probe_outcomes(now, vec![open]);
                }
                roster::Action::Serve(epoch, stages) => self.scheduler.pipeline_up(epoch, stages),
                roster::Action::Follow(epoch, stages) => self.scheduler.successor_up(now, epoch, stages),
                roster::Action::Down(epoch, why) => self.down(now, epoch, &why),
            }
        }
    }

    fn down(&mut self, now: Instant, epoch: PlanEpoch, why: &str) {
        tracing::warn!("plan {epoch} is given up: {why}");
        self.let_go(epoch);
        self.probe.take_if(|probe| probe.epoch() == epoch);
        self.scheduler.successor_down(epoch);
        if self.scheduler.is_current(epoch) {
            let actions = self.scheduler.pipeline_down(now, why);
            self.scheduler_actions(now, actions);
        }
    }

    /// Nothing more goes to the pipeline of this epoch.
    fn let_go(&mut self, epoch: PlanEpoch) {
        self.frames.remove(&epoch);
        self.openings.forget(epoch);
    }

    fn scheduler_actions(&mut self, now: Instant, actions: Vec<scheduler::Action>) {
        for action in actions {
            match action {
                scheduler::Action::Open(open) => self.open(now, open),
                scheduler::Action::Close(epoch, session) => {
                    self.news.push_back(News::Over(session));
                    self.send_to_stages(epoch, &Message::Close { epoch, session });
                }
                scheduler::Action::Keep(epoch, session, positions) => {
                    self.news.push_back(News::Over(session));
                    let positions = u32::try_from(positions).unwrap_or(u32::MAX);
                    self.send_to_stages(epoch, &Message::Keep { epoch, session, positions });
                }
                scheduler::Action::Frame(frame) => self.send_frame(now, frame),
                scheduler::Action::Deliver(session, event) => self.news.push_back(News::Happened(session, event)),
                scheduler::Action::Followed(epoch) => self.followed(now, epoch),
            }
        }
    }

    fn followed(&mut self, now: Instant, epoch: PlanEpoch) {
        tracing::info!("plan {epoch} serves");
        let gone: Vec<PlanEpoch> = self.frames.keys().copied().filter(|&of| of != epoch).collect();
        gone.into_iter().for_each(|of| self.let_go(of));
        let actions = self.roster.followed(epoch);
        self.roster_actions(now, actions);
    }

    fn open(&mut self, now: Instant, open: OpenSession) {
        let (epoch, stages) = (open.epoch, self.roster.stage_workers(open.epoch).count());
        self.openings.asked(now, epoch, open.session, stages);
        self.send_to_stages(epoch, &Message::Open(open));
    }

    fn send_frame(&mut self, now: Instant, frame: Frame) {
        let epoch = frame.epoch;
        let sent = self.frames.get(&epoch).is_some_and(|frames| frames.try_send(frame).is_ok());
        if !sent {
            let first = self.roster.stage_workers(epoch).next();
            let blame = first.map_or(Blame::Nobody, Blame::Worker);
            let actions = self.roster.broken(now, epoch, "the link to the first stage is gone", blame);
            self.roster_actions(now, actions);
        }
    }

    fn probe_outcomes(&mut self, now: Instant, outcomes: Vec<Outcome>) {
        let Some(epoch) = self.probe.as_ref().map(Probe::epoch) else { return };
        for outcome in outcomes {
            match outcome {
                Outcome::Open(open) => self.open(now, open),
                Outcome::Close(session) => self.send_to_stages(epoch, &Message::Close { epoch, session }),
                Outcome::Frame(frame) => self.send_frame(now, frame),
                Outcome::Passed => {
                    self.probe = None;
                    let actions = self.roster.proved(epoch);
                    self.roster_actions(now, actions);
                }
                Outcome::Failed(why) => {
                    self.probe = None;
                    let actions = self.roster.unprovable(now, epoch, &why);
                    self.roster_actions(now, actions);
                }
            }
        }
    }

    fn deliver(&mut self, now: Instant, session: SessionId, event: GenerateEvent) {
        let last = matches!(event, GenerateEvent::Finished(_) | GenerateEvent::Failed(_));
        let Some(listener) = self.listeners.get(&session) else { return };
        // A listener that went away, or reads too slowly to keep its buffer from filling, is cancelled.
        let heard = listener.try_send(event).is_ok();
        if last {
            self.listeners.remove(&session);
        } else if !heard {
            self.cancel(now, session);
            // It has left room.
            self.pump();
        }
    }

    fn send_to_stages(&mut self, epoch: PlanEpoch, message: &Message) {
        let workers: Vec<WorkerId> = self.roster.stage_workers(epoch).collect();
        for worker in workers {
            self.send(worker, message.clone());
        }
    }

    fn send(&mut self, worker: WorkerId, message: Message) {
        let Some(link) = self.links.get(&worker) else { return };
        // A closed queue is a worker that has gone: `Left` is on its way.
        if let Err(TrySendError::Full(_)) = link.control.try_send(message) {
            self.hang_up(worker, "it does not read its control messages");
        }
    }

    /// The reader tasks notice, and `Left` follows.
    fn hang_up(&mut self, worker: WorkerId, why: &str) {
        tracing::warn!("closing the link to {}: {why}", self.roster.name_of(worker));
        if let Some(link) = self.links.get(&worker) {
            link.connection.close(CloseCode::Malformed, why);
        }
    }

    async fn leave(self, status: &watch::Sender<Arc<MeshStatus>>) {
        status.send_replace(Arc::new(self.status()));
        for listener in self.listeners.values() {
            // Whoever listened may be gone already.
            drop(listener.try_send(GenerateEvent::Failed(GenerateError::ShuttingDown)));
        }
        for link in self.links.values() {
            // One that reads nothing any more needs no goodbye.
            drop(link.control.try_send(Message::Bye { text: "the coordinator is going down".to_owned() }));
        }
        // The goodbyes travel while the writer tasks still have their connections; a worker hangs up when it has read it.
        let farewell = async {
            for link in self.links.values() {
                link.connection.closed().await;
            }
        };
        drop(tokio::time::timeout(FAREWELL, farewell).await);
        self.endpoint.close(CloseCode::Shutdown, "the coordinator is going down");
        self.endpoint.closed().await;
    }
}

/// Events of all links that may wait for the task.
const EVENTS_WAITING: usize = 1024;
/// How often time passes for the state machines, and status is published.
const TICK: Duration = Duration::from_millis(100);
/// How long `stop` lets generations run on.
const DRAINING: Duration = Duration::from_secs(10);
/// How long workers have to hang up after the goodbye.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long sequences wait for a lost pipeline to return.
const RESUME: Duration = Duration::from_secs(60);
