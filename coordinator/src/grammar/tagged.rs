//! Arguments that are written as keys and values between tags, held to a schema: texts as they are, all other values as JSON.

use serde_json::{Map, Value, json};

use super::{
    GrammarError, compact,
    controls::{Controls, Split},
    quoted, rebased,
};

/// The tags of a format.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Pairs {
    /// Around a key.
    pub key: (&'static str, &'static str),
    /// Around its value.
    pub value: (&'static str, &'static str),
    /// Behind the last pair.
    pub end: &'static str,
    /// Whether values stand on lines of their own.
    pub lines: Lines,
    /// What tells a text from other values.
    pub types: Types,
}

/// What tells a value that is a text from one that is JSON.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Types {
    /// The tool's schema.
    BySchema,
    /// What stands behind the key.
    BehindKey {
        /// Of a text.
        text: &'static str,
        /// Of JSON.
        json: &'static str,
    },
}

/// Whether values stand on lines of their own.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lines {
    /// The line ends around a value are not part of it.
    Own,
    /// A value is all that is between its tags.
    Shared,
}

/// Whether a schema takes a text and nothing else, but null perhaps: such formats write texts without quotes.
pub(crate) fn wants_text(schema: &Value) -> bool {
    match &schema["type"] {
        Value::String(one) => one == "string",
        Value::Array(some) => {
            some.iter().all(|one| one == "string" || one == "null") && some.contains(&"string".into())
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => {
            schema["enum"].as_array().is_some_and(|values| values.iter().all(Value::is_string))
        }
    }
}

/// A grammar in Lark of the pairs that the schema of an object allows, in the order in which it has them, and of what ends them.
///
/// # Errors
/// What the schema says that cannot be held in this form.
pub(super) fn lark(pairs: &Pairs, schema: &Value, controls: &Controls) -> Result<String, GrammarError> {
    let (mut start, mut rules) = (String::new(), String::new());
    for (place, argument) in arguments(schema)?.iter().enumerate() {
        let sign = match argument.presence {
            Presence::Always => "",
            Presence::Perhaps => "?",
        };
        start.push_str(&format!("pair{place}{sign} "));
        rules.push_str(&Pair { pairs, tool: schema, argument, controls, place }.rules()?);
    }
    let end = controls.spelled(pairs.end);
    Ok(format!("start: S? {start}{end}\nS: /[ \\n]{{1,8}}/\nANY: /(.|\\n)*/\nSOME: /(.|\\n)+/\n{rules}"))
}

/// An argument that a call may have.
struct Argument {
    key: String,
    schema: Value,
    presence: Presence,
}

/// Whether a call has an argument.
#[derive(Clone, Copy)]
enum Presence {
    Always,
    Perhaps,
}

/// The arguments that a schema names; no others come.
fn arguments(schema: &Value) -> Result<Vec<Argument>, GrammarError> {
    let none = Map::new();
    let fields = schema.as_object().unwrap_or(&none);
    if let Some(word) = OF_OBJECTS.iter().find(|word| fields.contains_key(**word)) {
        return Err(refused(format!("this model's calls cannot be held to '{word}' of a tool's parameters")));
    }
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    let required: Vec<&str> = required.filter_map(Value::as_str).collect();
    let named = fields.get("properties").and_then(Value::as_object).unwrap_or(&none);
    let described = named.iter().map(|(key, schema)| (key.as_str(), schema.clone()));
    let others = required.iter().filter(|key| !named.contains_key(**key)).map(|key| (*key, json!({})));
    let argument = |(key, schema): (&str, Value)| {
        let presence = if required.contains(&key) { Presence::Always } else { Presence::Perhaps };
        Argument { key: key.to_owned(), schema, presence }
    };
    Ok(described.chain(others).map(argument).collect())
}

/// One argument in its tags.
struct Pair<'a> {
    pairs: &'a Pairs,
    /// The schema of all arguments.
    tool: &'a Value,
    argument: &'a Argument,
    controls: &'a Controls,
    /// Its number, by which its rules are named.
    place: usize,
}

impl Pair<'_> {
    /// Its rules, of which the first one is `pair` and its number.
    fn rules(&self) -> Result<String, GrammarError> {
        let Self { pairs, argument: Argument { key, schema, .. }, controls, place, .. } = self;
        let (before, after) = pairs.key;
        if key.is_empty() || key.trim() != key || key.contains(['<', '>', '"', '\n']) {
            return Err(refused(format!("a call of this model cannot have an argument that is named '{key}'")));
        }
        let is_text = wants_text(schema);
        let behind = match pairs.types {
            Types::BehindKey { text, .. } if is_text => text,
            Types::BehindKey { json, .. } => json,
            Types::BySchema => "",
        };
        let begin = controls.spelled(&format!("{before}{key}{behind}{after}"));
        let open = match pairs.value.0 {
            "" => String::new(),
            open => format!("S? {}", controls.spelled(open)),
        };
        let (value, rules) = if is_text { self.text()? } else { self.json()? };
        Ok(format!("pair{place}: {begin} {open} {value} S?\n{rules}"))
    }

    /// A value in JSON and the tag behind it. In JSON that has this tag within a text the value would end there.
    fn json(&self) -> Result<(String, String), GrammarError> {
        let Self { pairs, argument: Argument { key, schema, .. }, controls, place, tool } = self;
        let schema = if refers(schema) {
            let key = key.replace('~', "~0").replace('/', "~1");
            json!({"$ref": format!("#/$defs/tool/properties/{key}"), "$defs": {"tool": rebased(tool, "/$defs/tool")}})
        } else {
            schema.clone()
        };
        let close = controls.spelled(pairs.value.1);
        Ok((format!("S? json{place} S? {close}"), format!("json{place}: %json {}\n", compact(&schema)?)))
    }

    /// A text as it is and the tag behind it, which comes nowhere in the text.
    fn text(&self) -> Result<(String, String), GrammarError> {
        let Self { pairs, argument: Argument { key, schema, .. }, controls, place, .. } = self;
        let bodies = bodies(schema);
        let bodies = bodies.map_err(|what| refused(format!("this model's calls cannot hold '{key}' to {what}")))?;
        let close = pairs.value.1;
        // A terminal goes up to the first control token.
        let split = controls.split(close);
        let within = match split.map_or(close, |Split { before, .. }| before) {
            "" => String::new(),
            within => quoted(within),
        };
        // Where lines around a text may be left out, they are no part of it.
        let lined = |body: &String| match pairs.lines {
            Lines::Own if body != "ANY" => {
                format!("((\"\\n\" {body} \"\\n\") | ({body} & ~(\"\\n\" ANY) & ~(ANY \"\\n\"))) {within}")
            }
            Lines::Own | Lines::Shared => format!("{body} {within}"),
        };
        let mut held: Vec<String> = bodies.iter().map(lined).collect();
        let Some(Split { token, behind, .. }) = split else {
            held.push(format!("~(ANY {} SOME)", quoted(close)));
            return Ok((format!("TEXT{place}"), format!("TEXT{place}: {}\n", held.join(" & "))));
        };
        held.push(format!("~(ANY {} ANY)", quoted(close)));
        let mut sign = "";
        if within.is_empty() {
            // No terminal is empty.
            held.push("SOME".to_owned());
            sign = if LEAST.iter().any(|word| schema.get(word).is_some()) { "" } else { "?" };
        }
        let close = format!("{} {}", controls.spelled(token), controls.spelled(behind));
        Ok((format!("TEXT{place}{sign} {close}"), format!("TEXT{place}: {}\n", held.join(" & "))))
    }
}

/// Terms in Lark of all that a schema says of a text; what cannot be said so.
fn bodies(schema: &Value) -> Result<Vec<String>, String> {
    if let Some(word) = OF_TEXTS.iter().find(|word| schema.get(word).is_some()) {
        return Err(format!("'{word}'"));
    }
    let mut bodies = Vec::new();
    for choices in [schema.get("enum").cloned(), schema.get("const").map(|one| json!([one]))].into_iter().flatten() {
        let texts: Vec<String> =
            choices.as_array().into_iter().flatten().filter_map(Value::as_str).map(quoted).collect();
        if texts.is_empty() {
            return Err("choices among which there is no text".to_owned());
        }
        bodies.push(format!("({})", texts.join(" | ")));
    }
    let length = |word: &str| schema.get(word).and_then(Value::as_u64);
    if let (least, Some(most)) = (length("minLength").unwrap_or(0), length("maxLength")) {
        bodies.push(format!("/(.|\\n){{{least},{most}}}/"));
    } else if let Some(least) = length("minLength") {
        bodies.push(format!("/(.|\\n){{{least},}}/"));
    }
    if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
        bodies
            .push(matched(pattern).ok_or_else(|| format!("the pattern '{pattern}': put '^' and '$' around a group"))?);
    }
    if bodies.is_empty() {
        bodies.push("ANY".to_owned());
    }
    Ok(bodies)
}

/// A term of the texts in which a regular expression matches; `None` where `^` or `$` are of one of several alternatives.
fn matched(pattern: &str) -> Option<String> {
    let (inner, begins) = pattern.strip_prefix('^').map_or((pattern, "ANY"), |inner| (inner, ""));
    let (inner, ends) = unanchored_end(inner).map_or((inner, "ANY"), |inner| (inner, ""));
    let (mut depth, mut escaped, mut literal) = (0_usize, false, String::new());
    for one in inner.chars() {
        match one {
            '/' if escaped => {
                literal.pop();
                literal.push_str("\\x2f");
            }
            '/' => literal.push_str("\\x2f"),
            '\n' => literal.push_str("\\n"),
            _ => literal.push(one),
        }
        match one {
            '(' | '[' if !escaped => depth += 1,
            ')' | ']' if !escaped => depth = depth.saturating_sub(1),
            '|' if !escaped && depth == 0 && begins.len() + ends.len() < 2 * "ANY".len() => return None,
            _ => {}
        }
        escaped = one == '\\' && !escaped;
    }
    // A regular expression in Lark is not empty.
    let body = if literal.is_empty() { String::new() } else { format!("/{literal}/") };
    Some(format!("{begins} {body} {ends}"))
}

/// A regular expression without the `$` at its end, if it has one.
fn unanchored_end(expression: &str) -> Option<&str> {
    let is_anchor = |before: &&str| before.chars().rev().take_while(|c| *c == '\\').count() % 2 == 0;
    expression.strip_suffix('$').filter(is_anchor)
}

fn refers(schema: &Value) -> bool {
    match schema {
        Value::Object(fields) => fields.contains_key("$ref") || fields.values().any(refers),
        Value::Array(items) => items.iter().any(refers),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn refused(text: String) -> GrammarError {
    GrammarError::Refused { text }
}

/// What a schema may say of an object as a whole that pairs are not held to.
const OF_OBJECTS: [&str; 13] = [
    "$ref",
    "allOf",
    "anyOf",
    "oneOf",
    "not",
    "if",
    "enum",
    "const",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "dependentRequired",
    "dependentSchemas",
];

/// What a schema may say of a text that texts without quotes are not held to.
const OF_TEXTS: [&str; 6] = ["$ref", "allOf", "anyOf", "oneOf", "not", "if"];

/// What may forbid an empty text.
const LEAST: [&str; 4] = ["enum", "const", "minLength", "pattern"];
