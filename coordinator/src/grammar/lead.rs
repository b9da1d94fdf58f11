//! Leads: what comes right before a part of a text that is held to a schema.

/// What comes right before the arguments of a tool's call, from its front to its back.
#[derive(Clone, Debug, PartialEq)]
pub struct Lead {
    pieces: Vec<LeadPiece>,
    place: LeadPlace,
}

/// A piece of a lead.
#[derive(Clone, Debug, PartialEq)]
pub enum LeadPiece {
    /// This text.
    Text(String),
    /// One of these texts.
    OneOf(&'static [&'static str]),
    /// White space, or none.
    Space,
    /// Digits, or none.
    Digits,
    /// The head of a message, behind the last of these marks, in which this word stands.
    Head {
        /// What heads come behind; the first one comes behind nothing.
        marks: &'static [&'static str],
        /// The word; a longer one is another.
        word: String,
    },
}

/// Where in an answer a lead is one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeadPlace {
    /// Wherever it comes.
    Anywhere,
    /// Behind a mark of calls, or in an answer that begins with JSON.
    InCalls,
}

/// What is known of an answer so far.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Heard<'a> {
    /// Its last bytes.
    pub(super) tail: &'a [u8],
    /// Whether these are all of it.
    pub(super) is_whole: bool,
    /// Whether a mark of calls was among it.
    pub(super) marked: bool,
}

impl Lead {
    /// A lead of these pieces.
    pub fn new(pieces: Vec<LeadPiece>, place: LeadPlace) -> Self {
        Self { pieces, place }
    }

    /// Whether an answer has come to the end of it.
    pub(super) fn ends(&self, heard: Heard<'_>) -> bool {
        let begins_with_json = || {
            let text = heard.tail.trim_ascii_start();
            heard.is_whole && [&b"{"[..], b"[", b"```"].iter().any(|begin| text.starts_with(begin))
        };
        let is_there = match self.place {
            LeadPlace::Anywhere => true,
            LeadPlace::InCalls => heard.marked || begins_with_json(),
        };
        is_there && self.pieces.iter().rev().try_fold(heard.tail, |tail, piece| piece.before(tail, heard)).is_some()
    }
}

impl LeadPiece {
    /// What comes before the piece at the end of `tail`, if it is there.
    fn before<'a>(&self, tail: &'a [u8], heard: Heard<'_>) -> Option<&'a [u8]> {
        match self {
            Self::Text(text) => tail.strip_suffix(text.as_bytes()),
            Self::OneOf(texts) => texts.iter().find_map(|text| tail.strip_suffix(text.as_bytes())),
            Self::Space => Some(tail.trim_ascii_end()),
            Self::Digits => {
                let digits = tail.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
                tail.get(..tail.len() - digits)
            }
            Self::Head { marks, word } => {
                let behind = |mark: &&str| last(tail, mark.as_bytes()).map(|at| at + mark.len());
                let begin = marks.iter().filter_map(behind).max().or(heard.is_whole.then_some(0))?;
                has_word(&tail[begin..], word.as_bytes()).then_some(&tail[..begin])
            }
        }
    }
}

/// Where the last `part` of a text begins.
pub(super) fn last(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).rposition(|window| window == part)
}

/// Whether a word stands in a text and does not go on.
fn has_word(text: &[u8], word: &[u8]) -> bool {
    let goes_on = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-.".contains(byte);
    let at = |(at, window): (usize, &[u8])| window == word && !text.get(at + word.len()).is_some_and(goes_on);
    text.windows(word.len()).enumerate().any(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(text: &str) -> Heard<'_> {
        Heard { tail: text.as_bytes(), is_whole: true, marked: false }
    }

    #[test]
    fn a_lead_ends_where_its_last_piece_does() {
        use LeadPiece::{Digits, OneOf, Space, Text};
        let text = |text: &str| Text(text.to_owned());
        let pieces = vec![text("f"), Digits, OneOf(&["(", "["]), Space];
        let lead = Lead::new(pieces, LeadPlace::Anywhere);
        for (said, ends) in [("f(", true), ("so f12[ \n", true), ("g(", false), ("f(1", false), ("", false)] {
            assert_eq!(lead.ends(heard(said)), ends, "{said}");
        }
    }

    #[test]
    fn some_are_leads_in_calls_only() {
        let lead = Lead::new(vec![LeadPiece::Text("f:".to_owned())], LeadPlace::InCalls);
        for (said, marked, ends) in
            [("so f:", false, false), ("so f:", true, true), (" {f:", false, true), ("```json\n{f:", false, true)]
        {
            assert_eq!(lead.ends(Heard { marked, ..heard(said) }), ends, "{said} {marked}");
        }
        assert!(!lead.ends(Heard { is_whole: false, ..heard("{f:") }), "it may have begun with something else");
    }

    #[test]
    fn a_head_has_a_word_in_it() {
        let head = LeadPiece::Head { marks: &["<s>", "<m>"], word: "to=f.a".to_owned() };
        let lead = Lead::new(vec![head, LeadPiece::Text("<m>".to_owned())], LeadPlace::Anywhere);
        for (said, ends) in [
            ("to=f.a json<m>", true),
            ("say to=f.a<s>x to=f.a<m>", true),
            ("to=f.ab<m>", false),
            ("to=f.a<s>final<m>", false),
            ("say to=f.a<m>a<m>", false),
        ] {
            assert_eq!(lead.ends(heard(said)), ends, "{said}");
        }
        assert!(!lead.ends(Heard { is_whole: false, ..heard("to=f.a<m>") }));
    }
}
