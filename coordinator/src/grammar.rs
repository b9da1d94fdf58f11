//! Grammars: what a text must look like, and which tokens may follow at each place of it.
//!
//! A [`Grammar`] says it in words that have nothing to do with tokens. A [`GrammarCompiler`], one for each vocabulary, makes
//! a [`CompiledGrammar`] of it, and each text goes along it on a [`GrammarWalk`] of its own. The grammars themselves are the
//! crate `llguidance`'s, which knows JSON schemas, regular expressions and Lark; what is here bounds them, and keeps texts
//! from going on without end where a model is weak.

mod compiler;
mod controls;
mod desk;
#[cfg(test)]
pub(crate) mod fifty;
mod gbnf;
mod lazy;
mod lead;
mod tagged;
#[cfg(test)]
mod tests;
mod walk;

use serde_json::{Value, json};
use thiserror::Error;

pub(crate) use self::tagged::wants_text;
pub use self::{
    compiler::GrammarCompiler,
    desk::GrammarDesk,
    lazy::{HeldArguments, HeldCalls, Thoughts},
    lead::{Lead, LeadPiece, LeadPlace},
    tagged::{Lines, Pairs, Types},
    walk::{CompiledGrammar, GrammarWalk},
};

/// What a text must look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Grammar(Form);

/// The forms that a compiler knows.
#[derive(Clone, Debug, PartialEq)]
enum Form {
    /// JSON by a schema, in which [`COMPACT`] is set.
    Json(Value),
    /// A regular expression that the whole text matches.
    Regex(String),
    /// A grammar in llguidance's dialect of Lark.
    Lark(String),
    /// JSON by a schema with a text before and one after, in which control tokens may be spelled.
    Tagged { prefix: String, schema: Value, suffix: String },
    /// One of several, each JSON or tagged JSON.
    Either(Vec<Self>),
    /// Any text up to the first `end`, then a form of its own.
    Behind { end: String, form: Box<Self> },
    /// Any text, in which the arguments of some calls are by schemas; where they are JSON, the same is set in each of these.
    Held(HeldCalls),
}

/// Why there is no grammar, or a text cannot go on along one.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum GrammarError {
    /// It is larger than any grammar may be.
    #[error("it has {bytes} bytes, {most} are the limit")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        most: usize,
    },
    /// It is no grammar, or one that cannot be followed here.
    #[error("{text}")]
    Refused {
        /// What is wrong with it.
        text: String,
    },
    /// The model has no token with which a text could end where its grammar does.
    #[error("this model has no token that ends a text")]
    NoEnd,
    /// A text could not go on: the grammar became too complex, or did not take a token.
    #[error("the text could not go on along its grammar: {text}")]
    Lost {
        /// Why.
        text: String,
    },
}

impl Grammar {
    /// JSON that a schema allows: an object, or `true` for any JSON. White space is bounded, and members come in the order
    /// in which the schema has them.
    ///
    /// # Errors
    /// What is no schema, or too long. What a schema says that cannot be followed is told when it is compiled.
    pub fn json_schema(schema: &Value) -> Result<Self, GrammarError> {
        compact(schema).map(|schema| Self(Form::Json(schema)))
    }

    /// Any JSON object.
    pub fn json_object() -> Self {
        Self(Form::Json(json!({"type": "object", "x-guidance": compactness()})))
    }

    /// A text that a regular expression matches as a whole, in the syntax of Rust's `regex`. `^` at its start and `$` at its
    /// end say what holds anyway.
    ///
    /// # Errors
    /// An expression that is too long.
    pub fn regex(expression: &str) -> Result<Self, GrammarError> {
        within(expression.len())?;
        let expression = expression.strip_prefix('^').unwrap_or(expression);
        let is_anchor = |before: &&str| before.chars().rev().take_while(|c| *c == '\\').count() % 2 == 0;
        let expression = expression.strip_suffix('$').filter(is_anchor).unwrap_or(expression);
        Ok(Self(Form::Regex(expression.to_owned())))
    }

    /// One of these texts.
    ///
    /// # Errors
    /// No text, or texts that are too long together.
    pub fn choice<T: AsRef<str>>(texts: &[T]) -> Result<Self, GrammarError> {
        if texts.is_empty() {
            return Err(GrammarError::Refused { text: "there is nothing to choose from".to_owned() });
        }
        within(texts.iter().map(|text| text.as_ref().len() + 3).sum())?;
        // One terminal takes any number of them, and an empty one is none.
        let some: Vec<_> = texts.iter().map(AsRef::as_ref).filter(|text| !text.is_empty()).map(quoted).collect();
        let start = match (some.is_empty(), some.len() < texts.len()) {
            (true, _) => "\"\"",
            (false, true) => "ONE | \"\"",
            (false, false) => "ONE",
        };
        let one = if some.is_empty() { String::new() } else { format!("ONE: {}\n", some.join(" | ")) };
        Ok(Self(Form::Lark(format!("start: {start}\n{one}"))))
    }

    /// A grammar in Lark, as llguidance understands it.
    ///
    /// # Errors
    /// One that is too long.
    pub fn lark(grammar: &str) -> Result<Self, GrammarError> {
        within(grammar.len())?;
        Ok(Self(Form::Lark(grammar.to_owned())))
    }

    /// A grammar in llama.cpp's GBNF.
    ///
    /// # Errors
    /// What is none, or too long.
    pub fn gbnf(grammar: &str) -> Result<Self, GrammarError> {
        within(grammar.len())?;
        let lark = gbnf::to_lark(grammar).map_err(|error| GrammarError::Refused { text: error.to_string() })?;
        Ok(Self(Form::Lark(lark)))
    }

    /// `prefix`, then JSON that the schema allows, then `suffix`: a call of a tool, where the text leaves no choice. A
    /// control token that is spelled in `prefix` or `suffix` may come as that token or as its spelling.
    ///
    /// # Errors
    /// As [`Grammar::json_schema`].
    pub fn tagged(prefix: &str, schema: &Value, suffix: &str) -> Result<Self, GrammarError> {
        within(prefix.len() + suffix.len())?;
        let schema = compact(schema)?;
        Ok(Self(Form::Tagged { prefix: prefix.to_owned(), schema, suffix: suffix.to_owned() }))
    }

    /// What this grammar allows, or what one of the others does: JSON, with texts around it or without.
    ///
    /// # Errors
    /// One of them is no JSON; they are too long together.
    pub fn or(self, others: Vec<Self>) -> Result<Self, GrammarError> {
        let forms: Vec<Form> = [self].into_iter().chain(others).map(|grammar| grammar.0).collect();
        let bytes = |form: &Form| match form {
            Form::Json(schema) | Form::Tagged { schema, .. } => Some(schema.to_string().len()),
            Form::Regex(_) | Form::Lark(_) | Form::Either(_) | Form::Behind { .. } | Form::Held(_) => None,
        };
        let sizes: Option<Vec<usize>> = forms.iter().map(bytes).collect();
        let only_json = || GrammarError::Refused { text: "only JSON can be one of several forms".to_owned() };
        within(sizes.ok_or_else(only_json)?.iter().sum())?;
        Ok(Self(Form::Either(forms)))
    }

    /// Any text up to the first `end`, some line breaks, and then what this grammar allows: thoughts that the prompt has begun,
    /// and the answer. Where `end` is a control token, only that token ends the text.
    pub fn behind(self, end: &str) -> Self {
        Self(Form::Behind { end: end.to_owned(), form: Box::new(self.0) })
    }

    /// Any text, in which the arguments of these calls are by their schemas.
    ///
    /// # Errors
    /// As [`Grammar::json_schema`]; schemas that are too long together.
    pub fn held(mut held: HeldCalls) -> Result<Self, GrammarError> {
        let mut bytes = 0;
        for (_, arguments) in &mut held.calls {
            bytes += match arguments {
                HeldArguments::Json(schema) => {
                    *schema = compact(schema)?;
                    schema.to_string().len()
                }
                HeldArguments::Tagged { schema, .. } => schema.to_string().len(),
            };
        }
        within(bytes)?;
        Ok(Self(Form::Held(held)))
    }
}

/// Most bytes of a grammar or a schema.
const BYTES: usize = 256 << 10;

/// A text in the quotes of Lark, which are those of JSON.
fn quoted(text: &str) -> String {
    // The only character that JSON writes as it is and Lark does not take so.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A schema whose references to parts of itself still find them at the place `base` of another one.
pub(crate) fn rebased(schema: &Value, base: &str) -> Value {
    match schema {
        Value::Object(fields) => {
            let field = |(key, value): (&String, &Value)| {
                let value = match value.as_str().and_then(|text| text.strip_prefix('#')) {
                    Some(place) if key == "$ref" => format!("#{base}{place}").into(),
                    Some(_) | None => rebased(value, base),
                };
                (key.clone(), value)
            };
            fields.iter().map(field).collect()
        }
        Value::Array(items) => items.iter().map(|item| rebased(item, base)).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema.clone(),
    }
}

/// The schema with what keeps white space short, whatever it says of that itself, and objects to the members that it names.
fn compact(schema: &Value) -> Result<Value, GrammarError> {
    let mut schema = match schema {
        Value::Bool(true) => json!({}),
        Value::Object(_) => schema.clone(),
        Value::Bool(false) | Value::Null | Value::Number(_) | Value::String(_) | Value::Array(_) => {
            return Err(GrammarError::Refused { text: "a schema is an object".to_owned() });
        }
    };
    within(schema.to_string().len())?;
    close(&mut schema);
    schema["x-guidance"] = compactness();
    Ok(schema)
}

/// Where a schema names an object's members and does not say that there may be others, there are none: a weak model would go on
/// with them without end. What it allows is a part of what the schema allows. Members may also be named by what is combined with an
/// object, so that those are left alone.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            let combined = COMBINED.iter().any(|word| fields.contains_key(*word));
            if fields.get("properties").is_some_and(Value::is_object) && !combined {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            for (word, value) in fields.iter_mut() {
                match (word.as_str(), value) {
                    ("allOf" | "const" | "enum" | "default" | "examples", _) => {}
                    // The names in these are not words of schemas.
                    ("properties" | "$defs" | "definitions" | "patternProperties", Value::Object(named)) => {
                        named.values_mut().for_each(close);
                    }
                    (_, value) => close(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What says which members an object may have beside `properties`.
const COMBINED: [&str; 9] = [
    "additionalProperties",
    "unevaluatedProperties",
    "patternProperties",
    "propertyNames",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "$ref",
];

/// Between two parts of JSON there is nothing, a space, or a line end and an indentation: a model that would only go on with
/// spaces must go on with the text.
fn compactness() -> Value {
    json!({"whitespace_pattern": "[ ]|[\\n][ ]{0,32}"})
}

fn within(bytes: usize) -> Result<(), GrammarError> {
    if bytes <= BYTES { Ok(()) } else { Err(GrammarError::TooLong { bytes, most: BYTES }) }
}
