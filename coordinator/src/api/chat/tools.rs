//! The tools of a request: what is wrong with them, and which calls are wanted.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::shape::Dialect;
use crate::{
    api::error::ApiError,
    text::{CallsWanted, ToolChoice},
};

/// The parameters as they were sent, by OpenAI's newer names and by the older ones.
#[derive(Debug, Default)]
pub(super) struct ToolParams {
    pub(super) tools: Option<Vec<Value>>,
    pub(super) tool_choice: Option<Value>,
    pub(super) parallel_tool_calls: Option<bool>,
    pub(super) functions: Option<Vec<Value>>,
    pub(super) function_call: Option<Value>,
}

/// Tools that are sound, and what is wanted of them.
#[derive(Debug, PartialEq)]
pub(super) struct Toolbox {
    /// As templates know them; none where none may be called.
    pub(super) tools: Vec<Value>,
    pub(super) choice: ToolChoice,
    pub(super) calls: CallsWanted,
    /// The names of those whose calls are by their schemas.
    pub(super) strict: Vec<String>,
    pub(super) dialect: Dialect,
}

/// Longest name of a tool, in bytes.
const NAME_BYTES: usize = 64;
/// The types of JSON schemas.
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];

impl ToolParams {
    /// Looks at all of it.
    ///
    /// # Errors
    /// `Invalid` with the place of what is wrong.
    pub(super) fn read(self) -> Result<Toolbox, ApiError> {
        let older = self.functions.filter(|functions| !functions.is_empty());
        let newer = self.tools.filter(|tools| !tools.is_empty());
        let (tools, choice, param, dialect) = match (newer, older) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "functions",
                    "'functions' is the older name of 'tools': send one of them",
                ));
            }
            (None, Some(functions)) => {
                let tools: Vec<_> =
                    functions.into_iter().map(|function| json!({"type": "function", "function": function})).collect();
                check(&tools, |place| format!("functions[{place}]"))?;
                check_other(self.tool_choice.as_ref(), "tool_choice", "tools", &tools)?;
                (tools, self.function_call, "function_call", Dialect::Functions)
            }
            (tools, None) => {
                let tools = tools.unwrap_or_default();
                check_types(&tools)?;
                check(&tools, |place| format!("tools[{place}].function"))?;
                check_other(self.function_call.as_ref(), "function_call", "functions", &tools)?;
                (tools, self.tool_choice, "tool_choice", Dialect::Tools)
            }
        };
        let choice = chosen(choice.as_ref(), param, &tools)?;
        let single = self.parallel_tool_calls == Some(false) || dialect == Dialect::Functions;
        let calls = if single { CallsWanted::One } else { CallsWanted::All };
        Ok(match choice {
            ToolChoice::None => {
                Toolbox { tools: Vec::new(), choice, calls: CallsWanted::None, strict: Vec::new(), dialect }
            }
            ToolChoice::Auto | ToolChoice::Required | ToolChoice::Named(_) => {
                let strict = strict(&tools);
                Toolbox { tools, choice, calls, strict, dialect }
            }
        })
    }
}

/// The names of tools that are strict.
fn strict(tools: &[Value]) -> Vec<String> {
    let strict = tools.iter().map(|tool| &tool["function"]).filter(|function| function["strict"] == true);
    strict.filter_map(|function| function["name"].as_str().map(str::to_owned)).collect()
}

/// The choice among these tools.
fn chosen(choice: Option<&Value>, param: &'static str, tools: &[Value]) -> Result<ToolChoice, ApiError> {
    let wrong = |text: String| Err(ApiError::invalid(param, text));
    let choice = match choice {
        None | Some(Value::Null) => ToolChoice::Auto,
        Some(Value::String(word)) => match word.as_str() {
            "auto" => ToolChoice::Auto,
            "none" => ToolChoice::None,
            "required" if param == "tool_choice" => ToolChoice::Required,
            _ => return wrong(format!("'{param}' is one of {}, or names a function", words(param))),
        },
        Some(choice) => {
            let name = match param {
                "tool_choice" if choice["type"] != "function" => {
                    return wrong("an object in 'tool_choice' needs the 'type' \"function\"".to_owned());
                }
                "tool_choice" => &choice["function"]["name"],
                _ => &choice["name"],
            };
            match name.as_str() {
                Some(name) => ToolChoice::Named(name.to_owned()),
                None => return wrong(format!("'{param}' needs the 'name' of a function")),
            }
        }
    };
    match &choice {
        ToolChoice::Required | ToolChoice::Named(_) if tools.is_empty() => {
            wrong(format!("'{param}' demands a call, and there is no function to call"))
        }
        ToolChoice::Named(name) if !tools.iter().any(|tool| tool["function"]["name"] == name.as_str()) => {
            wrong(format!("'{param}' names '{}', which is none of the functions", shortened(name)))
        }
        ToolChoice::Auto | ToolChoice::None | ToolChoice::Required | ToolChoice::Named(_) => Ok(choice),
    }
}

fn words(param: &str) -> &'static str {
    if param == "tool_choice" { "auto, none and required" } else { "auto and none" }
}

/// The choice that goes with the other name of tools must mean nothing.
fn check_other(choice: Option<&Value>, param: &str, with: &str, tools: &[Value]) -> Result<(), ApiError> {
    let void = |choice: &Value| choice.is_null() || choice == "auto" || choice == "none" && tools.is_empty();
    match choice {
        Some(choice) if !void(choice) => {
            Err(ApiError::invalid(param, format!("'{param}' goes with '{with}', which were not sent")))
        }
        Some(_) | None => Ok(()),
    }
}

/// Functions are the only tools.
fn check_types(tools: &[Value]) -> Result<(), ApiError> {
    match tools.iter().position(|tool| tool["type"] != "function") {
        Some(place) => Err(ApiError::invalid(
            format!("tools[{place}].type"),
            "only tools of the 'type' \"function\" are supported",
        )),
        None => Ok(()),
    }
}

/// Looks at the functions of all tools, whose places have these names.
fn check(tools: &[Value], place: impl Fn(usize) -> String) -> Result<(), ApiError> {
    let mut names = HashSet::new();
    for (number, tool) in tools.iter().enumerate() {
        let (function, place) = (&tool["function"], place(number));
        let wrong = |field: &str, text: String| Err(ApiError::invalid(format!("{place}.{field}"), text));
        if !function.is_object() {
            return Err(ApiError::invalid(&*place, format!("'{place}' must be an object with a 'name'")));
        }
        let Some(name) = function["name"].as_str() else {
            return wrong("name", "a function needs a 'name'".to_owned());
        };
        let sound = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if !(1..=NAME_BYTES).contains(&name.len()) || !name.bytes().all(sound) {
            let text = format!("a function's 'name' has 1 to {NAME_BYTES} letters, digits, '_', '-' and '.'");
            return wrong("name", text);
        }
        if !names.insert(name) {
            return wrong("name", format!("two functions are called '{name}'"));
        }
        match &function["description"] {
            Value::Null | Value::String(_) => {}
            Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                return wrong("description", "a function's 'description' is a string".to_owned());
            }
        }
        match &function["strict"] {
            Value::Null | Value::Bool(_) => {}
            Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => {
                return wrong("strict", "a function's 'strict' is true or false".to_owned());
            }
        }
        check_parameters(&function["parameters"], &format!("{place}.parameters"))?;
    }
    Ok(())
}

/// Looks at the schema of a function's arguments, which are an object.
fn check_parameters(parameters: &Value, place: &str) -> Result<(), ApiError> {
    match parameters {
        Value::Null => Ok(()),
        Value::Object(fields) => match fields.get("type") {
            None => check_schema(parameters, place),
            Some(kind) if kind == "object" => check_schema(parameters, place),
            Some(_) => Err(ApiError::invalid(
                format!("{place}.type"),
                "a function's arguments are an object: its 'parameters' have the 'type' \"object\"",
            )),
        },
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            Err(ApiError::invalid(place, "a function's 'parameters' are a JSON schema, which is an object"))
        }
    }
}

/// Looks at the types in a schema; JSON from outside is nested no deeper than its parser allows.
fn check_schema(schema: &Value, place: &str) -> Result<(), ApiError> {
    let known = |kind: &Value| kind.as_str().is_some_and(|kind| TYPES.contains(&kind));
    let sound = match &schema["type"] {
        Value::Null => true,
        Value::Array(kinds) => !kinds.is_empty() && kinds.iter().all(known),
        kind @ (Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_)) => known(kind),
    };
    if !sound {
        let text = format!("the 'type' of a schema is one of {}, or a list of these", TYPES.join(", "));
        return Err(ApiError::invalid(format!("{}.type", shortened(place)), text));
    }
    match &schema["properties"] {
        Value::Null => {}
        Value::Object(properties) => {
            for (name, schema) in properties {
                let place = format!("{place}.properties.{name}");
                if !schema.is_object() && !schema.is_boolean() {
                    return Err(ApiError::invalid(shortened(&place), "the schema of a property is an object"));
                }
                check_schema(schema, &place)?;
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            let text = "the 'properties' of a schema are an object with a schema for each name";
            return Err(ApiError::invalid(format!("{}.properties", shortened(place)), text));
        }
    }
    match &schema["items"] {
        items @ Value::Object(_) => check_schema(items, &format!("{place}.items")),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Ok(()),
    }
}

/// What is quoted of a request stays short.
fn shortened(text: &str) -> String {
    text.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: Value) -> Result<Toolbox, ApiError> {
        let list = |name: &str| json[name].as_array().cloned();
        let any = |name: &str| json.get(name).cloned();
        let params = ToolParams {
            tools: list("tools"),
            tool_choice: any("tool_choice"),
            parallel_tool_calls: json["parallel_tool_calls"].as_bool(),
            functions: list("functions"),
            function_call: any("function_call"),
        };
        params.read()
    }

    /// The parameter that is refused.
    fn refused(json: Value) -> String {
        match read(json) {
            Err(error) => error.body()["error"]["param"].as_str().expect("a parameter").to_owned(),
            Ok(toolbox) => panic!("{toolbox:?}"),
        }
    }

    fn tool(function: Value) -> Value {
        json!({"type": "function", "function": function})
    }

    #[test]
    fn what_is_wrong_is_told_by_name() {
        let function = |parameters: Value| json!({"tools": [tool(json!({"name": "f", "parameters": parameters}))]});
        let f = || tool(json!({"name": "f"}));
        for (sent, param) in [
            (json!({"tools": [{"type": "retrieval"}]}), "tools[0].type"),
            (json!({"tools": [f(), 3]}), "tools[1].type"),
            (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
            (json!({"tools": [tool(json!({}))]}), "tools[0].function.name"),
            (json!({"tools": [tool(json!({"name": "a b"}))]}), "tools[0].function.name"),
            (json!({"tools": [tool(json!({"name": "x".repeat(65)}))]}), "tools[0].function.name"),
            (json!({"tools": [f(), f()]}), "tools[1].function.name"),
            (json!({"tools": [tool(json!({"name": "f", "description": 3}))]}), "tools[0].function.description"),
            (json!({"tools": [tool(json!({"name": "f", "strict": "yes"}))]}), "tools[0].function.strict"),
            (function(json!("x")), "tools[0].function.parameters"),
            (function(json!({"type": "string"})), "tools[0].function.parameters.type"),
            (function(json!({"properties": []})), "tools[0].function.parameters.properties"),
            (function(json!({"properties": {"a": 3}})), "tools[0].function.parameters.properties.a"),
            (function(json!({"properties": {"a": {"type": "str"}}})), "tools[0].function.parameters.properties.a.type"),
            (
                function(json!({"properties": {"a": {"items": {"type": [1]}}}})),
                "tools[0].function.parameters.properties.a.items.type",
            ),
            (json!({"functions": [{"name": ""}]}), "functions[0].name"),
            (json!({"functions": [{"name": "f"}], "tools": [f()]}), "functions"),
            (json!({"functions": [{"name": "f"}], "tool_choice": "none"}), "tool_choice"),
            (json!({"tools": [f()], "function_call": "none"}), "function_call"),
            (json!({"function_call": {"name": "f"}}), "function_call"),
            (json!({"tools": [f()], "tool_choice": "any"}), "tool_choice"),
            (json!({"tools": [f()], "tool_choice": {"type": "function", "function": {"name": "g"}}}), "tool_choice"),
            (json!({"tools": [f()], "tool_choice": {"type": "function"}}), "tool_choice"),
            (json!({"tools": [f()], "tool_choice": {"function": {"name": "f"}}}), "tool_choice"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"functions": [{"name": "f"}], "function_call": {"name": "g"}}), "function_call"),
            (json!({"functions": [{"name": "f"}], "function_call": "required"}), "function_call"),
        ] {
            assert_eq!(refused(sent.clone()), param, "{sent}");
        }
    }

    #[test]
    fn what_is_wanted_is_understood() {
        let schema = json!({"type": "object", "properties": {"a": {"type": ["string", "null"]}, "b": true}});
        let f = || tool(json!({"name": "f", "description": null, "parameters": schema, "strict": true}));
        let toolbox = |tools: Vec<Value>, calls, dialect| {
            let choice = if calls == CallsWanted::None { ToolChoice::None } else { ToolChoice::Auto };
            let strict = tools.iter().map(|_| "f".to_owned()).collect();
            Toolbox { tools, choice, calls, strict, dialect }
        };
        for (sent, wanted) in [
            (json!({}), toolbox(vec![], CallsWanted::All, Dialect::Tools)),
            (json!({"functions": [], "function_call": "none"}), toolbox(vec![], CallsWanted::All, Dialect::Tools)),
            (json!({"tools": [], "tool_choice": "auto"}), toolbox(vec![], CallsWanted::All, Dialect::Tools)),
            (json!({"tools": [f()]}), toolbox(vec![f()], CallsWanted::All, Dialect::Tools)),
            (json!({"tools": [f()], "tool_choice": "none"}), toolbox(vec![], CallsWanted::None, Dialect::Tools)),
            (
                json!({"tools": [f()], "parallel_tool_calls": false}),
                toolbox(vec![f()], CallsWanted::One, Dialect::Tools),
            ),
            (
                json!({"functions": [f()["function"].clone()], "function_call": "auto"}),
                toolbox(vec![f()], CallsWanted::One, Dialect::Functions),
            ),
        ] {
            assert_eq!(read(sent.clone()).expect("sound"), wanted, "{sent}");
        }
    }

    #[test]
    fn a_call_may_be_demanded() {
        let named = json!({"type": "function", "function": {"name": "f"}});
        for (choice, wanted) in [(json!("required"), ToolChoice::Required), (named, ToolChoice::Named("f".to_owned()))]
        {
            let toolbox = read(json!({"tools": [tool(json!({"name": "f"}))], "tool_choice": choice})).expect("sound");
            assert_eq!((toolbox.choice, toolbox.strict), (wanted, vec![]), "it need not be strict");
        }
    }
}
