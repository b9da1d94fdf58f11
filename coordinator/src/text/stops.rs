//! Stop strings: which text may go out, and where it ends.

/// Holds text back while its end could begin a stop string.
#[derive(Debug, Default)]
pub(crate) struct Stops {
    strings: Vec<String>,
    held: String,
}

/// What became of a piece of text.
#[derive(Debug, Eq, PartialEq)]
pub(crate) enum Screened {
    /// This much may go out.
    Open(String),
    /// This much may go out, and then a stop string came.
    Stopped(String),
}

impl Stops {
    /// Looks for these; empty ones are left out.
    pub(crate) fn new(mut strings: Vec<String>) -> Self {
        strings.retain(|stop| !stop.is_empty());
        Self { strings, held: String::new() }
    }

    /// Takes the next piece. What comes of a text does not depend on where its pieces part: the stop string that is
    /// complete first wins.
    pub(crate) fn push(&mut self, piece: &str) -> Screened {
        self.held.push_str(piece);
        let found = self.strings.iter().filter_map(|stop| Some((self.held.find(stop)?, stop.len())));
        if let Some((start, _)) = found.min_by_key(|&(start, length)| (start + length, start)) {
            self.held.truncate(start);
            return Screened::Stopped(std::mem::take(&mut self.held));
        }
        let open = self.held.char_indices().map(|(at, _)| at).find(|&at| self.may_begin_a_stop(&self.held[at..]));
        let rest = self.held.split_off(open.unwrap_or(self.held.len()));
        Screened::Open(std::mem::replace(&mut self.held, rest))
    }

    /// What is still held: no more text comes, so it begins no stop string.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn may_begin_a_stop(&self, end: &str) -> bool {
        self.strings.iter().any(|stop| stop.starts_with(end))
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
            match stops.push(&piece.iter().collect::<String>()) {
                Screened::Open(text) => out += &text,
                Screened::Stopped(text) => return (out + &text, true),
            }
        }
        (out + &stops.finish(), false)
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
        assert_eq!(stops.push("go ST"), Screened::Open("go ".into()));
        assert_eq!(stops.push("ART"), Screened::Open("START".into()));
    }
}
