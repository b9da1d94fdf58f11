//! Where the arguments of calls begin that are held to their tools' schemas, in answers that need not be calls.

use crate::grammar::{HeldCalls, Lead, LeadPiece, LeadPlace, Thoughts};

use super::{family::Force, forced::arguments_schema, format::Format, tools::Tools};

/// Keys of a call that is a JSON object.
const NAMES: [&str; 3] = ["\"name\"", "\"function\"", "\"tool_name\""];
const ARGUMENTS: [&str; 2] = ["\"arguments\"", "\"parameters\""];
/// What heads of gpt-oss's messages come behind.
const HEADS: [&str; 3] = ["<|start|>", "<|message|>", "<|end|>"];

/// How calls of the tools with these names are held in an answer in this format, in which thoughts come first. Nothing where none
/// is, or where calls of the format have no JSON in them.
pub fn held_calls(tools: &Tools, names: &[String], format: Format, thoughts: Option<Thoughts>) -> Option<HeldCalls> {
    let held = tools.iter().filter(|(name, _)| names.iter().any(|held| held == name));
    let call = |(name, parameters)| Some((lead(name, format)?, arguments_schema(parameters, "")));
    let calls: Vec<_> = held.filter_map(call).collect();
    let marks = format.family().map_or_else(Vec::new, |family| family.opens.to_vec());
    (!calls.is_empty()).then_some(HeldCalls { calls, marks, thoughts })
}

/// What comes right before the arguments of a tool.
fn lead(name: &str, format: Format) -> Option<Lead> {
    use LeadPiece::{Digits, Head, OneOf, Space, Text};
    let text = |text: &str| Text(text.to_owned());
    if format == Format::CHANNELS {
        let head = Head { marks: &HEADS, word: format!("to=functions.{name}") };
        return Some(Lead::new(vec![head, text("<|message|>")], LeadPlace::Anywhere));
    }
    match format.force() {
        Force::Object { .. } => {
            let quoted = Text(format!("\"{name}\""));
            let named = [OneOf(&NAMES), Space, text(":"), Space, quoted, Space, text(","), Space];
            let pieces = named.into_iter().chain([OneOf(&ARGUMENTS), Space, text(":"), Space]);
            Some(Lead::new(pieces.collect(), LeadPlace::InCalls))
        }
        Force::Named { before: (before, after), .. } => {
            // Several calls may stand behind what opens all of them.
            let opens = format.family().map_or(&[][..], |family| family.opens);
            let mark = opens.iter().filter_map(|mark| before.rfind(mark)).max().unwrap_or(0);
            let begin = Text(format!("{}{name}", &before[mark..]));
            let pieces = match after.split_once(":0") {
                // Its number among the calls.
                Some((_, after)) => vec![begin, text(":"), Digits, text(after.trim()), Space],
                None => vec![begin, Space, text(after.trim()), Space],
            };
            Some(Lead::new(pieces, LeadPlace::Anywhere))
        }
        Force::Generic => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        grammar::{Grammar, GrammarWalk},
        text::fake::{model, written},
    };

    fn tools() -> Tools {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
        Tools::new(&[tool("weather"), tool("weather.now")])
    }

    fn held(template: &str, thoughts: Option<Thoughts>) -> Option<HeldCalls> {
        held_calls(&tools(), &["weather".to_owned()], Format::of_template(template), thoughts)
    }

    /// How far a text is free, in bytes.
    fn free(held: HeldCalls, text: &str) -> usize {
        let grammar = model().compile(&Grammar::held(held).expect("short enough")).expect("a grammar");
        let mut walk: GrammarWalk = grammar.start();
        let held = |token: &u32| {
            walk.advance(*token).expect("it may follow");
            !walk.is_free()
        };
        written(text).iter().position(held).map_or(text.len(), |at| at + 1)
    }

    #[test]
    fn arguments_are_found_in_each_format() {
        for (template, before) in [
            ("<tool_call>", "I look.\n<tool_call>\n{\"name\": \"weather\", \"arguments\":"),
            ("<tool_call>", "{\"name\":\"weather\",\"arguments\":"),
            ("", "<tool_call>{\"type\": \"function\", \"name\": \"weather\", \"parameters\" :"),
            ("<|tool_call|>", "<|tool_call|>[{\"name\": \"weather\", \"arguments\":"),
            ("<|start_header_id|> \"parameters\"", "{\"name\": \"weather\", \"parameters\":"),
            ("[TOOL_CALLS]", "So: [TOOL_CALLS][{\"name\": \"weather\", \"arguments\":"),
            ("[TOOL_CALLS] [ARGS]", "So: [TOOL_CALLS]weather[ARGS]"),
            (
                "<|channel|><|message|>",
                "<|channel|>analysis<|message|>to=functions.weather<|end|><|start|>assistant<|channel|>commentary \
                 to=functions.weather <|constrain|>json<|message|>",
            ),
            ("<|channel|><|message|>", " to=functions.weather<|channel|>commentary json<|message|>"),
            (
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>other<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁call▁begin｜>weather\
                 <｜tool▁sep｜>",
            ),
            (
                "<|tool_calls_section_begin|>",
                "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:12<|tool_call_argument_begin|>",
            ),
        ] {
            let held = held(template, None).unwrap_or_else(|| panic!("{template} can be held"));
            assert_eq!(free(held.clone(), before), before.len(), "{before}");
            let other = before.replace("weather", "weather.now");
            let whole = format!("{other} x");
            assert_eq!(free(held, &whole), whole.len(), "{other} is another tool's, which is not strict");
        }
    }

    #[test]
    fn what_is_no_call_is_free() {
        let object = "{\"name\": \"weather\", \"arguments\": x";
        for text in [format!("I could write {object}"), format!("<think>\n<tool_call>{object}")] {
            let thoughts = Some(Thoughts { open: "<think>", close: "</think>", begun: false });
            assert_eq!(free(held("<tool_call>", thoughts).expect("held"), &text), text.len(), "{text}");
        }
        assert_eq!(held("<function=f><parameter=p>", None), None, "it is no JSON");
        let none: [String; 0] = [];
        assert_eq!(held_calls(&tools(), &none, Format::of_template("<tool_call>"), None), None);
        let Some(HeldCalls { calls, .. }) = held("<tool_call>", None) else { panic!("held") };
        assert_eq!(calls[0].1["required"], Value::from(vec!["city"]));
    }
}
