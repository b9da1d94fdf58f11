//! A worker's life: join, serve, and join again after a loss.

use std::{
    env::consts::{ARCH, OS},
    fs, io,
    net::SocketAddr,
    ops::ControlFlow,
    pin::Pin,
    time::Duration,
};

use qmesh_net::{
    Claim, CloseCode, Connection, ControlReceiver, ControlSender, Endpoint, FoundBy, Introduction, Nat, NetError,
    RejectCode, Sections, WayFound, Welcome, join,
};
use thiserror::Error;
use tokio::time::{Instant, sleep};

use super::{
    config::{Stay, WayIn, WorkerConfig, WorkerEnd},
    console::Console,
    lasting::Lasting,
    machine,
    membership::{self, CoordinatorLink, Ending},
    memory::Allowance,
    reach::{Reached, reach},
    rendezvous::called,
    state::{Departure, Event},
    whereabouts::Whereabouts,
};
use crate::error::EngineError;

/// The wait after a loss; every further one in a row is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The longest of them.
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A coordinator that knows a worker's key has answered after this; otherwise it asks somebody.
const AT_ONCE: Duration = Duration::from_millis(700);

/// Why a worker could not even start, or go on.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The system gives no thread.
    #[error("cannot start the compute thread: {0}")]
    Thread(#[from] io::Error),
    /// The endpoint cannot be used.
    #[error(transparent)]
    Net(NetError),
    /// The backend cannot be used.
    #[error(transparent)]
    Backend(#[from] EngineError),
}

/// Serves the mesh that the way in leads to from `endpoint` until `shutdown` completes, the mesh sends the worker away for good,
/// or (with [`Stay::Once`]) the first stay ends. The endpoint is the worker's from now on: it sets the admission, and
/// closes the endpoint at the end.
///
/// # Errors
/// Only what no retry can mend on this machine.
pub async fn run(
    config: WorkerConfig,
    endpoint: Endpoint,
    shutdown: impl Future<Output = ()>,
) -> Result<WorkerEnd, WorkerError> {
    let numerics = config.backend.numerics()?;
    let lasting = Lasting::new(Console::new(config.audience))?;
    endpoint.admission().allow([]);
    let whereabouts = Whereabouts::kept_in(config.search.remembered_in.clone());
    let worker = Worker { config, endpoint: endpoint.clone(), lasting, numerics, whereabouts };
    let ended = worker.run(std::pin::pin!(shutdown)).await;
    endpoint.close(CloseCode::Shutdown, "the worker ends");
    endpoint.closed().await;
    ended
}

struct Worker {
    config: WorkerConfig,
    endpoint: Endpoint,
    lasting: Lasting,
    /// What decides the bits of its results.
    numerics: String,
    /// Where its coordinator was found before.
    whereabouts: Whereabouts,
}

/// Why a stay is over, and another one may follow.
enum Loss {
    /// For this reason.
    Told(String),
    /// The coordinator is at another address, where this is a connection to it.
    Moved(Connection),
}

/// A place in the mesh.
struct Joined {
    coordinator: CoordinatorLink,
    welcome: Welcome,
    found: WayFound,
}

impl Worker {
    async fn run(mut self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Result<WorkerEnd, WorkerError> {
        let (mut wait, mut moved) = (FIRST_WAIT, None);
        loop {
            let at = moved.take();
            let joined = tokio::select! {
                joined = join_mesh(&self.config, &self.endpoint, &self.numerics, &mut self.whereabouts, at) => joined,
                error = settle(&mut self.lasting) => return Err(WorkerError::Thread(error)),
                () = &mut shutdown => return Ok(WorkerEnd::Asked),
            };
            let mut nowhere = false;
            let loss = match joined {
                Ok(joined) => {
                    wait = FIRST_WAIT;
                    match self.stay(joined, shutdown.as_mut()).await {
                        ControlFlow::Break(ended) => return ended,
                        ControlFlow::Continue(Loss::Told(loss)) => loss,
                        ControlFlow::Continue(Loss::Moved(connection)) => {
                            moved = Some(connection);
                            continue;
                        }
                    }
                }
                Err(NetError::Rejected { code, text }) if is_final(code) && !self.renew_ticket() => {
                    return Ok(WorkerEnd::Rejected { code, text });
                }
                // Somebody else at its address, say while its machine is away, does not mean that it is gone for good.
                Err(error @ (NetError::Version { .. } | NetError::Setup { .. })) => {
                    return Err(WorkerError::Net(error));
                }
                Err(error) => {
                    nowhere = matches!(error, NetError::Unreachable { .. });
                    format!("{}: {error}", error.kind())
                }
            };
            if self.config.stay == Stay::Once {
                self.lasting.console.say(&loss);
                return Ok(WorkerEnd::Lost);
            }
            self.lasting.console.say(&format!("{loss}, retrying in {} s", wait.as_secs_f64()));
            tokio::select! {
                () = sleep(with_jitter(wait)) => {}
                // A coordinator that calls is there now.
                () = called(&self.endpoint, &self.config.way_in), if nowhere => {}
                () = &mut shutdown => return Ok(WorkerEnd::Asked),
            }
            wait = if self.renew_ticket() { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
        }
    }

    /// Takes the ticket that the file has now; whether it is another one.
    fn renew_ticket(&mut self) -> bool {
        // While the file is away or half written, the ticket at hand is as good as any.
        let renewed = self.config.ticket_file.as_ref().and_then(|file| fs::read_to_string(file).ok()?.parse().ok());
        let Some(way_in) = renewed.map(WayIn::Ticket).filter(|way_in| *way_in != self.config.way_in) else {
            return false;
        };
        self.config.way_in = way_in;
        true
    }

    /// Keeps which mesh has let this worker in, and where it was: it comes back there, and to nobody else.
    fn remember(&mut self, name: &str, connection: &Connection, found: WayFound) {
        let (mesh, kept_in) = match &mut self.config.way_in {
            WayIn::Key { mesh, kept_in } => (mesh, kept_in),
            WayIn::Ticket(ticket) => {
                let lasts = match found.by {
                    FoundBy::LocalNetwork | FoundBy::Dht => true,
                    // To a rendezvous, the way is open for as long as the coordinator calls.
                    FoundBy::Call => ticket.rendezvous.is_empty(),
                    FoundBy::Address | FoundBy::Rendezvous | FoundBy::Relay => false,
                };
                if lasts {
                    self.whereabouts.found(connection.peer(), connection.remote_address().to_string());
                }
                return;
            }
        };
        mesh.joined(name, connection.remote_address());
        if let Some(Err(error)) = kept_in.as_ref().map(|path| mesh.keep(path)) {
            self.lasting.console.say(&format!("this worker will not find back by itself: {error}"));
        }
    }

    /// Serves until the stay ends, for good or with a reason to join again.
    async fn stay(
        &mut self,
        joined: Joined,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> ControlFlow<Result<WorkerEnd, WorkerError>, Loss> {
        let Joined { coordinator, welcome: Welcome { mesh, assigned_name, .. }, found } = joined;
        self.remember(&mesh, &coordinator.connection, found);
        let peer = self.endpoint.peer_id().short();
        let found = match found.by {
            FoundBy::Address => String::new(),
            FoundBy::LocalNetwork | FoundBy::Dht | FoundBy::Call | FoundBy::Rendezvous | FoundBy::Relay => {
                format!(", found {found}")
            }
        };
        self.lasting.console.say(&format!("joined {mesh} as {assigned_name} (peer {peer}…){found}"));
        let Self { config, endpoint, lasting, .. } = self;
        match (membership::serve(config, lasting, endpoint, coordinator, shutdown).await, config.stay) {
            (Ending::Departed(Departure::Asked), _) => ControlFlow::Break(Ok(WorkerEnd::Asked)),
            (Ending::Departed(Departure::Dismissed(_)), Stay::Once) => ControlFlow::Break(Ok(WorkerEnd::Dismissed)),
            (Ending::Departed(Departure::Dismissed(text)), Stay::ForGood) => {
                ControlFlow::Continue(Loss::Told(format!("the coordinator said goodbye ({text})")))
            }
            (Ending::SentAway(text), _) => ControlFlow::Break(Ok(WorkerEnd::SentAway { text })),
            (Ending::Lost(text), _) => {
                tracing::debug!(text, "lost the coordinator");
                ControlFlow::Continue(Loss::Told("lost the coordinator".into()))
            }
            (Ending::Moved(connection), _) => ControlFlow::Continue(Loss::Moved(connection)),
            (Ending::NoThread(error), _) => ControlFlow::Break(Err(WorkerError::Thread(error))),
        }
    }
}

/// Lets the state machine know what the compute thread does while there is no coordinator, until there can be no such
/// thread any more.
async fn settle(lasting: &mut Lasting) -> io::Error {
    loop {
        match lasting.next().await {
            // There is nobody to tell, and no assignment to act for.
            Ok(done) => drop(lasting.state.handle(Instant::now().into_std(), Event::Done(done))),
            Err(error) => return error,
        }
    }
}

async fn join_mesh(
    config: &WorkerConfig,
    endpoint: &Endpoint,
    numerics: &str,
    whereabouts: &mut Whereabouts,
    moved: Option<Connection>,
) -> Result<Joined, NetError> {
    let reached = match moved {
        Some(connection) => Reached::at_address(connection, FoundBy::Call, std::time::Instant::now()),
        None => {
            let before = whereabouts.of(config.way_in.coordinator());
            reach(endpoint, &config.way_in, before, &config.search).await?
        }
    };
    let Reached { connection, found, by } = reached;
    let mut sections = Sections::default();
    if let Err(error) = found.put(&mut sections) {
        tracing::warn!(%error, "cannot say how the coordinator was found");
    }
    if let Some(Err(error)) = machine::share(config.way_in.coordinator()).map(|share| share.put(&mut sections)) {
        // It is then planned with as if it had its machine for itself.
        tracing::warn!(%error, "cannot say which machine this is");
    }
    let own = machine::say_where(endpoint, &mut sections);
    // A coordinator behind a NAT sees less of another one than whoever everybody reaches.
    let observer = by.as_ref().map_or(connection.remote_address(), |introducer| introducer.address);
    if let Some(nat) = nat_before(endpoint, observer, &own.sockets()).await
        && let Err(error) = nat.put(&mut sections)
    {
        tracing::warn!(%error, "cannot say what NAT is before this machine");
    }
    let me = Introduction {
        name: config.name.clone(),
        os: format!("{OS} {ARCH}"),
        numerics: numerics.to_owned(),
        memory_bytes: Allowance::measure(config.memory).bytes.0,
        threads: u32::try_from(config.backend.threads().get()).unwrap_or(u32::MAX),
        sections,
    };
    let (welcome, sender, receiver) = let_in(config, &connection, me).await?;
    let meeting = by.map(|introducer| introducer.meeting);
    Ok(Joined { coordinator: CoordinatorLink { connection, sender, receiver, meeting }, welcome, found })
}

/// Joins by the right that the worker has, or asks for one.
async fn let_in(
    config: &WorkerConfig,
    connection: &Connection,
    me: Introduction,
) -> Result<(Welcome, ControlSender, ControlReceiver), NetError> {
    let claim = match &config.way_in {
        WayIn::Ticket(ticket) => Claim::Ticket(&ticket.secret),
        WayIn::Key { .. } => Claim::Key,
    };
    let joining = join(connection, claim, me);
    tokio::pin!(joining);
    tokio::select! {
        joined = &mut joining => return joined,
        () = sleep(AT_ONCE), if matches!(claim, Claim::Key) => {}
    }
    asking(config, connection);
    joining.await
}

/// Says that somebody at the coordinator is asked, and what they must compare.
fn asking(config: &WorkerConfig, connection: &Connection) {
    let (name, code) = (&config.name, connection.own_join_code());
    let mesh = match &config.way_in {
        WayIn::Ticket(_) => "the coordinator",
        WayIn::Key { mesh, .. } => &mesh.mesh,
    };
    config.audience.hear(&format!("asking {mesh} at {} to let {name} in", connection.remote_address()));
    config.audience.hear(&format!("  code  {code}"));
    config.audience.hear(&format!("if the coordinator shows the same code, let it in there: coordinator admit {name}"));
}

/// What NAT is before this machine, as the sockets of a peer see it; `None` where they do not say.
async fn nat_before(endpoint: &Endpoint, observer: SocketAddr, own: &[SocketAddr]) -> Option<Nat> {
    if observer.ip().to_canonical().is_loopback() {
        return Some(Nat::None);
    }
    let seen = endpoint.seen_from(observer).await?;
    if own.contains(&seen) {
        return Some(Nat::None);
    }
    let survey = endpoint.survey(observer).await?;
    Some(Nat::of(&survey, own))
}

/// Whether a refusal stays one however often the worker asks.
fn is_final(code: RejectCode) -> bool {
    match code {
        RejectCode::Version | RejectCode::Secret | RejectCode::Expired | RejectCode::Malformed => true,
        RejectCode::Full => false,
    }
}

/// Up to a quarter more or less, so that the workers of a lost coordinator do not all come back at once.
fn with_jitter(wait: Duration) -> Duration {
    // Without a random source it waits neither longer nor shorter.
    let random = getrandom::u32().unwrap_or(u32::MAX / 2);
    wait.mul_f64(0.75 + 0.5 * (f64::from(random) / f64::from(u32::MAX)))
}
