//! Standard output. Results for people and JSON are always fit for a terminal; what others may go on with, a text or a
//! path, is written as it is where no terminal reads it.

use std::{
    borrow::Cow,
    fmt::Display,
    io::{self, IsTerminal, Write, stdout},
};

use qmesh_models::terminal;

/// Writes a result for people, and a line end.
///
/// # Errors
/// Nobody reads standard output any more; so for all functions here.
pub fn text(text: impl Display) -> io::Result<()> {
    writeln!(stdout().lock(), "{}", terminal::escaped(&text.to_string()))
}

/// Writes JSON, and a line end.
pub fn json(json: &str) -> io::Result<()> {
    writeln!(stdout().lock(), "{}", terminal::escaped_json(json))
}

/// Writes `bytes` to be gone on with: as they are, or on a terminal as far as they are fit for it. At once, as a person
/// may be reading along.
pub fn raw(bytes: &[u8]) -> io::Result<()> {
    let mut out = stdout().lock();
    let reader = if out.is_terminal() { Reader::Terminal } else { Reader::Program };
    out.write_all(&bytes_for(reader, bytes))?;
    out.flush()
}

/// What a person has seen of an answer last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shown {
    /// Nothing yet.
    Nothing,
    /// Thoughts.
    Thoughts,
    /// What it says.
    Text,
}

/// Writes more of an answer's thoughts, dimmed, where people read; programs get what is said and nothing else. What has been seen
/// last then.
pub fn thought(text: &str, shown: Shown) -> io::Result<Shown> {
    let mut out = stdout().lock();
    if !out.is_terminal() {
        return Ok(shown);
    }
    let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let (dim, bright) = if plain { ("", "") } else { ("\u{1b}[2m", "\u{1b}[0m") };
    write!(out, "{dim}{}{bright}", terminal::escaped(text))?;
    out.flush()?;
    Ok(Shown::Thoughts)
}

/// Writes more of what an answer says, apart from thoughts before it. What has been seen last then.
pub fn said(bytes: &[u8], shown: Shown) -> io::Result<Shown> {
    if bytes.is_empty() {
        return Ok(shown);
    }
    if shown == Shown::Thoughts {
        raw(b"\n\n")?;
    }
    raw(bytes)?;
    Ok(Shown::Text)
}

/// Who reads standard output.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Reader {
    Terminal,
    Program,
}

fn bytes_for(reader: Reader, bytes: &[u8]) -> Cow<'_, [u8]> {
    match reader {
        Reader::Program => Cow::Borrowed(bytes),
        Reader::Terminal => terminal::escaped(&String::from_utf8_lossy(bytes)).into_owned().into_bytes().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_get_the_bytes_and_terminals_what_is_fit_for_them() {
        let hostile = b"a\x1b]0;owned\x07\xff\n";
        assert_eq!(*bytes_for(Reader::Program, hostile), hostile[..]);
        assert_eq!(*bytes_for(Reader::Terminal, hostile), *"a\\u{1b}]0;owned\\u{7}\u{fffd}\n".as_bytes());
    }
}
