//! The task that feeds the state machines and carries out what they say: small and dull.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_net::{CloseCode, Endpoint, Fault, Frame, FrameKind, Gate, Message, PlanEpoch, Sampled, Sampling, SessionId};
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
    roster::{self, PlannedModel, Roster, WorkerId},
    scheduler::{self, Limits, Scheduler},
    status::{MeshState, MeshStatus},
    weights::Weights,
};
use crate::generate::{
    ClientId, GenerateError, GenerateEvent, GenerateRequest, PromptRows, SUBMISSIONS_WAITING, Submission,
};

/// The mesh's state and everything it talks to.
pub(crate) struct MeshTask {
    endpoint: Endpoint,
    weights: Weights,
    gate: Gate,
    model: Arc<PlannedModel>,
    roster: Roster,
    scheduler: Scheduler,
    links: BTreeMap<WorkerId, Link>,
    /// To stage 0, while a pipeline stands.
    frames: Option<mpsc::Sender<Frame>>,
    listeners: BTreeMap<SessionId, mpsc::Sender<GenerateEvent>>,
    /// What listeners are told once the next steps are on their way.
    news: VecDeque<News>,
    probe: Probe,
    stopping: bool,
    started: Instant,
}

/// What a session's listener is told.
enum News {
    Happened(SessionId, GenerateEvent),
    /// Nothing more comes.
    Over(SessionId),
}

/// A token goes through a new pipeline before anyone is told that it is ready.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Probe {
    Due,
    Sent(SessionId),
    Passed,
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
            frames: None,
            listeners: BTreeMap::new(),
            news: VecDeque::new(),
            probe: Probe::Due,
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
        let rtt_ms = |id: WorkerId| self.links.get(&id).map_or(0.0, |l| l.connection.rtt().as_secs_f64() * 1e3);
        let state = if self.stopping {
            MeshState::Stopping
        } else if self.roster.state() == MeshState::Ready && self.probe != Probe::Passed {
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
            workers: self.roster.worker_status(rtt_ms),
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
            Event::Control { worker, message } => self.control(now, worker, message),
            Event::Frame { worker, frame } => self.frame(now, worker, &frame),
            Event::Left { worker, why } => {
                self.links.remove(&worker);
                let actions = self.roster.left(now, worker, &why);
                self.roster_actions(now, actions);
            }
        }
    }

    fn control(&mut self, now: Instant, worker: WorkerId, message: Message) {
        match message {
            Message::ShardStatus(status) => {
                let actions = self.roster.shard_status(now, worker, status);
                self.roster_actions(now, actions);
            }
            Message::Linked { epoch } => {
                let actions = self.roster.linked(worker, epoch);
                self.roster_actions(now, actions);
            }
            Message::Opened { epoch, session } => self.scheduler.opened(epoch, session),
            Message::Refused { epoch, session, text } => self.fault(now, worker, epoch, Some(session), &text),
            Message::Fault(Fault { epoch, session, text, .. }) => self.fault(now, worker, epoch, session, &text),
            Message::StageReport(report) => self.roster.report(worker, report),
            Message::Ping { stamp } => self.send(worker, Message::Pong { stamp }),
            Message::Drain | Message::Bye { .. } => {
                let actions = self.roster.left(now, worker, "it has left");
                self.roster_actions(now, actions);
            }
            Message::Pong { .. } => {}
            Message::Hello(_)
            | Message::Welcome(_)
            | Message::Reject { .. }
            | Message::Load(_)
            | Message::Route(_)
            | Message::Open(_)
            | Message::Close { .. }
            | Message::Keep { .. }
            | Message::Unload { .. } => self.hang_up(worker, "a message that only a coordinator sends"),
        }
    }

    fn fault(&mut self, now: Instant, worker: WorkerId, epoch: PlanEpoch, session: Option<SessionId>, text: &str) {
        let text = format!("{}: {text}", self.roster.name_of(worker));
        tracing::warn!("fault on {text}");
        match session {
            Some(session) => {
                let actions = self.scheduler.failed(epoch, session, &text);
                self.scheduler_actions(now, actions);
            }
            // A neighbour may know of a lost worker before we do.
            None if epoch == self.roster.epoch() => {
                let actions = self.roster.broken(now, text);
                self.roster_actions(now, actions);
            }
            None => {}
        }
    }

    fn frame(&mut self, now: Instant, worker: WorkerId, frame: &Frame) {
        if frame.kind != FrameKind::Sampled || frame.epoch != self.roster.epoch() {
            return;
        }
        match Sampled::decode_rows(frame) {
            Ok(rows) => {
                let actions = self.scheduler.stepped(now, frame, rows);
                self.scheduler_actions(now, actions);
            }
            Err(error) => self.hang_up(worker, &error.to_string()),
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
        let text = self.roster.text().to_owned();
        let actions = self.scheduler.expire(now, &text);
        self.scheduler_actions(now, actions);
        let gone: Vec<_> = self.listeners.iter().filter(|(_, l)| l.is_closed()).map(|(&s, _)| s).collect();
        for session in gone {
            self.cancel(now, session);
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
                    self.frames = self.links.get(&worker).map(|link| link.open_frames(epoch));
                }
                roster::Action::Up(epoch, stages) => self.up(now, epoch, stages),
                roster::Action::Down(why) => {
                    tracing::warn!("pipeline down: {why}");
                    self.frames = None;
                    self.abandon_probe(now);
                    let actions = self.scheduler.pipeline_down(now, &why);
                    self.scheduler_actions(now, actions);
                }
            }
        }
    }

    fn scheduler_actions(&mut self, now: Instant, actions: Vec<scheduler::Action>) {
        for action in actions {
            match action {
                scheduler::Action::Open(open) => self.send_to_stages(&Message::Open(open)),
                scheduler::Action::Close(session) => {
                    self.news.push_back(News::Over(session));
                    self.send_to_stages(&Message::Close { epoch: self.roster.epoch(), session });
                }
                scheduler::Action::Keep(session, positions) => {
                    self.news.push_back(News::Over(session));
                    let positions = u32::try_from(positions).unwrap_or(u32::MAX);
                    self.send_to_stages(&Message::Keep { epoch: self.roster.epoch(), session, positions });
                }
                scheduler::Action::Frame(frame) => self.send_frame(now, frame),
                scheduler::Action::Deliver(session, event) => self.news.push_back(News::Happened(session, event)),
            }
        }
    }

    fn send_frame(&mut self, now: Instant, frame: Frame) {
        let sent = self.frames.as_ref().is_some_and(|frames| frames.try_send(frame).is_ok());
        if !sent {
            let actions = self.roster.broken(now, "the link to the first stage is gone".to_owned());
            self.roster_actions(now, actions);
        }
    }

    fn deliver(&mut self, now: Instant, session: SessionId, event: GenerateEvent) {
        if self.probe == Probe::Sent(session) {
            return self.probed(now, &event);
        }
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

    fn up(&mut self, now: Instant, epoch: PlanEpoch, stages: usize) {
        self.scheduler.pipeline_up(epoch, stages);
        let request = GenerateRequest {
            ids: vec![0],
            max_tokens: 1,
            sampling: Sampling::default(),
            ends: Arc::new([]),
            prompt_rows: PromptRows::Last,
            client: ClientId(u64::MAX),
        };
        // A full queue says that requests wait for this pipeline: the first of them is as good a probe.
        self.probe = self.scheduler.submit(now, request).map_or(Probe::Passed, Probe::Sent);
    }

    fn probed(&mut self, now: Instant, event: &GenerateEvent) {
        match event {
            GenerateEvent::Finished(_) => self.probe = Probe::Passed,
            GenerateEvent::Failed(error) => {
                let actions = self.roster.broken(now, format!("the probe token failed: {error}"));
                self.roster_actions(now, actions);
            }
            GenerateEvent::Token(_) | GenerateEvent::Prompt(_) | GenerateEvent::Prefilled { .. } => {}
        }
    }

    fn abandon_probe(&mut self, now: Instant) {
        let probe = std::mem::replace(&mut self.probe, Probe::Due);
        if let Probe::Sent(session) = probe {
            let actions = self.scheduler.cancel(session);
            self.scheduler_actions(now, actions);
        }
    }

    fn send_to_stages(&mut self, message: &Message) {
        let workers: Vec<WorkerId> = self.roster.stage_workers().collect();
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
