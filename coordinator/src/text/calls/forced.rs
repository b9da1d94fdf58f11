//! What an answer must look like that has to be a call.

use serde_json::{Map, Value, json};

use super::{family::Force, format::Format, tools::Tools};
use crate::grammar::rebased;

/// Which tools a model may call, and whether it must.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ToolChoice {
    /// It may call any.
    Auto,
    /// It may call none.
    None,
    /// It must call one of them.
    Required,
    /// It must call this one.
    Named(String),
}

/// The form of an answer that is a call: a text, JSON of a schema, and a text.
#[derive(Clone, Debug, PartialEq)]
pub struct ForcedCall {
    /// What the answer begins with. What it has of control tokens is meant as these tokens.
    pub prefix: String,
    /// The JSON schema of what follows: the arguments, or an object with the tool's name and its arguments.
    pub schema: Value,
    /// What the answer ends with.
    pub suffix: String,
    /// The format to read the answer by: some formats cannot be forced, and the call is then written in another.
    pub format: Format,
}

/// How an answer in this format is made to be a call; `None` where none must be made, or none of the tools is meant.
pub fn forced_call(tools: &Tools, choice: &ToolChoice, format: Format) -> Option<ForcedCall> {
    let meant: Vec<_> = match choice {
        ToolChoice::Auto | ToolChoice::None => return None,
        ToolChoice::Required => tools.iter().collect(),
        ToolChoice::Named(name) => tools.iter().filter(|(tool, _)| tool == name).collect(),
    };
    match (format.force(), meant.as_slice()) {
        (_, []) => None,
        (Force::Named { before, after }, [(name, parameters)]) => Some(ForcedCall {
            prefix: format!("{}{name}{}", before.0, before.1),
            schema: arguments_schema(parameters, ""),
            suffix: after.to_owned(),
            format,
        }),
        (Force::Object { before, arguments, after }, meant) => Some(ForcedCall {
            prefix: before.to_owned(),
            schema: object_schema(meant, arguments),
            suffix: after.to_owned(),
            format,
        }),
        // Which of several names comes first is nothing that a schema of what follows could say.
        (Force::Named { .. } | Force::Tagged { .. } | Force::Generic, _) => forced_call(tools, choice, Format::GENERIC),
    }
}

/// The calls that an answer in this format may be: one for each tool, or one for all. Nothing where the format's calls are no JSON
/// between two texts.
pub fn possible_calls(tools: &Tools, format: Format) -> Vec<ForcedCall> {
    let call = |choice: &ToolChoice| forced_call(tools, choice, format);
    match format.force() {
        Force::Object { .. } => call(&ToolChoice::Required).into_iter().collect(),
        Force::Named { .. } => tools.iter().filter_map(|(name, _)| call(&ToolChoice::Named(name.to_owned()))).collect(),
        Force::Tagged { .. } | Force::Generic => Vec::new(),
    }
}

/// One of the tools, by its name, with its arguments.
fn object_schema(tools: &[(&str, &Value)], key: &str) -> Value {
    let call = |name: &str, parameters: &Value, base: &str| {
        let properties = Map::from_iter([
            ("name".to_owned(), json!({"const": name})),
            (key.to_owned(), arguments_schema(parameters, &format!("{base}/properties/{key}"))),
        ]);
        json!({
            "type": "object", "properties": properties, "required": ["name", key], "additionalProperties": false,
        })
    };
    match tools {
        [(name, parameters)] => call(name, parameters, ""),
        tools => {
            let calls = tools.iter().enumerate();
            let calls = calls.map(|(place, (name, parameters))| call(name, parameters, &format!("/anyOf/{place}")));
            json!({"anyOf": calls.collect::<Vec<_>>()})
        }
    }
}

/// The schema of a tool's arguments, at the place `base` of another one. Arguments are an object, whatever it says.
pub(super) fn arguments_schema(parameters: &Value, base: &str) -> Value {
    let mut schema = rebased(parameters, base);
    match schema.as_object_mut() {
        Some(fields) => {
            fields.insert("type".to_owned(), "object".into());
            schema
        }
        None => json!({"type": "object"}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> Tools {
        let city = json!({"properties": {"city": {"$ref": "#/$defs/c"}}, "$defs": {"c": {"type": "string"}}});
        Tools::new(&[
            json!({"type": "function", "function": {"name": "weather", "parameters": city}}),
            json!({"type": "function", "function": {"name": "now"}}),
        ])
    }

    fn format(template: &str) -> Format {
        Format::of_template(template)
    }

    #[test]
    fn a_named_tool_is_forced_in_each_format() {
        let named = ToolChoice::Named("weather".to_owned());
        for (template, prefix, suffix) in [
            ("<tool_call>", "<tool_call>\n", "\n</tool_call>"),
            ("", "<tool_call>\n", "\n</tool_call>"),
            ("<arg_key>", "<tool_call>\n", "\n</tool_call>"),
            ("<|tool_call|>", "<|tool_call|>[", "]"),
            ("<|start_header_id|> \"parameters\"", "", ""),
            ("[TOOL_CALLS]", "[TOOL_CALLS][", "]"),
            ("[TOOL_CALLS] [ARGS]", "[TOOL_CALLS]weather[ARGS]", ""),
            (
                "<|channel|><|message|>",
                "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>",
                "<|call|>",
            ),
            (
                "<｜tool▁calls▁begin｜>",
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>",
                "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            ),
        ] {
            let forced = forced_call(&tools(), &named, format(template)).expect("a call");
            assert_eq!((forced.prefix.as_str(), forced.suffix.as_str()), (prefix, suffix), "{template}");
        }
    }

    #[test]
    fn schemas_keep_their_references() {
        let named = ToolChoice::Named("weather".to_owned());
        let arguments = |base: &str| {
            json!({
                "properties": {"city": {"$ref": format!("#{base}/$defs/c")}},
                "$defs": {"c": {"type": "string"}},
                "type": "object",
            })
        };
        let call = |name: &str, arguments: Value| {
            json!({
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": arguments},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        };
        let schema = |choice, template| forced_call(&tools(), choice, format(template)).expect("a call").schema;
        assert_eq!(schema(&named, "[TOOL_CALLS] [ARGS]"), arguments(""));
        assert_eq!(schema(&named, "<tool_call>"), call("weather", arguments("/properties/arguments")));
        let any = json!({"anyOf": [
            call("weather", arguments("/anyOf/0/properties/arguments")),
            call("now", json!({"type": "object"})),
        ]});
        assert_eq!(schema(&ToolChoice::Required, "<tool_call>"), any);
    }

    #[test]
    fn what_a_format_cannot_be_forced_to_is_written_in_another() {
        let forced = forced_call(&tools(), &ToolChoice::Required, format("[TOOL_CALLS] [ARGS]")).expect("a call");
        assert_eq!((forced.format, forced.prefix.as_str()), (Format::GENERIC, "<tool_call>\n"));
        for none in [ToolChoice::Auto, ToolChoice::None, ToolChoice::Named("other".to_owned())] {
            assert_eq!(forced_call(&tools(), &none, Format::GENERIC), None);
        }
    }
}
