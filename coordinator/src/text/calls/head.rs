//! How a call begins: what each format must find out before a call can be told to a client.

use super::{
    cursor::{Cursor, Stop},
    pairs::Pairs,
};

/// The beginning of a call, as much as must be known of it.
#[derive(Clone, Debug)]
pub(super) enum Head {
    /// Its arguments follow.
    Open {
        name: String,
        /// Bytes before the arguments.
        at: usize,
        arguments: Arguments,
    },
    /// All of it was read to find its beginning.
    Whole {
        name: String,
        arguments: String,
        /// Bytes that it takes.
        at: usize,
    },
}

/// How arguments are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arguments {
    /// As a JSON object, with so many JSON objects around it that end behind it.
    Json { inside: usize },
    /// As keys and values between tags.
    Pairs(&'static Pairs),
}

/// A call as a JSON object, `{"name": …, "arguments": {…}}`, perhaps the first of a list. Llama calls the arguments
/// `parameters`, Command R7B the name `tool_name` as well; and some models write the whole of OpenAI's object, with the call in its `function`.
pub(super) fn object(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    if cursor.peek()? == '[' {
        cursor.expect("[")?;
    }
    let mut found = Found::default();
    if let Some(open) = found.read(&mut cursor, 1)? {
        return Ok(open);
    }
    let name = found.name.ok_or(Stop::Wrong)?;
    let arguments = found.arguments.unwrap_or_else(|| "{}".to_owned());
    Ok(Head::Whole { name, arguments, at: cursor.at() })
}

/// A call whose arguments, a JSON object, are next.
pub(super) fn before_json(name: &str, cursor: &mut Cursor<'_>) -> Result<Head, Stop> {
    if cursor.peek()? != '{' {
        return Err(Stop::Wrong);
    }
    Ok(Head::Open { name: name.to_owned(), at: cursor.at(), arguments: Arguments::Json { inside: 0 } })
}

/// What has been read of a call that is a JSON object.
#[derive(Debug, Default)]
struct Found {
    name: Option<String>,
    arguments: Option<String>,
}

impl Found {
    /// Reads an object that has `depth - 1` others around it: to its end, or to arguments that can be passed on as
    /// they come.
    fn read(&mut self, cursor: &mut Cursor<'_>, depth: usize) -> Result<Option<Head>, Stop> {
        cursor.space().expect("{")?;
        if cursor.peek()? == '}' {
            return Err(Stop::Wrong);
        }
        loop {
            let key = cursor.string()?;
            cursor.space().expect(":")?;
            let first = cursor.peek()?;
            match (key.as_str(), first) {
                ("function", '{') => {
                    if let Some(open) = self.read(cursor, depth + 1)? {
                        return Ok(Some(open));
                    }
                }
                ("name" | "function" | "tool_name", _) => self.name = Some(cursor.string()?),
                ("arguments" | "parameters", '{') => {
                    if let Some(name) = self.name.take() {
                        let arguments = Arguments::Json { inside: depth };
                        return Ok(Some(Head::Open { name, at: cursor.at(), arguments }));
                    }
                    self.arguments = Some(cursor.value()?.to_owned());
                }
                ("arguments" | "parameters", _) => self.arguments = Some(wrapped(cursor)?),
                // Anything else than a call has other keys before it has a name.
                ("type" | "id" | "tool_call_id", '"') => drop(cursor.value()?),
                _ if self.name.is_some() => drop(cursor.value()?),
                _ => return Err(Stop::Wrong),
            }
            match cursor.peek()? {
                ',' => cursor.expect(",")?,
                _ => return cursor.expect("}").map(|()| None),
            }
        }
    }
}

/// Arguments that are no object: a text that holds one, as OpenAI writes them, or null.
fn wrapped(cursor: &mut Cursor<'_>) -> Result<String, Stop> {
    if cursor.peek()? == 'n' {
        cursor.value()?;
        return Ok("{}".to_owned());
    }
    let text = cursor.string()?;
    let object = serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&text);
    object.map(|_| text).map_err(|_| Stop::Wrong)
}

impl Head {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Open { name, .. } | Self::Whole { name, .. } => name,
        }
    }
}
