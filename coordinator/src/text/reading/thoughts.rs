//! Thoughts before an answer, between tags.

use crate::text::{
    calls::{Rest, marks},
    part::{AnswerPart, add},
};

/// What is around thoughts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tags {
    pub(crate) open: &'static str,
    pub(crate) close: &'static str,
}

/// The tags that models use.
const TAGS: [Tags; 3] = [
    Tags { open: "<think>", close: "</think>" },
    Tags { open: "<seed:think>", close: "</seed:think>" },
    Tags { open: "[THINK]", close: "[/THINK]" },
];

impl Tags {
    /// Those that a chat template, given its source, knows.
    pub(crate) fn of_template(source: &str) -> Option<Self> {
        TAGS.into_iter().find(|tags| source.contains(tags.close))
    }
}

/// Tells thoughts from what follows them. White space around thoughts belongs to neither.
#[derive(Clone, Debug)]
pub(crate) struct Thoughts {
    tags: Tags,
    held: String,
    place: Place,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// Thoughts may begin.
    Before,
    /// They have, and so far all was white space; or not.
    Begun,
    Inside,
    /// They have ended, and so far all was white space.
    Behind,
    Answer,
}

impl Thoughts {
    /// At the beginning of an answer.
    pub(crate) fn before(tags: Tags) -> Self {
        Self { tags, held: String::new(), place: Place::Before }
    }

    /// Where the prompt has begun them.
    pub(crate) fn inside(tags: Tags) -> Self {
        Self { place: Place::Begun, ..Self::before(tags) }
    }

    /// Takes more text, and all that is left with the last of it.
    pub(crate) fn push(&mut self, text: &str, rest: Rest, parts: &mut Vec<AnswerPart>) {
        self.held.push_str(text);
        loop {
            let before = self.place;
            match before {
                Place::Before => self.open(rest),
                Place::Begun | Place::Behind => self.pass_space(),
                Place::Inside => self.think(rest, parts),
                Place::Answer => add(parts, AnswerPart::Content(std::mem::take(&mut self.held))),
            }
            if self.place == before {
                return;
            }
        }
    }

    fn open(&mut self, rest: Rest) {
        let begin = self.held.trim_start();
        if let Some(inside) = begin.strip_prefix(self.tags.open) {
            self.held = inside.to_owned();
            self.place = Place::Begun;
        } else if rest == Rest::Ended || !self.tags.open.starts_with(begin) {
            self.place = Place::Answer;
        }
    }

    fn pass_space(&mut self) {
        self.held.drain(..self.held.len() - self.held.trim_start().len());
        if !self.held.is_empty() {
            self.place = if self.place == Place::Begun { Place::Inside } else { Place::Answer };
        }
    }

    fn think(&mut self, rest: Rest, parts: &mut Vec<AnswerPart>) {
        let close = self.held.find(self.tags.close);
        let end = match (close, rest) {
            (Some(end), _) => end,
            (None, Rest::Ended) => self.held.len(),
            (None, Rest::Open) => marks::undecided(&self.held, [self.tags.close].into_iter()),
        };
        let thought = self.held[..end].trim_end().len();
        add(parts, AnswerPart::Thought(self.held.drain(..thought).collect()));
        if close.is_some() {
            self.held.drain(..end - thought + self.tags.close.len());
            self.place = Place::Behind;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAGS: Tags = super::TAGS[0];

    /// The thoughts and the answer of a text that comes in pieces of so many characters.
    fn read(mut thoughts: Thoughts, text: &str, length: usize) -> (String, String) {
        let mut parts = Vec::new();
        for piece in text.chars().collect::<Vec<_>>().chunks(length) {
            thoughts.push(&piece.iter().collect::<String>(), Rest::Open, &mut parts);
        }
        thoughts.push("", Rest::Ended, &mut parts);
        let mut read = (String::new(), String::new());
        for part in parts {
            match part {
                AnswerPart::Thought(text) => read.0 += &text,
                AnswerPart::Content(text) => read.1 += &text,
                AnswerPart::Call(call) => panic!("{call:?}"),
            }
        }
        read
    }

    #[test]
    fn thoughts_come_apart_whatever_the_pieces() {
        let (before, inside) = (Thoughts::before(TAGS), Thoughts::inside(TAGS));
        for (start, text, thought, answer) in [
            (&before, "<think>\nTwo, or\n\nthree? \n</think>\n\nTwo.\n", "Two, or\n\nthree?", "Two.\n"),
            (&before, "\n<think></think>Two.", "", "Two."),
            (&before, "<think>\n\n</think>\n\n", "", ""),
            (&before, "  Two <think>x</think>", "", "  Two <think>x</think>"),
            (&before, "<thin", "", "<thin"),
            (&before, "<think>a </thin", "a </thin", ""),
            (&before, "", "", ""),
            (&inside, "Zwölf < dreizehn\n</think>Ja </think>", "Zwölf < dreizehn", "Ja </think>"),
            (&inside, "\n</think>\n\nYes", "", "Yes"),
            (&inside, "cut off \n", "cut off", ""),
        ] {
            for length in 1..=text.chars().count().max(1) {
                let wanted = (thought.to_owned(), answer.to_owned());
                assert_eq!(read(start.clone(), text, length), wanted, "{text:?} by {length}");
            }
        }
    }

    #[test]
    fn templates_tell_their_tags() {
        assert_eq!(Tags::of_template("a {{ '</think>' }}"), Some(TAGS));
        assert_eq!(Tags::of_template("[THINK][/THINK]").map(|tags| tags.open), Some("[THINK]"));
        assert_eq!(Tags::of_template("think"), None);
    }
}
