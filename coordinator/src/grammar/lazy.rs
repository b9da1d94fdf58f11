//! Grammars that hold a text only in places: it is free until what comes right before such a place has been said.

use serde_json::Value;

use super::{
    lead::{Heard, Lead, last},
    tagged::Pairs,
};

/// Calls whose arguments are held to schemas, in an answer that is free otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldCalls {
    /// What comes right before the arguments, and what these are.
    pub calls: Vec<(Lead, HeldArguments)>,
    /// What begins calls.
    pub marks: Vec<&'static str>,
    /// What is around thoughts before the answer, in which there are no calls.
    pub thoughts: Option<Thoughts>,
}

/// The arguments of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum HeldArguments {
    /// JSON by a schema.
    Json(Value),
    /// Pairs of keys and values, by the schema of an object.
    Tagged {
        /// What is around them.
        pairs: &'static Pairs,
        /// The object's schema.
        schema: Value,
    },
}

/// What is around thoughts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Thoughts {
    /// Before them.
    pub open: &'static str,
    /// Behind them.
    pub close: &'static str,
    /// Whether they have begun before the text does.
    pub begun: bool,
}

/// Hears a text until a lead has ended.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    place: Place,
    /// The last bytes of it.
    tail: Vec<u8>,
    is_whole: bool,
    marked: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Thoughts may begin.
    Before,
    Thoughts,
    Answer,
}

/// Bytes of a text that are kept: more than the longest lead has, and less than twice as many.
const TAIL: usize = 1024;

impl Listener {
    pub(super) fn new(held: &HeldCalls) -> Self {
        let place = match held.thoughts {
            None => Place::Answer,
            Some(Thoughts { begun: true, .. }) => Place::Thoughts,
            Some(Thoughts { begun: false, .. }) => Place::Before,
        };
        Self { place, tail: Vec::new(), is_whole: true, marked: false }
    }

    /// The text goes on; which of the leads has ended with that.
    pub(super) fn hear(&mut self, more: &[u8], held: &HeldCalls) -> Option<usize> {
        self.tail.extend_from_slice(more);
        if let Some(thoughts) = &held.thoughts {
            self.pass_thoughts(thoughts);
        }
        if self.place != Place::Answer {
            return None;
        }
        self.marked = self.marked || held.marks.iter().any(|mark| last(&self.tail, mark.as_bytes()).is_some());
        let heard = Heard { tail: &self.tail, is_whole: self.is_whole, marked: self.marked };
        let found = held.calls.iter().position(|(lead, _)| lead.ends(heard));
        if self.tail.len() >= 2 * TAIL {
            self.forget(self.tail.len() - TAIL);
        }
        found
    }

    /// What was held has been said, and the text is free again.
    pub(super) fn go_on(&mut self) {
        self.forget(self.tail.len());
    }

    fn pass_thoughts(&mut self, thoughts: &Thoughts) {
        if self.place == Place::Before {
            let space = self.tail.len() - self.tail.trim_ascii_start().len();
            let said = &self.tail[space..];
            if said.starts_with(thoughts.open.as_bytes()) {
                self.place = Place::Thoughts;
                self.tail.drain(..space + thoughts.open.len());
            } else if !thoughts.open.as_bytes().starts_with(said) {
                self.place = Place::Answer;
            }
        }
        if self.place == Place::Thoughts {
            let close = thoughts.close.as_bytes();
            match self.tail.windows(close.len()).position(|window| window == close) {
                Some(at) => {
                    self.place = Place::Answer;
                    self.tail.drain(..at + close.len());
                }
                None => drop(self.tail.drain(..self.tail.len().saturating_sub(close.len()))),
            }
        }
    }

    fn forget(&mut self, bytes: usize) {
        self.is_whole = self.is_whole && bytes == 0;
        self.tail.drain(..bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::{LeadPiece, LeadPlace};

    fn held(thoughts: Option<Thoughts>) -> HeldCalls {
        let lead = |name: &str| Lead::new(vec![LeadPiece::Text(format!("{name}("))], LeadPlace::InCalls);
        let calls = ["f", "g"].map(|name| (lead(name), HeldArguments::Json(Value::Null))).to_vec();
        HeldCalls { calls, marks: vec!["<call>"], thoughts }
    }

    /// What is heard of a text that comes in pieces.
    fn heard(held: &HeldCalls, pieces: &[&str]) -> Vec<Option<usize>> {
        let mut listener = Listener::new(held);
        pieces.iter().map(|piece| listener.hear(piece.as_bytes(), held)).collect()
    }

    #[test]
    fn leads_are_heard_behind_marks() {
        assert_eq!(heard(&held(None), &["f(", " <ca", "ll>", "g", "("]), [None, None, None, None, Some(1)]);
        assert_eq!(heard(&held(None), &["{", "f("]), [None, Some(0)]);
        let long = "x".repeat(3 * TAIL);
        assert_eq!(heard(&held(None), &["<call>", &long, "f("]), [None, None, Some(0)]);
        assert_eq!(heard(&held(None), &["{", &long, "f("]), [None, None, None]);
    }

    #[test]
    fn thoughts_call_nothing() {
        let thoughts = |begun| Some(Thoughts { open: "<t>", close: "</t>", begun });
        let long = "x".repeat(3 * TAIL);
        let pieces = ["<call>f(", &long, "</", "t>", "<call>f("];
        assert_eq!(heard(&held(thoughts(true)), &pieces), [None, None, None, None, Some(0)]);
        let opened = ["\n<", "t><call>f(", "</t>{g("];
        assert_eq!(heard(&held(thoughts(false)), &opened), [None, None, Some(1)]);
        assert_eq!(heard(&held(thoughts(false)), &["<ta", "<call>f("]), [None, Some(0)]);
    }

    #[test]
    fn a_text_is_heard_on_after_what_was_held() {
        let held = held(None);
        let mut listener = Listener::new(&held);
        assert_eq!(listener.hear(b"<call>f(", &held), Some(0));
        listener.go_on();
        assert_eq!((listener.hear(b", ", &held), listener.hear(b"g(", &held)), (None, Some(1)));
    }
}
