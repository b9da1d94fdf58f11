//! Stop strings: which text may go out, and where it ends.

use std::ops::Range;

/// Holds text back while its end could begin a stop string. Control tokens are looked at as they are spelled, since a
/// stop string may be one or begin with one; what goes out does not show them.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    strings: Vec<String>,
    /// As it is spelled.
    held: String,
    /// The control tokens in it. A stop string has each of them whole or not at all: `>` is none of `<|im_end|>`.
    controls: Vec<Control>,
    /// The string that came.
    came: Option<String>,
}

/// A control token in what is held.
#[derive(Debug)]
struct Control {
    place: Range<usize>,
    shown: Shown,
}

/// Whether the spelling of a control token goes out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Shown {
    Yes,
    No,
}

/// A piece of what the model wrote.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Piece<'t> {
    /// It is part of the text.
    Shown(&'t str),
    /// The spelling of a token that is not.
    Hidden(&'t str),
    /// The spelling of a token that is not, but is wanted by who reads the text.
    Spelled(&'t str),
}

/// What became of a piece.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Screened {
    /// This much may go out.
    Open(Passed),
    /// This much may go out, and then a stop string came.
    Stopped(Passed),
}

/// What may go out.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Passed {
    /// The text.
    pub(crate) text: String,
    /// Bytes of it and of the control tokens in between, as they are spelled.
    pub(crate) spelled: usize,
}

impl Stops {
    /// Looks for these; empty ones are left out.
    pub(crate) fn new(mut strings: Vec<String>) -> Self {
        strings.retain(|stop| !stop.is_empty());
        Self { strings, ..Self::default() }
    }

    /// Takes the next piece. What comes of a text does not depend on where its pieces part: the stop string that is
    /// complete first wins.
    pub(crate) fn push(&mut self, piece: Piece<'_>) -> Screened {
        match piece {
            Piece::Shown(text) => self.held.push_str(text),
            Piece::Hidden(spelling) => self.push_control(spelling, Shown::No),
            Piece::Spelled(spelling) => self.push_control(spelling, Shown::Yes),
        }
        if let Some((start, stop)) = self.first_stop() {
            self.came = Some(stop);
            let passed = self.pass(start);
            self.finish();
            return Screened::Stopped(passed);
        }
        let open = self.places().find(|&at| self.may_begin_a_stop(&self.held[at..]));
        Screened::Open(self.pass(open.unwrap_or(self.held.len())))
    }

    fn push_control(&mut self, spelling: &str, shown: Shown) {
        let start = self.held.len();
        self.held.push_str(spelling);
        self.controls.push(Control { place: start..self.held.len(), shown });
    }

    /// What is still held: no more text comes, so it begins no stop string.
    pub(crate) fn finish(&mut self) -> Passed {
        self.pass(self.held.len())
    }

    /// Where the stop string that is complete first begins, and which one it is.
    fn first_stop(&self) -> Option<(usize, String)> {
        let here = |at: usize| self.strings.iter().filter(move |stop| self.held[at..].starts_with(*stop));
        let found = self.places().flat_map(|at| here(at).map(move |stop| (at + stop.len(), at, stop)));
        found.filter(|&(end, ..)| !self.is_inside(end)).min().map(|(_, start, stop)| (start, stop.clone()))
    }

    /// The string that ended the text, if one did.
    pub(crate) fn came(&self) -> Option<&str> {
        self.came.as_deref()
    }

    fn may_begin_a_stop(&self, end: &str) -> bool {
        self.strings.iter().any(|stop| stop.starts_with(end))
    }

    /// Where a stop string could begin.
    fn places(&self) -> impl Iterator<Item = usize> {
        self.held.char_indices().map(|(at, _)| at).filter(|&at| !self.is_inside(at))
    }

    /// Whether a control token is on both sides of a place.
    fn is_inside(&self, at: usize) -> bool {
        self.controls.iter().any(|token| token.place.start < at && at < token.place.end)
    }

    /// Releases what is held before `end`, which does not lie inside a control token.
    fn pass(&mut self, end: usize) -> Passed {
        let mut text = String::new();
        let mut shown = 0;
        for token in self.controls.extract_if(.., |token| token.place.end <= end) {
            let until = if token.shown == Shown::Yes { token.place.end } else { token.place.start };
            text.push_str(&self.held[shown..until]);
            shown = token.place.end;
        }
        text.push_str(&self.held[shown..end]);
        self.held.drain(..end);
        self.controls.iter_mut().for_each(|token| token.place = token.place.start - end..token.place.end - end);
        Passed { text, spelled: end }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text that goes out when `text` comes in pieces of `length` characters, and whether a stop string ended it.
    fn screen(stops: &[&str], text: &str, length: usize) -> (String, bool) {
        let mut stops = Stops::new(stops.iter().map(ToString::to_string).collect());
        let mut out = String::new();
        for piece in text.chars().collect::<Vec<_>>().chunks(length) {
            match stops.push(Piece::Shown(&piece.iter().collect::<String>())) {
                Screened::Open(passed) => out += &passed.text,
                Screened::Stopped(passed) => return (out + &passed.text, true),
            }
        }
        (out + &stops.finish().text, false)
    }

    #[test]
    fn the_same_text_whatever_the_pieces() {
        for (stops, text, out, stopped) in [
            (&["</s>"][..], "a < b </s> c", "a < b ", true),
            (&["</s>"], "a </s", "a </s", false),
            (&["aab"], "aaab", "a", true),
            (&["abcdef", "bcd"], "abcdef", "a", true),
            (&["bcd", "cd"], "abcd", "a", true),
            (&["", "\n\n"], "é\n\nx", "é", true),
            (&["🙂🙃"], "🙂🙂🙃", "🙂", true),
            (&[], "as it is", "as it is", false),
        ] {
            for length in 1..=text.chars().count() {
                assert_eq!(screen(stops, text, length), (out.into(), stopped), "{stops:?} {text:?} by {length}");
            }
        }
    }

    #[test]
    fn only_a_possible_beginning_is_held() {
        let mut stops = Stops::new(vec!["STOP".into()]);
        let open = |text: &str, spelled| Screened::Open(Passed { text: text.to_owned(), spelled });
        assert_eq!(stops.push(Piece::Shown("go ST")), open("go ", 3));
        assert_eq!(stops.push(Piece::Shown("ART")), open("START", 5));
    }

    #[test]
    fn the_one_that_came_is_known() {
        let mut stops = Stops::new(vec!["bcd".into(), "cd".into(), "x".into()]);
        assert!(matches!(stops.push(Piece::Shown("ab")), Screened::Open(_)) && stops.came().is_none());
        assert!(matches!(stops.push(Piece::Shown("cdx")), Screened::Stopped(_)));
        assert_eq!(stops.came(), Some("bcd"));
    }

    #[test]
    fn control_tokens_stop_and_stay_hidden() {
        use Piece::{Hidden, Shown, Spelled};
        for (stop, pieces, out, stopped) in [
            ("<|user|>", &[Shown("a"), Hidden("<|user|>"), Shown("b")][..], "a", true),
            ("<|user|>\nhi", &[Hidden("<|user|>"), Shown("\n"), Shown("hi there")], "", true),
            ("<|user|>\nhi", &[Hidden("<|user|>"), Shown("\n"), Shown("ho")], "\nho", false),
            ("end<|user|>", &[Shown("the e"), Shown("nd"), Hidden("<|user|>")], "the ", true),
            ("<|user|>", &[Shown("a<|us"), Shown("er|>b")], "a", true),
            ("<|user|>", &[Hidden("<|tool|>"), Hidden("<|user|>")], "", true),
            // No part of a control token is text.
            (">", &[Shown("a"), Hidden("<|user|>"), Shown("b")], "ab", false),
            ("<", &[Shown("a"), Hidden("<|user|>"), Shown("b")], "ab", false),
            ("user", &[Hidden("<|user|>"), Shown("b")], "b", false),
            ("a<|u", &[Shown("a"), Hidden("<|user|>")], "a", false),
            // Some are wanted in the text.
            (">", &[Shown("a"), Spelled("<|user|>"), Hidden("<|tool|>"), Shown("b")], "a<|user|>b", false),
            ("<|user|>b", &[Shown("a"), Spelled("<|user|>"), Shown("b")], "a", true),
        ] {
            let mut stops = Stops::new(vec![stop.to_owned()]);
            let mut text = String::new();
            let mut ended = false;
            for &piece in pieces {
                match stops.push(piece) {
                    Screened::Open(passed) => text += &passed.text,
                    Screened::Stopped(passed) => {
                        text += &passed.text;
                        ended = true;
                        break;
                    }
                }
            }
            text += &stops.finish().text;
            assert_eq!((text.as_str(), ended), (out, stopped), "{stop:?} in {pieces:?}");
        }
    }
}
