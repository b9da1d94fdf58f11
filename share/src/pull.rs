//! The getting side: all holders at once, whatever becomes of any of them.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use qmesh_net::{Connection, Endpoint, Holder, NetError, PeerId, RangeRequest, ReadSecret, ShareLink};
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

use crate::{
    error::ShareError,
    file::{Kept, PartialFile},
    manifest::{MANIFEST_BYTES, SignedManifest},
    swarm::{Asked, Chunk, HolderNumber, Next, Swarm},
};

/// How often a person hears how far it is, and lost holders are looked at.
const TICK: Duration = Duration::from_millis(200);
/// How often a holder is asked who else is there.
const ASK_OTHERS: Duration = Duration::from_secs(5);
/// How long a holder that was lost is left alone.
const TRY_AGAIN: Duration = Duration::from_secs(3);
/// How long it is waited where nothing comes from anybody: longer than one that stands still is.
const PATIENCE: Duration = Duration::from_secs(45);
/// How long a holder that has nothing more is left alone, unless something changes.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Most holders that are asked.
const HOLDERS: usize = 16;

/// What a person hears of a pull.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum PullNews {
    /// So many bytes of the model are there.
    Bytes(u64),
    /// In words: who came, who was lost, who lied.
    Note(String),
}

/// A pull: what is to be got, where to, and who asks.
#[derive(Debug)]
pub struct Pulling {
    /// Who asks.
    pub endpoint: Endpoint,
    /// The link's right.
    pub secret: ReadSecret,
    /// Whether and where what is here is given to others meanwhile.
    pub me: Holder,
    /// Its files, as far as they are there.
    pub files: Vec<PartialFile>,
}

/// What a pull was like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pulled {
    /// Bytes that came, by who sent them.
    pub from: BTreeMap<PeerId, u64>,
}

/// Connects to the first of those who are said to hold the model that lets us read it, and gets the manifest.
///
/// # Errors
/// None of them answers, or none lets us read.
pub async fn find(
    endpoint: &Endpoint,
    link: &ShareLink,
    holders: &[(PeerId, Vec<String>)],
) -> Result<(Connection, SignedManifest), ShareError> {
    let mut first_error = None;
    for (peer, addresses) in holders {
        match find_at(endpoint, link, *peer, addresses).await {
            Ok(found) => return Ok(found),
            Err(error) => drop(first_error.get_or_insert(error)),
        }
    }
    let nobody = || NetError::Unreachable { peer: link.sharer, text: "no address is known".into() }.into();
    Err(first_error.unwrap_or_else(nobody))
}

async fn find_at(
    endpoint: &Endpoint,
    link: &ShareLink,
    peer: PeerId,
    addresses: &[String],
) -> Result<(Connection, SignedManifest), ShareError> {
    let connection = endpoint.dial(addresses, peer).await?;
    connection.ask_to_read(&link.secret, &Holder::default()).await?;
    let request = RangeRequest { tensor: link.manifest, offset: 0, bytes: MANIFEST_BYTES as u64 };
    let bytes = fetched(&connection, request, |_| {}).await?;
    Ok((connection, SignedManifest::expect(bytes, link.manifest)?))
}

/// Gets all that is missing, beginning with who is at the other end of `first`. `heard` is told how it goes; it may be
/// dropped.
///
/// # Errors
/// A file cannot be written, or nobody is left who has the rest.
pub async fn pull(pulling: Pulling, first: Connection, heard: mpsc::Sender<PullNews>) -> Result<Pulled, ShareError> {
    let missing = missing(&pulling.files, pulling.endpoint.peer_id());
    let (found, finds) = mpsc::channel(HOLDERS);
    let received = Mutex::new(Received { last: Instant::now(), from: BTreeMap::new() });
    let shared = Arc::new(Shared { swarm: Swarm::new(missing), pulling, heard, found, received });
    let mut hunt = Hunt { shared, holders: Vec::new(), asking: JoinSet::new(), finds };
    let peer = first.peer();
    hunt.holders.push(Known { peer, addresses: vec![first.remote_address().to_string()], state: State::Asked });
    hunt.ask(0, Some(first));
    hunt.run().await
}

/// What is missing, from a place of this machine's own on, so that many who begin together can give each other what they have.
fn missing(files: &[PartialFile], own: PeerId) -> Vec<Chunk> {
    let all = files.iter().enumerate().flat_map(|(file, of)| (0..of.of().chunks.len()).map(move |index| (file, index)));
    let mut missing: Vec<_> =
        all.filter(|&(file, index)| !files[file].has(index)).map(|(file, index)| Chunk { file, index }).collect();
    let start = u64::from_le_bytes(*own.0.first_chunk().expect("32 bytes hold 8")) as usize;
    let start = start % missing.len().max(1);
    missing.rotate_left(start);
    missing
}

/// What all tasks of a pull share.
struct Shared {
    swarm: Swarm,
    pulling: Pulling,
    heard: mpsc::Sender<PullNews>,
    /// Holders that other holders named.
    found: mpsc::Sender<(PeerId, Vec<String>)>,
    received: Mutex<Received>,
}

/// What came.
struct Received {
    /// When something did.
    last: Instant,
    /// Bytes, by who sent them.
    from: BTreeMap<PeerId, u64>,
}

/// The holders, and what each is up to.
struct Hunt {
    shared: Arc<Shared>,
    holders: Vec<Known>,
    asking: JoinSet<Ended>,
    finds: mpsc::Receiver<(PeerId, Vec<String>)>,
}

struct Known {
    peer: PeerId,
    addresses: Vec<String>,
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    /// It is being asked.
    Asked,
    /// It was lost, or did not answer; it is tried again then.
    Lost(Instant),
    /// It gave wrong bytes.
    Liar,
}

/// How the asking of one holder ended.
struct Ended {
    holder: HolderNumber,
    why: Why,
}

enum Why {
    /// All is there.
    Whole,
    Lost(NetError),
    Lied(Chunk),
    /// Here, not there.
    Failed(ShareError),
}

impl Hunt {
    async fn run(mut self) -> Result<Pulled, ShareError> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !self.shared.swarm.is_whole() {
            tokio::select! {
                // A task that was lost gave nothing that is not written.
                Some(ended) = self.asking.join_next() => ended.map_or(Ok(()), |ended| self.ended(ended))?,
                Some((peer, addresses)) = self.finds.recv() => self.meet(peer, addresses),
                _ = ticks.tick() => self.tick(),
            }
            if self.shared.received().last.elapsed() > PATIENCE {
                return Err(ShareError::Alone { seconds: PATIENCE.as_secs() });
            }
        }
        self.shared.say_bytes();
        Ok(Pulled { from: self.shared.received().from.clone() })
    }

    fn tick(&mut self) {
        self.shared.say_bytes();
        let now = Instant::now();
        for number in 0..self.holders.len() {
            if matches!(self.holders[number].state, State::Lost(then) if now >= then) {
                self.ask(number, None);
            }
        }
    }

    /// Somebody was named as a holder.
    fn meet(&mut self, peer: PeerId, addresses: Vec<String>) {
        if peer == self.shared.pulling.endpoint.peer_id() {
            return;
        }
        if let Some(known) = self.holders.iter_mut().find(|known| known.peer == peer) {
            known.addresses = addresses;
        } else if self.holders.len() < HOLDERS {
            self.holders.push(Known { peer, addresses, state: State::Lost(Instant::now()) });
            self.ask(self.holders.len() - 1, None);
        }
    }

    fn ask(&mut self, number: HolderNumber, connection: Option<Connection>) {
        let known = &mut self.holders[number];
        known.state = State::Asked;
        let (peer, addresses, shared) = (known.peer, known.addresses.clone(), Arc::clone(&self.shared));
        self.asking.spawn(async move {
            let why = shared.ask_holder(number, connection, peer, &addresses).await;
            Ended { holder: number, why }
        });
    }

    fn ended(&mut self, ended: Ended) -> Result<(), ShareError> {
        let known = &mut self.holders[ended.holder];
        let has_given = self.shared.received().from.contains_key(&known.peer);
        known.state = State::Lost(Instant::now() + TRY_AGAIN);
        match ended.why {
            Why::Whole => {}
            Why::Failed(error) => return Err(error),
            Why::Lost(error) if has_given => {
                self.shared.note(format!("{} is gone ({error}): asking others", known.peer.short()));
            }
            Why::Lost(error) => tracing::info!(%error, "a holder does not answer"),
            Why::Lied(chunk) => {
                known.state = State::Liar;
                let name = &self.shared.pulling.files[chunk.file].of().name;
                let which = format!("chunk {} of {name}", chunk.index);
                self.shared.note(format!("{} gave wrong bytes ({which}): it is asked no more", known.peer.short()));
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Asks one holder for chunks until all is there or something is wrong with it.
    async fn ask_holder(
        &self,
        holder: HolderNumber,
        connection: Option<Connection>,
        peer: PeerId,
        addresses: &[String],
    ) -> Why {
        let connected = async {
            let connection = match connection {
                Some(connection) => connection,
                None => self.pulling.endpoint.dial(addresses, peer).await?,
            };
            self.hear_of_others(&connection).await?;
            Ok(connection)
        };
        let connection = match connected.await {
            Ok(connection) => connection,
            Err(error) => return Why::Lost(error),
        };
        // While one chunk is hashed and written, others are on their way.
        let lane = || self.lane(holder, &connection);
        // The first that ends ends them all: they end for reasons of the holder's, or because all is there.
        let lanes = async {
            tokio::select! {
                why = lane() => why,
                why = lane() => why,
                why = lane() => why,
                why = lane() => why,
            }
        };
        let others = async {
            loop {
                sleep(ASK_OTHERS).await;
                if let Err(error) = self.hear_of_others(&connection).await {
                    return Why::Lost(error);
                }
            }
        };
        tokio::select! {
            why = lanes => why,
            why = others => why,
        }
    }

    /// Asks for one chunk after the other.
    async fn lane(&self, holder: HolderNumber, from: &Connection) -> Why {
        loop {
            let asked = match self.swarm.next(holder) {
                Next::Whole => return Why::Whole,
                Next::Wait => {
                    // Somebody may have dropped a chunk between the look and the wait: then the time is enough.
                    if timeout(LOOK_AGAIN, self.swarm.changed()).await.is_err() {
                        self.swarm.forget_lacking(holder);
                    }
                    continue;
                }
                Next::Ask(asked) => asked,
            };
            if let Err(why) = self.chunk(asked, from).await {
                return why;
            }
        }
    }

    /// Gets one chunk, if the holder has it.
    async fn chunk(&self, asked: Asked<'_>, from: &Connection) -> Result<(), Why> {
        let chunk = asked.chunk;
        let file = &self.pulling.files[chunk.file];
        let (offset, bytes) = file.place(chunk.index);
        let request = RangeRequest { tensor: file.id(), offset, bytes };
        let content = match fetched(from, request, |bytes| self.came(from.peer(), bytes)).await {
            Ok(content) if content.len() as u64 == bytes => content,
            Ok(_) => return Err(Why::Lied(chunk)),
            Err(NetError::RangeRefused { .. }) => {
                asked.lacks();
                return Ok(());
            }
            Err(error) => return Err(Why::Lost(error)),
        };
        if file.has(chunk.index) {
            // Another one was faster.
            asked.came();
            return Ok(());
        }
        let keeping = file.clone();
        match spawn_blocking(move || keeping.keep(chunk.index, &content)).await {
            Ok(Ok(Kept::Right)) => {
                asked.came();
                Ok(())
            }
            Ok(Ok(Kept::Wrong)) => Err(Why::Lied(chunk)),
            Ok(Err(error)) => Err(Why::Failed(error)),
            Err(error) => Err(Why::Failed(crate::error::in_file(Path::new(&file.of().name))(error.into()))),
        }
    }

    /// Asks for the right to read, which tells who else holds the model.
    async fn hear_of_others(&self, connection: &Connection) -> Result<(), NetError> {
        let grant = connection.ask_to_read(&self.pulling.secret, &self.pulling.me).await?;
        for holder in grant.holders {
            // Too many names at once: the next asking brings them again.
            drop(self.found.try_send(holder));
        }
        Ok(())
    }

    fn came(&self, peer: PeerId, bytes: u64) {
        let mut received = self.received();
        received.last = Instant::now();
        *received.from.entry(peer).or_default() += bytes;
    }

    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say_bytes(&self) {
        let bytes = self.pulling.files.iter().map(PartialFile::bytes_here).sum();
        drop(self.heard.try_send(PullNews::Bytes(bytes)));
    }

    fn note(&self, text: String) {
        drop(self.heard.try_send(PullNews::Note(text)));
    }
}

/// All bytes of a range; `came` is told of each piece.
async fn fetched(from: &Connection, request: RangeRequest, came: impl Fn(u64)) -> Result<Vec<u8>, NetError> {
    let mut range = from.fetch_range(request).await?;
    let mut content = Vec::with_capacity(usize::try_from(range.bytes_total()).unwrap_or_default());
    while let Some(piece) = range.next().await? {
        came(piece.len() as u64);
        content.extend_from_slice(&piece);
    }
    Ok(content)
}
