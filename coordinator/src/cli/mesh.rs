//! Arguments of the commands about a mesh: `plan`, `serve`, `status`, `top`, `discover`.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use clap::{
    ArgGroup, Args, ValueEnum,
    builder::{NonEmptyStringValueParser, PossibleValue},
};
use qmesh_discovery::is_host_name;
use qmesh_models::{
    bytes::ByteCount,
    pull::ModelRef,
    span::{SpanError, TimeSpan},
};

use super::{ModelArg, TokenizerArgs, draft::DraftArgs, model_ref, reach::ReachArgs};
use crate::{
    api::ApiKey,
    generate::Pooling,
    mesh::{PrefixReuse, Speculation},
    plan::{
        Experts, Goal, Workload,
        offer::{self, Offer},
    },
};

/// Arguments of `plan`.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("who").args(["workers", "cluster", "live"]).required(true), after_help = "\
Examples:
  coordinator plan qwen2.5-coder-1.5b --workers 3
  coordinator plan qwen2.5-coder-1.5b --workers 3 --memory 1GB --cut 5,17
  coordinator plan qwen2.5-coder-1.5b --live
  coordinator plan model.gguf --workers 8GB,16GB@200GB/s,64GB@400GB/s --for throughput
  coordinator plan model.gguf --cluster home.toml --ctx-size 8192 --json

A cluster file lists the workers, how fast their memory is, and their links:
  [[worker]]
  name = \"laptop\"
  memory = \"8GB\"
  threads = 8
  bandwidth = \"60GB/s\"      or cpu = \"Apple M4\"; without, there are no times
  rtt_ms = 2                to the others; rate = \"100MB/s\"
  [[link]]
  between = [\"laptop\", \"attic\"]
  rtt_ms = 0.3")]
pub struct PlanArgs {
    /// A catalog name, a GGUF file, `hf:org/repo[:QUANT]`, a URL or a `qmesh:` link
    #[arg(value_parser = model_ref())]
    pub model: ModelRef,
    /// Plan for N equal workers that share this machine, or for others, as 8GB,16GB@200GB/s: their memory, and its
    /// bandwidth
    #[arg(long, value_name = "N|LIST", env = "QMESH_WORKERS", value_parser = offer::parse)]
    pub workers: Option<Offer>,
    /// Plan for the workers of a TOML file
    #[arg(long, value_name = "FILE", env = "QMESH_CLUSTER")]
    pub cluster: Option<PathBuf>,
    /// Plan for the workers of a running coordinator, by its URL
    #[arg(long, value_name = "URL", env = "QMESH_LIVE", num_args = 0..=1, default_missing_value = "http://127.0.0.1:8080")]
    pub live: Option<String>,
    /// Key of that coordinator's API, if it asks for one
    #[arg(long, value_name = "KEY", env = "QMESH_API_KEY", requires = "live")]
    pub api_key: Option<ApiKey>,
    /// Memory of each of the N workers: 4G, 512MB, 2.5GiB or bytes [default: their share of this machine's]
    #[arg(long, value_name = "SIZE", env = "QMESH_MEMORY", conflicts_with_all = ["cluster", "live"])]
    pub memory: Option<ByteCount>,
    /// Threads of each of the N workers, instead of their share of this machine's
    #[arg(short, long, value_name = "N", env = "QMESH_THREADS", conflicts_with_all = ["cluster", "live"], value_parser = parse_count)]
    pub threads: Option<usize>,
    /// Cut before these layers, instead of where the planner would
    #[arg(long, value_name = "LAYER,…", env = "QMESH_CUT", value_delimiter = ',')]
    pub cut: Option<Vec<usize>>,
    /// Sessions of full length that fit at the same time (-np for short)
    #[arg(long, value_name = "N", env = "QMESH_PARALLEL", default_value_t = 1, value_parser = parse_count)]
    pub parallel: usize,
    /// How much text fits.
    #[command(flatten)]
    pub room: RoomArgs,
    /// What of it there is most.
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Who holds what, in any case.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// What drafts beside the text: says whether that pays.
    #[command(flatten)]
    pub draft: DraftArgs,
    /// Draw the pipeline into an SVG file
    #[arg(long, value_name = "FILE", env = "QMESH_SVG")]
    pub svg: Option<PathBuf>,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Who holds what, in any case.
#[derive(Args, Clone, Debug, Default)]
pub struct PlacementArgs {
    /// Give a worker exactly these layers; may be repeated
    #[arg(long, value_name = "NAME=FIRST-LAST", env = "QMESH_PIN", value_delimiter = ',', value_parser = parse_pin)]
    pub pin: Vec<Pin>,
    /// Give a worker no layers; may be repeated
    #[arg(long, value_name = "NAME", env = "QMESH_EXCLUDE", value_delimiter = ',')]
    pub exclude: Vec<String>,
}

/// A worker and the layers that it shall hold.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pin {
    /// Its name in the mesh.
    pub worker: String,
    /// The first one, and the one after the last.
    pub layers: Range<usize>,
}

fn parse_pin(text: &str) -> Result<Pin, String> {
    let parsed = || {
        let (worker, layers) = text.rsplit_once('=')?;
        let (first, last) = layers.split_once('-')?;
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        (!worker.is_empty() && first <= last).then(|| Pin { worker: worker.to_owned(), layers: first..last + 1 })
    };
    parsed().ok_or_else(|| "a name and its first and last layer are needed, such as attic=0-13".to_owned())
}

/// How much text fits a session, and a step.
#[derive(Args, Clone, Copy, Debug)]
pub struct RoomArgs {
    /// The most tokens of one session, prompt and answer [default: 4096, or the model's if less]
    #[arg(short, long = "ctx-size", value_name = "TOKENS", env = "QMESH_CTX_SIZE")]
    pub context: Option<usize>,
    /// Rows of one step: how a long prompt is cut into chunks
    #[arg(long, value_name = "N", env = "QMESH_CHUNK_ROWS", default_value_t = 256, value_parser = parse_count)]
    pub chunk_rows: usize,
}

/// What there will be most of.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct WorkloadArgs {
    /// What the cut keeps all workers equally busy with
    #[arg(long, value_enum, env = "QMESH_WORKLOAD", default_value_t = Workload::Mixed)]
    pub workload: Workload,
    /// What the plan shall be best at
    #[arg(long = "for", value_name = "GOAL", value_enum, env = "QMESH_FOR", default_value_t = Goal::Balanced)]
    pub goal: Goal,
    /// Do not let workers find out how fast they are, say where they share a machine that is busy: deal layers by memory
    /// and threads alone
    #[arg(long, env = "QMESH_NO_MEASURE")]
    pub no_measure: bool,
    /// Leave experts for which workers have no memory on their disks, and read them when they are needed: slower, and more
    /// than fits otherwise
    #[arg(long, env = "QMESH_EXPERTS_ON_DISK")]
    pub experts_on_disk: bool,
}

impl WorkloadArgs {
    /// Where experts may be.
    pub fn experts(&self) -> Experts {
        if self.experts_on_disk { Experts::OnDisk } else { Experts::InMemory }
    }
}

impl ValueEnum for Pooling {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Mean, Self::First, Self::Last]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Mean => ("mean", "The mean of all rows"),
            Self::First => ("cls", "The first row"),
            Self::Last => ("last", "The last row"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

impl ValueEnum for Goal {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Balanced, Self::Latency, Self::Throughput]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Balanced => ("balanced", "Many tokens for all streams, one stream hardly slower than at best"),
            Self::Latency => ("latency", "One stream as fast as it can be"),
            Self::Throughput => ("throughput", "All streams together as fast as they can be"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// The planner knows nothing of command lines.
impl ValueEnum for Workload {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Mixed, Self::Prompts, Self::Replies]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Mixed => ("mixed", "Some of both"),
            Self::Prompts => ("prompts", "Long prompts, short answers"),
            Self::Replies => ("replies", "Short prompts, long answers"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}

/// What the pipeline does to be quicker. None of it changes a token.
#[derive(Args, Clone, Debug, Default)]
pub struct PipelineArgs {
    /// Compute every prompt whole, instead of beginning with what earlier ones have left in the KV cache
    #[arg(long, env = "QMESH_NO_PREFIX_REUSE")]
    pub no_prefix_reuse: bool,
    /// Compute one token a step, instead of verifying drafts from the text so far where that pays
    #[arg(long, env = "QMESH_NO_SPECULATION", conflicts_with = "draft_model")]
    pub no_speculation: bool,
    /// What drafts beside the text.
    #[command(flatten)]
    pub draft: DraftArgs,
}

impl PipelineArgs {
    /// Whether prompts begin with what earlier ones have left.
    pub fn prefix_reuse(&self) -> PrefixReuse {
        if self.no_prefix_reuse { PrefixReuse::Off } else { PrefixReuse::On }
    }

    /// Whether tokens are drafted.
    pub fn speculation(&self) -> Speculation {
        if self.no_speculation { Speculation::Off } else { Speculation::On }
    }
}

/// Arguments of `serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator serve smollm2-135m                      then paste the join line it prints, twice
  coordinator serve smollm2-135m --local-workers 2    two workers on this machine
  coordinator serve model.gguf --listen 0.0.0.0:4433  workers from other machines
  coordinator serve model.gguf --open                 they ask, and `coordinator admit NAME` lets them in
  curl localhost:8080/v1/chat/completions -d \\
    '{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}],\"stream\":true}'

The pipeline forms as soon as the workers have room for the model, and again when others join.
Ctrl-C lets running answers end; a second Ctrl-C does not wait.")]
pub struct ServeArgs {
    /// Which model.
    #[command(flatten)]
    pub model: ModelArg,
    /// Where it listens.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// How workers find it.
    #[command(flatten)]
    pub reach: ReachArgs,
    /// Let workers of the local network ask to join without a ticket, and wait until `coordinator admit`
    #[arg(long, env = "QMESH_OPEN", conflicts_with = "no_mdns")]
    pub open: bool,
    /// Do not say on the local network (mDNS) where this coordinator is
    #[arg(long, env = "QMESH_NO_MDNS")]
    pub no_mdns: bool,
    /// Let nobody pass packets on between workers that cannot reach each other: they get no layers side by side then
    #[arg(long, env = "QMESH_NO_RELAY")]
    pub no_relay: bool,
    /// Wait for N workers before the pipeline forms, even if fewer have room
    #[arg(long, value_name = "N", env = "QMESH_MIN_WORKERS", value_parser = parse_count)]
    pub min_workers: Option<usize>,
    /// Start N workers on this machine
    #[arg(long, value_name = "N", env = "QMESH_LOCAL_WORKERS", default_value_t = 0)]
    pub local_workers: usize,
    /// Threads of each local worker [default: this machine's cores, shared]
    #[arg(short, long, value_name = "N", env = "QMESH_THREADS", value_parser = parse_count)]
    pub threads: Option<usize>,
    /// How text is cut.
    #[command(flatten)]
    pub tokenizer: TokenizerArgs,
    /// Sessions of full length that fit at the same time (-np for short)
    #[arg(long, value_name = "N", env = "QMESH_PARALLEL", default_value_t = 4, value_parser = parse_count)]
    pub parallel: usize,
    /// How much text fits.
    #[command(flatten)]
    pub room: RoomArgs,
    /// What of it there is most.
    #[command(flatten)]
    pub workload: WorkloadArgs,
    /// Who holds what, in any case.
    #[command(flatten)]
    pub placement: PlacementArgs,
    /// What makes it quicker.
    #[command(flatten)]
    pub pipeline: PipelineArgs,
    /// Also write the ticket into this file, which only this user may read: for workers that are started by themselves
    #[arg(long, value_name = "FILE", env = "QMESH_TICKET_FILE")]
    pub ticket_file: Option<PathBuf>,
    /// Make earlier join lines worthless
    #[arg(long, env = "QMESH_NEW_TICKET")]
    pub new_ticket: bool,
    /// How long the join line lets new workers in: 90s, 30m, 12h, 7d [default: as before, at first for good]
    #[arg(long, value_name = "TIME", env = "QMESH_TICKET_EXPIRES", value_parser = parse_time)]
    pub ticket_expires: Option<Duration>,
    /// What /v1/embeddings makes of a text's rows [default: what the model's file says, or else last]
    #[arg(long, value_name = "HOW", value_enum, env = "QMESH_POOLING")]
    pub pooling: Option<Pooling>,
    /// Who may ask, and by what name.
    #[command(flatten)]
    pub clients: ClientArgs,
}

/// Which clients a server answers.
#[derive(Args, Debug)]
pub struct ClientArgs {
    /// Key that HTTP clients must send (Authorization: Bearer KEY, or x-api-key)
    #[arg(long, value_name = "KEY", env = "QMESH_API_KEY")]
    pub api_key: Option<ApiKey>,
    /// File with keys of which each will do as well, and their names: NAME:KEY on each line
    #[arg(long, value_name = "FILE", env = "QMESH_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Another name that clients may call the model by; may be repeated
    #[arg(
        long, value_name = "NAME", env = "QMESH_ALIAS", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new()
    )]
    pub alias: Vec<String>,
    /// Answer whatever name a client has for the model
    #[arg(long, env = "QMESH_ANY_MODEL_NAME")]
    pub any_model_name: bool,
    /// Origin whose pages may use the API of a server on loopback, beside this machine's own: `https://app.example`, or *
    #[arg(long, value_name = "ORIGIN", env = "QMESH_ALLOW_ORIGIN", value_delimiter = ',', value_parser = origin)]
    pub allow_origin: Vec<String>,
    /// Host name that a server on loopback answers to, beside localhost: host.docker.internal; may be repeated
    #[arg(long, value_name = "HOST", env = "QMESH_ALLOW_HOST", value_delimiter = ',', value_parser = host)]
    pub allow_host: Vec<String>,
    /// Address of a proxy before the HTTP API: it may hold connections of many clients, and is believed for whom it
    /// asks (X-Forwarded-For); may be repeated
    #[arg(long, value_name = "IP", env = "QMESH_TRUSTED_PROXY", value_delimiter = ',')]
    pub trusted_proxy: Vec<IpAddr>,
}

/// Which running coordinator is meant.
#[derive(Args, Debug)]
pub struct CoordinatorArgs {
    /// Where the coordinator's HTTP API is
    #[arg(long, env = "QMESH_URL", default_value = "http://127.0.0.1:8080")]
    pub url: String,
    /// Key of the API, if it asks for one
    #[arg(long, value_name = "KEY", env = "QMESH_API_KEY")]
    pub api_key: Option<ApiKey>,
}

/// Arguments of `status`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  coordinator status\n  coordinator status --url http://10.0.0.5:8080 --json")]
pub struct StatusArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub coordinator: CoordinatorArgs,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Arguments of `top`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:\n  coordinator top\n  coordinator top --url http://10.0.0.5:8080\n\nq ends it.")]
pub struct TopArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub coordinator: CoordinatorArgs,
}

/// Arguments of `discover`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  coordinator discover
  coordinator discover --json

A coordinator is found that others can reach (`serve --listen 0.0.0.0:4433`) and that does not hide (`--no-mdns`).
Exit codes: 0 some answered; 3 none did.")]
pub struct DiscoverArgs {
    /// How long to wait for answers: 3s, 1m
    #[arg(long, value_name = "TIME", env = "QMESH_TIMEOUT", default_value = "3s", value_parser = parse_time)]
    pub timeout: Duration,
    /// Print JSON
    #[arg(long, env = "QMESH_JSON")]
    pub json: bool,
}

/// Where a coordinator listens.
#[derive(Args, Debug)]
pub struct AddressArgs {
    /// Address of the HTTP API, or a name: localhost is that of IPv4 and that of IPv6
    #[arg(
        long, value_name = "HOST", env = "QMESH_HOST", default_value = "127.0.0.1",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub host: String,
    /// Port of the HTTP API; 0 takes a free one
    #[arg(long, env = "QMESH_PORT", default_value_t = 8080)]
    pub port: u16,
    /// Address for workers (UDP); 0.0.0.0 lets other machines in [default: 127.0.0.1:4433, or 0.0.0.0:4433 with --open]
    #[arg(long, value_name = "IP:PORT", env = "QMESH_LISTEN")]
    listen: Option<SocketAddr>,
}

impl AddressArgs {
    /// Where workers dial in.
    pub fn listen(&self) -> SocketAddr {
        self.listen.unwrap_or(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT))
    }
}

impl ServeArgs {
    /// Where workers dial in: an open mesh, and one that is found on the DHT or by a rendezvous, is there for other machines.
    pub fn listen(&self) -> SocketAddr {
        let open = (self.open || self.reach.is_wide()).then_some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT));
        self.addresses.listen.or(open).unwrap_or_else(|| self.addresses.listen())
    }
}

/// What browsers send as `Origin`: a scheme and whose it is, or `null`.
fn origin(text: &str) -> Result<String, String> {
    let is_origin = text
        .split_once("://")
        .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty() && !rest.ends_with('/'));
    if is_origin || ["*", "null"].contains(&text) {
        Ok(text.to_owned())
    } else {
        Err("an origin is a scheme and a host as in https://app.example, without a path; or *".to_owned())
    }
}

/// A name that clients may have for this machine.
fn host(text: &str) -> Result<String, String> {
    if is_host_name(text) || text.parse::<IpAddr>().is_ok() {
        Ok(text.to_owned())
    } else {
        Err("a host is a name or an IP address, without a port".to_owned())
    }
}

/// A number and its unit.
fn parse_time(text: &str) -> Result<Duration, SpanError> {
    text.parse().map(|TimeSpan(time)| time)
}

/// A number of workers, threads, rows or the like.
pub(super) fn parse_count(text: &str) -> Result<usize, String> {
    let count = text.parse().ok().filter(|count| (1..=COUNT_MAX).contains(count));
    count.ok_or_else(|| format!("a whole number from 1 to {COUNT_MAX} is needed"))
}

/// Of the coordinator, for workers.
const PORT: u16 = 4433;
/// Far more than anybody has of anything that is counted here.
const COUNT_MAX: usize = 4096;
