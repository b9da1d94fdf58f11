//! llama.cpp's own vectors, properties on seeded random input, and broken vocabularies.

use std::{fs::File, io::Read, path::PathBuf, sync::Arc, time::Instant};

use flate2::read::GzDecoder;

use super::*;
use crate::{
    chat::ChatTemplate,
    gguf::{Gguf, GgufWriter, Strings, Value},
};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/vocab")).join(name)
}

/// One of the golden vocabularies, which lie packed in the repository.
pub(crate) fn gguf(name: &str) -> Gguf {
    let mut bytes = Vec::new();
    let packed = File::open(golden(&format!("ggml-vocab-{name}.gguf.gz"))).unwrap();
    GzDecoder::new(packed).read_to_end(&mut bytes).unwrap();
    Gguf::parse(&bytes, bytes.len() as u64).unwrap()
}

pub(crate) fn vocabulary(name: &str) -> Vocabulary {
    Vocabulary::from_gguf(&gguf(name)).unwrap()
}

fn tokenizer(name: &str) -> Tokenizer {
    Tokenizer::new(vocabulary(name), PretokenizerChoice::FromModel).unwrap()
}

fn plain(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Specials::Plain, Affixes::None).unwrap()
}

fn parsed(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    tokenizer.encode(text, Specials::Parse, Affixes::AsModel).unwrap()
}

/// A generator of our own, so that a failure is found again by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }

    fn text(&mut self, parts: usize) -> String {
        const PARTS: [&str; 14] =
            [" ", "  ", "\n", "\r\n\t", "a", "Hello", "'ll", "12345", "é", "你好", "🌍", "👩‍👩‍👧", "<|im_end|>", "…"];
        let part = |_| match self.below(4) {
            // No further: StarCoder has no tokens for the bytes that begin the characters from U+40000.
            0 => char::from_u32(self.below(0x4_0000) as u32).unwrap_or('x').to_string(),
            _ => PARTS[self.below(PARTS.len())].to_owned(),
        };
        (0..parts).map(part).collect()
    }
}

#[test]
fn vectors() {
    const SEPARATOR: &str = "\n__ggml_vocab_test__\n";
    for name in ["gpt-2", "qwen2", "llama-spm", "phi-3", "starcoder"] {
        let tokenizer = tokenizer(name);
        let read = |kind: &str| std::fs::read_to_string(golden(&format!("ggml-vocab-{name}.gguf.{kind}"))).unwrap();
        let (inputs, outputs) = (read("inp"), read("out"));
        let inputs: Vec<_> = inputs.strip_suffix(SEPARATOR).unwrap().split(SEPARATOR).collect();
        assert_eq!(inputs.len(), outputs.lines().count(), "{name}");
        for (text, line) in inputs.iter().zip(outputs.lines()) {
            let expected: Vec<u32> = line.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(plain(&tokenizer, text), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, ControlTokens::Hide), *text, "{name}");
        }
    }
}

#[test]
fn random_texts_survive_the_round_trip_and_streaming() {
    for name in ["gpt-2", "starcoder", "llama-spm"] {
        let tokenizer = Arc::new(tokenizer(name));
        for seed in 0..300 {
            let text = Random(seed).text(20);
            let ids = plain(&tokenizer, &text);
            assert_eq!(tokenizer.decode(&ids, ControlTokens::Hide), text, "{name}, seed {seed}");
            let mut stream = Detokenizer::new(Arc::clone(&tokenizer), LeadingSpace::Strip, ControlTokens::Hide);
            let streamed: String = ids.iter().map(|&id| stream.push(id)).collect();
            assert_eq!((streamed, stream.finish()), (text, String::new()), "{name}, seed {seed}");
        }
    }
}

#[test]
fn streams_of_any_bytes_show_what_lossy_decoding_shows() {
    let tokenizer = Arc::new(tokenizer("llama-spm"));
    let byte_token = |byte: usize| tokenizer.find(&format!("<0x{byte:02X}>")).unwrap();
    for seed in 0..2000 {
        let mut random = Random(seed);
        // Halves of real characters among any bytes.
        let soup: Vec<u8> = (0..30)
            .flat_map(|_| match random.below(3) {
                0 => vec![random.below(256) as u8],
                1 => "🌍".as_bytes()[..=random.below(4)].to_vec(),
                _ => "é".as_bytes().to_vec(),
            })
            .collect();
        let mut stream = Detokenizer::new(Arc::clone(&tokenizer), LeadingSpace::Keep, ControlTokens::Hide);
        let mut text = String::new();
        for (at, &byte) in soup.iter().enumerate() {
            text.push_str(&stream.push(byte_token(byte.into())));
            assert!(String::from_utf8_lossy(&soup).starts_with(&text), "seed {seed}, byte {at}");
        }
        text.push_str(&stream.finish());
        assert_eq!(text, String::from_utf8_lossy(&soup), "seed {seed}");
    }
}

#[test]
fn half_a_character_is_held_back() {
    let tokenizer = Arc::new(tokenizer("llama-spm"));
    let mut stream = Detokenizer::new(Arc::clone(&tokenizer), LeadingSpace::Strip, ControlTokens::Hide);
    let ids = ["<s>", "▁Hello", "<0xE2>", "<0x80>", "<0xA6>", "<0xE2>", "<0x80>"].map(|t| tokenizer.find(t).unwrap());
    assert_eq!(ids.map(|id| stream.push(id)), ["", "Hello", "", "", "…", "", ""]);
    assert_eq!((stream.finish(), stream.finish()), ("\u{FFFD}".to_owned(), String::new()));
    assert_eq!(stream.push(u32::MAX), "", "an id that is no token has no text");
}

#[test]
fn time_is_near_linear() {
    for name in ["qwen2", "llama-spm"] {
        let tokenizer = tokenizer(name);
        for unit in [" ", "a", "\n", "\t \r", "!?", "1", "<", " a", "你", "<|im_end|>"] {
            let text = format!("x{}x", unit.repeat(200_000 / unit.len()));
            let start = Instant::now();
            assert_eq!(tokenizer.decode(&plain(&tokenizer, &text), ControlTokens::Hide), text, "{name} {unit:?}");
            assert!(start.elapsed().as_secs() < 5, "{name} {unit:?} took {:?}", start.elapsed());
        }
    }
}

#[test]
fn control_tokens_are_parsed_only_on_request() {
    let qwen = tokenizer("qwen2");
    let [end, text] = ["<|im_end|>", "<|endoftext|>"].map(|text| qwen.find(text).unwrap());
    assert_eq!(parsed(&qwen, "a<|im_end|>b"), [plain(&qwen, "a"), vec![end], plain(&qwen, "b")].concat());
    assert!(!plain(&qwen, "a<|im_end|>b").contains(&end));
    assert!(qwen.is_control(end) && qwen.is_end_of_generation(end) && qwen.is_end_of_generation(text));
    assert!(!qwen.is_end_of_generation(plain(&qwen, "a")[0]) && !qwen.is_end_of_generation(u32::MAX));
    assert_eq!(qwen.decode(&[end], ControlTokens::Hide), "");
    assert_eq!(qwen.decode(&[end], ControlTokens::Show), "<|im_end|>");

    let llama = tokenizer("llama-spm");
    assert!(!plain(&llama, "<s></s><unk><0x0A>").iter().any(|&id| llama.is_control(id)), "merges forge no token");
}

#[test]
fn what_ends_generations_is_no_text() {
    let mut v = vocabulary("phi-3");
    let phi3 = Tokenizer::new(v.clone(), PretokenizerChoice::FromModel).unwrap();
    assert!(phi3.is_end_of_generation(2) && !plain(&phi3, "a</s>").contains(&2));
    v.tokens[1] = "<no s>".to_owned();
    let html = Tokenizer::new(v, PretokenizerChoice::FromModel).unwrap();
    assert!(!html.is_end_of_generation(2) && plain(&html, "a</s>").contains(&2));

    let mut v = vocabulary("gpt-2");
    for (id, text) in (50000..).zip(["<|end|>", "<|return|>", "<|call|>"]) {
        v.tokens[id] = text.to_owned();
    }
    let ends = |v: &Vocabulary| {
        Tokenizer::new(v.clone(), PretokenizerChoice::FromModel).unwrap().ends_of_generation().to_vec()
    };
    assert_eq!(ends(&v), [50001, 50002, 50256], "a message of several ends, the turn goes on");
    v.tokens[50002].clear();
    assert_eq!(ends(&v), [50000, 50001, 50256]);
}

#[test]
fn no_text_becomes_fewer_tokens_than_the_fewest() {
    const MARK: char = '\u{FDD0}';
    for name in ["gpt-2", "qwen2", "llama-spm", "phi-3", "starcoder"] {
        let tokenizer = tokenizer(name);
        let check = |text: &str, specials: Specials| {
            let ids = tokenizer.encode(text, specials, Affixes::None).unwrap();
            let fewest = tokenizer.fewest_tokens(text, specials);
            assert!(fewest <= ids.len(), "{name} {text:?}: {fewest} > {}", ids.len());
        };
        let spaces = " ".repeat(999);
        let padded = format!("<|end|>{spaces}<|im_end|>{spaces}</s>");
        for text in [&spaces, &padded, "▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁", "----------------------------------------", ""]
        {
            check(text, Specials::Plain);
            check(text, Specials::Parse);
            check(&tokenizer.mark(text, MARK), Specials::ParseUnmarked(MARK));
        }
        for seed in 0..100 {
            let text = Random(seed).text(20);
            check(&text, Specials::Plain);
            check(&tokenizer.mark(&text, MARK), Specials::ParseUnmarked(MARK));
        }
        assert!(tokenizer.fewest_tokens(&"x".repeat(1 << 20), Specials::Parse) > 1 << 10, "{name}");
    }
}

#[test]
fn marked_texts_forge_no_control_token() {
    const MARK: char = '\u{FDD0}';
    for name in ["qwen2", "llama-spm", "phi-3"] {
        let tokenizer = tokenizer(name);
        let within = |text: &str| {
            let ids = tokenizer.encode(text, Specials::ParseUnmarked(MARK), Affixes::None).unwrap();
            assert!(!ids.iter().any(|&id| tokenizer.is_control(id)), "{name} {text:?}");
            ids
        };
        for seed in 0..300 {
            let text = Random(seed).text(20) + "<|im_<|im_end|>end|></s></</s><|end|>";
            assert_eq!(within(&tokenizer.mark(&text, MARK)), plain(&tokenizer, &text), "{name}, seed {seed}");
        }
    }
    let qwen = tokenizer("qwen2");
    let end = qwen.find("<|im_end|>").unwrap();
    let rendered = format!("a{}b<|im_end|>", qwen.mark("<|im_end|>", MARK));
    let ids = qwen.encode(&rendered, Specials::ParseUnmarked(MARK), Affixes::None).unwrap();
    assert_eq!(ids, [plain(&qwen, "a<|im_end|>b"), vec![end]].concat(), "the template's own is parsed");
}

#[test]
fn affixes_are_the_models_own() {
    let mut v = vocabulary("llama-spm");
    let encode =
        |v: &Vocabulary, text: &str| parsed(&Tokenizer::new(v.clone(), PretokenizerChoice::FromModel).unwrap(), text);
    assert_eq!(encode(&v, ""), [1]);
    assert_eq!(encode(&v, "Hello"), [1, 15043]);
    assert_eq!(encode(&v, "<s>Hello"), [1, 15043], "no second BOS");
    (v.add_bos, v.add_eos) = (Some(false), Some(true));
    assert_eq!(encode(&v, "Hello"), [15043, 2]);
    v.add_space_prefix = Some(false);
    assert_eq!(encode(&v, "Hello"), [10994, 2]);
    assert_eq!(parsed(&tokenizer("gpt-2"), "Hello"), [15496]);
}

#[test]
fn phi3_drops_white_space_after_special_tokens() {
    let phi3 = tokenizer("phi-3");
    assert_eq!(parsed(&phi3, "<|user|>\n Hi<|end|> "), parsed(&phi3, "<|user|>Hi<|end|>"));
}

#[test]
fn broken_vocabularies_are_refused() {
    type Spoil = fn(&mut Vocabulary);
    let cases: [(Spoil, &str); 12] = [
        (|v| v.model = "bert".to_owned(), "\"bert\" is not supported; known: gpt2, llama, gemma4"),
        (|v| v.pre = None, "tokenizer.ggml.pre is missing"),
        (|v| v.pre = Some("klingon".to_owned()), "\"klingon\" is not known; name another"),
        (|v| v.tokens.clear(), "has 0 tokens"),
        (|v| v.scores = vec![0.0], "scores has 1 entries for 50257 tokens"),
        (|v| v.scores = vec![f32::NAN; 50257], "scores[0] is not a number"),
        (|v| v.token_types.truncate(7), "token_type has 7 entries"),
        (|v| v.token_types[3] = 99, "token_type[3] is 99"),
        (|v| (v.add_eos, v.eos) = (Some(true), Some(50257)), "eos_token_id is 50257, but there are 50257 tokens"),
        (|v| (v.add_bos, v.bos) = (Some(true), None), "bos_token_id is missing"),
        (|v| v.merges[1] = "abc".to_owned(), "merges[1] \"abc\""),
        (|v| v.merges.clear(), "merges is missing"),
    ];
    let whole = vocabulary("gpt-2");
    for (spoil, message) in cases {
        let mut v = whole.clone();
        spoil(&mut v);
        let error = Tokenizer::new(v, PretokenizerChoice::FromModel).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn an_id_that_is_no_tokens_counts_as_not_given() {
    let mut v = vocabulary("gpt-2");
    let own = v.eos.unwrap();
    (v.eos, v.eot, v.eom, v.unknown, v.padding) = (Some(50257), Some(u32::MAX), Some(60000), Some(50257), Some(50257));
    let strayed = Tokenizer::new(v, PretokenizerChoice::FromModel).unwrap();
    assert_eq!(strayed.eos(), None);
    assert_eq!(strayed.ends_of_generation(), [own], "its text says so as well");
    let mut v = vocabulary("llama-spm");
    (v.bos, v.unknown) = (Some(32_000), Some(u32::MAX));
    let defaults = Tokenizer::new(v, PretokenizerChoice::FromModel).unwrap();
    assert_eq!(parsed(&defaults, "Hello"), [1, 15043], "SentencePiece's own ids hold");
}

#[test]
fn ids_of_any_width_and_sign_are_read() {
    let read = |id: Value| {
        let tokens: Strings = ["a", "b"].into_iter().collect();
        let writer = GgufWriter::new("llama")
            .set("tokenizer.ggml.model", "llama")
            .set("tokenizer.ggml.tokens", tokens)
            .set("tokenizer.ggml.padding_token_id", id);
        let gguf = Gguf::parse(&writer.header(), writer.file_bytes()).unwrap();
        Vocabulary::from_gguf(&gguf).map(|vocabulary| vocabulary.padding)
    };
    assert_eq!(read(1_u32.into()).unwrap(), Some(1));
    assert_eq!(read(1_i32.into()).unwrap(), Some(1));
    for stray in [Value::from(-1_i32), u32::MAX.into(), u64::MAX.into(), i64::MIN.into()] {
        assert_eq!(read(stray).unwrap(), Some(u32::MAX));
    }
    assert!(read("1".into()).unwrap_err().to_string().contains("padding_token_id"));
}

#[test]
fn a_text_that_is_not_utf_8_refuses_what_needs_it() {
    let torn = || Value::Bytes(b"\xff".to_vec());
    let tokens: Strings = ["<unk>", "<s>", "</s>", "a"].into_iter().collect();
    let writer = GgufWriter::new("llama")
        .set("general.name", torn())
        .set("tokenizer.ggml.model", "llama")
        .set("tokenizer.ggml.pre", torn())
        .set("tokenizer.ggml.tokens", tokens)
        .set("tokenizer.ggml.merges", torn())
        .set("tokenizer.chat_template", torn());
    let read =
        |writer: &GgufWriter| Gguf::parse(&writer.header(), writer.file_bytes()).map(|g| Vocabulary::from_gguf(&g));
    let vocabulary = read(&writer).unwrap().unwrap();
    let refused = ChatTemplate::from_vocabulary(&vocabulary).unwrap_err().to_string();
    assert_eq!(refused, "key \"tokenizer.chat_template\" should be a text, not a text of 1 bytes that is not UTF-8");
    Tokenizer::new(vocabulary, PretokenizerChoice::FromModel).unwrap();
    let refused = read(&writer.set("tokenizer.ggml.model", "gpt2")).unwrap().unwrap_err().to_string();
    assert!(refused.contains("tokenizer.ggml.merges"), "{refused}");
}

#[test]
fn odd_vocabularies_work() {
    let mut v = vocabulary("gpt-2");
    v.pre = Some("klingon".to_owned());
    v.merges.push("no token".to_owned());
    v.tokens[50000] = "Hello".to_owned();
    let odd = Tokenizer::new(v, PretokenizerChoice::Named("gpt-2")).unwrap();
    assert_eq!(plain(&odd, "Hello world"), [50000, 995], "of two tokens with one text the last is used");
}

#[test]
fn lines_of_characters_are_merged_in_order() {
    let tokens = ["<s>", "a", "b", "▁", "\n", "\n\n", "ab", "▁a", "▁ab", "<0xC3>", "<0xA9>", "</s>"];
    let mut token_types = vec![1; tokens.len()];
    (token_types[0], token_types[11]) = (3, 3);
    (token_types[9], token_types[10]) = (6, 6);
    let vocabulary = Vocabulary {
        model: "gemma4".to_owned(),
        tokens: tokens.map(str::to_owned).to_vec(),
        token_types,
        merges: ["a b", "▁ a", "▁ ab"].map(str::to_owned).to_vec(),
        bos: Some(0),
        eos: Some(11),
        add_bos: Some(false),
        ..Vocabulary::default()
    };
    let tokenizer = Tokenizer::new(vocabulary.clone(), PretokenizerChoice::FromModel).unwrap();
    // Two line ends are a token, three are not; é has no token but its bytes'.
    let ids = plain(&tokenizer, "ab ab  a\n\na\n\n\né");
    assert_eq!(ids, [6, 8, 3, 7, 5, 1, 4, 4, 4, 9, 10]);
    assert_eq!(tokenizer.decode(&ids, ControlTokens::Hide), "ab ab  a\n\na\n\n\né");
    assert_eq!(tokenizer.prefix(), Some(0), "there is a BOS, whatever the file says");
    let none = Tokenizer::new(Vocabulary { merges: vec![], ..vocabulary }, PretokenizerChoice::FromModel);
    assert!(matches!(none, Err(TokenizerError::MergesMissing)));
}
