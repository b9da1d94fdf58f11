//! Thoughts, answers and calls out of one text.

use serde_json::json;

use super::*;

fn manner(template: &str) -> Manner {
    Manner {
        tools: Arc::new(Tools::new(&[json!({"type": "function", "function": {"name": "now"}})])),
        calls: CallsWanted::All,
        ids: |index| format!("id{index}"),
        ..Manner::of_template(template)
    }
}

fn read(manner: &Manner, text: &str) -> Vec<AnswerPart> {
    let start = Reading::new(manner, |_| None);
    let mut by_length = (1..=text.chars().count()).map(|length| {
        let mut reading = start.clone();
        let mut parts = Vec::new();
        for piece in text.chars().collect::<Vec<_>>().chunks(length) {
            reading.push(&piece.iter().collect::<String>()).into_iter().for_each(|part| add(&mut parts, part));
        }
        reading.finish().into_iter().for_each(|part| add(&mut parts, part));
        parts
    });
    let first = by_length.next().expect("a text");
    assert!(by_length.all(|parts| parts == first), "{text:?}");
    first
}

fn thought(text: &str) -> AnswerPart {
    AnswerPart::Thought(text.to_owned())
}

fn content(text: &str) -> AnswerPart {
    AnswerPart::Content(text.to_owned())
}

fn call(index: usize) -> [AnswerPart; 3] {
    let begun = CallEvent::Begun { index, id: format!("id{index}"), name: "now".to_owned() };
    [begun, CallEvent::Arguments { index, text: "{}".to_owned() }, CallEvent::Ended { index }].map(AnswerPart::Call)
}

const QWEN: &str = "<tool_call> <think> </think>";
const GPT_OSS: &str = "<|channel|> <|message|>";
const TWO_CALLS: &str = "<tool_call>{\"name\": \"now\"}</tool_call>\n<tool_call>{\"name\": \"now\"}</tool_call> and";

#[test]
fn thoughts_answers_and_calls_come_apart() {
    let text = format!("<think>\nA <tool_call>?\n</think>\n\nI look.\n{TWO_CALLS}");
    let wanted = [&[thought("A <tool_call>?"), content("I look.")][..], &call(0), &call(1), &[content("and")]].concat();
    assert_eq!(read(&manner(QWEN), &text), wanted);
    let opened = Manner { opening: Opening::Thoughts, ..manner(QWEN) };
    assert_eq!(read(&opened, "A.</think>{\"name\": \"now\"}"), [&[thought("A.")][..], &call(0)].concat());
    let channels = "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>commentary to=functions.now\
                    <|message|>{}<|call|>";
    assert_eq!(read(&manner(GPT_OSS), channels), [&[thought("A.")][..], &call(0)].concat());
}

#[test]
fn thoughts_are_left_in_the_text_or_out() {
    let text = "<think>\nA.\n</think>\n\nB";
    let channels = "<|channel|>analysis<|message|>A.<|end|><|start|>assistant<|channel|>final<|message|>B";
    let alone = "<|channel|>analysis<|message|>A.";
    for (template, text, thoughts, wanted) in [
        (QWEN, text, ThoughtsWanted::InText, vec![content(text)]),
        (QWEN, text, ThoughtsWanted::Dropped, vec![content("B")]),
        (GPT_OSS, channels, ThoughtsWanted::InText, vec![content("<think>A.</think>\n\nB")]),
        (GPT_OSS, channels, ThoughtsWanted::Dropped, vec![content("B")]),
        (GPT_OSS, alone, ThoughtsWanted::InText, vec![content("<think>A.</think>\n\n")]),
        ("", text, ThoughtsWanted::Apart, vec![content(text)]),
    ] {
        assert_eq!(read(&Manner { thoughts, ..manner(template) }, text), wanted, "{text} {thoughts:?}");
    }
}

#[test]
fn only_the_calls_that_are_wanted() {
    let one = Manner { calls: CallsWanted::One, ..manner(QWEN) };
    assert_eq!(read(&one, TWO_CALLS), call(0));
    let mut reading = Reading::new(&one, |_| None);
    reading.push("<tool_call>{\"name\": \"now\", \"arguments\": {");
    assert!(!reading.has_ended() && reading.calls() == 1);
    reading.push("}");
    assert!(reading.has_ended());
    let none = Manner { calls: CallsWanted::None, ..manner(QWEN) };
    assert_eq!(read(&none, TWO_CALLS), [content(TWO_CALLS)]);
}

#[test]
fn control_tokens_that_mean_something_are_spelled() {
    let ids = |mark: &str| ["<tool_call>", "</think>", "<|call|>"].iter().position(|known| *known == mark);
    let ids = |mark: &str| ids(mark).and_then(|id| u32::try_from(id).ok());
    let spelled = |template: &str| {
        let reading = Reading::new(&manner(template), ids);
        [0, 1, 2].map(|id| reading.spells(id))
    };
    assert_eq!(spelled(QWEN), [true, true, false]);
    assert_eq!(spelled("<tool_call>"), [true, false, false]);
    assert_eq!(spelled(GPT_OSS), [false, false, true]);
}

#[test]
fn tags_that_are_control_tokens_are_shown_with_thoughts_alone() {
    let control = |mark: &str| ["<think>", "</think>", "<tool_call>"].contains(&mark).then_some(0);
    for (thoughts, wanted) in [
        (ThoughtsWanted::InText, "<think>A.</think> B  C"),
        (ThoughtsWanted::Dropped, "B  C"),
        (ThoughtsWanted::Apart, "B  C"),
    ] {
        let mut reading = Reading::new(&Manner { thoughts, ..manner(QWEN) }, control);
        let parts = [reading.push("<think>A.</think> B <tool_call> C"), reading.finish()].concat();
        let said = parts.iter().filter_map(|part| match part {
            AnswerPart::Content(text) => Some(text.as_str()),
            AnswerPart::Thought(_) | AnswerPart::Call(_) => None,
        });
        assert_eq!(said.collect::<String>(), wanted, "{thoughts:?}");
    }
}

#[test]
fn every_call_that_begins_ends_wherever_the_text_is_cut() {
    // Texts of pieces that steer, drawn from a seed.
    let channels =
        ["<|channel|>", "analysis", "commentary to=functions.now ", "final", "<|message|>", "<|end|>", "{}", "é "];
    let tags = ["<think>", "</think>", "<tool_call>", "</tool_call>", "{\"name\": \"now\"}", "{", "\n", "é ", "<"];
    let mut seed = 1_u64;
    let mut draw = |count: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).unwrap() % count
    };
    for (template, pieces) in [(GPT_OSS, &channels[..]), (QWEN, &tags[..])] {
        for _ in 0..500 {
            let text: String = (0..1 + draw(10)).map(|_| pieces[draw(pieces.len())]).collect();
            let mut open = None;
            let mut count = 0;
            for part in read(&manner(template), &text) {
                match part {
                    AnswerPart::Call(CallEvent::Begun { index, .. }) => {
                        assert_eq!((open.replace(index), index), (None, count), "{text}");
                        count += 1;
                    }
                    AnswerPart::Call(CallEvent::Arguments { index, .. }) => assert_eq!(open, Some(index), "{text}"),
                    AnswerPart::Call(CallEvent::Ended { index }) => assert_eq!(open.take(), Some(index), "{text}"),
                    AnswerPart::Thought(text) | AnswerPart::Content(text) => {
                        assert!(open.is_none() && !text.is_empty())
                    }
                }
            }
            assert_eq!(open, None, "{text}");
        }
    }
}
