//! The task around the conductor: it brings in what happens, and carries out the queue of actions that comes of it.
//! Small and dull.

mod whereabouts;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_discovery::DhtSeeker;
use qmesh_net::{Calling, CloseCode, Endpoint, Frame, Gate, Message, PlanEpoch, RejectCode, SessionId};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    task::JoinSet,
    time::MissedTickBehavior,
};

use super::{
    conductor::{Action, Conductor},
    config::{MeshConfig, Relaying},
    draft_process::{DraftNews, DraftProcess},
    entry::{Entry, REVOKED},
    events::{EventBus, EventSource},
    formation::{
        Joined, PlannedModel, WorkerId,
        links::{self, LinkEvent, WorkerLink},
        weights::TensorServer,
    },
    handle::{CALLS_WAITING, Call, Submission, There},
    members::Members,
    observer::Observer,
    scheduling::{DraftLimits, Limits},
    seekers::Seekers,
    status::{DraftStatus, MeshStatus},
};
use crate::{
    drafter::Drafter,
    generate::{GenerateError, GenerateEvent},
};

/// The mesh's state and everything it talks to.
pub(crate) struct MeshTask {
    conductor: Conductor,
    endpoint: Endpoint,
    gate: Gate,
    entry: Entry,
    tensors: TensorServer,
    /// The mesh's name, which is its model's.
    name: String,
    links: BTreeMap<WorkerId, WorkerLink>,
    /// To stage 0 of each pipeline that stands.
    frames: BTreeMap<PlanEpoch, mpsc::Sender<Frame>>,
    listeners: BTreeMap<SessionId, mpsc::Sender<GenerateEvent>>,
    /// What listeners are told once the next steps are on their way.
    news: VecDeque<News>,
    status: watch::Sender<Arc<MeshStatus>>,
    observer: Observer,
    bus: EventBus,
    /// Calls at the rendezvous, where there are some.
    calling: Option<Calling>,
    /// Who came by way of them.
    seekers: Seekers,
    /// Whether packets are passed on.
    relaying: Relaying,
    /// The process of the small model that drafts, while it runs.
    drafting: Option<DraftProcess>,
    /// What that is, for people.
    drafter: Option<DraftStatus>,
}

/// What a session's listener is told.
enum News {
    Happened(SessionId, GenerateEvent),
    /// Nothing more comes.
    Over(SessionId),
}

impl MeshTask {
    pub(crate) fn new(
        endpoint: Endpoint,
        gate: Gate,
        members: Members,
        config: &MeshConfig,
        planned: PlannedModel,
        (drafting, calling): (Option<DraftProcess>, Option<Calling>),
    ) -> Self {
        let now = Instant::now();
        let entry = Entry::new(now, members, gate.known.clone(), gate.strangers);
        let limits = Limits {
            context: planned.context,
            kv_positions: planned.kv_positions,
            sessions: planned.sessions_most(),
            chunk_rows: planned.chunk_rows,
            vocab: planned.spec.vocab,
            hidden: planned.spec.hidden,
            waiting: CALLS_WAITING,
            resume: RESUME,
            prefix_reuse: config.prefix_reuse.of_model(&planned.spec),
            speculation: config.speculation,
            draft_model: config.drafter.as_ref().map(|drafter| draft_limits(drafter, config)),
        };
        let tensors = TensorServer::new(Arc::clone(&config.model), &planned.hashes);
        let name = planned.name.clone();
        let conductor = Conductor::new(now, planned, config.formation.clone(), limits);
        let (status, _) = watch::channel(Arc::new(conductor.status(now, |_| 0.0)));
        Self {
            conductor,
            endpoint,
            gate,
            entry,
            tensors,
            name,
            links: BTreeMap::new(),
            frames: BTreeMap::new(),
            listeners: BTreeMap::new(),
            news: VecDeque::new(),
            status,
            observer: Observer::new(now),
            bus: EventBus::new(),
            calling,
            seekers: Seekers::default(),
            relaying: config.formation.relaying.clone(),
            drafting,
            drafter: config.drafter.as_ref().map(|drafter| draft_status(drafter, config)),
        }
    }

    /// What the mesh says of itself, for whoever wants to look.
    pub(crate) fn watch_status(&self) -> watch::Receiver<Arc<MeshStatus>> {
        self.status.subscribe()
    }

    /// Where readers of what happens come from.
    pub(crate) fn events(&self) -> EventSource {
        self.bus.source()
    }

    /// Runs until `stopped`, then drains.
    pub(crate) async fn run(mut self, mut called: mpsc::Receiver<Call>, mut stopped: oneshot::Receiver<()>) {
        let (events, mut happened) = mpsc::channel(EVENTS_WAITING);
        let (endpoint, gate) = (self.endpoint.clone(), self.gate.clone());
        let accepting = links::accept(endpoint, gate, self.tensors.clone(), self.name.clone(), events.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(accepting);
        tasks.spawn(whereabouts::follow_interfaces(self.endpoint.clone(), events));
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut deadline: Option<Instant> = None;
        while !deadline.is_some_and(|deadline| self.conductor.is_idle() || Instant::now() > deadline) {
            tokio::select! {
                Some(event) = happened.recv() => self.event(event),
                Some(call) = called.recv() => self.call(call),
                news = draft_news(&mut self.drafting) => self.drafted(news),
                _ = ticks.tick() => self.tick(),
                _ = &mut stopped, if deadline.is_none() => {
                    self.conductor.stop();
                    deadline = Some(Instant::now() + DRAINING);
                }
            }
            self.conductor.pump(Instant::now());
            self.carry_out();
            self.tell();
        }
        self.leave().await;
    }

    fn event(&mut self, event: LinkEvent) {
        let now = Instant::now();
        match event {
            LinkEvent::Arrived { worker, joined, link, name } => {
                let joined = self.located(joined, &link.connection);
                let named = self.conductor.free_name(&joined.name);
                // It may have been sent away since it was let in.
                if !self.entry.is_revoked(joined.peer) && name.send(named.clone()).is_ok() {
                    self.entry.saw(joined.peer);
                    self.links.insert(worker, link);
                    self.conductor.joined(now, worker, Joined { name: named, ..joined });
                    self.publish(now);
                }
            }
            LinkEvent::Asks { worker, newcomer, verdict } => {
                let conductor = &self.conductor;
                let is_here = |name: &str| conductor.free_name(name) != name;
                if let Some(event) = self.entry.asks(now, worker, newcomer, verdict, is_here) {
                    self.publish(now);
                    self.bus.publish(event);
                }
            }
            LinkEvent::AsksNoMore { worker } => self.entry.gave_up(worker),
            // Whoever was sent away may still say something: it counts for nothing.
            LinkEvent::Control { worker, message } => {
                if let Some(link) = self.links.get(&worker) {
                    self.conductor.timed(worker, link.connection.least_rtt());
                    self.conductor.said(now, worker, message);
                }
            }
            LinkEvent::Moved { worker, address, sections } => {
                if self.links.contains_key(&worker) {
                    self.conductor.moved(now, worker, address, &sections);
                }
            }
            LinkEvent::Displaced { peers } => self.displaced(now, &peers),
            LinkEvent::Sought { worker, seeker } => self.sought(now, worker, seeker),
            LinkEvent::Frame { worker, frame } => {
                if self.links.contains_key(&worker) {
                    self.conductor.sampled(now, worker, &frame);
                }
            }
            LinkEvent::Left { worker, why } => {
                if let Some(link) = self.links.remove(&worker) {
                    self.entry.saw(link.connection.peer());
                }
                self.conductor.left(now, worker, &why);
                self.publish(now);
            }
        }
        self.carry_out();
    }

    fn drafted(&mut self, news: DraftNews) {
        match news {
            DraftNews::Answer(answer) => self.conductor.draft_answered(Instant::now(), answer),
            DraftNews::Ended(why) => self.draft_model_gone(&why),
        }
    }

    /// The mesh goes on without it: no token depends on it.
    fn draft_model_gone(&mut self, why: &str) {
        tracing::warn!("the draft model's process has ended, nothing more is drafted by it: {why}");
        self.drafting = None;
        self.conductor.draft_model_gone();
    }

    fn call(&mut self, call: Call) {
        match call {
            Call::Submit(submission) => self.submission(submission),
            Call::Meet(DhtSeeker { peer, addresses }) => {
                self.seekers.meet(Instant::now(), &self.endpoint, peer, addresses);
            }
            Call::Sequences(answer) => {
                // Whoever asked may be gone.
                let _heard = answer.send(self.conductor.sequences());
            }
            Call::There(answer) => {
                let named = |(worker, link): (&WorkerId, &WorkerLink)| {
                    (self.conductor.name_of(*worker).to_owned(), link.connection.peer())
                };
                let there = There { asking: self.entry.newcomers(), present: self.links.iter().map(named).collect() };
                let _heard = answer.send(there);
            }
            Call::Refuse { worker, refused } => {
                let _heard = refused.send(self.entry.refuse(worker));
                self.publish(Instant::now());
            }
            Call::Heed(heeded) => {
                self.entry.heed();
                self.send_revoked_away();
                self.publish(Instant::now());
                let _heard = heeded.send(());
            }
            Call::Cancel { request, found } => {
                let session = SessionId(request);
                let listener = self.listeners.remove(&session);
                // Whoever asked for the end may be gone, and so may whoever asked for the answer.
                let _heard = found.send(listener.is_some());
                if let Some(listener) = listener {
                    drop(listener.try_send(GenerateEvent::Failed(GenerateError::Cancelled)));
                    self.cancel(Instant::now(), session);
                }
            }
        }
    }

    fn submission(&mut self, submission: Submission) {
        let Submission { request, events } = submission;
        match self.conductor.submit(Instant::now(), request) {
            Ok(session) => {
                self.listeners.insert(session, events);
            }
            // Whoever asked may be gone already.
            Err(error) => drop(events.try_send(GenerateEvent::Failed(error))),
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.conductor.tick(now);
        if self.entry.tick(now) {
            self.send_revoked_away();
        }
        let links = &self.links;
        self.seekers.tick(now, |peer| links.values().any(|link| link.connection.peer() == peer));
        self.carry_out();
        let gone: Vec<_> = self.listeners.iter().filter(|(_, l)| l.is_closed()).map(|(&s, _)| s).collect();
        for session in gone {
            self.cancel(now, session);
        }
        self.publish(now);
    }

    /// Whoever reads the status now finds it up to date; whoever waits for changes is woken by changes alone.
    fn publish(&mut self, now: Instant) {
        let rtt_ms = |id: WorkerId| self.links.get(&id).map_or(0.0, |l| l.connection.rtt().as_secs_f64() * 1e3);
        let (weight_bytes_sent, relayed_bytes) = (self.tensors.sent(), self.endpoint.relayed_bytes());
        let (open, conductor) = (self.entry.is_open(), &self.conductor);
        let asking = self.entry.status(|name| conductor.free_name(name) != name);
        let status = self.conductor.status(now, rtt_ms);
        let draft_model = status.draft_model.clone().zip(self.drafter.clone()).map(|(counted, known)| DraftStatus {
            model: known.model,
            memory_bytes: known.memory_bytes,
            threads: known.threads,
            ..counted
        });
        let status = MeshStatus { weight_bytes_sent, relayed_bytes, open, asking, draft_model, ..status };
        let status = Arc::new(status);
        self.status.send_if_modified(|held| {
            let is_news = status.is_news_after(held);
            held.clone_from(&status);
            is_news
        });
        for event in self.observer.observe(now, &status) {
            self.bus.publish(event);
        }
    }

    /// Carries out what the conductor wants, in order, and what comes of it.
    fn carry_out(&mut self) {
        while let Some(action) = self.conductor.next_action() {
            match action {
                Action::Send(worker, message) => self.send(worker, message),
                Action::HangUp(worker, why) => self.hang_up(worker, &why),
                Action::OpenFrames(worker, epoch) => {
                    let frames = self.links.get(&worker).map(|link| link.open_frames(epoch));
                    self.frames.extend(frames.map(|frames| (epoch, frames)));
                }
                Action::Relay(grant) => self.endpoint.grant(grant),
                Action::CloseFrames(epoch) => {
                    self.revoke(epoch);
                    drop(self.frames.remove(&epoch));
                }
                Action::Frame(frame) => self.send_frame(frame),
                Action::Draft(order) => {
                    if self.drafting.as_ref().is_some_and(|process| !process.order(order)) {
                        self.draft_model_gone("it takes no orders any more");
                    }
                }
                Action::Tell(session, event) => self.news.push_back(News::Happened(session, event)),
                Action::TellNoMore(session) => self.news.push_back(News::Over(session)),
                Action::Publish(event) => self.bus.publish(event),
            }
        }
    }

    /// Listeners wait on other threads, whose waking takes time: the stages come first.
    fn tell(&mut self) {
        let now = Instant::now();
        let mut is_counted = false;
        while let Some(news) = self.news.pop_front() {
            match news {
                News::Happened(session, event) => {
                    // Whoever hears of an answer's end finds it counted.
                    if event.is_last() && !is_counted {
                        self.publish(now);
                    }
                    is_counted |= event.is_last();
                    is_counted &= self.deliver(now, session, event);
                }
                News::Over(session) => drop(self.listeners.remove(&session)),
            }
        }
    }

    /// Whether that was all: a session that is cancelled for it may bring others on.
    fn deliver(&mut self, now: Instant, session: SessionId, event: GenerateEvent) -> bool {
        let last = event.is_last();
        let Some(listener) = self.listeners.get(&session) else { return true };
        // A listener that went away, or reads too slowly to keep its buffer from filling, is cancelled.
        let heard = listener.try_send(event).is_ok();
        if last {
            self.listeners.remove(&session);
        } else if !heard {
            self.cancel(now, session);
            // It has left room.
            self.conductor.pump(Instant::now());
            self.carry_out();
            return false;
        }
        true
    }

    fn cancel(&mut self, now: Instant, session: SessionId) {
        self.listeners.remove(&session);
        self.conductor.cancel(now, session);
        self.carry_out();
    }

    fn send_frame(&mut self, frame: Frame) {
        let epoch = frame.epoch;
        self.tensors.stepped(Instant::now());
        let sent = self.frames.get(&epoch).is_some_and(|frames| frames.try_send(frame).is_ok());
        if !sent {
            self.conductor.frames_lost(Instant::now(), epoch);
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
    fn hang_up(&self, worker: WorkerId, why: &str) {
        tracing::warn!("closing the link to {}: {why}", self.conductor.name_of(worker));
        if let Some(link) = self.links.get(&worker) {
            link.connection.close(CloseCode::Malformed, why);
        }
    }

    /// Workers whose keys were revoked go at once, and are told why; what they had to do goes to others.
    fn send_revoked_away(&mut self) {
        let now = Instant::now();
        let revoked = |link: &WorkerLink| self.entry.is_revoked(link.connection.peer());
        let gone: Vec<_> = self.links.iter().filter(|(_, link)| revoked(link)).map(|(&worker, _)| worker).collect();
        for worker in gone {
            // Without a sender the link ends once this was read, or after a while.
            if let Some(link) = self.links.remove(&worker) {
                let farewell = Message::Reject { code: RejectCode::Secret, text: REVOKED.to_owned() };
                drop(link.control.try_send(farewell));
            }
            self.conductor.left(now, worker, "its key was revoked");
        }
        self.carry_out();
    }

    async fn leave(mut self) {
        self.publish(Instant::now());
        for listener in self.listeners.values() {
            // Whoever listened may be gone already.
            drop(listener.try_send(GenerateEvent::Failed(GenerateError::ShuttingDown)));
        }
        for link in self.links.values() {
            // One that reads nothing any more needs no goodbye.
            drop(link.control.try_send(Message::Bye { text: "the coordinator is going down".to_owned() }));
        }
        // The goodbyes travel while the writer tasks still have their connections; a worker hangs up when it has read
        // it.
        let farewell = async {
            for link in self.links.values() {
                link.connection.closed().await;
            }
        };
        drop(tokio::time::timeout(FAREWELL, farewell).await);
        self.entry.end().await;
        self.endpoint.close(CloseCode::Shutdown, "the coordinator is going down");
        self.endpoint.closed().await;
    }
}

/// What comes of the process that drafts; nothing ever where there is none.
async fn draft_news(drafting: &mut Option<DraftProcess>) -> DraftNews {
    match drafting {
        Some(process) => process.news().await,
        None => std::future::pending().await,
    }
}

fn draft_limits(drafter: &Drafter, config: &MeshConfig) -> DraftLimits {
    let context = drafter.room(config.context, config.kv_positions).context;
    DraftLimits { context, vocab: drafter.model.spec.vocab, most: drafter.most }
}

fn draft_status(drafter: &Drafter, config: &MeshConfig) -> DraftStatus {
    DraftStatus {
        model: drafter.model.name.clone(),
        memory_bytes: drafter.memory_bytes(drafter.room(config.context, config.kv_positions)),
        threads: drafter.threads,
        ..DraftStatus::default()
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
