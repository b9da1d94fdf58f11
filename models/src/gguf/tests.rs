//! Good files come back as they were written; bad ones are each refused in a line, and nothing panics.

use std::{
    ffi::OsStr,
    fs,
    os::unix::{ffi::OsStrExt, fs::symlink},
    path::Path,
    process::Command,
    time::Instant,
};

use super::*;
use crate::{family, tensor::TensorType, tokenizer};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden");

#[test]
fn what_is_written_is_read() {
    let tokens: Strings = ["<s>", "", "Ġthe", "日本"].into_iter().collect();
    let writer = GgufWriter::new("llama")
        .set("unsigned", 7u32)
        .set("wide", u64::MAX)
        .set("negative", -1i32)
        .set("float", 1e-5f32)
        .set("double", 0.1f64)
        .set("yes", true)
        .set("tokens", tokens.clone())
        .set("scores", [0.5f32, -1.0].as_slice())
        .set("types", [1i32, -3].as_slice())
        .set("ids", [1u32, 151_645].as_slice())
        .set("flags", [true, false].as_slice())
        .set("nested", Value::Array(Array::Arrays(vec![Array::Strings(tokens.clone()), Array::Arrays(vec![])])))
        .set("general.alignment", 64u32)
        .tensor("a.weight", &[256, 3], TensorType::Q6K)
        .tensor("b.weight", &[8], TensorType::F32);
    let bytes = writer.to_bytes(|tensor, bytes| bytes.fill(tensor.name.as_bytes()[0]));
    assert_eq!(bytes.len() as u64, writer.file_bytes());
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();

    assert_eq!((gguf.version(), gguf.entries().len(), gguf.unused_bytes()), (3, 14, 0));
    assert_eq!(gguf.text("general.architecture").unwrap(), "llama");
    assert_eq!((gguf.unsigned("unsigned").unwrap(), gguf.unsigned("wide").unwrap()), (7, u64::MAX));
    assert_eq!((gguf.signed("negative").unwrap(), gguf.signed("unsigned").unwrap()), (-1, 7));
    assert_eq!((gguf.float("float").unwrap(), gguf.float("double").unwrap()), (1e-5, 0.1));
    assert!(gguf.boolean("yes").unwrap());
    assert_eq!(gguf.strings("tokens").unwrap(), &tokens);
    assert_eq!(gguf.floats("scores").unwrap(), [0.5, -1.0]);
    assert_eq!(gguf.signeds("types").unwrap(), [1, -3]);
    assert_eq!(gguf.unsigneds("ids").unwrap(), [1, 151_645]);
    assert_eq!(gguf.booleans("flags").unwrap(), [true, false]);
    assert_eq!(gguf.value("nested").unwrap().describe(), "an array of 2 arrays");

    let second = gguf.tensor("b.weight").unwrap();
    assert_eq!((second.ne.as_slice(), second.kind, second.bytes), ([8].as_slice(), GgmlType(0), Some(32)));
    assert!(second.offset.is_multiple_of(64));
    assert!(bytes[second.offset as usize..][..32].iter().all(|&byte| byte == b'b'));
}

#[test]
fn a_reader_of_the_wrong_type_names_key_and_types() {
    let writer = GgufWriter::new("llama").set("negative", -1i32).set("ids", [-1i32].as_slice());
    let gguf = Gguf::parse(&writer.header(), writer.file_bytes()).unwrap();
    let says = |error: KeyError, text: &str| assert_eq!(error.to_string(), text);
    says(gguf.text("no").unwrap_err(), "key \"no\" is missing");
    says(gguf.unsigned("negative").unwrap_err(), "key \"negative\" should be an unsigned integer, not the integer -1");
    says(gguf.float("negative").unwrap_err(), "key \"negative\" should be a float, not the integer -1");
    says(
        gguf.unsigneds("ids").unwrap_err(),
        "key \"ids\" should be an array of unsigned integers, not an array of 1 i32",
    );
    assert_eq!(gguf.text("no").optional(), Ok(None));
    assert_eq!(gguf.signed("negative").optional(), Ok(Some(-1)));
    assert!(gguf.text("negative").optional().is_err(), "a key of the wrong type is not a missing one");
}

#[test]
fn golden_files_open() {
    let mut files = 0;
    for entry in fs::read_dir(Path::new(GOLDEN).join("tiny")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let gguf = Gguf::open(&path).unwrap();
            assert_eq!(gguf.unused_bytes(), 0, "{}", path.display());
            assert!(gguf.text("general.architecture").is_ok());
            files += 1;
        }
    }
    assert!(files > 0, "no golden files");
    let vocab = tokenizer::tests::gguf("qwen2");
    assert!(vocab.tensors().is_empty());
    assert_eq!(vocab.strings("tokenizer.ggml.tokens").unwrap().get(0), Some("!"));
}

#[test]
fn large_vocabularies_are_quick() {
    let tokens: Strings = (0..150_000).map(|i| format!("token {i}")).collect();
    let writer = GgufWriter::new("llama").set("tokens", tokens.clone()).set("merges", tokens.clone());
    let header = writer.header();
    let start = Instant::now();
    let gguf = Gguf::parse(&header, header.len() as u64).unwrap();
    let took_ms = start.elapsed().as_millis();
    assert_eq!(gguf.strings("merges").unwrap(), &tokens);
    // Some 5 ms each on a quiet machine.
    assert!(took_ms < 200, "{took_ms} ms for two arrays");
}

/// A file with a bit of everything for the tests to spoil.
fn sound() -> GgufWriter {
    GgufWriter::new("llama")
        .set("count", 3u32)
        .set("again", 3u32)
        .set("yes", true)
        .set("nested", Value::Array(Array::Arrays(vec![])))
        .set("tokens", ["a", "b"].into_iter().collect::<Strings>())
        .tensor("one.weight", &[64, 2], TensorType::F32)
        .tensor("two.weight", &[256], TensorType::Q4K)
}

/// `file` with `bytes` put `skip` bytes after the name `after`.
fn spoil(file: &[u8], after: &[u8], skip: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let at = file.windows(after.len()).position(|window| window == after).unwrap() + after.len() + skip;
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

/// The sound file, spoilt in the same way.
fn spoilt(after: &str, skip: usize, bytes: &[u8]) -> Vec<u8> {
    spoil(&sound().to_bytes(|_, _| {}), after.as_bytes(), skip, bytes)
}

/// `file` with the name `to` for the name `from`, which is as long.
fn renamed(file: &[u8], from: &str, to: &str) -> Vec<u8> {
    let mut file = file.to_vec();
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
    file
}

fn refused(row: &str, file: &[u8], expected: &str) {
    let fault = Gguf::parse(file, file.len() as u64).expect_err(row).to_string();
    assert!(fault.contains(expected), "{row}: {fault:?} does not say {expected:?}");
    assert!(!fault.contains('\n'), "{row}: {fault:?} is not one line");
}

#[test]
fn what_is_no_gguf_is_told_apart() {
    let padded = |start: &[u8]| [start, &[b' '; 64]].concat();
    refused("GGUF-01", b"", "file is 0 bytes");
    refused("GGUF-01", b"GGUF\x03\0\0\0", "file is 8 bytes");
    refused("GGUF-02", &padded(b"version https://git-lfs"), "this is a Git LFS pointer");
    refused("GGUF-02", &padded(b"\n <!DOCTYPE html>"), "HTML page");
    refused("GGUF-02", &padded(b"\xef\xbb\xbf<html>"), "HTML page");
    refused("GGUF-02", &padded(b"tjgg\x03\0\0\0"), "GGML file from before GGUF");
    refused("GGUF-02", &padded(b"GGML"), "GGML file from before GGUF");
    refused("GGUF-02", &padded(b"\x40\x01\0\0\0\0\0\0{\"a\""), "safetensors");
    refused("GGUF-02", &padded(b"PK\x03\x04"), "zip archive");
    refused("GGUF-02", &[0; 64], "unfinished download");
    refused("GGUF-02", &padded(b"{\"error\""), "JSON");
    refused("GGUF-02", &padded(b"nonsense"), "does not start with");
    for version in [0u32, 1, 4, 1 << 31] {
        let says = format!("version {version} is not supported; supported: 2, 3");
        refused("GGUF-03", &spoilt("GGUF", 0, &version.to_le_bytes()), &says);
    }
    refused("GGUF-04", &spoilt("GGUF", 0, &3u32.to_be_bytes()), "big-endian");
    let older = spoilt("GGUF", 0, &2u32.to_le_bytes());
    assert_eq!(Gguf::parse(&older, older.len() as u64).unwrap().version(), 2);
}

#[test]
fn bad_metadata_is_refused() {
    for count in [1u64 << 63, u64::MAX, 1000] {
        refused("GGUF-05", &spoilt("GGUF", 4, &count.to_le_bytes()), &format!("header says {count} tensors"));
        refused("GGUF-05", &spoilt("GGUF", 12, &count.to_le_bytes()), &format!("header says {count} keys"));
    }
    refused("GGUF-06", &spoilt("GGUF", 20, &u64::MAX.to_le_bytes()), "key 0 at byte 24: text of 18446744073709551615");
    refused("GGUF-06", &spoilt("GGUF", 20, &60_000u64.to_le_bytes()), "truncated: key 0 at byte 32 needs 60000 bytes");
    refused("GGUF-06", &spoilt("GGUF", 20, &0u64.to_le_bytes()), "key 0 at byte 24: the name is empty");
    refused("GGUF-06", &spoilt("llama", 8, b"\xff"), "key 1 at byte");
    for code in [13u32, 255] {
        refused("GGUF-07", &spoilt("count", 0, &code.to_le_bytes()), &format!("unknown value type {code}"));
    }
    refused("GGUF-07", &spoilt("yes", 4, &[7]), "boolean with value 7");
    let nested = |depth| {
        let arrays = (1..depth).fold(Array::Arrays(vec![]), |inner, _| Array::Arrays(vec![inner]));
        sound().set("nested", Value::Array(arrays)).to_bytes(|_, _| {})
    };
    let deepest = nested(4);
    assert!(Gguf::parse(&deepest, deepest.len() as u64).is_ok());
    refused("GGUF-08", &nested(5), "arrays nested deeper than 4");
    let header = GgufWriter::new("llama").set("deep", Value::Array(Array::Arrays(vec![]))).header();
    let deep = header.windows(4).position(|window| window == b"deep").unwrap() + 4;
    let array_of_one_array = [&9u32.to_le_bytes()[..], &1u64.to_le_bytes()].concat();
    let bottomless = [&header[..deep], &9u32.to_le_bytes(), &array_of_one_array.repeat(1_000_000)].concat();
    refused("GGUF-08", &bottomless, "arrays nested deeper than 4");
    let sparse = spoilt("tokens", 8, &(1u64 << 30).to_le_bytes());
    let fault = header::parse(sparse.as_slice(), 1 << 40, 1 << 40).err().unwrap().to_string();
    assert!(fault.contains("header is longer than the limit of 268435456 bytes, at key \"tokens\""), "{fault}");
    let long = GgufWriter::new("llama").set("template", "x".repeat((16 << 20) + 1)).header();
    refused("GGUF-09", &long, "text of 16777217 bytes is over the limit of 16777216");
    refused("GGUF-10", &spoilt("tokens", 8, &u64::MAX.to_le_bytes()), "truncated: key \"tokens\"");
    refused("duplicate key", &renamed(&sound().header(), "again", "count"), "key \"count\" occurs twice");
    for found in [0u64, 33, 1 << 21] {
        let header = GgufWriter::new("llama").set("general.alignNOT!", u64::MAX).header();
        let header = spoil(&header, b"general.alignNOT!", 4, &found.to_le_bytes());
        let file = renamed(&header, "general.alignNOT!", "general.alignment");
        refused("alignment", &file, &format!("key \"general.alignment\" is {found}, not a power of two"));
    }
}

#[test]
fn bad_tensors_are_refused() {
    let one = |skip, number: u64| spoilt("one.weight", skip, &number.to_le_bytes());
    let two = |skip, number: u64| spoilt("two.weight", skip, &number.to_le_bytes());
    for axes in [0u32, 5, u32::MAX] {
        refused("GGUF-11", &spoilt("one.weight", 0, &axes.to_le_bytes()), &format!("has {axes} dimensions"));
    }
    for dimension in [0, 1 << 63, u64::MAX] {
        refused("GGUF-12", &one(4, dimension), &format!("dimension 0 is {dimension}"));
    }
    let product = [(1u64 << 33).to_le_bytes(), (1u64 << 31).to_le_bytes()].concat();
    refused("GGUF-12", &spoilt("one.weight", 4, &product), "size overflows");
    refused("GGUF-12", &one(4, 1 << 60), "truncated: tensor \"one.weight\" needs");
    refused("GGUF-12", &one(4, 1 << 62), "size overflows");
    refused("GGUF-13", &two(4, 255), "rows of 255 elements do not divide into Q4_K blocks of 256");
    refused("GGUF-14", &renamed(&sound().header(), "two.weight", "one.weight"), "\"one.weight\" occurs twice");
    refused("GGUF-15", &two(16, 33), "offset 33 is not a multiple of the alignment 32");
    refused("GGUF-16", &two(16, 1 << 40), "truncated: tensor \"two.weight\" needs the file to be 10995");
    refused("GGUF-16", &two(16, u64::MAX - 31), "size overflows");
    refused("overlap", &two(16, 32), "\"one.weight\" and \"two.weight\" overlap");
}

#[test]
fn odd_but_harmless_files_open() {
    let open = |file: &[u8]| Gguf::parse(file, file.len() as u64).unwrap();
    let trailing = [sound().to_bytes(|_, _| {}), vec![0; 100]].concat();
    assert_eq!(open(&trailing).unused_bytes(), 100, "GGUF-17");
    let later = spoil(&trailing, b"one.weight", 24, &160u64.to_le_bytes());
    let mut swapped = spoil(&later, b"two.weight", 16, &0u64.to_le_bytes());
    swapped.resize(swapped.len() + 1024, 0);
    let swapped = open(&swapped);
    assert!(swapped.tensors()[0].offset > swapped.tensors()[1].offset, "GGUF-18");
    let strange = open(&spoilt("one.weight", 20, &99u32.to_le_bytes()));
    let entry = strange.tensor("one.weight").unwrap();
    assert_eq!((entry.kind.to_string().as_str(), entry.bytes), ("ggml type 99", None), "GGUF-19");
}

#[test]
fn a_text_that_is_not_utf_8_is_refused_where_it_is_needed() {
    let written = sound().set("general.name", Value::Bytes(b"caf\xe9".to_vec())).to_bytes(|_, _| {});
    let file = spoil(&written, b"tokens", 24, b"\xff");
    let gguf = Gguf::parse(&file, file.len() as u64).unwrap();
    assert_eq!((gguf.text("general.architecture").unwrap(), gguf.unsigned("count").unwrap()), ("llama", 3));
    assert_eq!(gguf.text_lossy("general.name").unwrap(), "caf\u{fffd}");
    let says = |error: KeyError, text: &str| assert_eq!(error.to_string(), text);
    says(
        gguf.text("general.name").unwrap_err(),
        "key \"general.name\" should be a text, not a text of 4 bytes that is not UTF-8",
    );
    says(
        gguf.strings("tokens").unwrap_err(),
        "key \"tokens\" should be an array of strings, not an array of 2 strings of which number 0 is not UTF-8",
    );
    let entries = gguf.entries().filter(|(key, _)| *key != "general.architecture");
    let again = entries.fold(GgufWriter::new("llama"), |writer, (key, value)| writer.set(key, value.clone()));
    let again = Gguf::parse(&again.header(), again.file_bytes()).unwrap();
    assert!(again.entries().eq(gguf.entries()), "what is not UTF-8 is written as it was read");
}

#[test]
fn a_cut_at_any_byte_is_refused() {
    let file = sound().to_bytes(|_, _| {});
    // The last tensor is 144 bytes, which its padding makes 160.
    let whole = file.len() - 16;
    for length in 0..whole {
        refused("GGUF-10", &file[..length], "download it again");
    }
    assert!(Gguf::parse(&file[..whole], whole as u64).is_ok(), "the padding at the end may be missing");
    let header = sound().header();
    assert!(Gguf::parse(&header, file.len() as u64).is_ok(), "the header is enough where the file is long enough");
    assert!(Gguf::parse(&header[..header.len() - 33], file.len() as u64).is_err());
}

#[test]
fn what_is_no_regular_file_is_refused_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fifo = folder.path().join("fifo.gguf");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let (first, second) = (folder.path().join("first.gguf"), folder.path().join("second.gguf"));
    symlink(&first, &second).unwrap();
    symlink(&second, &first).unwrap();
    let rows: [(&Path, &str); 5] = [
        (folder.path(), "this is a directory"),
        (&fifo, "this is a FIFO"),
        (Path::new("/dev/zero"), "this is a device"),
        (&first, "cannot read"),
        (&folder.path().join("none.gguf"), "cannot read"),
    ];
    for (path, expected) in rows {
        let error = Gguf::open(path).unwrap_err().to_string();
        assert!(error.starts_with(&*path.to_string_lossy()) && error.contains(expected), "GGUF-27: {error}");
    }
}

#[test]
fn any_path_works() {
    let folder = tempfile::tempdir().unwrap();
    let deep = ["d", "e", "f"].iter().fold(folder.path().to_owned(), |path, name| path.join(name.repeat(200)));
    fs::create_dir_all(&deep).unwrap();
    for name in [&b"with space.gguf"[..], b"not utf-8 \xff\xfe.gguf", "\u{1f980} crab.gguf".as_bytes()] {
        let path = deep.join(OsStr::from_bytes(name));
        fs::write(&path, sound().to_bytes(|_, _| {})).unwrap();
        assert_eq!(Gguf::open(&path).unwrap().parts()[0].path, path, "GGUF-28");
    }
}

/// Writes part `no` as one of `count`, of a model of `total` tensors: two in each of three parts.
fn write_part(folder: &Path, no: u8, count: u32, total: i32) {
    let writer = GgufWriter::new("llama")
        .set("split.no", u32::from(no))
        .set("split.count", count)
        .set("split.tensors.count", total)
        .set("from", format!("part {no}"))
        .tensor(&format!("{no}.a"), &[8], TensorType::F32)
        .tensor(&format!("{no}.b"), &[8], TensorType::F32);
    let path = folder.join(format!("model-{:05}-of-00003.gguf", no + 1));
    fs::write(path, writer.to_bytes(|_, bytes| bytes.fill(no))).unwrap();
}

#[test]
fn parts_are_joined_from_any_of_them() {
    let folder = tempfile::tempdir().unwrap();
    (0..3).for_each(|no| write_part(folder.path(), no, 3, 6));
    for no in 1..=3 {
        let gguf = Gguf::open(folder.path().join(format!("model-0000{no}-of-00003.gguf"))).unwrap();
        assert_eq!((gguf.parts().len(), gguf.tensors().len()), (3, 6));
        assert_eq!(gguf.text("from").unwrap(), "part 0", "the first part has the metadata");
        let tensor = gguf.tensor("2.b").unwrap();
        let part = fs::read(&gguf.parts()[tensor.part].path).unwrap();
        assert_eq!(part[tensor.offset as usize..][..32], [2; 32]);
    }
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let named = |no: u32| folder.path().join(format!("model-0000{no}-of-00003.gguf"));
    let says = |expected: &str| {
        let error = Gguf::open(named(1)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    };
    (0..2).for_each(|no| write_part(folder.path(), no, 3, 6));
    says("model-00003-of-00003.gguf: this part of a split model is missing");
    fs::copy(named(2), named(3)).unwrap();
    says("model-00003-of-00003.gguf: split model: key \"split.no\" is 1, expected 2");
    write_part(folder.path(), 2, 4, 6);
    says("model-00003-of-00003.gguf: split model: key \"split.count\" is 4, expected 3");
    (0..3).for_each(|no| write_part(folder.path(), no, 3, 7));
    says("the parts hold 6 tensors, key \"split.tensors.count\" says 7");
    let other = folder.path().join("other.gguf");
    fs::copy(named(1), &other).unwrap();
    let error = Gguf::open(&other).unwrap_err().to_string();
    assert!(error.contains("part 1 of 3 must be named NAME-00001-of-00003.gguf"), "{error}");
    let bytes = fs::read(named(1)).unwrap();
    assert!(Gguf::parse(&bytes, bytes.len() as u64).is_err(), "one part is not a model");
}

#[test]
fn nothing_panics_on_mutated_files() {
    let sound = sound().to_bytes(|_, _| {});
    let body_start = Gguf::parse(&sound, sound.len() as u64).unwrap().parts()[0].header_bytes as usize;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut opened = 0;
    for _ in 0..120_000 {
        let mut file = sound.clone();
        (0..=random.below(3)).for_each(|_| random.mutate(&mut file, body_start));
        let claimed = if random.below(4) == 0 { random.next() } else { file.len() as u64 };
        if let Ok(gguf) = Gguf::parse(&file, claimed) {
            opened += 1;
            assert!(family::spec(&gguf).is_err(), "no mutation makes a whole model of it");
        }
    }
    assert!((1_000..119_000).contains(&opened), "mutations should neither all pass nor all fail: {opened}");
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Changes one thing in the header: its first `body_start` bytes.
    fn mutate(&mut self, file: &mut Vec<u8>, body_start: usize) {
        const ODD: [u64; 10] = [0, 1, 9, 0x7fff_ffff, 0xffff_ffff, 1 << 31, 1 << 33, 1 << 62, 1 << 63, u64::MAX];
        let start = self.below(body_start).min(file.len());
        let end = file.len().min(start + [1, 4, 8][self.below(3)]);
        match self.below(5) {
            0 => file.truncate(start),
            1 => file[start..end].copy_from_slice(&ODD[self.below(10)].to_le_bytes()[..end - start]),
            2 => drop(file.drain(start..end)),
            3 => drop(file.splice(start..start, ODD[self.below(10)].to_le_bytes())),
            _ => file[start..end].iter_mut().for_each(|byte| *byte ^= 1 << self.below(8)),
        }
    }
}

#[test]
fn a_beginning_says_how_much_more_is_needed() {
    let tokens: Strings = (0..1000).map(|id| format!("token {id}")).collect();
    let writer = GgufWriter::new("llama")
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.scores", [0.5f32; 100].as_slice())
        .tensor("a.weight", &[256, 3], TensorType::Q6K);
    let (header, file_bytes) = (writer.header(), writer.file_bytes());
    // The padding before the first tensor is not read.
    let read = header.len() - usize::try_from(file_bytes).unwrap() % 32 - 32;
    for here in (0..read).step_by(7).chain([0, 1, 23, 24, read - 1]) {
        let fault = Gguf::parse(&header[..here], file_bytes).unwrap_err();
        let GgufFault::MoreNeeded { bytes, have } = fault else { panic!("{here} bytes: {fault}") };
        assert_eq!(have, here as u64);
        assert!((here as u64 + 1..=header.len() as u64).contains(&bytes), "{here} bytes: {bytes}");
        let fault = Gguf::parse(&header[..here.max(24)], here.max(24) as u64).unwrap_err();
        assert!(!matches!(fault, GgufFault::MoreNeeded { .. }), "a whole file has no more: {fault}");
    }
    let mut here = 0;
    let whole = loop {
        match Gguf::parse(&header[..here], file_bytes) {
            Ok(gguf) => break gguf,
            Err(GgufFault::MoreNeeded { bytes, .. }) => here = usize::try_from(bytes).unwrap(),
            Err(fault) => panic!("{fault}"),
        }
    };
    assert_eq!((whole.tensors().len(), whole.parts()[0].header_bytes), (1, header.len() as u64));
}
