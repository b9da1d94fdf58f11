//! Arguments between tags, in tokens that go across the tags' ends and where tags are tokens.

use super::*;

static PAIRS: Pairs = Pairs {
    key: ("<k>", "</k>"),
    value: ("<v>", "</v>"),
    end: "</call>",
    lines: Lines::Shared,
    types: Types::BySchema,
};

static LINES: Pairs = Pairs { key: ("<parameter=", ">"), value: ("", "</parameter>"), lines: Lines::Own, ..PAIRS };

fn compiled(compiler: &GrammarCompiler, pairs: &'static Pairs, schema: Value) -> Arc<CompiledGrammar> {
    let lead = Lead::new(vec![LeadPiece::Text("<call>".to_owned()), LeadPiece::Space], LeadPlace::Anywhere);
    let held =
        HeldCalls { calls: vec![(lead, HeldArguments::Tagged { pairs, schema })], marks: Vec::new(), thoughts: None };
    Arc::new(compiler.compile(&Grammar::held(held).unwrap()).unwrap())
}

#[test]
fn tokens_go_across_the_ends_of_tags() {
    let schema = json!({
        "properties": {"text": {"type": "string"}, "n": {"type": "integer"}, "word": {"enum": ["é", "b"]}},
        "required": ["text", "word"],
    });
    let call = "<call>\n<parameter=text>\nTwo\n</para\n> lines\n</parameter>\n<parameter=n>\n7\n</parameter>\n<parameter=word>\né\n\
                </parameter>\n</call>";
    for known in [&*QWEN2, &*SPM] {
        let grammar = compiled(&known.compiler, &LINES, schema.clone());
        let ids = known.tokenizer.encode(call, Specials::Plain, Affixes::None).unwrap();
        let mut walk = grammar.start();
        for (at, id) in ids.iter().enumerate() {
            if !walk.is_free() {
                // All but the last one, with which the text becomes free.
                let mut draft = ids[at..].to_vec();
                assert_eq!(walk.masks(&mut draft).unwrap().len(), ids.len() - at, "{call} is cut at {at}");
            }
            walk.advance(*id).unwrap();
        }
        assert!(walk.is_free());
    }
}

#[test]
fn tags_may_be_tokens() {
    // Each token is a byte, but for the last five.
    let names = ["<k>", "</k>", "<v>", "</v>", "<end>"];
    let (bytes, tags) = ((0..=255_u8).map(|byte| vec![byte]), names.map(|_| Vec::new()));
    let controls: Vec<(String, u32)> = names.iter().zip(256..).map(|(name, id)| ((*name).to_owned(), id)).collect();
    let compiler =
        GrammarCompiler::of_tokens(bytes.chain(tags).collect(), controls.clone(), &Arc::from([260])).unwrap();
    let ids = |mut text: &str| {
        let mut ids = Vec::new();
        while let Some(first) = text.bytes().next() {
            let control = controls.iter().find(|(name, _)| text.starts_with(name.as_str()));
            ids.push(control.map_or(u32::from(first), |(_, id)| *id));
            text = &text[control.map_or(1, |(name, _)| name.len())..];
        }
        ids
    };
    let schema =
        |least: usize| json!({"properties": {"a": {"type": "string", "minLength": least}, "b": {}}, "required": ["a"]});
    let any = json!({"properties": {"a": {"type": "string", "maxLength": 4}, "b": {}}, "required": ["a"]});
    let takes = |schema: Value, text: &str| {
        let mut walk = compiled(&compiler, &PAIRS, schema).start();
        ids("<call>").iter().for_each(|id| walk.advance(*id).unwrap());
        assert!(!walk.is_free());
        ids(text).iter().all(|id| walk.advance(*id).is_ok()) && walk.is_free()
    };
    for (text, fits) in [
        ("<k>a</k><v>x\n</</v></call>", true),
        ("\n<k>a</k>\n<v></v>\n<k>b</k><v>[1]</v></call>", true),
        ("<k>a</k><v>longer</v></call>", false),
        ("<k>b</k><v>1</v></call>", false),
    ] {
        assert_eq!(takes(any.clone(), text), fits, "{text}");
    }
    assert!(takes(schema(1), "<k>a</k><v>x</v></call>") && !takes(schema(1), "<k>a</k><v></v></call>"));
    let spelled = |text: &str| text.bytes().map(u32::from).collect::<Vec<_>>();
    let mut walk = compiled(&compiler, &PAIRS, schema(1)).start();
    ids("<call><k>a</k><v>x").iter().for_each(|id| walk.advance(*id).unwrap());
    let spelled = spelled("</v>");
    assert!(spelled[..3].iter().all(|id| walk.advance(*id).is_ok()), "it may be part of the text");
    assert!(walk.advance(spelled[3]).is_err(), "whoever reads the text would take it for the end");
}
