//! Reads the beginning of a call, of which more may come.

use super::json::{Scanner, Step};

/// Where a reader of a text stands that is not all there yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

/// Why a reader cannot go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// More must come first.
    Wait,
    /// It is not what was looked for, whatever comes.
    Wrong,
}

/// Longest name of a tool, in bytes; what goes on longer is none.
const NAME_BYTES: usize = 256;

impl<'t> Cursor<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, at: 0 }
    }

    /// Bytes that it is past.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// Goes past white space.
    pub(super) fn space(&mut self) -> &mut Self {
        self.at = self.text.len() - self.rest().trim_start().len();
        self
    }

    /// The next character, past white space.
    pub(super) fn peek(&mut self) -> Result<char, Stop> {
        self.space().rest().chars().next().ok_or(Stop::Wait)
    }

    /// Goes past a text that must come.
    pub(super) fn expect(&mut self, wanted: &str) -> Result<(), Stop> {
        if self.skip(wanted)? { Ok(()) } else { Err(Stop::Wrong) }
    }

    /// Goes past a text that may come, and says whether it did.
    pub(super) fn skip(&mut self, wanted: &str) -> Result<bool, Stop> {
        let rest = self.rest();
        if rest.starts_with(wanted) {
            self.at += wanted.len();
            return Ok(true);
        }
        if wanted.starts_with(rest) { Err(Stop::Wait) } else { Ok(false) }
    }

    /// A name, past white space; it has ended where something else follows.
    pub(super) fn name(&mut self) -> Result<&'t str, Stop> {
        let rest = self.space().rest();
        let end = rest.find(|c: char| !c.is_alphanumeric() && !"_-.:/".contains(c));
        match end {
            None if rest.len() <= NAME_BYTES => Err(Stop::Wait),
            Some(end) if (1..=NAME_BYTES).contains(&end) => {
                self.at += end;
                Ok(&rest[..end])
            }
            None | Some(_) => Err(Stop::Wrong),
        }
    }

    /// What stands before the first of these characters, which must come.
    pub(super) fn until(&mut self, ends: &[char]) -> Result<&'t str, Stop> {
        let rest = self.rest();
        let end = rest.find(ends).ok_or(Stop::Wait)?;
        self.at += end;
        Ok(&rest[..end])
    }

    /// What stands before a text that must come, and goes past both.
    pub(super) fn past(&mut self, end: &str) -> Result<&'t str, Stop> {
        let (before, _) = self.rest().split_once(end).ok_or(Stop::Wait)?;
        self.at += before.len() + end.len();
        Ok(before)
    }

    /// A JSON value as it is written, past white space.
    pub(super) fn value(&mut self) -> Result<&'t str, Stop> {
        let rest = self.space().rest();
        let mut scanner = Scanner::value();
        for (place, byte) in rest.bytes().enumerate() {
            let end = match scanner.take(byte) {
                Step::More => continue,
                Step::Done => place + 1,
                Step::DoneBefore => place,
                Step::Wrong => return Err(Stop::Wrong),
            };
            self.at += end;
            return Ok(&rest[..end]);
        }
        Err(Stop::Wait)
    }

    /// A JSON string, past white space.
    pub(super) fn string(&mut self) -> Result<String, Stop> {
        if self.peek()? != '"' {
            return Err(Stop::Wrong);
        }
        serde_json::from_str(self.value()?).map_err(|_| Stop::Wrong)
    }

    fn rest(&self) -> &'t str {
        &self.text[self.at..]
    }
}
