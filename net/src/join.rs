//! Joining a mesh: the worker says who it is and proves its ticket, the coordinator answers.

use std::time::SystemTime;

use bytes::Bytes;

use crate::{
    close::CloseCode,
    code::JoinCode,
    connection::Connection,
    control::{ControlReceiver, ControlSender},
    error::NetError,
    found::WayFound,
    ids::PeerId,
    known::{Acquaintance, KnownPeers},
    limits::{ASKING_TIME, HELLO_BYTES, HELLO_TEXT_BYTES, JOIN_DEADLINE, PROTOCOL, WORKER_MESSAGE_BYTES},
    machine::MachineShare,
    message::{Hello, Message, RejectCode, Welcome},
    nat::Nat,
    plain::{is_plain, is_worker_name, plain},
    secret::JoinSecret,
    section::Sections,
    stream::within,
    ways::OwnAddresses,
};

/// Version of this program.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The tags that this version knows in a `Hello` or `Welcome`.
const KNOWN_TAGS: [u16; 5] = [MachineShare::TAG, OwnAddresses::TAG, Nat::TAG, ASKS_TAG, WayFound::TAG];
/// The tag of an empty section of a `Hello`: the worker has no ticket, and may wait until it is admitted. Even: a coordinator that
/// does not know it finds no proof, and refuses.
const ASKS_TAG: u16 = 24;
/// Why a key is refused whatever it shows.
const REVOKED: &str = "the key of this worker was revoked by whoever runs the coordinator";
const NOT_OPEN: &str = "this mesh has not admitted this worker, and does not ask whether it shall: get a ticket from the \
    coordinator, or have it started with --open";
const ODD_NAME: &str = "a worker without a ticket needs a name of 1 to 64 letters, digits, `.`, `_` or `-`";

/// What a worker tells about itself.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Introduction {
    /// The name it would like to have.
    pub name: String,
    /// Operating system and architecture.
    pub os: String,
    /// What decides the bits of its results.
    pub numerics: String,
    /// Memory it offers, in bytes.
    pub memory_bytes: u64,
    /// Compute threads.
    pub threads: u32,
    /// What only some versions say of themselves.
    pub sections: Sections,
}

/// Whom a coordinator lets in.
#[derive(Clone, Debug)]
pub struct Gate {
    /// The secret in the tickets that are valid now.
    pub secret: JoinSecret,
    /// When these tickets expire, in seconds since 1970.
    pub expires_unix: Option<u64>,
    /// Keys that need no ticket, and those that none helps.
    pub known: KnownPeers,
    /// What becomes of the others that have no ticket.
    pub strangers: Strangers,
    /// What decides the bits of results, as every worker must name it.
    pub numerics: String,
}

/// What becomes of workers that come without a right.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Strangers {
    /// They need a ticket.
    #[default]
    NeedTickets,
    /// They may ask, and wait until somebody admits them.
    MayAsk,
}

/// By what a worker wants to be let in.
#[derive(Clone, Copy, Debug)]
pub enum Claim<'a> {
    /// A ticket's secret.
    Ticket(&'a JoinSecret),
    /// Its own key, which the coordinator knows; or else somebody there is asked.
    Key,
}

/// By what a worker may join.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Right {
    /// Its ticket.
    Ticket,
    /// Its key, which the coordinator knows.
    Key,
    /// Nothing yet: it asks.
    Asks,
}

/// A worker at the gate whose hello and proof are good; it waits for an answer.
#[derive(Debug)]
pub struct Applicant {
    connection: Connection,
    right: Right,
    hello: Hello,
    sender: ControlSender,
    receiver: ControlReceiver,
}

/// The worker's side: opens the control stream and joins. Only its `Welcome` means that the worker is in.
///
/// A coordinator that does not answer within 5 s is an error, or that has not decided within [`ASKING_TIME`] where the worker asks;
/// a refusal is [`NetError::Rejected`].
pub async fn join(
    connection: &Connection,
    claim: Claim<'_>,
    me: Introduction,
) -> Result<(Welcome, ControlSender, ControlReceiver), NetError> {
    let peer = connection.peer();
    let (mut sender, mut receiver) = connection.open_control().await?;
    sender.send(&Message::Hello(hello(connection, claim, me))).await?;
    let patience = match claim {
        Claim::Ticket(_) => JOIN_DEADLINE,
        Claim::Key => ASKING_TIME + JOIN_DEADLINE,
    };
    let answer = within(peer, "answering our hello", patience, receiver.recv()).await?;
    if let Message::Welcome(welcome) = answer {
        return match welcome.sections.understood(&KNOWN_TAGS) {
            Ok(()) => Ok((welcome, sender, receiver)),
            Err(source) => {
                let error = NetError::Section { peer, what: "welcome", source };
                connection.close(CloseCode::Version, &error.to_string());
                Err(error)
            }
        };
    }
    let Message::Reject { code, text } = answer else { return Err(unexpected(connection, "a welcome")) };
    connection.close(CloseCode::Ok, "");
    Err(NetError::Rejected { code, text })
}

/// The coordinator's side: waits up to 5 s for the hello and judges it. Refusals are sent, and returned as errors.
pub async fn welcome(connection: &Connection, gate: &Gate) -> Result<Applicant, NetError> {
    let hello = async {
        let (sender, mut receiver) = connection.accept_control().await?;
        receiver.limit(HELLO_BYTES);
        Ok((receiver.recv().await?, sender, receiver))
    };
    let hello = within(connection.peer(), "saying hello", JOIN_DEADLINE, hello).await;
    let (hello, sender, mut receiver) =
        hello.inspect_err(|error| connection.close(CloseCode::Limit, &error.to_string()))?;
    let Message::Hello(hello) = hello else { return Err(unexpected(connection, "a hello")) };
    receiver.limit(WORKER_MESSAGE_BYTES);
    let verdict = gate.judge(connection, &hello, now_unix());
    let right = *verdict.as_ref().unwrap_or(&Right::Asks);
    let applicant = Applicant { connection: connection.clone(), right, hello, sender, receiver };
    match verdict {
        Ok(Right::Ticket | Right::Key) => {
            connection.trust();
            Ok(applicant)
        }
        // It stays at the door until it is admitted.
        Ok(Right::Asks) => Ok(applicant),
        Err(Refusal { code, text }) => {
            applicant.reject(code, &text).await;
            Err(NetError::Rejected { code, text })
        }
    }
}

/// Why a worker may not join.
struct Refusal {
    code: RejectCode,
    /// One line for the person at the worker.
    text: String,
}

impl Applicant {
    /// The worker's key.
    pub fn peer(&self) -> PeerId {
        self.connection.peer()
    }

    /// By what it may join.
    pub fn right(&self) -> Right {
        self.right
    }

    /// What its screen shows if nobody stands between.
    pub fn code(&self) -> JoinCode {
        self.connection.join_code(self.peer(), self.connection.local_peer())
    }

    /// What it says about itself; texts are within their limits, but not to be trusted otherwise.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Lets it in.
    pub async fn admit(mut self, welcome: Welcome) -> Result<(Hello, ControlSender, ControlReceiver), NetError> {
        if self.right == Right::Asks {
            self.connection.trust();
        }
        self.sender.send(&Message::Welcome(welcome)).await?;
        Ok((self.hello, self.sender, self.receiver))
    }

    /// Sends it away with a reason, and closes the connection once it has that, or after 2 s.
    pub async fn reject(mut self, code: RejectCode, text: &str) {
        let close = match code {
            RejectCode::Version => CloseCode::Version,
            RejectCode::Secret | RejectCode::Expired => CloseCode::Auth,
            RejectCode::Malformed => CloseCode::Malformed,
            RejectCode::Full => CloseCode::Limit,
        };
        // A worker that is gone already needs no reason.
        if self.sender.send(&Message::Reject { code, text: text.into() }).await.is_ok() {
            self.sender.finish().await;
        }
        self.connection.close(close, text);
    }
}

impl Gate {
    fn judge(&self, connection: &Connection, hello: &Hello, now_unix: u64) -> Result<Right, Refusal> {
        let refuse = |code, text| Err(Refusal { code, text });
        if hello.protocol != PROTOCOL {
            let theirs = format!("protocol {} (qmesh {:.40})", hello.protocol, plain(&hello.version));
            let text = format!("the worker speaks {theirs}, the coordinator protocol {PROTOCOL} (qmesh {VERSION})");
            return refuse(RejectCode::Version, text + ": install the same version on both");
        }
        if let Err(error) = hello.sections.understood(&KNOWN_TAGS) {
            let text = format!("the hello of peer {}: {error} (qmesh {VERSION})", connection.peer().short());
            return refuse(RejectCode::Version, text + ": install the same version on both");
        }
        let said = MachineShare::find(&hello.sections)
            .and(OwnAddresses::find(&hello.sections).map(drop))
            .and(Nat::find(&hello.sections).map(drop))
            .and(WayFound::find(&hello.sections).map(drop));
        if let Err(error) = said {
            return refuse(RejectCode::Malformed, format!("the hello: {error}"));
        }
        let texts = [&hello.version, &hello.name, &hello.os, &hello.numerics];
        if texts.iter().any(|text| text.len() > HELLO_TEXT_BYTES) {
            return refuse(RejectCode::Malformed, format!("a text in the hello exceeds {HELLO_TEXT_BYTES} bytes"));
        }
        if let Some(text) = texts.iter().find(|text| !is_plain(text)) {
            return refuse(RejectCode::Malformed, format!("control characters in the hello: {}", plain(text)));
        }
        let right = self.judge_right(connection, hello, now_unix)?;
        if hello.numerics != self.numerics {
            let (theirs, ours) = (&hello.numerics, &self.numerics);
            let text = format!("the worker computes other bits ({theirs}) than this mesh ({ours})");
            let text = text + ": install the same version on both; if it is, please report it";
            return refuse(RejectCode::Version, text);
        }
        Ok(right)
    }

    fn judge_right(&self, connection: &Connection, hello: &Hello, now_unix: u64) -> Result<Right, Refusal> {
        let refuse = |code, text: &str| Err(Refusal { code, text: text.into() });
        match self.known.acquaintance(connection.peer()) {
            Acquaintance::Revoked => return refuse(RejectCode::Secret, REVOKED),
            Acquaintance::Known => return Ok(Right::Key),
            Acquaintance::Stranger => {}
        }
        if hello.sections.get(ASKS_TAG).is_some() {
            return match self.strangers {
                Strangers::NeedTickets => refuse(RejectCode::Secret, NOT_OPEN),
                Strangers::MayAsk if !is_worker_name(&hello.name) => refuse(RejectCode::Malformed, ODD_NAME),
                Strangers::MayAsk => Ok(Right::Asks),
            };
        }
        let (worker, coordinator) = (connection.peer(), connection.local_peer());
        if hello.secret_id != self.secret.id() {
            let text = "the ticket was rotated or belongs to another mesh: get a new one from the coordinator";
            return refuse(RejectCode::Secret, text);
        }
        if !self.secret.verify(&hello.proof, &connection.exporter(), worker, coordinator) {
            return refuse(RejectCode::Secret, "the proof of the ticket does not hold on this connection");
        }
        match self.expires_unix {
            Some(expires_unix) if expires_unix <= now_unix => {
                refuse(RejectCode::Expired, "the ticket has expired: get a new one from the coordinator")
            }
            Some(_) | None => Ok(Right::Ticket),
        }
    }
}

/// What a worker says of itself, with its proof for this connection if it has a ticket.
fn hello(connection: &Connection, claim: Claim<'_>, me: Introduction) -> Hello {
    let Introduction { name, os, numerics, memory_bytes, threads, mut sections } = me;
    let (secret_id, proof) = match claim {
        Claim::Ticket(secret) => {
            let (worker, coordinator) = (connection.local_peer(), connection.peer());
            (secret.id(), secret.proof(&connection.exporter(), worker, coordinator))
        }
        Claim::Key => {
            sections.set(ASKS_TAG, Bytes::new());
            ([0; 8], [0; 32])
        }
    };
    Hello {
        protocol: PROTOCOL,
        version: VERSION.to_owned(),
        features: 0,
        name,
        os,
        numerics,
        memory_bytes,
        threads,
        secret_id,
        proof,
        sections,
    }
}

fn unexpected(connection: &Connection, due: &str) -> NetError {
    let error =
        NetError::Protocol { peer: connection.peer(), text: format!("sent another message where {due} was due") };
    connection.close(CloseCode::Malformed, &error.to_string());
    error
}

fn now_unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
