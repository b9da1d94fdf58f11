//! One stay in a mesh, from the welcome to the loss of the coordinator: feeds the state machine and does what it says.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    time::Duration,
};

use qmesh_models::footprint::FRAMES_HELD;
use qmesh_net::{
    CloseCode, Connection, ControlReceiver, ControlSender, Downstream, Endpoint, FrameReceiver, Message, PlanEpoch,
    ShardStatus, StageReport, Upstream,
};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    WorkerConfig,
    compute::{self, Command, Done},
    console::Console,
    event::{Action, Departure, Event, LinkId, Turn},
    fetch::{Fetch, Wanted},
    links::{self, Lane, Outgoing},
    memory,
    state::{Machine, SHARDS_MOST},
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

/// What outlives a stay: the compute thread with its shards, those that are being loaded, and the books on them.
pub(super) struct Lasting {
    pub(super) machine: Machine,
    pub(super) console: Console,
    commands: mpsc::Sender<Command>,
    /// Commands that the thread has no place for yet, in order.
    backlog: VecDeque<Command>,
    done: mpsc::Receiver<Done>,
    /// What is said where shards are loaded, and what says it.
    loads: (mpsc::Sender<Done>, mpsc::Receiver<Done>),
}

/// How a stay ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// In order.
    Departed(Departure),
    /// The link to the coordinator broke.
    Lost(String),
    /// The compute thread ended, and the system gives no other.
    NoThread(io::Error),
}

/// The tasks and channels of one stay; dropping it ends them all.
pub(super) struct Membership<'a> {
    config: &'a WorkerConfig,
    lasting: &'a mut Lasting,
    endpoint: Endpoint,
    connection: Connection,
    tell: mpsc::Sender<Message>,
    events: mpsc::Sender<Event>,
    /// Links that the state machine has not decided on.
    waiting: HashMap<LinkId, FrameReceiver>,
    links_seen: u64,
    lanes: BTreeMap<Turn, Lane>,
    writer: JoinSet<()>,
    acceptors: JoinSet<()>,
    /// The tasks of lanes, and of those that are ending.
    links: JoinSet<()>,
    fetches: JoinSet<()>,
    fetching: BTreeMap<Turn, AbortHandle>,
    ending: Option<Ending>,
}

/// The receiving ends of a stay's channels.
struct Inbox {
    messages: mpsc::Receiver<Result<Message, String>>,
    events: mpsc::Receiver<Event>,
    arrivals: mpsc::Receiver<FrameReceiver>,
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
    /// A compute thread without a shard.
    pub(super) fn new(console: Console) -> io::Result<Self> {
        let (commands, done) = compute::spawn(2 * FRAMES_HELD)?;
        let loads = mpsc::channel(2 * SHARDS_MOST);
        Ok(Self { machine: Machine::default(), console, commands, backlog: VecDeque::new(), done, loads })
    }

    /// What is said next where shards are computed and loaded. Meanwhile hands the compute thread the commands that wait,
    /// as it has room; and another one takes the place of a thread that ends. Cancel-safe.
    ///
    /// # Errors
    /// When the system gives no other thread.
    pub(super) async fn next(&mut self) -> io::Result<Done> {
        loop {
            let done = tokio::select! {
                biased;
                done = self.done.recv() => done,
                done = self.loads.1.recv() => done,
                Ok(permit) = self.commands.reserve(), if !self.backlog.is_empty() => {
                    if let Some(command) = self.backlog.pop_front() {
                        permit.send(command);
                    }
                    continue;
                }
            };
            return match done {
                Some(done) => Ok(done),
                // The thread has panicked, and said so.
                None => {
                    (self.commands, self.done) = compute::spawn(2 * FRAMES_HELD)?;
                    self.backlog.clear();
                    Ok(Done::Ended)
                }
            };
        }
    }

    /// Commands that wait, here or in the state machine.
    fn waiting(&self) -> usize {
        self.backlog.len() + self.machine.queued()
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
            waiting: HashMap::new(),
            links_seen: 0,
            lanes: BTreeMap::new(),
            writer,
            acceptors,
            links: JoinSet::new(),
            fetches: JoinSet::new(),
            fetching: BTreeMap::new(),
            ending: None,
        };
        (membership, Inbox { messages, events, arrivals })
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
                done = self.lasting.next() => match done {
                    Ok(done) => Event::Done(done),
                    Err(error) => {
                        self.ending = Some(Ending::NoThread(error));
                        continue;
                    }
                },
                Some(event) = inbox.events.recv() => event,
                Some(message) = inbox.messages.recv(), if self.lasting.waiting() < BACKLOG => match message {
                    Ok(message) => Event::Message(message),
                    Err(text) => {
                        self.ending = Some(Ending::Lost(text));
                        continue;
                    }
                },
                Some(receiver) = inbox.arrivals.recv() => self.arrived(receiver),
                (link, frame) = links::next_frame(&mut self.lanes) => Event::Frame { link, frame },
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
        for (turn, lane) in &mut self.lanes {
            lane.set_room(self.lasting.machine.has_room(*turn));
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Tell(message) => self.tell(message),
            Action::Fetch { turn, assignment, taken_over, beside, scrutiny } => {
                self.fetch(Wanted { turn, assignment, taken_over, beside, scrutiny });
            }
            Action::StopFetch { turn } => {
                if let Some(fetch) = self.fetching.remove(&turn) {
                    fetch.abort();
                }
                self.lasting.console.finish();
            }
            Action::Load(loading) => {
                loading.spawn(self.config.threads.get(), self.config.compute, self.lasting.loads.0.clone());
            }
            Action::Compute(command) => self.lasting.backlog.push_back(command),
            Action::Link { turn, epoch, upstream, downstream } => self.link(turn, epoch, upstream, downstream),
            Action::Unlink { turn } => {
                self.lanes.remove(&turn);
                self.admit_neighbours();
                while self.links.try_join_next().is_some() {}
            }
            Action::Read { turn, link } => {
                if let (Some(lane), Some(receiver)) = (self.lanes.get_mut(&turn), self.waiting.remove(&link)) {
                    self.links.spawn(lane.read(link, receiver, self.events.clone()).run());
                }
            }
            Action::Refuse(link) => drop(self.waiting.remove(&link)),
            Action::Send { turn, frame } => {
                if let Some(lane) = self.lanes.get(&turn) {
                    lane.send(frame);
                }
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

    fn fetch(&mut self, wanted: Wanted) {
        let WorkerConfig { cache, model_folders, memory, threads, .. } = self.config;
        let (cache, model_folders, memory, threads) = (cache.clone(), model_folders.clone(), *memory, threads.get());
        let (events, connection, turn) = (self.events.clone(), self.connection.clone(), wanted.turn);
        let fetch = Fetch { wanted, events, connection, cache, model_folders, memory, threads };
        while self.fetches.try_join_next().is_some() {}
        self.fetching.retain(|_, fetch| !fetch.is_finished());
        self.fetching.insert(turn, self.fetches.spawn(fetch.run()));
    }

    fn link(&mut self, turn: Turn, epoch: PlanEpoch, upstream: Upstream, downstream: Downstream) {
        let (lane, frames) = Lane::new(upstream);
        self.lanes.insert(turn, lane);
        self.admit_neighbours();
        let (endpoint, coordinator) = (self.endpoint.clone(), self.connection.clone());
        let events = self.events.clone();
        let outgoing = Outgoing { turn, epoch, downstream, endpoint, coordinator, frames, events };
        self.links.spawn(outgoing.run());
    }

    /// Whoever sends frames of a plan may connect.
    fn admit_neighbours(&self) {
        let neighbours = self.lanes.values().filter_map(Lane::neighbour);
        self.endpoint.admission().allow([self.connection.peer()].into_iter().chain(neighbours));
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
            Ending::NoThread(error) => self.connection.close(CloseCode::Internal, &error.to_string()),
        }
        self.endpoint.admission().allow([]);
        for action in self.lasting.machine.handle(Instant::now().into_std(), Event::Lost) {
            // Shards are freed; the tasks of links and fetches end with this stay.
            if let Action::Compute(command) = action {
                self.lasting.backlog.push_back(command);
            }
        }
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

#[cfg(test)]
mod tests {
    use super::{super::Audience, *};

    #[tokio::test]
    async fn another_compute_thread_takes_the_place_of_one_that_ends() {
        let mut lasting = Lasting::new(Console::new(Audience::Nobody)).unwrap();
        lasting.backlog.push_back(Command::Unload { turn: Turn(1) });
        // What a thread that panics leaves behind.
        lasting.done = mpsc::channel(1).1;
        assert!(matches!(lasting.next().await.unwrap(), Done::Ended));
        assert_eq!(lasting.waiting(), 0, "what it was to do went with it");
        lasting.backlog.push_back(Command::Unload { turn: Turn(2) });
        assert!(matches!(lasting.next().await.unwrap(), Done::Unloaded { turn: Turn(2) }));
    }
}
