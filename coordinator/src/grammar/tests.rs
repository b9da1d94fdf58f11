//! Grammars over real vocabularies: random texts along masks keep to them, and what cannot be followed is refused.

mod held;
mod tagged;

use std::{
    fs::File,
    io::Read,
    sync::{Arc, LazyLock},
    time::Instant,
};

use flate2::read::GzDecoder;
use qmesh_models::{
    gguf::Gguf,
    tokenizer::{Affixes, ControlTokens, PretokenizerChoice, Specials, Tokenizer, Vocabulary},
};

use super::{fifty, *};

/// A vocabulary and its compiler.
struct Known {
    tokenizer: Tokenizer,
    compiler: GrammarCompiler,
    ends: Arc<[u32]>,
}

/// Byte-level, of 152 thousand tokens.
static QWEN2: LazyLock<Known> = LazyLock::new(|| known("qwen2"));
/// SentencePiece.
static SPM: LazyLock<Known> = LazyLock::new(|| known("llama-spm"));

fn known(name: &str) -> Known {
    let path = format!("{}/../tests/golden/vocab/ggml-vocab-{name}.gguf.gz", env!("CARGO_MANIFEST_DIR"));
    let mut bytes = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut bytes).unwrap();
    let gguf = Gguf::parse(&bytes, bytes.len() as u64).unwrap();
    let vocabulary = Vocabulary::from_gguf(&gguf).unwrap();
    let tokenizer = Tokenizer::new(vocabulary, PretokenizerChoice::FromModel).unwrap();
    let ends: Arc<[u32]> = tokenizer.ends_of_generation().into();
    let began = Instant::now();
    let compiler = GrammarCompiler::new(&tokenizer, &ends).unwrap();
    println!("{name}: {} tokens sorted in {:?}", tokenizer.vocab_len(), began.elapsed());
    Known { tokenizer, compiler, ends }
}

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % most
    }
}

impl Known {
    /// A text of a model that knows nothing, and whether it came to its end. Drafts of what it said last are tried at every
    /// place, and must change nothing.
    fn ramble(&self, grammar: &CompiledGrammar, seed: u64, most: usize) -> (String, bool) {
        let (mut walk, mut random, mut ids) = (grammar.start(), Random(seed), Vec::new());
        let vocabulary = self.tokenizer.vocab_len() as u32;
        while ids.len() < most {
            let mut draft: Vec<u32> = ids.iter().rev().take(3).rev().copied().collect();
            draft.push(random.below(vocabulary as usize) as u32);
            let masks = walk.masks(&mut draft).unwrap();
            assert_eq!((masks.len(), &masks[0]), (draft.len() + 1, &walk.mask().unwrap()), "back where it was");
            let allowed: Vec<u32> = (0..vocabulary).filter(|id| masks[0].allows(*id)).collect();
            let ends = allowed.iter().find(|id| self.ends.contains(id));
            // Short ones are as likely as long ones, so that texts come to their ends.
            let drawn = (0..4).map(|_| allowed[random.below(allowed.len())]);
            let drawn = drawn.min_by_key(|id| self.tokenizer.bytes(*id).len()).unwrap();
            let token = ends.copied().filter(|_| random.below(2) == 0).unwrap_or(drawn);
            walk.advance(token).unwrap();
            if self.ends.contains(&token) {
                return (self.tokenizer.decode(&ids, ControlTokens::Hide), true);
            }
            ids.push(token);
        }
        (self.tokenizer.decode(&ids, ControlTokens::Hide), false)
    }
}

fn order() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "id": {"type": "integer", "minimum": 1, "maximum": 99},
            "paid": {"type": "boolean"},
            "note": {"type": ["string", "null"], "maxLength": 6},
            "lines": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/line"}}
        },
        "required": ["id", "paid", "note", "lines"],
        "additionalProperties": false,
        "$defs": {"line": {
            "type": "object",
            "properties": {"kind": {"enum": ["ä\"", "b"]}, "price": {"type": "number", "minimum": 0, "maximum": 10}},
            "required": ["kind"],
            "additionalProperties": false
        }}
    })
}

/// What the schema says, by hand.
fn is_order(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let keys: Vec<_> = value.as_object().into_iter().flatten().map(|(key, _)| key.as_str()).collect();
    let lines = value["lines"].as_array().cloned().unwrap_or_default();
    let is_line = |line: &Value| {
        let within = line.get("price").is_none_or(|price| price.as_f64().is_some_and(|p| (0.0..=10.0).contains(&p)));
        within && ["ä\"", "b"].map(Value::from).contains(&line["kind"])
    };
    keys == ["id", "paid", "note", "lines"]
        && value["id"].as_i64().is_some_and(|id| (1..=99).contains(&id))
        && value["paid"].is_boolean()
        && (value["note"].is_null() || value["note"].as_str().is_some_and(|note| note.chars().count() <= 6))
        && (1..=2).contains(&lines.len())
        && lines.iter().all(is_line)
}

#[test]
fn random_texts_satisfy_their_schema() {
    for known in [&*QWEN2, &*SPM] {
        let grammar = known.compiler.compile(&Grammar::json_schema(&order()).unwrap()).unwrap();
        for seed in 0..4 {
            let (text, ended) = known.ramble(&grammar, seed, 400);
            assert!(ended && is_order(&text), "{seed}: {text}");
            assert!(!text.contains("  \n") && !text.contains("\n\n"), "white space without end: {text}");
        }
    }
}

#[test]
fn json_objects_are_objects() {
    let grammar = QWEN2.compiler.compile(&Grammar::json_object()).unwrap();
    for seed in 0..3 {
        let (text, whole) = QWEN2.ramble(&grammar, seed, 40);
        assert!(text.starts_with('{') && (!whole || serde_json::from_str::<Value>(&text).is_ok()), "{text}");
    }
    for (text, fits) in [
        ("{}", true),
        ("{\"a\": [1, {\"ä\\n\": null}], \"b\":-0.5e3}", true),
        ("{\n  \"a\": true\n}", true),
        ("[1]", false),
        ("{\"a\":  true}", false),
        ("{\"a\": True}", false),
    ] {
        let ids = QWEN2.tokenizer.encode(text, Specials::Plain, Affixes::None).unwrap();
        let mut walk = grammar.start();
        let taken = ids.iter().all(|id| walk.advance(*id).is_ok());
        assert_eq!(taken && QWEN2.ends.iter().all(|end| walk.mask().unwrap().allows(*end)), fits, "{text}");
    }
    let any = QWEN2.compiler.compile(&Grammar::json_schema(&Value::Bool(true)).unwrap()).unwrap();
    assert!(
        ["[", "\"", "n", "7"].iter().all(|text| any
            .start()
            .mask()
            .unwrap()
            .allows(QWEN2.tokenizer.find(text).unwrap()))
    );
}

#[test]
fn a_call_of_a_tool_has_its_tags_around_it() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"], "additionalProperties": false});
    let tagged = Grammar::tagged("<|im_start|>\n<tool_call>", &schema, "\n</tool_call><|im_start|>").unwrap();
    let grammar = QWEN2.compiler.compile(&tagged).unwrap();
    let control = QWEN2.tokenizer.find("<|im_start|>").unwrap();
    assert!(QWEN2.tokenizer.is_control(control) && !QWEN2.ends.contains(&control));
    for call in ["{\"a\":true}", "{\"a\": false}"] {
        for specials in [Specials::Parse, Specials::Plain] {
            let text = format!("<|im_start|>\n<tool_call>{call}\n</tool_call><|im_start|>");
            let ids = QWEN2.tokenizer.encode(&text, specials, Affixes::None).unwrap();
            assert_eq!(ids.contains(&control), specials == Specials::Parse);
            let mut walk = grammar.start();
            for (at, id) in ids.iter().enumerate() {
                let mut draft = ids[at..].to_vec();
                assert_eq!(walk.masks(&mut draft).unwrap().len(), ids.len() - at + 1, "{text} is cut at {at}");
                walk.advance(*id).unwrap();
            }
            let mask = walk.mask().unwrap();
            assert!(QWEN2.ends.iter().all(|end| mask.allows(*end)) && !mask.allows(ids[0]));
        }
    }
    let refused = grammar.start().advance(QWEN2.tokenizer.find("{").unwrap());
    assert!(matches!(refused, Err(GrammarError::Lost { .. })));
}

#[test]
fn an_answer_in_a_form_may_be_a_call_instead() {
    let object = |name: &str| json!({"type": "object", "properties": {name: {"type": "boolean"}}, "required": [name]});
    let call = |name| Grammar::tagged("<call>", &object(name), "</call>").unwrap();
    let either = Grammar::json_schema(&object("a")).unwrap().or(vec![call("b"), call("c")]).unwrap();
    let grammar = QWEN2.compiler.compile(&either).unwrap();
    let fits = |text: &str| {
        let ids = QWEN2.tokenizer.encode(text, Specials::Plain, Affixes::None).unwrap();
        let mut walk = grammar.start();
        ids.iter().all(|id| walk.advance(*id).is_ok()) && QWEN2.ends.iter().any(|end| walk.mask().unwrap().allows(*end))
    };
    for text in ["{\"a\": true}", "<call>{\"b\": true}</call>", "<call>{\"c\":false}</call>"] {
        assert!(fits(text), "{text}");
    }
    for text in ["{\"b\": true}", "<call>{\"a\": true}</call>", "<call>{\"b\": true}"] {
        assert!(!fits(text), "{text}");
    }
    let regex = Grammar::regex("a").unwrap().or(vec![call("b")]);
    assert!(matches!(regex, Err(GrammarError::Refused { .. })), "{regex:?}");
}

#[test]
fn an_answer_has_its_form_behind_thoughts() {
    let object = json!({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]});
    let (json, tagged) =
        (Grammar::json_schema(&object).unwrap(), Grammar::tagged("<call>", &object, "</call>").unwrap());
    let control = QWEN2.tokenizer.find("<|im_start|>").unwrap();
    for (end, specials) in [("</think>", Specials::Plain), ("<|im_start|>", Specials::Parse)] {
        for (form, answer, other) in [
            (json.clone(), "{\"a\": true}", "{\"b\": true}"),
            (json.clone().or(vec![tagged.clone()]).unwrap(), "<call>{\"a\":false}</call>", "<call>{\"a\":1}</call>"),
            (Grammar::regex("[a-c]+/\"").unwrap(), "abc/\"", "abd/\""),
            (Grammar::choice(&["yes", "no"]).unwrap(), "no", "maybe"),
            (Grammar::gbnf("root ::= \"n\" [0-9]+ \".\"").unwrap(), "n12.", "n."),
        ] {
            let grammar = QWEN2.compiler.compile(&form.behind(end)).unwrap();
            let fits = |text: &str| {
                let ids = QWEN2.tokenizer.encode(text, specials, Affixes::None).unwrap();
                assert_eq!(ids.contains(&control), specials == Specials::Parse && text.contains(end));
                let mut walk = grammar.start();
                for (at, id) in ids.iter().enumerate() {
                    // Drafts are followed, or left out where they cannot be.
                    let mut draft = ids[at..].to_vec();
                    let masks = walk.masks(&mut draft).unwrap();
                    assert_eq!((masks.len(), &masks[0]), (draft.len() + 1, &walk.mask().unwrap()));
                    if walk.advance(*id).is_err() {
                        return false;
                    }
                }
                QWEN2.ends.iter().all(|end| walk.mask().unwrap().allows(*end))
            };
            for thoughts in ["", "Is {\"a\": 1} < 2?\n\nä</thin", "So:\n"] {
                for breaks in ["", "\n", "\n\n"] {
                    let text = format!("{thoughts}{end}{breaks}{answer}");
                    assert!(fits(&text), "{text}");
                }
                for text in [answer.to_owned(), format!("{thoughts}{end}{other}"), format!("{thoughts}{end}")] {
                    assert!(!fits(&text), "{text}");
                }
            }
        }
    }
}

#[test]
fn expressions_choices_and_rules_are_followed() {
    let json = "root ::= object\nvalue ::= object | array | string | number | (\"true\" | \"false\" | \"null\") ws\n\
        object ::= \"{\" ws ( string \":\" ws value (\",\" ws string \":\" ws value)* )? \"}\" ws\n\
        array ::= \"[\" ws ( value (\",\" ws value)* )? \"]\" ws\n\
        string ::= \"\\\"\" ( [^\"\\\\\\x7F\\x00-\\x1F] | \"\\\\\" ([\"\\\\bfnrt] | \"u\" [0-9a-fA-F]{4}) )* \"\\\"\" ws\n\
        number ::= (\"-\"? ([0-9] | [1-9] [0-9]{0,15})) (\".\" [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws\n\
        ws ::= | \" \" | \"\\n\" [ \\t]{0,20}\n";
    let is_json = |text: &str| serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    type Fits = fn(&str) -> bool;
    let forms: [(Result<Grammar, GrammarError>, Fits); 4] = [
        (Grammar::regex(r"^[0-9]{2}-(ja|ß)\$$"), |text| {
            text.len() > 5 && text.as_bytes()[2] == b'-' && (text.ends_with("ja$") || text.ends_with("ß$"))
        }),
        (Grammar::choice(&["one", "one two", "\n\"q\" 语"]), |text| ["one", "one two", "\n\"q\" 语"].contains(&text)),
        (Grammar::lark("start: a+ \"!\"\na: \"x\" /[0-3]/"), |text| text.starts_with('x') && text.ends_with('!')),
        (Grammar::gbnf("root ::= \"a\" (b | \"c\") \"d\"?\nb ::= [x-z]+ \"b\""), |text| {
            text == "ac" || text == "acd" || (text.starts_with('a') && text.trim_end_matches('d').ends_with('b'))
        }),
    ];
    for known in [&*QWEN2, &*SPM] {
        for (grammar, fits) in &forms {
            let grammar = known.compiler.compile(grammar.as_ref().unwrap()).unwrap();
            for seed in 0..3 {
                let (text, ended) = known.ramble(&grammar, seed, 200);
                assert!(!ended || fits(&text), "{text:?}");
            }
        }
        let grammar = known.compiler.compile(&Grammar::gbnf(json).unwrap()).unwrap();
        for seed in 0..3 {
            let (text, ended) = known.ramble(&grammar, seed, 80);
            assert!(!ended || is_json(&text), "{text:?}");
        }
    }
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let compile = |grammar: Result<Grammar, GrammarError>| match grammar
        .clone()
        .and_then(|grammar| QWEN2.compiler.compile(&grammar))
    {
        Err(GrammarError::Refused { text }) => text,
        Err(other) => panic!("{grammar:?}: {other}"),
        Ok(_) => panic!("{grammar:?} is taken"),
    };
    let schema = |schema: Value| compile(Grammar::json_schema(&schema));
    // More members that may be left out than can be kept in mind.
    let members: serde_json::Map<_, _> = (0..3000).map(|i| (format!("p{i}"), json!({"type": "null"}))).collect();
    let wide = json!({"type": "object", "properties": members});
    for (text, said) in [
        (schema(json!({"type": "what"})), "what"),
        (schema(json!({"type": "object", "required": ["a"], "additionalProperties": false})), ""),
        (schema(json!({"$ref": "https://example.com/else.json"})), ""),
        (schema(json!({"type": "string", "not": {"const": "a"}})), "not"),
        (schema(json!([1])), "a schema is an object"),
        (schema(Value::Bool(false)), "a schema is an object"),
        (compile(Grammar::regex("(a")), ""),
        (compile(Grammar::regex("a(?=b)")), ""),
        (compile(Grammar::lark("start: b")), "unknown name"),
        (compile(Grammar::choice::<&str>(&[])), "nothing to choose"),
        (compile(Grammar::json_schema(&wide)), "items"),
    ] {
        assert!(text.contains(said) && text.len() < 2000, "{text}");
    }
    assert!(matches!(Grammar::regex(&"x".repeat(BYTES + 1)), Err(GrammarError::TooLong { .. })));
    let nobody: Arc<[u32]> = Arc::new([]);
    assert_eq!(GrammarCompiler::new(&QWEN2.tokenizer, &nobody).unwrap_err(), GrammarError::NoEnd);
}

#[test]
fn nesting_costs_no_stack_of_others() {
    let deep = |n: usize| format!("start: {}\"a\"{}", "(".repeat(n), ")".repeat(n));
    let chain: String = (0..8000).map(|i| format!("a{i}: a{}\n", i + 1)).collect();
    let chain = format!("start: a0\n{chain}a8000: \"x\"\n");
    let not = format!("start: A\nA: {}/a/", "~".repeat(20_000));
    for lark in [deep(20_000), chain, not, format!("start: /{}a{}/", "(".repeat(5000), ")".repeat(5000)), {
        "start: /((((a{500}){500}){500}){500}){500}/".to_owned()
    }] {
        // Whether it is taken does not matter.
        drop(QWEN2.compiler.compile(&Grammar::lark(&lark).unwrap()));
    }
    let mut schema = json!({"type": "null"});
    (0..100).for_each(|_| schema = json!({"type": "array", "items": schema.take(), "minItems": 1}));
    let grammar = QWEN2.compiler.compile(&Grammar::json_schema(&schema).unwrap()).unwrap();
    let mut walk = grammar.start();
    let open = QWEN2.tokenizer.find("[").unwrap();
    (0..100).for_each(|_| walk.advance(open).unwrap());
    assert!(walk.mask().unwrap().allows(QWEN2.tokenizer.find("n").unwrap()));
    let many: Vec<String> = (0..8000).map(|i| format!("{}.", i * 7919)).collect();
    let mut walk = QWEN2.compiler.compile(&Grammar::choice(&many).unwrap()).unwrap().start();
    let said = QWEN2.tokenizer.encode("7919.", Specials::Plain, Affixes::None).unwrap();
    said.iter().for_each(|id| walk.advance(*id).unwrap());
    assert!(walk.mask().unwrap().allows(QWEN2.ends[0]));
    for (texts, empty) in [(&["", "a"][..], true), (&[""], true), (&["a"], false)] {
        let mask = QWEN2.compiler.compile(&Grammar::choice(texts).unwrap()).unwrap().start().mask().unwrap();
        let a = QWEN2.tokenizer.find("a").unwrap();
        assert_eq!((mask.allows(QWEN2.ends[0]), mask.allows(a)), (empty, texts.contains(&"a")), "{texts:?}");
    }
    let long: Vec<String> = (0..200).map(|i| format!("{i}{}", "lang".repeat(200))).collect();
    drop(QWEN2.compiler.compile(&Grammar::choice(&long).unwrap()).unwrap().start().mask().unwrap());
}

#[test]
fn ends_are_allowed_where_the_text_is_complete_and_alone_where_it_must_end() {
    let grammar = fifty::grammar("[0-4]{2}5?");
    let mut walk = grammar.start();
    let allowed = |walk: &mut GrammarWalk| {
        let mask = walk.mask().unwrap();
        (0..50).filter(|id| mask.allows(*id)).collect::<Vec<u32>>()
    };
    assert_eq!(allowed(&mut walk), [0, 1, 2, 3, 4]);
    let mut draft = vec![1, 2, 5, 7];
    assert_eq!((walk.masks(&mut draft).unwrap().len(), draft), (4, vec![1, 2, 5]));
    let mut draft = vec![1, 2, fifty::END];
    assert_eq!((walk.masks(&mut draft).unwrap().len(), draft), (3, vec![1, 2]));
    assert!(walk.advance(fifty::END).is_err() && walk.advance(7).is_err(), "neither may follow");
    walk.advance(3).unwrap();
    walk.advance(4).unwrap();
    assert_eq!(allowed(&mut walk), [5, fifty::END]);
    walk.advance(5).unwrap();
    assert_eq!(allowed(&mut walk), [fifty::END]);
    walk.advance(fifty::END).unwrap();
    assert!(walk.mask().is_err() && walk.advance(fifty::END).is_err(), "it is over");
    assert_eq!(allowed(&mut grammar.start()), [0, 1, 2, 3, 4], "walks are apart");
}

/// Prints how long masks take: `cargo test -p qmesh-coordinator --lib times -- --nocapture`.
#[test]
fn times_of_masks_are_bounded() {
    let began = Instant::now();
    let compiled = QWEN2.compiler.compile(&Grammar::json_schema(&order()).unwrap()).unwrap();
    let compile = began.elapsed();
    let object = QWEN2.compiler.compile(&Grammar::json_object()).unwrap();
    let mut times = Vec::new();
    for (grammar, seeds) in [(&compiled, 0..4), (&object, 4..8)] {
        for seed in seeds {
            let (mut walk, mut random) = (grammar.start(), Random(seed));
            for _ in 0..80 {
                let began = Instant::now();
                let mask = walk.mask().unwrap();
                times.push(began.elapsed());
                let start = random.below(151_000) as u32;
                let token = (start..151_000).chain(0..start).find(|id| mask.allows(*id));
                let Some(token) = token.filter(|token| !QWEN2.ends.contains(token)) else { break };
                walk.advance(token).unwrap();
            }
        }
    }
    let began = Instant::now();
    drop(compiled.start());
    println!("a walk begins in {:?}", began.elapsed());
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!(
        "compiled in {compile:?}; {} masks: p50 {p50:?}, p99 {p99:?}, most {:?}",
        times.len(),
        times[times.len() - 1]
    );
    assert!(p50.as_millis() < 50, "{p50:?}");
}

#[test]
fn objects_have_the_members_that_their_schema_names() {
    let closed = |schema: Value| {
        let Grammar(Form::Json(mut schema)) = Grammar::json_schema(&schema).unwrap() else { panic!("a schema") };
        schema.as_object_mut().unwrap().remove("x-guidance");
        schema
    };
    let open = json!({"properties": {"a": {"properties": {"properties": {"type": "string"}}}}, "type": "object"});
    let inner = json!({"properties": {"properties": {"type": "string"}}, "additionalProperties": false});
    assert_eq!(closed(open), json!({"properties": {"a": inner}, "type": "object", "additionalProperties": false}));
    for as_it_is in [
        json!({"type": "object"}),
        json!({"properties": {"a": {}}, "additionalProperties": {"type": "string"}}),
        json!({"properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}),
        json!({"properties": {"a": {}}, "$ref": "#/$defs/b"}),
        json!({"enum": [{"properties": {}}], "default": {"properties": {}}}),
    ] {
        assert_eq!(closed(as_it_is.clone()), as_it_is);
    }
}
