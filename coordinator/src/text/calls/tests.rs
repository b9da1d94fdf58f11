//! Every format, whole and cut at every place.

use serde_json::{Value, json};

use super::{super::part::AnswerPart, *};

fn tools() -> Arc<Tools> {
    let properties = json!({
        "city": {"type": "string"}, "days": {"type": "integer"}, "code": {"type": "string"},
        "units": {"type": "array"},
    });
    let weather = json!({"name": "weather", "parameters": {"type": "object", "properties": properties}});
    Arc::new(Tools::new(&[
        json!({"type": "function", "function": weather}),
        json!({"type": "function", "function": {"name": "now"}}),
    ]))
}

fn reader(template: &str, silent: &[&'static str]) -> Calls {
    Calls::new(Format::of_template(template), tools(), silent.to_vec(), |index| format!("id{index}"))
}

/// What comes of pieces of text.
fn read<'t>(mut calls: Calls, pieces: impl IntoIterator<Item = &'t str>) -> Vec<AnswerPart> {
    let mut parts = Vec::new();
    pieces.into_iter().for_each(|piece| calls.push(piece, &mut parts));
    calls.finish(&mut parts);
    parts
}

/// What comes of a text, which must not depend on where it is cut.
fn parts(calls: &Calls, text: &str) -> Vec<AnswerPart> {
    let whole = read(calls.clone(), [text]);
    for cut in text.char_indices().map(|(at, _)| at) {
        let (one, two) = text.split_at(cut);
        assert_eq!(read(calls.clone(), [one, two]), whole, "{one:?} {two:?}");
    }
    let mut each = [0; 4];
    let mut single = calls.clone();
    let mut out = Vec::new();
    text.chars().for_each(|one| single.push(one.encode_utf8(&mut each), &mut out));
    single.finish(&mut out);
    assert_eq!(out, whole, "{text:?} by characters");
    whole
}

fn content(text: &str) -> Vec<AnswerPart> {
    vec![AnswerPart::Content(text.to_owned())]
}

/// A call that is complete.
fn call(index: usize, name: &str, arguments: &str) -> Vec<AnswerPart> {
    let begun = CallEvent::Begun { index, id: format!("id{index}"), name: name.to_owned() };
    let events = [begun, CallEvent::Arguments { index, text: arguments.to_owned() }, CallEvent::Ended { index }];
    events.into_iter().map(AnswerPart::Call).collect()
}

const HERMES: &str = "<tool_call>";
const LLAMA: &str = "<|start_header_id|> \"parameters\"";
const CODER: &str = "<tool_call><function=f><parameter=p>";
const DEEPSEEK: &str = "<｜tool▁calls▁begin｜>";
const MINIMAX: &str = "<minimax:tool_call>";
const DSML: &str = "｜DSML｜ function_calls";
const GEMMA: &str = "<|tool_call>call:";
const COHERE: &str = "<|START_ACTION|>";

#[test]
fn one_call_in_each_format() {
    let paris = r#"{"city": "Zürich 🙂", "days": 2}"#;
    for (template, written) in [
        (HERMES, format!("<tool_call>\n{{\"name\": \"weather\", \"arguments\": {paris}}}\n</tool_call>")),
        (HERMES, format!("\n<tool_call>{{\"arguments\": {paris}, \"name\": \"weather\"}}</tool_call>\n")),
        (HERMES, format!("{{\"name\": \"weather\", \"arguments\": {paris}}}")),
        (HERMES, format!("```json\n{{\"name\": \"weather\", \"arguments\": {paris}}}\n```")),
        (HERMES, format!("```tool_call\n{{\"name\": \"weather\", \"arguments\": {paris}}}\n```\n")),
        (HERMES, format!("<tools>\n{{\"name\": \"weather\", \"arguments\": {paris}}}\n</tools>")),
        ("", format!("<tool_call>[{{\"name\": \"weather\", \"arguments\": {paris}}}]</tool_call>")),
        (LLAMA, format!("{{\"name\": \"weather\", \"parameters\": {paris}}}")),
        (LLAMA, format!(" {{\"type\": \"function\", \"name\": \"weather\", \"parameters\": {paris}}}")),
        (LLAMA, format!("<|python_tag|>{{\"name\": \"weather\", \"parameters\": {paris}, \"x\": [1]}}")),
        (HERMES, format!("<tool_call>{{\"type\": \"function\", \"function\": {{\"name\": \"weather\", \"arguments\": {paris}}}}}</tool_call>")),
        ("[TOOL_CALLS]", format!("[TOOL_CALLS][{{\"name\": \"weather\", \"arguments\": {paris}, \"id\": \"a12345678\"}}]")),
        ("[TOOL_CALLS][ARGS]", format!("[TOOL_CALLS]weather[ARGS]{paris}")),
        ("[TOOL_CALLS][ARGS]", format!("[TOOL_CALLS]weather[CALL_ID]a12345678[ARGS]{paris}")),
        (DEEPSEEK, format!("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{paris}<｜tool▁call▁end｜><｜tool▁calls▁end｜>")),
        ("<｜tool▁calls▁begin｜> ```json", format!("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{paris}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>")),
        ("<|tool_calls_section_begin|>", format!("<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{paris}<|tool_call_end|><|tool_calls_section_end|>")),
        ("<|tool_call|>", format!("<|tool_call|>[{{\"name\": \"weather\", \"arguments\": {paris}}}]")),
        ("<|/tool|>", format!("<|tool_call|>[{{\"name\": \"weather\", \"arguments\": {paris}}}]<|/tool_call|>")),
        ("<arg_key>", "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Zürich 🙂</arg_value>\n<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>".to_owned()),
        (CODER, "<tool_call>\n<function=weather>\n<parameter=city>\nZürich 🙂\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>".to_owned()),
        (CODER, "<function=weather><parameter=city>Zürich 🙂</parameter><parameter=days>2</parameter></function>".to_owned()),
        (MINIMAX, "<minimax:tool_call>\n<invoke name=\"weather\">\n<parameter name=\"city\">Zürich 🙂</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n</minimax:tool_call>".to_owned()),
        (DSML, "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Zürich 🙂</｜DSML｜parameter>\n<｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>".to_owned()),
        (GEMMA, "<|tool_call>call:weather{city:<|\"|>Zürich 🙂<|\"|>,days:2}<tool_call|>".to_owned()),
        (GEMMA, "<|tool_call>call:weather{ <|\"|>city<|\"|> : <|\"|>Zürich 🙂<|\"|>, days: 2 }<tool_call|>".to_owned()),
        (COHERE, format!("<|START_ACTION|>[\n    {{\"tool_call_id\": \"0\", \"tool_name\": \"weather\", \"parameters\": {paris}}}\n]<|END_ACTION|>")),
    ] {
        assert_eq!(parts(&reader(template, &[]), &written), call(0, "weather", paris), "{written}");
    }
}

#[test]
fn several_calls_and_text_around_them() {
    for (template, written, before, after) in [
        (
            HERMES,
            "I look.\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call> Done.",
            "I look.",
            "Done.",
        ),
        (HERMES, "<tool_call>[{\"name\": \"now\"}, {\"name\": \"now\", \"arguments\": null}]</tool_call>", "", ""),
        (HERMES, "<tool_call>{\"name\": \"now\"}\n{\"name\": \"now\", \"arguments\": \"{}\"}", "", ""),
        (LLAMA, "{\"name\": \"now\", \"parameters\": {}}; {\"name\": \"now\", \"parameters\": {}}", "", ""),
        (
            "[TOOL_CALLS]",
            "Yes.[TOOL_CALLS][{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\", \"arguments\": {}}]",
            "Yes.",
            "",
        ),
        ("[TOOL_CALLS][ARGS]", "[TOOL_CALLS]now[ARGS]{}[TOOL_CALLS]now{}", "", ""),
        (
            DEEPSEEK,
            "Well.\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "Well.",
            "",
        ),
        (
            "<|tool_calls_section_begin|>",
            "<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_call_begin|>functions.now:1<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
            "",
            "",
        ),
        ("<|tool_call|>", "<|tool_call|>[{\"name\": \"now\"},{\"name\": \"now\"}]", "", ""),
        (
            MINIMAX,
            "So:\n<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n<invoke name=\"now\"></invoke>\n</minimax:tool_call>",
            "So:",
            "",
        ),
        (
            DSML,
            "<｜DSML｜function_calls><｜DSML｜invoke name=\"now\"></｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke></｜DSML｜function_calls>",
            "",
            "",
        ),
        (GEMMA, "Yes.<|tool_call>call:now{}<tool_call|><|tool_call>call:now{ }<tool_call|>", "Yes.", ""),
        (
            COHERE,
            "<|START_ACTION|>[{\"tool_name\": \"now\", \"parameters\": {}},\n{\"tool_call_id\": \"1\", \"tool_name\": \"now\"}]<|END_ACTION|>",
            "",
            "",
        ),
        ("<arg_key>", "So:\n<tool_call>now\n</tool_call>\n<tool_call>now</tool_call>\nEnd", "So:", "End"),
        (
            CODER,
            "<tool_call><function=now></function></tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
            "",
            "",
        ),
    ] {
        let mut wanted = if before.is_empty() { vec![] } else { content(before) };
        wanted.extend([call(0, "now", "{}"), call(1, "now", "{}")].concat());
        wanted.extend(if after.is_empty() { vec![] } else { content(after) });
        assert_eq!(parts(&reader(template, &[]), written), wanted, "{written}");
    }
}

#[test]
fn what_is_no_call_is_text() {
    for (template, text) in [
        (HERMES, "<tool_call> is the mark, </tool_call> ends it"),
        (HERMES, "<tool_call>{\"name\": 3}</tool_call>"),
        (HERMES, "<tool_call>{\"arguments\": {}}</tool_call>"),
        (HERMES, "<tool_call>{\"name\": \"now\", \"arguments\": [1]}</tool_call>"),
        (HERMES, "<tool_call>{}"),
        (HERMES, "<tool_call>\n{\"name\": \"no"),
        (HERMES, "a < b <tool_"),
        (HERMES, "{\"name\": \"other\", \"arguments\": {}}"),
        (HERMES, "{\"city\": {\"name\": \"now\"}}"),
        (HERMES, "```json\n{\"a\": 1}\n```"),
        (HERMES, "```rust\nfn main() {}\n```\n"),
        (HERMES, "Like {\"name\": \"now\", \"arguments\": {}}"),
        (HERMES, "[1, 2, 3]"),
        (HERMES, "[{\"a\""),
        (HERMES, " \n"),
        (HERMES, ""),
        (LLAMA, "{\"name\": \"Paris\", \"parameters\": {\"a\": 1}}"),
        ("[TOOL_CALLS]", "[TOOL_CALLS] two words"),
        ("[TOOL_CALLS]", "[TOOL_CALLS][[TOOL_CALLS]"),
        (DEEPSEEK, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>none<｜tool▁call▁end｜>"),
        (DEEPSEEK, "{\"name\": \"now\", \"arguments\": {}}"),
        ("<arg_key>", "<tool_call>now it is</tool_call>"),
        (MINIMAX, "<minimax:tool_call> is the mark"),
        (MINIMAX, "<minimax:tool_call><invoke name=now>"),
        (DSML, "<｜DSML｜function_calls><invoke name=\"now\"></invoke>"),
        (GEMMA, "<|tool_call>now{}<tool_call|>"),
        (GEMMA, "<|tool_call>call:now{a:1"),
        (GEMMA, "<|tool_call>call:now{a}"),
        (COHERE, "<|START_ACTION|>[{\"parameters\": {}}]"),
        (CODER, "<function=now"),
        (CODER, "<function=two words></function>"),
    ] {
        let wanted = if text.is_empty() { vec![] } else { content(text) };
        assert_eq!(parts(&reader(template, &[]), text), wanted, "{text}");
    }
}

#[test]
fn what_breaks_off_in_its_arguments_stays_a_call() {
    // As far as they came, where the answer was cut off.
    let cut = parts(&reader(HERMES, &[]), "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": [1, ");
    assert_eq!(cut, call(0, "now", "{\"a\": [1, "));
    // What is no JSON any more is text again.
    let broken = parts(&reader(HERMES, &[]), "<tool_call>{\"name\": \"now\", \"arguments\": {\"a\": oh no");
    assert_eq!(broken, [call(0, "now", "{\"a\": "), content("oh no")].concat());
    let cut = parts(&reader(CODER, &[]), "<function=weather><parameter=city>Rome</parameter><parameter=code>\nx = 1");
    assert_eq!(cut, [call(0, "weather", "{\"city\": \"Rome\"}"), content("<parameter=code>\nx = 1")].concat());
    let broken = parts(&reader(HERMES, &[]), "<tool_call>{\"name\": \"now\"} <tool_call>what?");
    assert_eq!(broken, [call(0, "now", "{}"), content("<tool_call>what?")].concat());
}

#[test]
fn arguments_that_others_would_not_read_are_mended() {
    let lines = "<tool_call>{\"name\": \"weather\", \"arguments\": {\"code\": \"a\n\tb\\n\"}}</tool_call>";
    assert_eq!(parts(&reader(HERMES, &[]), lines), call(0, "weather", "{\"code\": \"a\\u000a\\u0009b\\n\"}"));
    let coder = "<function=weather>\n<parameter=code>\nif \"a\" < 2:\n    </p>\n\n</parameter>\n<parameter=units>\n[\"C\"]\n</parameter>\n</function>";
    let wanted = json!({"code": "if \"a\" < 2:\n    </p>\n", "units": ["C"]});
    match parts(&reader(CODER, &[]), coder).as_slice() {
        [_, AnswerPart::Call(CallEvent::Arguments { text, .. }), _] => {
            assert_eq!(serde_json::from_str::<Value>(text).unwrap(), wanted);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_are_as_their_format_says() {
    for (template, written, wanted) in [
        // A text, whatever it looks like, and what its schema would take for one.
        (
            DSML,
            "<｜DSML｜function_calls><｜DSML｜invoke name=\"weather\"><｜DSML｜parameter name=\"days\" string=\"true\">2</｜DSML｜parameter><｜DSML｜parameter name=\"code\" string=\"false\">[1]</｜DSML｜parameter></｜DSML｜invoke>",
            "{\"days\": \"2\", \"code\": [1]}",
        ),
        (
            MINIMAX,
            "<minimax:tool_call><invoke name=\"weather\"><parameter name=\"code\">a < \"b\"\n12</parameter><parameter name=\"units\">[\"C\"]</parameter></invoke>",
            "{\"code\": \"a < \\\"b\\\"\\n12\", \"units\": [\"C\"]}",
        ),
        (
            GEMMA,
            "<|tool_call>call:weather{code:<|\"|>{a:[1],\"b\"}<|\"|>,units:[<|\"|>C<|\"|>,true,null,-1.5,{x:{}}],days:two}<tool_call|>",
            "{\"code\": \"{a:[1],\\\"b\\\"}\", \"units\": [\"C\", true, null, -1.5, {\"x\": {}}], \"days\": \"two\"}",
        ),
    ] {
        assert_eq!(parts(&reader(template, &[]), written), call(0, "weather", wanted), "{written}");
    }
    let deep = format!("<|tool_call>call:now{{a:{}", "[".repeat(100));
    assert_eq!(parts(&reader(GEMMA, &[]), &deep), content(&deep));
}

#[test]
fn marks_that_are_control_tokens_are_never_shown() {
    for (template, silent, written, wanted) in [
        ("<|tool_call|>", &["<|tool_call|>"][..], "a <|tool_call|> b", content("a  b")),
        (LLAMA, &["<|python_tag|>"], "<|python_tag|>now.call()", content("now.call()")),
        ("[TOOL_CALLS]", &["[TOOL_CALLS]", "[ARGS]"], "[TOOL_CALLS]now[ARGS]oh", content("nowoh")),
        (DEEPSEEK, &["<｜tool▁calls▁end｜>"], "a<｜tool▁calls▁end｜>", content("a")),
        ("[TOOL_CALLS]", &["[TOOL_CALLS]", "[ARGS]"], "[TOOL_CALLS]now[ARGS]{}", call(0, "now", "{}")),
    ] {
        assert_eq!(parts(&reader(template, silent), written), wanted, "{written}");
    }
    let none = Calls::new(Format::NONE, Arc::default(), vec!["</think>"], |_| String::new());
    assert_eq!(
        parts(&none, " a </think> <tool_call>{\"name\": \"now\"}"),
        content(" a  <tool_call>{\"name\": \"now\"}")
    );
}

#[test]
fn only_what_may_be_a_call_is_held() {
    let mut calls = reader(HERMES, &[]);
    let mut push = |text: &str| {
        let mut parts = Vec::new();
        calls.push(text, &mut parts);
        parts
    };
    assert_eq!(push("I look <tool"), content("I look"));
    assert_eq!(push("box> at it <tool_call>{\"name\": \"weather\", \"argum"), content(" <toolbox> at it"));
    let begun = CallEvent::Begun { index: 0, id: "id0".to_owned(), name: "weather".to_owned() };
    let piece = |text: &str| AnswerPart::Call(CallEvent::Arguments { index: 0, text: text.to_owned() });
    assert_eq!(push("ents\": {\"city\": \"R"), [AnswerPart::Call(begun), piece("{\"city\": \"R")]);
    assert_eq!(push("ome\""), [piece("ome\"")]);
    assert_eq!(push("}}</tool_call>"), [piece("}"), AnswerPart::Call(CallEvent::Ended { index: 0 })]);
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice() {
    // Texts of pieces that look like calls, drawn from a seed.
    let pieces = [
        "<tool_call>",
        "</tool_call>",
        "{\"name\": \"now\", \"arguments\": {",
        "}",
        "\"a\": 1",
        "[",
        "]",
        ",",
        "x",
        "é",
        "{",
        "<",
        "\"",
        "<function=now>",
        "[TOOL_CALLS]",
        "<arg_key>",
        "now",
        "<minimax:tool_call>",
        "<invoke name=\"now\">",
        "</invoke>",
        "<|tool_call>call:now{",
        "<|\"|>",
        ":",
        "<|START_ACTION|>",
    ];
    let mut seed = 1_u64;
    let mut draw = |count: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % count
    };
    for template in
        [HERMES, LLAMA, CODER, DEEPSEEK, MINIMAX, GEMMA, COHERE, "[TOOL_CALLS]", "<arg_key>", "<|tool_call|>"]
    {
        for _ in 0..300 {
            let text: String = (0..1 + draw(12)).map(|_| pieces[draw(pieces.len())]).collect();
            let found = parts(&reader(template, &[]), &text);
            let begun = found.iter().filter(|part| matches!(part, AnswerPart::Call(CallEvent::Begun { .. }))).count();
            let ended = found.iter().filter(|part| matches!(part, AnswerPart::Call(CallEvent::Ended { .. }))).count();
            assert_eq!(begun, ended, "{text}");
            // Without a call the text is what it was; with calls, what was said is a part of it, in its order.
            let said = found.iter().filter_map(|part| match part {
                AnswerPart::Content(text) => Some(text.as_str()),
                AnswerPart::Thought(_) | AnswerPart::Call(_) => None,
            });
            let said: Vec<_> = said.collect();
            if begun == 0 {
                assert_eq!(said.concat(), text);
            }
            let mut rest = text.as_str();
            for piece in said {
                rest = rest.split_once(piece).unwrap_or_else(|| panic!("{piece:?} is not in {text:?}")).1;
            }
        }
    }
}
