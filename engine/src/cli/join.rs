//! `join`: binds, joins a mesh and waits; the rest is `qmesh_engine::worker`.

mod asking;

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File, TryLockError},
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    pin::pin,
    process::{self, ExitCode},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use clap::builder::FalseyValueParser;
use qmesh_discovery::{Bootstrap, Dht, is_dialable, listen_for};
use qmesh_engine::{
    backend::cpu::CpuBackend,
    worker::{self, Audience, MeasuredBy, Search, Stay, WayIn, WorkerConfig, WorkerEnd},
};
use qmesh_logging::service;
use qmesh_models::{
    bytes::ByteCount,
    directories::Directories,
    pull::{CacheState, list},
    terminal::escaped_line,
};
use qmesh_net::{Admission, Endpoint, Identity, RejectCode, Ticket, TicketError, is_worker_name};
use tokio::signal::unix::{SignalKind, signal};

use super::report::{USAGE, in_one_line, say};

/// Threads for work on files: tensors are fetched four at a time.
const BLOCKING_THREADS: usize = 8;
/// How often a file that shall hold the ticket is looked for.
const TICKET_INTERVAL: Duration = Duration::from_millis(200);
/// Exit code after a second signal, as shells count an interrupt.
const INTERRUPTED: i32 = 130;

pub(super) const JOIN_HELP: &str = "\
Examples:
  shard-worker join qmesh1aeb…               serve with all free memory and every core
  shard-worker join qmesh1aeb… --memory 4G   lend 4 GB at most
  shard-worker join qmesh1aeb… --name attic  keep one name and key over restarts
  QMESH_TICKET=qmesh1aeb… shard-worker join  keep the ticket out of the process list
  shard-worker join --ticket-file /run/qmesh/ticket   wait for the ticket that serve leaves there
  shard-worker join qmesh1aeb… --cache-size 50G   keep 50 GB of fetched tensors at most
  shard-worker join                          ask an open mesh of the local network to let this machine in

Without a ticket the worker looks for a coordinator that was started with `serve --open`, asks it, and shows a code; whoever \
runs the coordinator compares it and types `coordinator admit NAME`. From then on it comes back to that coordinator by its \
key alone.

Get a ticket from the machine that has the model: `coordinator serve` prints it, and `coordinator ticket`.

With --name, or without a ticket, the worker's key is kept in $XDG_DATA_HOME/qmesh/worker-NAME.key, so that the mesh knows it \
again after a restart; give each worker of a machine its own name. With a ticket alone, every start makes a new key, \
and a name from the host's.

Exit codes:
  0    stopped, or sent home by the coordinator
  1    a failure, or (with --once) a lost coordinator
  2    wrong usage, a refused ticket, or not (or no longer) wanted
  130  stopped by a second signal";

/// Arguments of `join`.
#[derive(clap::Args)]
pub(super) struct JoinArgs {
    /// The ticket: where the coordinator is, which key it has, and the right to join [default: none, and ask an open mesh]
    #[arg(env = "QMESH_TICKET", hide_env_values = true, num_args = 1..)]
    ticket: Vec<String>,
    /// File with the ticket, as `coordinator serve --ticket-file` writes it; waits until it is there, and looks
    /// for a newer one when the coordinator is gone
    #[arg(long, env = "QMESH_TICKET_FILE", value_name = "FILE", conflicts_with = "ticket")]
    ticket_file: Option<PathBuf>,
    /// Without a ticket: the mesh to ask, by its model or its mark in `coordinator discover`, where several are open, or
    /// another one than this worker was let in by
    #[arg(long, env = "QMESH_MESH", value_name = "NAME", conflicts_with_all = ["ticket", "ticket_file"])]
    mesh: Option<String>,
    /// Name of this worker in the mesh: letters, digits, `.`, `_`, `-`
    #[arg(long, env = "QMESH_NAME", value_parser = name)]
    name: Option<String>,
    /// Most memory that this process takes: 4G, 512MB, 2.5GiB or bytes [default: what is free]
    #[arg(long, env = "QMESH_MEMORY", value_name = "SIZE")]
    memory: Option<ByteCount>,
    /// Compute threads [default: physical cores]
    #[arg(short, long, env = "QMESH_THREADS", value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    /// UDP address to listen on for other workers [default: any port; loopback only if the ticket is]; a rendezvous
    /// (`serve --rendezvous`) needs a port that others know, as in 0.0.0.0:4434
    #[arg(long, env = "QMESH_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// Folder where fetched tensors are kept [default: $QMESH_CACHE, or $XDG_CACHE_HOME/qmesh]
    #[arg(long, value_name = "FOLDER")]
    cache: Option<PathBuf>,
    /// Most bytes of tensors that the cache may hold, all shards of this machine together: 50G, 800MB; what was not used
    /// for longest goes first [default: what the disk takes]
    #[arg(long, env = "QMESH_CACHE_SIZE", value_name = "SIZE")]
    cache_size: Option<ByteCount>,
    /// Folder with GGUF files: tensors found there, or in models that were pulled on this machine (`coordinator pull`), are not
    /// fetched; may be given more than once
    #[arg(long, env = "QMESH_MODEL_DIR", value_name = "FOLDER")]
    model_dir: Vec<PathBuf>,
    /// Look for the coordinator at the addresses of the ticket only, and do not ask the local network (mDNS)
    #[arg(long, env = "QMESH_NO_MDNS", value_parser = FalseyValueParser::new())]
    no_mdns: bool,
    /// Where the coordinator answers nowhere else, look for its record on the public DHT of BitTorrent, which `coordinator serve
    /// --dht` puts there
    #[arg(long, env = "QMESH_DHT", value_parser = FalseyValueParser::new())]
    dht: bool,
    /// Nodes of the DHT to ask first, instead of the public ones
    #[arg(
        long,
        env = "QMESH_DHT_BOOTSTRAP",
        value_name = "HOST:PORT",
        value_delimiter = ',',
        value_parser = host_and_port,
        requires = "dht"
    )]
    dht_bootstrap: Vec<String>,
    /// End when the coordinator goes, instead of waiting for it to return
    #[arg(long, env = "QMESH_ONCE", value_parser = FalseyValueParser::new())]
    once: bool,
    /// End at once when standard input does: whoever started this worker is gone
    #[arg(long, env = "QMESH_PARENT_PIPE", hide = true, value_parser = FalseyValueParser::new())]
    exit_with_parent: bool,
}

/// Joins and serves until it ends.
pub(super) fn run(args: JoinArgs) -> ExitCode {
    let ticket = match ticket(&args) {
        Ok(ticket) => ticket,
        Err(error) => {
            say(&in_one_line(&error));
            return ExitCode::from(USAGE);
        }
    };
    if args.exit_with_parent
        && let Err(error) = thread::Builder::new().name("qmesh-parent".into()).spawn(exit_with_stdin)
    {
        say(&format!("cannot watch standard input: {error}"));
        return ExitCode::FAILURE;
    }
    // All of the network on one thread: compute has its own.
    let network = thread::Builder::new().name("qmesh-net".into()).spawn(move || join(args, ticket));
    let ended = network.context("cannot start the network thread").and_then(|thread| {
        thread.join().unwrap_or_else(|_| Err(anyhow!("the network thread panicked: please report it")))
    });
    match ended {
        Ok(WorkerEnd::Asked | WorkerEnd::Dismissed) => ExitCode::SUCCESS,
        Ok(WorkerEnd::Lost) => ExitCode::FAILURE,
        Ok(WorkerEnd::Rejected { code, text }) => {
            say(&format!("join refused: {text}"));
            if code == RejectCode::Version { ExitCode::FAILURE } else { ExitCode::from(USAGE) }
        }
        Ok(WorkerEnd::SentAway { text }) => {
            say(&format!("sent away: {text}"));
            ExitCode::from(USAGE)
        }
        Err(error) => {
            say(&in_one_line(&error));
            ExitCode::FAILURE
        }
    }
}

/// The ticket that was typed, or the one in the file; `None` where there is none.
fn ticket(args: &JoinArgs) -> Result<Option<Ticket>> {
    let Some(file) = &args.ticket_file else {
        return if args.ticket.is_empty() { Ok(None) } else { Ok(Some(parse_ticket(&args.ticket)?)) };
    };
    let text = loop {
        match fs::read_to_string(file) {
            Ok(text) => break text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                qmesh_logging::note(&format!("waiting for a ticket in {}", escaped_line(&file.display().to_string())));
                while !file.exists() {
                    thread::sleep(TICKET_INTERVAL);
                }
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    };
    text.parse().map(Some).with_context(|| format!("{} holds no ticket", file.display()))
}

/// A wrapped line has become several words.
pub(super) fn parse_ticket(words: &[String]) -> Result<Ticket, TicketError> {
    words.concat().parse()
}

fn join(args: JoinArgs, ticket: Option<Ticket>) -> Result<WorkerEnd> {
    let directories = Directories::from_env()?;
    let (name, identity) = match (&args.name, &ticket) {
        (Some(name), _) => (name.clone(), Identity::load_or_create(key_of(name, directories.keys()))?),
        (None, Some(_)) => anonymous(),
        (None, None) => {
            let name = host_name();
            let identity = Identity::load_or_create(key_of(&name, directories.keys()))?;
            (name, identity)
        }
    };
    // Who is known by a key alone must be the only one who has it.
    let _alone = if ticket.is_none() { Some(alone(&name, directories.keys())?) } else { None };
    let runtime =
        // Each thread that reads and hashes has a stack, for which memory must be left.
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(BLOCKING_THREADS)
            .build()
            .context("cannot start the network")?;
    let ended = runtime.block_on(async {
        let mut shutdown = pin!(signals()?);
        let way_in = match ticket {
            Some(ticket) => WayIn::Ticket(ticket),
            None => {
                let kept_in = directories.keys().join(format!("worker-{name}.mesh"));
                tokio::select! {
                    found = asking::way_in(&args, kept_in) => found?,
                    () = &mut shutdown => return Ok(WorkerEnd::Asked),
                }
            }
        };
        let listen = args.listen.unwrap_or_else(|| listen_for(way_in.addresses()));
        let endpoint = Endpoint::bind(listen, &identity, Admission::only([]))?;
        // It waits for a coordinator that is not there yet, so that it need not start after it.
        service::ready();
        let ended = worker::run(config(args, &directories, name, way_in), endpoint, shutdown).await;
        service::stopping();
        Ok(ended?)
    });
    // A file that is being read or hashed must not hold up the end.
    runtime.shutdown_background();
    ended
}

fn config(args: JoinArgs, directories: &Directories, name: String, way_in: WayIn) -> WorkerConfig {
    WorkerConfig {
        search: search(&args, directories),
        way_in,
        ticket_file: args.ticket_file,
        name,
        memory: args.memory,
        cache: args.cache.unwrap_or_else(|| directories.cache().to_owned()),
        cache_size: args.cache_size,
        model_folders: args.model_dir.into_iter().chain(pulled_folders(directories)).collect(),
        stay: if args.once { Stay::Once } else { Stay::ForGood },
        audience: Audience::People,
        backend: Arc::new(CpuBackend::new(args.threads.unwrap_or_else(physical_cores))),
        measured_by: env::current_exe().map_or(MeasuredBy::ThisProcess, MeasuredBy::Program),
    }
}

/// Folders of models that were pulled on this machine: what lies there need not come over the network.
fn pulled_folders(directories: &Directories) -> BTreeSet<PathBuf> {
    let pulled = list(directories).into_iter().filter(|model| model.state == CacheState::Complete);
    pulled.filter_map(|model| Some(model.path.parent()?.to_owned())).collect()
}

/// Where else it looks for the coordinator.
fn search(args: &JoinArgs, directories: &Directories) -> Search {
    Search {
        lan: !args.no_mdns,
        dht: args.dht.then(|| Dht::new(Bootstrap::of(&args.dht_bootstrap))),
        remembered_in: Some(directories.keys().to_owned()),
    }
}

/// Where the key of the worker with this name lies.
fn key_of(name: &str, keys: &Path) -> PathBuf {
    keys.join(format!("worker-{name}.key"))
}

/// Holds the key for as long as the process runs, so that no other worker of this machine has it.
fn alone(name: &str, keys: &Path) -> Result<File> {
    let path = key_of(name, keys);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!("a worker named {name} runs here already: give this one another --name"),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}

/// Completes on the first signal; the second ends the process.
fn signals() -> Result<impl Future<Output = ()>> {
    let listen = |kind| signal(kind).context("cannot listen for signals");
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    let mut hangup = listen(SignalKind::hangup())?;
    let mut next = async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    };
    Ok(async move {
        next().await;
        tokio::spawn(async move {
            next().await;
            process::exit(INTERRUPTED);
        });
    })
}

/// A pipe from the parent ends when the parent does, however it dies.
fn exit_with_stdin() {
    // An error is an end as well.
    let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
    process::exit(0);
}

/// A name and a key for this run: two workers of one machine must not be taken for one.
fn anonymous() -> (String, Identity) {
    let identity = Identity::ephemeral();
    (format!("{}-{}", host_name(), &identity.peer_id().short()[..4]), identity)
}

/// A worker's name where nobody gave it one: the machine's, as far as it is fit for one.
fn host_name() -> String {
    let host = sysinfo::System::host_name().unwrap_or_default();
    let is_fit = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = host.trim_start_matches(['.', '-']).chars().filter(is_fit).take(40).collect();
    if is_worker_name(&name) { name } else { "worker".into() }
}

pub(super) fn physical_cores() -> NonZeroUsize {
    // A container may be allowed fewer threads than the machine has cores.
    let allowed = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let cores = sysinfo::System::physical_core_count().ok().and_then(NonZeroUsize::new);
    cores.map_or(allowed, |cores| cores.min(allowed))
}

/// Where a node of the DHT is.
fn host_and_port(text: &str) -> Result<String, String> {
    let wanted = || "HOST:PORT is needed, such as router.bittorrent.com:6881".into();
    is_dialable(text).then(|| text.to_owned()).ok_or_else(wanted)
}

/// A name that can be part of a file's name.
fn name(text: &str) -> Result<String, String> {
    let wanted = || "want 1 to 64 letters, digits, `.`, `_` or `-`, and a letter or digit first".into();
    is_worker_name(text).then(|| text.to_owned()).ok_or_else(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_can_be_part_of_a_file_name_and_places_have_a_port() {
        for bad in ["", ".hidden", "a/b", "a b", &"a".repeat(65)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(name("attic-2.lan"), Ok("attic-2.lan".into()));
        for bad in ["", "host", ":1", "host:0", "host:port"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
        assert!(host_and_port("10.0.0.1:6881").is_ok());
        let (own, other) = (anonymous(), anonymous());
        assert!(name(&own.0).is_ok() && own.0 != other.0);
    }

    #[test]
    fn a_ticket_file_is_waited_for_and_what_is_wrong_with_it_is_said() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            join: JoinArgs,
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ticket");
        let line = ["join", "--ticket-file", file.to_str().unwrap()];
        let args = <Line as clap::Parser>::try_parse_from(line).unwrap().join;
        let (coordinator, secret) = (Identity::ephemeral().peer_id(), qmesh_net::JoinSecret::random());
        let expected = Ticket {
            addresses: vec!["localhost:1".into()],
            rendezvous: vec![],
            coordinator,
            secret,
            expires_unix: None,
        };
        let left = thread::spawn({
            let (file, text) = (file.clone(), format!("{expected}\n"));
            move || fs::write(file, text).unwrap()
        });
        assert_eq!(ticket(&args).unwrap(), Some(expected));
        left.join().unwrap();
        fs::write(&file, "no ticket").unwrap();
        let error = in_one_line(&ticket(&args).unwrap_err());
        assert!(error.contains("ticket holds no ticket: not a ticket"), "{error}");
        let args = <Line as clap::Parser>::try_parse_from(["join"]).unwrap().join;
        assert_eq!(ticket(&args).unwrap(), None);
        assert!(<Line as clap::Parser>::try_parse_from(["join", "qmesh1a", "--mesh", "m"]).is_err());
    }
}
