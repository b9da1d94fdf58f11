//! Where the arguments of calls begin that are held to their tools' schemas, in answers that need not be calls.

use crate::grammar::{HeldArguments, HeldCalls, Lead, LeadPiece, LeadPlace, Thoughts};

use super::{family::Force, forced::arguments_schema, format::Format, tools::Tools};

/// Keys of a call that is a JSON object.
const NAMES: [&str; 3] = ["\"name\"", "\"function\"", "\"tool_name\""];
const ARGUMENTS: [&str; 2] = ["\"arguments\"", "\"parameters\""];
/// What heads of gpt-oss's messages come behind.
const HEADS: [&str; 3] = ["<|start|>", "<|message|>", "<|end|>"];

/// How calls of the tools with these names are held in an answer in this format, in which thoughts come first. Nothing where none
/// is, or where calls of the format have neither JSON nor tags in them.
pub fn held_calls(tools: &Tools, names: &[String], format: Format, thoughts: Option<Thoughts>) -> Option<HeldCalls> {
    let held = tools.iter().filter(|(name, _)| names.iter().any(|held| held == name));
    let arguments = |parameters| {
        let schema = arguments_schema(parameters, "");
        match format.force() {
            Force::Tagged { pairs, .. } => HeldArguments::Tagged { pairs, schema },
            Force::Object { .. } | Force::Named { .. } | Force::Generic => HeldArguments::Json(schema),
        }
    };
    let call = |(name, parameters)| Some((lead(name, tools, format)?, arguments(parameters)));
    let calls: Vec<_> = held.filter_map(call).collect();
    let marks = format.family().map_or_else(Vec::new, |family| family.opens.to_vec());
    (!calls.is_empty()).then_some(HeldCalls { calls, marks, thoughts })
}

/// What comes right before the arguments of a tool.
fn lead(name: &str, tools: &Tools, format: Format) -> Option<Lead> {
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
        Force::Tagged { name: (before, after), .. } => {
            // Where nothing ends a name, one that others begin with ends with its line.
            let goes_on = |other: &str| other.len() > name.len() && other.starts_with(name);
            let after = if after.is_empty() && tools.iter().any(|(other, _)| goes_on(other)) { "\n" } else { after };
            let pieces = vec![text(before), Space, Text(format!("{name}{after}")), Space];
            Some(Lead::new(pieces, LeadPlace::Anywhere))
        }
        Force::Generic => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        grammar::{Grammar, GrammarError, GrammarWalk},
        text::{
            calls::Calls,
            fake::{byte, model, written},
            part::{AnswerPart, CallEvent},
        },
    };

    fn tools() -> Tools {
        let schema = json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": schema}});
        Tools::new(&[tool("weather"), tool("weather.now")])
    }

    const TAGS: [(&str, &str); 4] = [
        ("<function=f><parameter=p>", "<tool_call>\n<function=order>"),
        ("<arg_key>", "Well. <tool_call>order"),
        ("<minimax:tool_call>", "<minimax:tool_call>\n<invoke name=\"other\">\n</invoke>\n<invoke name=\"order\">"),
        ("｜DSML｜ function_calls", "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"order\">"),
    ];

    /// A tool whose arguments are of all kinds.
    fn order() -> Tools {
        let schema = json!({
            "properties": {
                "code": {"type": "string", "pattern": "^(a|b/)[0-9]+$", "maxLength": 5, "description": "what it is"},
                "unit": {"enum": ["kg", "<t>"]},
                "count": {"type": "integer", "minimum": 1, "maximum": 9},
                "note": {"type": ["string", "null"], "minLength": 2, "maxLength": 3},
                "lines": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"$ref": "#/$defs/line"}},
                "paid": {"type": "boolean"},
            },
            "required": ["code", "unit", "count", "lines", "paid"],
            "additionalProperties": false,
            "$defs": {"line": {"type": "object", "properties": {"n": {"enum": [1, "x"]}}, "required": ["n"]}},
        });
        Tools::new(&[
            json!({"type": "function", "function": {"name": "order", "parameters": schema}}),
            json!({"type": "function", "function": {"name": "other"}}),
        ])
    }

    /// What the schema says, by hand.
    fn is_order(arguments: &Value) -> bool {
        let members = arguments.as_object().expect("an object");
        let keys: Vec<&str> = members.keys().map(String::as_str).filter(|key| *key != "note").collect();
        let text = |key: &str| arguments[key].as_str().unwrap_or_default();
        let (code, lines) = (text("code"), arguments["lines"].as_array().expect("a list"));
        let digits = code.strip_prefix('a').or(code.strip_prefix("b/")).unwrap_or_default();
        keys == ["code", "unit", "count", "lines", "paid"]
            && (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) && code.len() <= 5)
            && ["kg", "<t>"].contains(&text("unit"))
            && arguments["count"].as_u64().is_some_and(|count| (1..=9).contains(&count))
            && members
                .get("note")
                .is_none_or(|note| (2..=3).contains(&note.as_str().unwrap_or_default().chars().count()))
            && (1..=2).contains(&lines.len())
            && lines.iter().all(|line| [json!({"n": 1}), json!({"n": "x"})].contains(line))
            && arguments["paid"].is_boolean()
    }

    /// The arguments of the last call in a text.
    fn read(template: &str, tools: Tools, text: &str) -> Value {
        let mut calls =
            Calls::new(Format::of_template(template), Arc::new(tools), Vec::new(), |index| index.to_string());
        let mut parts = Vec::new();
        calls.push(text, &mut parts);
        let mut arguments = String::new();
        for part in parts {
            match part {
                AnswerPart::Call(CallEvent::Begun { .. }) => arguments.clear(),
                AnswerPart::Call(CallEvent::Arguments { text, .. }) => arguments.push_str(&text),
                AnswerPart::Call(CallEvent::Ended { .. }) | AnswerPart::Content(_) | AnswerPart::Thought(_) => {}
            }
        }
        serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{error}: {arguments} of {text}"))
    }

    #[test]
    fn arguments_between_tags_are_by_their_schema() {
        for (template, before) in TAGS {
            let held = held_calls(&order(), &["order".to_owned()], Format::of_template(template), None).expect("held");
            assert_eq!(free(held.clone(), before), before.len(), "{before}");
            let grammar = model().compile(&Grammar::held(held).expect("short enough")).expect("a grammar");
            for seed in 1..8_u64 {
                let (mut walk, mut random, mut text) = (grammar.start(), seed, before.as_bytes().to_vec());
                written(before).iter().for_each(|token| walk.advance(*token).expect("it may follow"));
                while !walk.is_free() && text.len() < 2000 {
                    let mask = walk.mask().expect("something follows");
                    let allowed: Vec<u8> = (0..=255).filter(|one| mask.allows(byte(*one))).collect();
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let one = allowed[(random >> 33) as usize % allowed.len()];
                    walk.advance(byte(one)).expect("it may follow");
                    text.push(one);
                }
                let text = String::from_utf8(text).expect("whole characters");
                let arguments = read(template, order(), &text);
                assert!(is_order(&arguments), "{arguments} of {text}");
            }
        }
    }

    /// Whether a call of a tool with these parameters may be written so.
    fn takes(parameters: &Value, template: &str, before: &str, call: &str) -> bool {
        let tools = Tools::new(&[json!({"type": "function", "function": {"name": "order", "parameters": parameters}})]);
        let held = held_calls(&tools, &["order".to_owned()], Format::of_template(template), None).expect("held");
        let grammar = model().compile(&Grammar::held(held).expect("short enough")).expect("a grammar");
        let mut walk = grammar.start();
        written(before).iter().for_each(|token| walk.advance(*token).expect("it may follow"));
        assert!(!walk.is_free());
        written(call).iter().all(|token| walk.advance(*token).is_ok()) && walk.is_free()
    }

    #[test]
    fn arguments_between_tags_come_in_order_and_texts_as_they_are() {
        let (template, before) = TAGS[0];
        let schema = json!({
            "properties": {"text": {"type": "string"}, "n": {"type": "number"}, "all": {}},
            "required": ["text", "more"],
        });
        let more = "<parameter=more>\n[1]\n</parameter>\n";
        let text = |text: &str| format!("<parameter=text>\n{text}\n</parameter>\n");
        for (call, fits) in [
            (format!("\n{}{more}</function>", text("a \"b\"\n</parameter <b> {}")), true),
            (format!("{}<parameter=n>2.5</parameter>{more}</function>", text("")), true),
            (format!("{}<parameter=all>{{\"a\": null}}</parameter>{more}</function>", text("x")), true),
            (format!("{}</function>", text("x")), false),
            (format!("<parameter=n>1</parameter>{}{more}</function>", text("x")), false),
            (format!("{}<parameter=n>one</parameter>{more}</function>", text("x")), false),
            (format!("{}<parameter=other>1</parameter>{more}</function>", text("x")), false),
            (format!("{}{}{more}</function>", text("x"), text("y")), false),
        ] {
            assert_eq!(takes(&schema, template, before, &call), fits, "{call}");
        }
        let glm = "\n<arg_key>text</arg_key>\n<arg_value>x\ny</arg_value><arg_key>more</arg_key><arg_value>1</arg_value></tool_call>";
        assert!(takes(&schema, TAGS[1].0, TAGS[1].1, glm));
        assert!(takes(&Value::Null, TAGS[1].0, TAGS[1].1, "</tool_call>"), "it has no parameters");
    }

    #[test]
    fn a_schema_that_tags_cannot_follow_is_refused() {
        let compiled = |parameters: Value| {
            let tools =
                Tools::new(&[json!({"type": "function", "function": {"name": "order", "parameters": parameters}})]);
            let held = held_calls(&tools, &["order".to_owned()], Format::of_template("<arg_key>"), None).expect("held");
            model().compile(&Grammar::held(held).expect("short enough")).map(drop)
        };
        let text = |schema: Value| json!({"properties": {"a": schema}});
        for (parameters, part) in [
            (json!({"anyOf": [{"required": ["a"]}]}), "'anyOf'"),
            (json!({"properties": {"a>": {}}}), "'a>'"),
            (text(json!({"type": "string", "not": {"const": "x"}})), "'not'"),
            (text(json!({"type": "string", "pattern": "^a|b$"})), "a group"),
            (text(json!({"type": "string", "enum": [1]})), "no text"),
            (text(json!({"type": "what"})), "what"),
        ] {
            let Err(GrammarError::Refused { text }) = compiled(parameters) else { panic!("{part} is refused") };
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(compiled(text(json!({"type": "string", "format": "date", "pattern": "a/|b"}))), Ok(()));
    }

    #[test]
    fn a_name_that_nothing_ends_is_told_from_longer_ones() {
        let held = held("<arg_key>", None).expect("held");
        for (text, at) in [("<tool_call>weather\n", 19), ("<tool_call>weather.now\nx", 24), ("weather\n", 8)] {
            assert_eq!(free(held.clone(), text), at, "{text}");
        }
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
        assert_eq!(held("<|tool_call>call:", None), None, "it is neither JSON nor tags");
        let none: [String; 0] = [];
        assert_eq!(held_calls(&tools(), &none, Format::of_template("<tool_call>"), None), None);
        let Some(HeldCalls { calls, .. }) = held("<tool_call>", None) else { panic!("held") };
        let HeldArguments::Json(schema) = &calls[0].1 else { panic!("JSON") };
        assert_eq!(schema["required"], Value::from(vec!["city"]));
    }
}
