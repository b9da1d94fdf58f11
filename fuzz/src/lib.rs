//! Where bytes from outside come in: each function here reads them as the programs do, from a model's file, a peer or a
//! client, and returns whether they were accepted. None may panic, whatever the bytes are. `cargo fuzz` looks for bytes
//! that make one panic; `tests/corpora.rs` replays what is in `fuzz/corpus/`, on a stable toolchain.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use qmesh_coordinator::{
    api::{self, ApiState},
    generate::Pooling,
    mesh::{Formation, Mesh, MeshConfig, PrefixReuse, Speculation, TicketSource, Workers},
    model::Model,
    text::{BreakerShelf, GrammarDesk, TextModel},
};
use qmesh_models::{
    chat::{ChatTemplate, Message, RenderOptions},
    family,
    gguf::Gguf,
    tokenizer::{PretokenizerChoice, Tokenizer, Vocabulary},
};
use qmesh_net::{FrameHead, Strangers, Ticket, decode, encode, without_tickets};

/// Takes bytes from outside, and says whether they were accepted.
pub type Entry = fn(&[u8]) -> bool;

/// Every entry, by the name of its target and of its folder in `fuzz/corpus/`.
pub const ENTRIES: [(&str, Entry); 6] = [
    ("gguf_header", gguf_header),
    ("frame_head", frame_head),
    ("message", message),
    ("ticket", ticket),
    ("chat_template", chat_template),
    ("api_body", api_body),
];

/// The beginning of a GGUF file whose tensors follow: its header, then the model and the vocabulary that it describes.
/// Accepted where the header is.
pub fn gguf_header(bytes: &[u8]) -> bool {
    let Ok(gguf) = Gguf::parse(bytes, bytes.len() as u64 + TENSOR_BYTES) else { return false };
    // Whether the rest makes a model is another question; neither answer may be a panic.
    let _model = family::spec(&gguf);
    let _tokenizer =
        Vocabulary::from_gguf(&gguf).and_then(|vocabulary| Tokenizer::new(vocabulary, PretokenizerChoice::FromModel));
    true
}

/// What comes before a frame's rows.
pub fn frame_head(bytes: &[u8]) -> bool {
    FrameHead::parse(bytes).is_ok()
}

/// A control message. One that is accepted is read as the same one when it is written again: sections that were passed over
/// are gone by then.
///
/// # Panics
/// Where it is read as another one.
pub fn message(bytes: &[u8]) -> bool {
    let Ok(message) = decode(bytes) else { return false };
    let written = encode(&message).expect("what was read can be written");
    assert_eq!(decode(&written).as_ref(), Ok(&message));
    true
}

/// A ticket that somebody pasted. One that is accepted is read as the same one when it is written again.
///
/// # Panics
/// Where it is read as another one, or where an error text would give it away.
pub fn ticket(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let hidden = without_tickets(&text);
    let Ok(ticket) = Ticket::parse(&text) else { return false };
    assert!(Ticket::parse(&hidden).is_err(), "{hidden:?} gives a ticket away");
    assert_eq!(Ticket::parse(&ticket.to_string()).as_ref(), Ok(&ticket));
    true
}

/// The source of a chat template from a model's file, compiled and rendered once. Accepted where it renders.
pub fn chat_template(bytes: &[u8]) -> bool {
    let source = String::from_utf8_lossy(bytes);
    let Ok(template) = ChatTemplate::new(&source, "<s>", "</s>") else { return false };
    let messages = [Message::new("system", "Be brief."), Message::new("user", "Who are you?")];
    template.render(&messages, &RenderOptions::new(SystemTime::UNIX_EPOCH)).is_ok()
}

/// The body of a request to a coordinator that waits for workers, to each endpoint that takes one. Accepted where at least
/// one of them has nothing against it but that there is no worker.
///
/// # Panics
/// Where a request is not answered, or answered with an error of our own.
pub fn api_body(bytes: &[u8]) -> bool {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    let address = *ADDRESS.get_or_init(|| serve().expect("a coordinator can be started"));
    let statuses = ["/v1/chat/completions", "/v1/completions"].map(|path| {
        let status = post(address, path, bytes).unwrap_or_else(|error| panic!("{path} is not answered: {error}"));
        assert!((400..500).contains(&status) || status == UNAVAILABLE, "{path} answers {status}");
        status
    });
    statuses.contains(&UNAVAILABLE)
}

/// There is room for the tensors of every header: they are not read.
const TENSOR_BYTES: u64 = 1 << 50;
/// The HTTP status of a request that only lacks a pipeline.
const UNAVAILABLE: u16 = 503;
/// No answer takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// The status of the answer to one request.
fn post(address: SocketAddr, path: &str, body: &[u8]) -> io::Result<u16> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let length = body.len();
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n"
    )?;
    stream.write_all(body)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    status.ok_or_else(|| io::Error::other(format!("no status in {answer:?}")))
}

/// Starts a coordinator that nobody joins, which lasts as long as the process, and returns where its API is.
fn serve() -> Result<SocketAddr, Box<dyn std::error::Error>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny/llama.gguf");
    let model = Arc::new(Model::open(path.as_ref())?);
    let config = MeshConfig {
        model,
        listen: local,
        advertise: vec![],
        rendezvous: vec![],
        context: 256,
        kv_positions: 256,
        formation: Formation::new(Workers::Exactly(1)),
        chunk_rows: 8,
        ticket: TicketSource::Fresh,
        strangers: Strangers::NeedTickets,
        prefix_reuse: PrefixReuse::On,
        speculation: Speculation::Off,
        drafter: None,
    };
    let (mesh, listener) = runtime.block_on(async {
        let mesh = Mesh::start(config).await?;
        Ok::<_, Box<dyn std::error::Error>>((mesh, tokio::net::TcpListener::bind(local).await?))
    })?;
    let address = listener.local_addr()?;
    let state = ApiState::new(mesh.handle(), Arc::new(text_model()?));
    std::thread::spawn(move || {
        runtime.block_on(async {
            // The mesh ends when it is dropped; so it is kept here.
            let _kept = mesh;
            api::serve(listener, state, std::future::pending()).await.expect("the API serves");
        });
    });
    Ok(address)
}

/// A text side with one token for every byte.
fn text_model() -> Result<TextModel, Box<dyn std::error::Error>> {
    let controls = ["<unk>", "<s>", "</s>"].map(|text| (text.to_owned(), 3));
    let bytes = (0..=255_u8).map(|byte| (format!("<0x{byte:02X}>"), 6));
    let (tokens, token_types): (Vec<String>, Vec<i32>) = controls.into_iter().chain(bytes).unzip();
    let vocabulary = Vocabulary {
        model: "llama".to_owned(),
        scores: vec![0.0; tokens.len()],
        tokens,
        token_types,
        bos: Some(1),
        eos: Some(2),
        ..Vocabulary::default()
    };
    let template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}";
    let tokenizer = Tokenizer::new(vocabulary, PretokenizerChoice::FromModel)?;
    Ok(TextModel {
        name: "made-up".to_owned(),
        family: "llama".to_owned(),
        facts: Arc::default(),
        ends: tokenizer.ends_of_generation().into(),
        tokenizer: Arc::new(tokenizer),
        template: Ok(Arc::new(ChatTemplate::new(template, "<s>", "</s>")?)),
        context: 256,
        hidden: 64,
        pooling: Pooling::Last,
        grammars: GrammarDesk::default(),
        breakers: BreakerShelf::default(),
    })
}
