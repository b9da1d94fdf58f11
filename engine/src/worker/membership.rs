//! One stay in a mesh, from the welcome to the loss of the coordinator: feeds the state machine and does what it says.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use qmesh_net::{
    CloseCode, Connection, ControlReceiver, ControlSender, Downstream, Endpoint, FrameReceiver, Measure, Meeting,
    Message, PeerId, PeerWay, PeerWays, Route, Sections, ShardStatus, StageReport, Upstream,
};
use tokio::{
    sync::mpsc::{self, error::TrySendError},
    task::{AbortHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use super::{
    config::WorkerConfig,
    lasting::Lasting,
    links::{self, ArrivedFrame, DownstreamLink, LinkId, LinkNews, StageLinks},
    machine, memory, speed,
    state::{Action, Departure, Event},
    surroundings::{Notice, Surroundings},
    tensors::{Fetch, FetchNews, FetchRequest, Offer, Server},
    turn::Turn,
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

/// The link to the coordinator that let the worker in.
pub(super) struct CoordinatorLink {
    pub(super) connection: Connection,
    pub(super) sender: ControlSender,
    pub(super) receiver: ControlReceiver,
    /// What keeps the way open, where a rendezvous has found it.
    pub(super) meeting: Option<Meeting>,
}

/// How a stay ended.
#[derive(Debug)]
pub(super) enum Ending {
    /// In order.
    Departed(Departure),
    /// The coordinator wants the worker no longer, and says why.
    SentAway(String),
    /// The link to the coordinator broke.
    Lost(String),
    /// The coordinator is at another address now, where this is a connection to it.
    Moved(Connection),
    /// The compute thread ended, and the system gives no other.
    NoThread(io::Error),
}

/// The tasks and channels of one stay; dropping it ends them all.
pub(super) struct Membership<'a> {
    config: &'a WorkerConfig,
    lasting: &'a mut Lasting,
    endpoint: Endpoint,
    connection: Connection,
    _meeting: Option<Meeting>,
    tell: mpsc::Sender<Message>,
    fetch_news: mpsc::Sender<FetchNews>,
    link_news: mpsc::Sender<LinkNews>,
    /// Links that the state machine has not decided on.
    waiting: HashMap<LinkId, FrameReceiver>,
    links_seen: u64,
    links: BTreeMap<Turn, StageLinks>,
    /// Workers that may ask for tensors.
    askers: BTreeSet<PeerId>,
    /// What lets them in.
    meetings: BTreeMap<PeerId, Meeting>,
    writer: JoinSet<()>,
    acceptors: JoinSet<()>,
    /// The tasks of links, also of those that are ending.
    link_tasks: JoinSet<()>,
    fetches: JoinSet<()>,
    fetching: BTreeMap<Turn, AbortHandle>,
    ending: Option<Ending>,
}

/// The receiving ends of a stay's channels.
struct Inbox {
    messages: mpsc::Receiver<Result<Message, String>>,
    fetch_news: mpsc::Receiver<FetchNews>,
    link_news: mpsc::Receiver<LinkNews>,
    arrivals: mpsc::Receiver<FrameReceiver>,
}

/// Serves the coordinator's mesh until one of the two leaves or the link breaks.
pub(super) async fn serve(
    config: &WorkerConfig,
    lasting: &mut Lasting,
    endpoint: &Endpoint,
    coordinator: CoordinatorLink,
    asked: impl Future<Output = ()>,
) -> Ending {
    let (membership, inbox) = Membership::begin(config, lasting, endpoint.clone(), coordinator);
    membership.run(inbox, asked).await
}

impl<'a> Membership<'a> {
    fn begin(
        config: &'a WorkerConfig,
        lasting: &'a mut Lasting,
        endpoint: Endpoint,
        CoordinatorLink { connection, sender, receiver, meeting }: CoordinatorLink,
    ) -> (Self, Inbox) {
        let (tell, told) = mpsc::channel(TELL_QUEUE);
        let (messages_in, messages) = mpsc::channel(QUEUE);
        let (fetch_news_in, fetch_news) = mpsc::channel(QUEUE);
        let (link_news_in, link_news) = mpsc::channel(QUEUE);
        let (arrivals_in, arrivals) = mpsc::channel(1);
        let (mut writer, mut acceptors) = (JoinSet::new(), JoinSet::new());
        writer.spawn(write_messages(sender, told));
        acceptors.spawn(read_messages(receiver, messages_in));
        let server = Server::new(lasting.shelf.clone());
        acceptors.spawn(links::accept_links(connection.clone(), arrivals_in.clone(), server.clone()));
        acceptors.spawn(links::accept_neighbours(endpoint.clone(), arrivals_in, server));
        let membership = Self {
            config,
            lasting,
            endpoint,
            connection,
            _meeting: meeting,
            tell,
            fetch_news: fetch_news_in,
            link_news: link_news_in,
            waiting: HashMap::new(),
            links_seen: 0,
            links: BTreeMap::new(),
            askers: BTreeSet::new(),
            meetings: BTreeMap::new(),
            writer,
            acceptors,
            link_tasks: JoinSet::new(),
            fetches: JoinSet::new(),
            fetching: BTreeMap::new(),
            ending: None,
        };
        (membership, Inbox { messages, fetch_news, link_news, arrivals })
    }

    async fn run(mut self, mut inbox: Inbox, asked: impl Future<Output = ()>) -> Ending {
        let mut asked = std::pin::pin!(asked);
        let mut patience: Option<Instant> = None;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut surroundings = Surroundings::of(&self.endpoint, &self.connection, &self.config.way_in);
        self.handle(Event::Joined { coordinator: self.connection.peer() });
        loop {
            match self.ending.take() {
                // Who was asked to leave does not come back for a link that breaks, or a coordinator that moves, meanwhile.
                Some(Ending::Lost(_) | Ending::Moved(_)) if patience.is_some() => {
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
                Some(news) = inbox.fetch_news.recv() => Event::Fetch(news),
                Some(news) = inbox.link_news.recv() => Event::Link(news),
                Some(message) = inbox.messages.recv(), if self.lasting.waiting() < BACKLOG => match message {
                    Ok(Message::Reject { text, .. }) => {
                        self.ending = Some(Ending::SentAway(text));
                        continue;
                    }
                    Ok(message) => Event::Message(message),
                    Err(text) => {
                        self.ending = Some(Ending::Lost(text));
                        continue;
                    }
                },
                Some(receiver) = inbox.arrivals.recv() => self.arrived(receiver),
                ArrivedFrame { link, frame } = links::next_frame(&mut self.links) => Event::Frame { link, frame },
                () = &mut asked, if patience.is_none() => {
                    patience = Some(Instant::now() + LEAVE_DEADLINE);
                    Event::Asked
                }
                () = sleep_until(patience.unwrap_or_else(Instant::now)), if patience.is_some() => {
                    self.ending = Some(Ending::Departed(Departure::Asked));
                    continue;
                }
                notice = surroundings.next() => {
                    self.notice(notice);
                    continue;
                }
                _ = ticks.tick() => {
                    self.lasting.uses.prune();
                    Event::Tick
                }
            };
            self.handle(event);
        }
    }

    fn handle(&mut self, event: Event) {
        if let Event::Fetch(FetchNews::Progress { bytes_done, bytes_total, origins, .. }) = &event {
            self.lasting.console.progress(*bytes_done, *bytes_total, origins);
        }
        if let Event::Frame { .. } = event {
            self.lasting.shelf.stepped(Instant::now().into_std());
        }
        for action in self.lasting.state.handle(Instant::now().into_std(), event) {
            self.perform(action);
        }
        for (turn, links) in &mut self.links {
            links.set_room(self.lasting.state.has_room(*turn));
        }
    }

    fn perform(&mut self, action: Action) {
        match action {
            Action::Tell(message) => self.tell(message),
            Action::Fetch(request) => self.fetch(request),
            Action::StopFetch { turn } => {
                if let Some(fetch) = self.fetching.remove(&turn) {
                    fetch.abort();
                }
                self.lasting.console.finish();
            }
            Action::Offer(offer) => {
                self.askers.clone_from(&offer.askers);
                self.meetings.retain(|peer, _| offer.askers.contains(peer));
                for way in &offer.ways {
                    let endpoint = &self.endpoint;
                    self.meetings.entry(way.peer).or_insert_with(|| endpoint.meet(way.peer, way.sockets(), None));
                }
                self.lasting.shelf.offer(offer);
                self.admit_neighbours();
            }
            Action::Load(request) => {
                request.spawn(Arc::clone(&self.config.backend), self.lasting.loads());
            }
            Action::Compute(command) => self.lasting.command(command),
            Action::Link { turn, route, ways } => self.link(turn, route, &ways),
            Action::Unlink { turn } => {
                self.links.remove(&turn);
                self.admit_neighbours();
                while self.link_tasks.try_join_next().is_some() {}
            }
            Action::Read { turn, link } => {
                if let (Some(links), Some(receiver)) = (self.links.get_mut(&turn), self.waiting.remove(&link)) {
                    self.link_tasks.spawn(links.read(link, receiver, self.link_news.clone()).run());
                }
            }
            Action::Refuse(link) => drop(self.waiting.remove(&link)),
            Action::Send { turn, frame } => {
                if let Some(links) = self.links.get(&turn) {
                    links.send(frame);
                }
            }
            Action::Measure(asked) => self.measure(asked),
            Action::Rendezvous(errand) => errand.run(&self.endpoint, &self.connection),
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
        // Where nobody hears any more, its last words may still wait to be read: they say why.
        if let Err(TrySendError::Full(_)) = self.tell.try_send(message)
            && self.ending.is_none()
        {
            self.ending = Some(Ending::Lost("it does not read what it is told".into()));
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Addresses(addresses) => self.moved(&addresses),
            Notice::Coordinator(connection) => self.ending = Some(Ending::Moved(connection)),
            Notice::Seeker(seeker) => self.tell(Message::Sought(seeker)),
        }
    }

    /// This machine has other addresses now: who dialled it at one that is gone waits for nothing, and dials it where it is.
    fn moved(&mut self, addresses: &BTreeSet<IpAddr>) {
        let _dialled_elsewhere = self.endpoint.is_at(addresses);
        self.lasting.console.say(&format!("this machine's addresses have changed ({})", listed(addresses)));
        let mut sections = Sections::default();
        machine::say_where(&self.endpoint, &mut sections);
        self.tell(Message::Moved { sections });
    }

    /// Answers when it is done: the link and the stages go on meanwhile.
    fn measure(&self, asked: Measure) {
        let WorkerConfig { backend, memory, measured_by, cache, .. } = self.config;
        let (backend, memory, tell) = (Arc::clone(backend), *memory, self.tell.clone());
        let by = (measured_by.clone(), cache.clone());
        tokio::spawn(async move {
            let answer = speed::measured(backend, memory, by, asked).await;
            // Without a receiver the stay is over.
            let _ = tell.send(Message::Measured(answer)).await;
        });
    }

    fn fetch(&mut self, request: FetchRequest) {
        let WorkerConfig { cache, cache_size, model_folders, memory, backend, .. } = self.config;
        let (cache, model_folders, memory) = (cache.clone(), model_folders.clone(), *memory);
        let (threads, cache_size, uses) = (backend.threads().get(), *cache_size, self.lasting.uses.clone());
        let (news, connection, turn) = (self.fetch_news.clone(), self.connection.clone(), request.turn);
        let (endpoint, shelf) = (self.endpoint.clone(), self.lasting.shelf.clone());
        let fetch = Fetch {
            request,
            news,
            connection,
            endpoint,
            shelf,
            cache,
            cache_size,
            uses,
            model_folders,
            memory,
            threads,
        };
        while self.fetches.try_join_next().is_some() {}
        self.fetching.retain(|_, fetch| !fetch.is_finished());
        self.fetching.insert(turn, self.fetches.spawn(fetch.run()));
    }

    fn link(&mut self, turn: Turn, route: Route, ways: &PeerWays) {
        let Route { epoch, upstream, downstream, .. } = route;
        let before = match upstream {
            Upstream::Coordinator => None,
            Upstream::Worker(peer) => ways.to(peer).map(|way| self.meet(way)),
        };
        let meeting = match &downstream {
            Downstream::Coordinator => None,
            Downstream::Worker { peer, .. } => ways.to(*peer).map(|way| self.meet(way)),
        };
        let (links, frames) = StageLinks::new(upstream, before);
        self.links.insert(turn, links);
        self.admit_neighbours();
        let (endpoint, coordinator) = (self.endpoint.clone(), self.connection.clone());
        let news = self.link_news.clone();
        let link = DownstreamLink { turn, epoch, downstream, meeting, endpoint, coordinator, frames, news };
        self.link_tasks.spawn(link.run());
    }

    /// Opens the way between a neighbour and this worker.
    fn meet(&self, way: &PeerWay) -> Meeting {
        let relay = way.relay.as_ref().map(|relay| (relay.at(self.connection.remote_address()), relay.tag));
        self.endpoint.meet(way.peer, way.sockets(), relay)
    }

    /// Whoever sends frames of a plan, or may ask for tensors, may connect.
    fn admit_neighbours(&self) {
        let neighbours = self.links.values().filter_map(StageLinks::neighbour);
        self.endpoint
            .admission()
            .allow([self.connection.peer()].into_iter().chain(neighbours).chain(self.askers.iter().copied()));
    }

    fn arrived(&mut self, receiver: FrameReceiver) -> Event {
        self.links_seen += 1;
        let link = LinkId(self.links_seen);
        let (peer, epoch) = (receiver.peer(), receiver.epoch());
        self.waiting.insert(link, receiver);
        Event::Link(LinkNews::Arrived { link, peer, epoch })
    }

    /// Lets the coordinator have the last words, then ends every task.
    async fn end(mut self, ending: Ending) -> Ending {
        self.lasting.console.finish();
        match &ending {
            Ending::SentAway(_) => self.connection.close(CloseCode::Ok, "the worker left"),
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
            Ending::Moved(_) => self.connection.close(CloseCode::Ok, "the coordinator is elsewhere"),
            Ending::NoThread(error) => self.connection.close(CloseCode::Internal, &error.to_string()),
        }
        self.endpoint.admission().allow([]);
        self.lasting.shelf.offer(Offer::default());
        for action in self.lasting.state.handle(Instant::now().into_std(), Event::Lost) {
            // Shards are freed; the tasks of links and fetches end with this stay.
            if let Action::Compute(command) = action {
                self.lasting.command(command);
            }
        }
        self.acceptors.shutdown().await;
        ending
    }
}

/// Those by which others may know this machine.
fn listed(addresses: &BTreeSet<IpAddr>) -> String {
    let is_seen = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback() && !ip.is_link_local(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let seen: Vec<String> = addresses.iter().filter(is_seen).map(IpAddr::to_string).collect();
    if seen.is_empty() { "none but its own".to_owned() } else { format!("now {}", seen.join(", ")) }
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
