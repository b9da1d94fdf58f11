//! What the text of an answer must look like, by the names of OpenAI, vLLM, llama.cpp and SGLang.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::{
    Api, blocking,
    error::ApiError,
    json::{Document, Object},
};
use crate::{
    grammar::{CompiledGrammar, Grammar, GrammarError, HeldCalls},
    text::ForcedCall,
};

/// How long a request waits for its grammar to be compiled, and for those of others before it.
const COMPILE_DEADLINE: Duration = Duration::from_secs(10);

const CHOICE: &str = "tool_choice";

/// What a request asks of its text, and with which parameter.
#[derive(Debug, PartialEq)]
pub(crate) struct AskedGrammar {
    param: &'static str,
    grammar: Grammar,
}

/// The form of an answer, as dialects ask for one.
#[derive(Debug, PartialEq)]
pub(crate) enum Form {
    /// Any JSON object.
    Object,
    /// JSON that this schema describes.
    Schema(Value),
}

/// The parameters as they were sent.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GrammarParams {
    /// OpenAI's.
    response_format: Option<Object<ResponseFormat>>,
    /// vLLM's, old and new.
    guided_json: Option<Value>,
    guided_regex: Option<String>,
    guided_choice: Option<Vec<String>>,
    guided_grammar: Option<String>,
    structured_outputs: Option<Object<StructuredOutputs>>,
    /// llama.cpp's.
    grammar: Option<String>,
    json_schema: Option<Value>,
    /// SGLang's, which also has `json_schema`.
    ebnf: Option<String>,
    regex: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResponseFormat {
    #[serde(rename = "type")]
    kind: Option<String>,
    json_schema: Option<Object<NamedSchema>>,
    /// llama.cpp's, beside `json_object`.
    schema: Option<Value>,
}

/// Its name and description are for people; it is always followed strictly.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NamedSchema {
    schema: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StructuredOutputs {
    json: Option<Value>,
    regex: Option<String>,
    choice: Option<Vec<String>>,
    grammar: Option<String>,
    json_object: Option<bool>,
    structural_tag: Option<Value>,
    whitespace_pattern: Option<String>,
    disable_any_whitespace: Option<bool>,
    disable_additional_properties: Option<bool>,
}

impl AskedGrammar {
    /// What a body asks for.
    ///
    /// # Errors
    /// What is wrong with it, by the parameter's name; more than one grammar.
    pub(crate) fn read(body: &Document) -> Result<Option<Self>, ApiError> {
        let params: GrammarParams = body.read()?;
        let format = params.response_format.map(|Object(format)| format.asked()).transpose()?.flatten();
        let structured = params.structured_outputs.map_or_else(|| Ok(Vec::new()), |Object(outputs)| outputs.asked())?;
        let others = [
            schema("guided_json", params.guided_json.as_ref()),
            expression("guided_regex", params.guided_regex.as_deref()),
            choice("guided_choice", params.guided_choice.as_deref()),
            rules("guided_grammar", params.guided_grammar.as_deref()),
            rules("grammar", params.grammar.as_deref()),
            schema("json_schema", params.json_schema.as_ref()),
            rules("ebnf", params.ebnf.as_deref()),
            expression("regex", params.regex.as_deref()),
        ];
        let others = others.into_iter().flatten().collect::<Result<Vec<_>, _>>()?;
        let mut asked = format.into_iter().chain(structured).chain(others);
        let first = asked.next();
        match (&first, asked.next()) {
            (Some(Self { param: one, .. }), Some(Self { param, .. })) => {
                Err(ApiError::invalid(param, format!("'{param}' comes beside '{one}': ask for one of them")))
            }
            _ => Ok(first),
        }
    }

    /// What a dialect asks for with the parameter of this name.
    ///
    /// # Errors
    /// What is wrong with the schema.
    pub(crate) fn of_form(param: &'static str, form: Form) -> Result<Self, ApiError> {
        match form {
            Form::Object => Ok(Self { param, grammar: Grammar::json_object() }),
            Form::Schema(schema) => named(param, Grammar::json_schema(&schema)),
        }
    }

    /// The call that an answer must be. Where the prompt has begun thoughts, they end at once: what a model thinks before a
    /// call that it cannot choose helps nobody.
    ///
    /// # Errors
    /// The answer must have another form as well, or the tool's parameters are no schema that can be followed.
    pub(crate) fn call(forced: &ForcedCall, thoughts_end: Option<&str>, has_form: bool) -> Result<Self, ApiError> {
        if has_form {
            let text = "'tool_choice' demands a call where the answer's form is asked for as well: ask for one of them";
            return Err(ApiError::invalid(CHOICE, text));
        }
        let begun = thoughts_end.map_or_else(String::new, |end| format!("{end}\n\n"));
        Ok(Self { param: "tools", grammar: tagged(&begun, forced)? })
    }

    /// What is held of an answer that may be anything.
    ///
    /// # Errors
    /// The schemas of its tools are too long together.
    pub(crate) fn held(held: HeldCalls) -> Result<Self, ApiError> {
        named("tools", Grammar::held(held))
    }

    /// The same form of the answer, behind thoughts that the prompt has begun, where it has.
    pub(crate) fn behind(self, thoughts_end: Option<&str>) -> Self {
        let Self { param, grammar } = self;
        match thoughts_end {
            Some(end) => Self { param, grammar: grammar.behind(end) },
            None => Self { param, grammar },
        }
    }

    /// The same form, or one of the calls that the answer may be.
    ///
    /// # Errors
    /// A tool's parameters are no schema that can be followed; the answer's form is no JSON.
    pub(crate) fn or_calls(self, possible: &[ForcedCall]) -> Result<Self, ApiError> {
        if possible.is_empty() {
            return Ok(self);
        }
        let Self { param, grammar } = self;
        let calls = possible.iter().map(|call| tagged("", call)).collect::<Result<_, _>>()?;
        let grammar = grammar.or(calls).map_err(|error| {
            ApiError::invalid(
                param,
                format!("'{param}' beside tools that may be called: {error}; or send 'tool_choice': \"none\""),
            )
        })?;
        Ok(Self { param, grammar })
    }
}

impl ResponseFormat {
    fn asked(self) -> Result<Option<AskedGrammar>, ApiError> {
        match (self.kind.as_deref(), self.json_schema, self.schema) {
            (Some("text"), ..) => Ok(None),
            (Some("json_object"), _, None) => {
                Ok(Some(AskedGrammar { param: "response_format", grammar: Grammar::json_object() }))
            }
            (Some("json_object"), _, found @ Some(_)) => schema("response_format.schema", found.as_ref()).transpose(),
            (Some("json_schema"), Some(Object(NamedSchema { schema: found @ Some(_) })), _) => {
                schema("response_format.json_schema.schema", found.as_ref()).transpose()
            }
            (Some("json_schema"), Some(_), _) => {
                let param = "response_format.json_schema.schema";
                Err(ApiError::invalid(param, format!("'{param}' is missing")))
            }
            (Some("json_schema"), None, _) => {
                Err(ApiError::invalid("response_format.json_schema", "'response_format.json_schema' is missing"))
            }
            (Some(_) | None, ..) => Err(ApiError::invalid(
                "response_format.type",
                "'response_format.type' is one of text, json_object and json_schema",
            )),
        }
    }
}

impl StructuredOutputs {
    fn asked(self) -> Result<Vec<AskedGrammar>, ApiError> {
        let refused = [
            ("structured_outputs.structural_tag", self.structural_tag.is_some_and(|tag| !tag.is_null())),
            ("structured_outputs.whitespace_pattern", self.whitespace_pattern.is_some()),
            ("structured_outputs.disable_any_whitespace", self.disable_any_whitespace == Some(true)),
            ("structured_outputs.disable_additional_properties", self.disable_additional_properties == Some(true)),
        ];
        if let Some((param, _)) = refused.into_iter().find(|(_, asked)| *asked) {
            return Err(ApiError::Unsupported { param, hint: "say it in the schema or the grammar" });
        }
        let object = AskedGrammar { param: "structured_outputs.json_object", grammar: Grammar::json_object() };
        let asked = [
            schema("structured_outputs.json", self.json.as_ref()),
            expression("structured_outputs.regex", self.regex.as_deref()),
            choice("structured_outputs.choice", self.choice.as_deref()),
            rules("structured_outputs.grammar", self.grammar.as_deref()),
            Some(Ok(object)).filter(|_| self.json_object == Some(true)),
        ];
        asked.into_iter().flatten().collect()
    }
}

impl Api {
    /// Compiles the grammar that a request asks for.
    ///
    /// # Errors
    /// What is wrong with it, by the parameter's name; `Busy` where others take too long.
    pub(crate) async fn compile(&self, asked: Option<AskedGrammar>) -> Result<Option<Arc<CompiledGrammar>>, ApiError> {
        let Some(AskedGrammar { param, grammar }) = asked else { return Ok(None) };
        let text = Arc::clone(&self.state.text);
        let compiling = timeout(COMPILE_DEADLINE, blocking(move || text.compile(&grammar)));
        let compiled = compiling.await.map_err(|_| ApiError::Busy)??;
        compiled.map(Some).map_err(|error| wrong(param, &error))
    }
}

/// What one parameter asks for, if it was sent.
type Asked = Option<Result<AskedGrammar, ApiError>>;

/// A schema, or the JSON of one in a string.
fn schema(param: &'static str, value: Option<&Value>) -> Asked {
    let parsed = match value? {
        Value::Null => return None,
        Value::String(text) => {
            let no_json = |error: serde_json::Error| GrammarError::Refused { text: format!("it is no JSON: {error}") };
            serde_json::from_str(text).map_err(no_json)
        }
        value @ (Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_)) => Ok(value.clone()),
    };
    Some(named(param, parsed.and_then(|schema| Grammar::json_schema(&schema))))
}

fn expression(param: &'static str, text: Option<&str>) -> Asked {
    text.filter(|text| !text.is_empty()).map(|text| named(param, Grammar::regex(text)))
}

fn choice(param: &'static str, texts: Option<&[String]>) -> Asked {
    texts.filter(|texts| !texts.is_empty()).map(|texts| named(param, Grammar::choice(texts)))
}

/// GBNF, or else Lark.
fn rules(param: &'static str, text: Option<&str>) -> Asked {
    let grammar = |text: &str| if text.contains("::=") { Grammar::gbnf(text) } else { Grammar::lark(text) };
    text.filter(|text| !text.trim().is_empty()).map(|text| named(param, grammar(text)))
}

/// A call behind what comes before it.
fn tagged(before: &str, call: &ForcedCall) -> Result<Grammar, ApiError> {
    let ForcedCall { prefix, schema, suffix, .. } = call;
    Grammar::tagged(&format!("{before}{prefix}"), schema, suffix).map_err(|error| wrong("tools", &error))
}

fn named(param: &'static str, grammar: Result<Grammar, GrammarError>) -> Result<AskedGrammar, ApiError> {
    grammar.map(|grammar| AskedGrammar { param, grammar }).map_err(|error| wrong(param, &error))
}

fn wrong(param: &'static str, error: &GrammarError) -> ApiError {
    ApiError::invalid(param, format!("'{param}': {error}"))
}
