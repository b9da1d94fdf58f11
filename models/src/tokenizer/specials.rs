//! Special tokens in text: found before anything is merged, the longest at each place.

use std::borrow::Cow;

use aho_corasick::{AhoCorasick, MatchKind};

use super::{Specials, TokenizerError, kind::TokenKind, token::Tokens, vocabulary::AfterSpecial};

/// Finds special tokens in text.
#[derive(Debug)]
pub(super) struct Partitioner {
    /// Tokens that are never split, whoever wrote them.
    user_defined: Finder,
    /// Tokens that only a template may write.
    control: Finder,
    /// Both.
    all: Finder,
    after_special: AfterSpecial,
}

/// A part of a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fragment<'t> {
    /// A special token.
    Token(u32),
    /// What lies between them; never empty.
    Text(&'t str),
}

/// Phi-3's special tokens after which white space stays.
const KEEPS_SPACE: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];

impl Partitioner {
    pub(super) fn new(tokens: &Tokens, after_special: AfterSpecial) -> Result<Self, TokenizerError> {
        let is_user_defined = |kind| kind == TokenKind::UserDefined;
        let is_control = |kind| matches!(kind, TokenKind::Control | TokenKind::Unknown);
        Ok(Self {
            user_defined: Finder::new(tokens, is_user_defined)?,
            control: Finder::new(tokens, is_control)?,
            all: Finder::new(tokens, |kind| is_user_defined(kind) || is_control(kind))?,
            after_special,
        })
    }

    /// The parts of `text`, in order.
    pub(super) fn split<'t>(&self, tokens: &Tokens, text: &'t str, specials: Specials) -> Vec<Fragment<'t>> {
        let finder = match specials {
            Specials::Parse | Specials::ParseUnmarked(_) => &self.all,
            Specials::Plain => &self.user_defined,
        };
        let mut fragments = Vec::new();
        let mut rest = 0;
        for (start, end, id) in finder.find(text) {
            // White space that was stripped may itself have been a token.
            if start < rest {
                continue;
            }
            push_text(&mut fragments, &text[rest..start]);
            fragments.push(Fragment::Token(id));
            rest = end + self.stripped(tokens, id, &text[end..]);
        }
        push_text(&mut fragments, &text[rest..]);
        fragments
    }

    /// `text` with `mark` after every character of the control tokens in it: neither they nor tokens that overlap them
    /// are found then.
    pub(super) fn mark<'t>(&self, text: &'t str, mark: char) -> Cow<'t, str> {
        let mut marked = String::new();
        let mut rest = 0;
        for (start, end, _) in self.control.find(text) {
            marked.push_str(&text[rest..start]);
            marked.extend(text[start..end].chars().flat_map(|c| [c, mark]));
            rest = end;
        }
        if rest == 0 {
            return Cow::Borrowed(text);
        }
        marked.push_str(&text[rest..]);
        Cow::Owned(marked)
    }

    /// How many bytes of white space after the token are no text.
    fn stripped(&self, tokens: &Tokens, id: u32, after: &str) -> usize {
        let keeps = || tokens.text(id).is_some_and(|text| KEEPS_SPACE.contains(&text));
        if self.after_special == AfterSpecial::Keep || keeps() {
            return 0;
        }
        after.bytes().take_while(|byte| matches!(byte, b' ' | b'\t'..=b'\r')).count()
    }
}

fn push_text<'t>(fragments: &mut Vec<Fragment<'t>>, text: &'t str) {
    fragments.extend(Some(text).filter(|text| !text.is_empty()).map(Fragment::Text));
}

/// Finds the texts of some tokens, in time linear in the text.
#[derive(Debug)]
struct Finder {
    ids: Vec<u32>,
    automaton: Option<AhoCorasick>,
}

impl Finder {
    fn new(tokens: &Tokens, wanted: impl Fn(TokenKind) -> bool) -> Result<Self, TokenizerError> {
        let special = || tokens.iter().filter(|&(_, text, kind)| wanted(kind) && !text.is_empty());
        let ids: Vec<u32> = special().map(|(id, ..)| id).collect();
        let texts = special().map(|(_, text, _)| text);
        let automaton = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(texts);
        let automaton = automaton.map_err(|error| TokenizerError::Specials { error: error.to_string() })?;
        Ok(Self { automaton: (!ids.is_empty()).then_some(automaton), ids })
    }

    /// Start, end and id of each.
    fn find(&self, text: &str) -> impl Iterator<Item = (usize, usize, u32)> {
        let found = self.automaton.iter().flat_map(move |automaton| automaton.find_iter(text));
        found.map(|found| (found.start(), found.end(), self.ids[found.pattern().as_usize()]))
    }
}
