//! Headers without the rest, of models that are much longer than what a test server may send of them.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::{
    gguf::{Gguf, GgufWriter, Strings},
    tensor::TensorType,
};

/// A model with a header of some 330 KB, before tensors of 3 MB.
fn long_model() -> Vec<u8> {
    let tokens: Strings = (0..30_000).map(|id| format!("{id:03}")).collect();
    let writer = GgufWriter::new("llama")
        .set("tokenizer.ggml.tokens", tokens)
        .tensor("a.weight", &[1024, 512], TensorType::F32)
        .tensor("b.weight", &[1024, 256], TensorType::F32);
    writer.to_bytes(|_, _| ())
}

/// Part `no`, from 0, of two, with a tensor of 1 MB.
fn part(no: u32, count: u32) -> Vec<u8> {
    let writer = GgufWriter::new("llama").set("split.no", no).set("split.count", count);
    writer.tensor(&format!("{no}.weight"), &[1024, 256], TensorType::F32).to_bytes(|_, _| ())
}

/// A server of one file that knows ranges, and the bytes of bodies that it was asked to send.
fn counting(body: Vec<u8>, change: impl Fn(Reply, usize) -> Reply + Send + 'static) -> (Server, Arc<AtomicUsize>) {
    let bytes = Arc::new(AtomicUsize::new(0));
    let sent = Arc::clone(&bytes);
    let server = Server::start(move |request, n| {
        let reply = change(ranged(request, &body, "\"a\""), n);
        sent.fetch_add(reply.sent.unwrap_or(reply.body.len()), Ordering::Relaxed);
        reply
    });
    (server, bytes)
}

/// Length of everything before the first tensor.
fn header_bytes(file: &[u8]) -> usize {
    usize::try_from(Gguf::parse(file, file.len() as u64).unwrap().parts()[0].header_bytes).unwrap()
}

#[test]
fn a_header_is_read_without_the_tensors() {
    let body = long_model();
    let (server, sent) = counting(body.clone(), |reply, _| reply);
    let bench = Bench::new(0);
    let read = bench.header(&format!("{}/m.gguf?key=secret", server.url)).unwrap();

    let local = Gguf::parse(&body, body.len() as u64).unwrap();
    assert_eq!(read.gguf.tensors(), local.tensors());
    assert!(read.gguf.entries().eq(local.entries()));
    let part = &read.gguf.parts()[0];
    assert_eq!((part.path.to_str().unwrap(), part.bytes), (&*format!("{}/m.gguf", server.url), body.len() as u64));

    let sent = sent.load(Ordering::Relaxed);
    assert_eq!(read.bytes_read, sent as u64);
    assert!((header_bytes(&body)..2 * header_bytes(&body)).contains(&sent), "{sent}");
    assert_eq!(server.seen("range")[0], "bytes=0-65535");
    assert!(server.seen("range").len() <= 4, "each piece is as long as what is there: {:?}", server.seen("range"));
    assert_eq!(server.seen("if-range")[1], "\"a\"");
    assert_eq!(bench.cached(), [], "nothing is written");
}

#[test]
fn a_short_file_is_read_at_once() {
    let body = GgufWriter::new("llama").tensor("a.weight", &[8], TensorType::F32).to_bytes(|_, _| ());
    let (server, _) = counting(body.clone(), |reply, _| reply);
    let read = Bench::new(0).header(&format!("{}/m.gguf", server.url)).unwrap();
    assert_eq!((read.bytes_read, server.paths().len()), (body.len() as u64, 1));
}

#[test]
fn every_part_of_a_model_on_a_hub_gives_its_header() {
    let (bench, hub, contents) = hub([part(0, 2), part(1, 2)], None);
    let read = bench.header("hf:o/r").unwrap();
    let tensors: Vec<_> = read.gguf.tensors().iter().map(|tensor| (&*tensor.name, tensor.part)).collect();
    assert_eq!(tensors, [("0.weight", 0), ("1.weight", 1)]);
    assert_eq!(read.bytes_read, 2 * 65_536);
    assert_eq!(contents.seen("range"), ["bytes=0-65535"; 2]);
    assert_eq!((contents.seen("authorization"), hub.seen("authorization").len()), (vec![String::new(); 2], 4));
    assert_eq!(bench.cached(), []);

    let (bench, _hub, _contents) = super::hub([part(0, 2), part(0, 2)], None);
    let message = bench.header("hf:o/r").unwrap_err().to_string();
    assert!(message.contains("00002-of-00002.gguf: split model: key \"split.no\" is 0, expected 1"), "{message}");
    let (bench, _hub, _contents) = super::hub([part(0, 2), part(1, 2)], Some(part(1, 2)[..70_000].into()));
    let message = bench.header("hf:o/r").unwrap_err().to_string();
    assert!(message.contains("o/r has 70000 bytes instead of 10"), "what the hub lists is what counts: {message}");
}

#[test]
fn of_a_server_without_ranges_no_more_is_read_than_the_header() {
    let body = long_model();
    let ends = 2 * header_bytes(&body);
    // Whoever reads to the end finds that there is none.
    let server = Server::start(move |_, _| Reply { sent: Some(ends), pause: Duration::from_secs(2), ..whole(&body) });
    let read = Bench::new(0).header(&format!("{}/m.gguf", server.url)).unwrap();
    assert_eq!((read.gguf.tensors().len(), server.paths().len()), (2, 1));
    assert!(read.bytes_read < ends as u64, "{}", read.bytes_read);
}

#[test]
fn a_header_that_breaks_off_is_read_on_unless_the_file_changed() {
    let body = long_model();
    let cut = |reply: Reply, n| Reply { sent: (n == 1).then_some(10_000), ..reply };
    let (server, _) = counting(body.clone(), cut);
    let address = format!("{}/m.gguf", server.url);
    assert_eq!(Bench::new(1).header(&address).unwrap().gguf.tensors().len(), 2);
    assert!(server.seen("range")[2].starts_with("bytes=75536-"), "{:?}", server.seen("range"));

    let (server, _) = counting(body.clone(), cut);
    let message = Bench::new(0).header(&format!("{}/m.gguf", server.url)).unwrap_err().to_string();
    assert!(message.contains("broke off after 75536 bytes"), "{message}");

    // The first piece is of another file, as long as the second one.
    let mut other = body.clone();
    other[32..40].fill(b'x');
    let server = Server::start(move |request, n| match n {
        0 => ranged(request, &other, "\"a\""),
        _ => ranged(request, &body, "\"b\""),
    });
    let read = Bench::new(0).header(&format!("{}/m.gguf", server.url)).unwrap();
    assert_eq!(read.gguf.text("general.architecture").unwrap(), "llama");
    assert_eq!(server.paths().len(), 2, "the answer to the second request is the whole file");
}

#[test]
fn what_is_no_model_or_no_whole_one_is_refused_by_name() {
    let refused = |reply: Reply| {
        let server = Server::start(move |_, _| reply.clone());
        let address = format!("{}/m.gguf", server.url);
        let message = Bench::new(0).header(&address).unwrap_err().to_string();
        assert!(message.starts_with(&address), "{message}");
        message[address.len()..].to_owned()
    };
    let piece = |range: &str, body: &[u8]| Reply {
        status: 206,
        headers: vec![("Content-Range", range.to_owned())],
        body: body.into(),
        ..Reply::default()
    };
    let body = part(0, 1);
    let page = refused(whole(b"<html>please log in</html>"));
    assert!(page.starts_with(": not a GGUF: this is an HTML page"), "{page}");
    assert_eq!(refused(status(404)), " answered 404: check the name");
    let end = body.len() - 1000;
    let truncated = refused(piece(&format!("bytes 0-65535/{end}"), &body[..65_536]));
    assert!(truncated.starts_with(": truncated: tensor \"0.weight\" needs the file to be"), "{truncated}");
    let unsaid = refused(piece("bytes 0-65535/*", &body[..65_536]));
    assert_eq!(unsaid, " does not say how long the file is: download it with `pull`");
    let other = refused(piece("bytes 7-65535/100000", &body[..65_536]));
    assert_eq!(other, " answered a request for bytes from 0 on with `bytes 7-65535/100000`");
    let alone = refused(whole(&part(1, 3)));
    assert!(alone.starts_with(": part 2 of 3 must be named NAME-00002-of-00003.gguf"), "{alone}");
    // A header that never ends: its only text is longer than any.
    let mut endless = GgufWriter::new("llama").set("a", "text").header();
    let length = endless.windows(4).position(|window| window == b"text").unwrap() - 8;
    endless[length..length + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let mut long = endless.clone();
    long.resize(65_536, 0);
    let claimed = refused(piece("bytes 0-65535/9000000000000", &long));
    assert!(claimed.contains("text of 1099511627776 bytes is over the limit"), "{claimed}");
}
