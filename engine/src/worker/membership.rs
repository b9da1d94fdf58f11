//! One stay in a mesh, from the welcome to the loss of the coordinator: feeds the state machine and does what it says.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use qmesh_models::footprint::FRAMES_HELD;
use qmesh_net::{
    CloseCode, Connection, ControlReceiver, ControlSender, Endpoint, Frame, FrameReceiver, Message, ShardStatus,
    StageReport, Upstream,
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    WorkerConfig,
    assignment::Assignment,
    compute::{Command, Done},
    console::Console,
    event::{Action, Departure, Event, LinkId, Turn},
    fetch::Fetch,
    links::{self, Outgoing},
    memory,
    state::Machine,
};

/// Events and messages that may wait for the state machine.
const QUEUE: usize = 64;
/// Messages that may wait for a coordinator that does not read.
const TELL_QUEUE: usize = 1024;
/// Commands that may wait for the compute thread; more messages are not read until there are fewer.
const BACKLOG: usize = 256;
/// How often the state machine hears that time passes.
const TICK: Duration = Duration::from_secs(1);
/// How long the running step may take when the worker is asked to leave.
const LEAVE_DEADLINE: Duration = Duration::from_secs(10);
/// How long a coordinator that was told Bye may take to read it and to close.
const BYE_DEADLINE: Duration = Duration::from_secs(3);

/// What outlives a stay: the compute thread with its shard, and the books on it.
pub(super) struct Lasting {
    pub(super) machine: Machine,
    pub(super) commands: mpsc::Sender<Command>,
    /// Commands that the thread has no place for yet, in order.
    pub(super) backlog: VecDeque<Command>,
    pub(super) done: mpsc::Receiver<Done>,
    pub(super) console: Console,
}

/// How a stay ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Ending {
    /// In order.
    Departed(Departure),
    /// The link to the coordinator broke.
    Lost(String),
}

/// The tasks and channels of one stay; dropping it ends them all.
pub(super) struct Membership<'a> {
    config: &'a WorkerConfig,
    lasting: &'a mut Lasting,
    endpoint: Endpoint,
    connection: Connection,
    tell: mpsc::Sender<Message>,
    events: mpsc::Sender<Event>,
    frames: mpsc::Sender<(LinkId, Frame)>,
    /// Links that the state machine has not decided on.
    waiting: HashMap<LinkId, FrameReceiver>,
    links_seen: u64,
    outgoing: Option<mpsc::Sender<(Instant, Frame)>>,
    writer: JoinSet<()>,
    acceptors: JoinSet<()>,
    reader: JoinSet<()>,
    sender: JoinSet<()>,
    fetch: JoinSet<()>,
    ending: Option<Ending>,
}

/// The receiving ends of a stay's channels.
struct Inbox {
    messages: mpsc::Receiver<Result<Message, String>>,
    events: mpsc::Receiver<Event>,
    arrivals: mpsc::Receiver<FrameReceiver>,
    frames: mpsc::Receiver<(LinkId, Frame)>,
}

/// Serves the mesh that `connection` has joined, until one of the two leaves or the link breaks.
pub(super) async fn serve(
    config: &WorkerConfig,
    lasting: &mut Lasting,
    endpoint: &Endpoint,
    connection: Connection,
    control: (ControlSender, ControlReceiver),
    asked: impl Future<Output = ()>,
) -> Ending {
    let (membership, inbox) = Membership::begin(config, lasting, endpoint.clone(), connection, control);
    membership.run(inbox, asked).await
}

impl Lasting {
    /// What the compute thread says next. Meanwhile hands it the commands that wait, as it has room. Cancel-safe.
    pub(super) async fn next(&mut self) -> Done {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.done.recv() => return done,
                Ok(permit) = self.commands.reserve(), if !self.backlog.is_empty() => {
                    if let Some(command) = self.backlog.pop_front() {
                        permit.send(command);
                    }
                }
                // The thread is gone with a bug that it has reported: nothing comes any more.
                else => std::future::pending().await,
            }
        }
    }
}

impl<'a> Membership<'a> {
    fn begin(
        config: &'a WorkerConfig,
        lasting: &'a mut Lasting,
        endpoint: Endpoint,
        connection: Connection,
        (sender, receiver): (ControlSender, ControlReceiver),
    ) -> (Self, Inbox) {
        let (tell, told) = mpsc::channel(TELL_QUEUE);
        let (messages_in, messages) = mpsc::channel(QUEUE);
        let (events_in, events) = mpsc::channel(QUEUE);
        let (arrivals_in, arrivals) = mpsc::channel(1);
        let (frames_in, frames) = mpsc::channel(1);
        let (mut writer, mut acceptors) = (JoinSet::new(), JoinSet::new());
        writer.spawn(write_messages(sender, told));
        acceptors.spawn(read_messages(receiver, messages_in));
        acceptors.spawn(links::accept_links(connection.clone(), arrivals_in.clone()));
        acceptors.spawn(links::accept_neighbours(endpoint.clone(), arrivals_in));
        let membership = Self {
            config,
            lasting,
            endpoint,
            connection,
            tell,
            events: events_in,
            frames: frames_in,
            waiting: HashMap::new(),
            links_seen: 0,
            outgoing: None,
            writer,
            acceptors,
            reader: JoinSet::new(),
            sender: JoinSet::new(),
            fetch: JoinSet::new(),
            ending: None,
        };
        (membership, Inbox { messages, events, arrivals, frames })
    }

    async fn run(mut self, mut inbox: Inbox, asked: impl Future<Output = ()>) -> Ending {
        let mut asked = std::pin::pin!(asked);
        let mut patience: Option<Instant> = None;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        self.handle(Event::Joined { coordinator: self.connection.peer() });
        loop {
            match self.ending.take() {
                // Who was asked to leave does not come back for a link that breaks meanwhile.
                Some(Ending::Lost(_)) if patience.is_some() => {
                    return self.end(Ending::Departed(Departure::Asked)).await;
                }
                Some(ending) => return self.end(ending).await,
                None => {}
            }
            // In this order: what is done makes room for what comes.
            let event = tokio::select! {
                biased;
                done = self.lasting.next() => Event::Done(done),
                Some(event) = inbox.events.recv() => event,
                Some(message) = inbox.messages.recv(), if self.lasting.backlog.len() < BACKLOG => match message {
                    Ok(message) => Event::Message(message),
                    Err(text) => {
                        self.ending = Some(Ending::Lost(text));
                        continue;
                    }
                },
                Some(receiver) = inbox.arrivals.recv() => self.arrived(receiver),
                Some((link, frame)) = inbox.frames.recv(), if self.lasting.machine.has_room() => {
                    Event::Frame { link, frame }
                }
                () = &mut asked, if patience.is_none() => {
                    patience = Some(Instant::now() + LEAVE_DEADLINE);
                    Event::Asked
                }
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    self.ending = Some(Ending::Departed(Departure::Asked));
                    continue;
                }
                _ = ticks.tick() => Event::Tick,
            };
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        if let Event::Fetching { bytes_done, bytes_total, .. } = event {
            self.lasting.console.progress(bytes_done, bytes_total);
        }
        for action in self.lasting.machine.handle(Instant::now().into_std(), event) {
            self.perform(action);
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Tell(message) => self.tell(message),
            Action::Fetch { turn, assignment } => self.fetch(turn, assignment),
            Action::StopFetch => {
                self.fetch = JoinSet::new();
                self.lasting.console.finish();
            }
            Action::Compute(command) => self.lasting.backlog.push_back(command),
            Action::Link { turn, epoch, upstream, downstream } => {
                let neighbour = match upstream {
                    Upstream::Coordinator => None,
                    Upstream::Worker(peer) => Some(peer),
                };
                self.endpoint.admission().allow([self.connection.peer()].into_iter().chain(neighbour));
                let (frames_in, frames) = mpsc::channel(FRAMES_HELD);
                self.outgoing = Some(frames_in);
                let (endpoint, coordinator) = (self.endpoint.clone(), self.connection.clone());
                let events = self.events.clone();
                let outgoing = Outgoing { turn, epoch, downstream, endpoint, coordinator, frames, events };
                self.sender.spawn(outgoing.run());
            }
            Action::Unlink => {
                self.reader = JoinSet::new();
                // Without frames to come the sender ends its link in order, and then itself.
                self.outgoing = None;
                while self.sender.try_join_next().is_some() {}
            }
            Action::Read(link) => {
                if let Some(receiver) = self.waiting.remove(&link) {
                    self.reader = JoinSet::new();
                    self.reader.spawn(links::read(link, receiver, self.frames.clone(), self.events.clone()));
                }
            }
            Action::Refuse(link) => drop(self.waiting.remove(&link)),
            Action::Send(frame) => {
                // The state machine never has more frames on their way than the channel holds.
                let full = self.outgoing.as_ref().is_some_and(|outgoing| {
                    let sent = outgoing.try_send((Instant::now(), frame));
                    matches!(sent, Err(mpsc::error::TrySendError::Full(_)))
                });
                debug_assert!(!full);
            }
            Action::Say(line) => self.lasting.console.say(&line),
            Action::Leave(departure) => self.ending = Some(Ending::Departed(departure)),
        }
    }

    fn tell(&mut self, mut message: Message) {
        if let Message::ShardStatus(ShardStatus { peak_memory_bytes, .. })
        | Message::StageReport(StageReport { peak_memory_bytes, .. }) = &mut message
        {
            *peak_memory_bytes = memory::peak_bytes();
        }
        if self.tell.try_send(message).is_err() && self.ending.is_none() {
            self.ending = Some(Ending::Lost("it does not read what it is told".into()));
        }
    }

    fn fetch(&mut self, turn: Turn, assignment: Arc<Assignment>) {
        self.fetch = JoinSet::new();
        let WorkerConfig { cache, model_folders, memory, threads, .. } = self.config;
        let (cache, model_folders, memory, threads) = (cache.clone(), model_folders.clone(), *memory, threads.get());
        let (events, connection) = (self.events.clone(), self.connection.clone());
        self.fetch.spawn(Fetch { turn, events, connection, cache, model_folders, memory, threads, assignment }.run());
    }

    fn arrived(&mut self, receiver: FrameReceiver) -> Event {
        self.links_seen += 1;
        let link = LinkId(self.links_seen);
        let (peer, epoch) = (receiver.peer(), receiver.epoch());
        self.waiting.insert(link, receiver);
        Event::Arrived { link, peer, epoch }
    }

    /// Lets the coordinator have the last words, then ends every task.
    async fn end(mut self, ending: Ending) -> Ending {
        self.lasting.console.finish();
        match &ending {
            Ending::Departed(_) => {
                drop(self.tell);
                let goodbye = async {
                    self.writer.join_next().await;
                    self.connection.closed().await
                };
                let _ = tokio::time::timeout(BYE_DEADLINE, goodbye).await;
                self.connection.close(CloseCode::Shutdown, "the worker left");
            }
            Ending::Lost(text) => self.connection.close(CloseCode::Ok, text),
        }
        self.endpoint.admission().allow([]);
        self.lasting.machine.handle(Instant::now().into_std(), Event::Lost);
        self.acceptors.shutdown().await;
        ending
    }
}

/// Writes what the coordinator is told; what is still to be told at the end waits for at most 2 s.
async fn write_messages(mut sender: ControlSender, mut told: mpsc::Receiver<Message>) {
    while let Some(message) = told.recv().await {
        if let Err(error) = sender.send(&message).await {
            // Who reads from the coordinator notices too, and ends the stay.
            return tracing::debug!(%error, "cannot tell the coordinator");
        }
    }
    sender.finish().await;
}

/// Reads what the coordinator says; the last item is why it says no more.
async fn read_messages(mut receiver: ControlReceiver, messages: mpsc::Sender<Result<Message, String>>) {
    loop {
        let message = receiver.recv().await.map_err(|error| error.to_string());
        let last = message.is_err();
        if messages.send(message).await.is_err() || last {
            return;
        }
    }
}
