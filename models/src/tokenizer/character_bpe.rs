//! BPE on characters (Gemma 4): the lines of a text, merged by rank, with bytes for what no token covers.

use std::collections::HashMap;

use super::{
    TokenizerError,
    merge::{Merge, Symbol, merge, merges_by_pair},
    token::Tokens,
};

/// The merges of a vocabulary whose tokens are spelled as they are, with U+2581 for a space.
#[derive(Debug)]
pub(super) struct CharacterBpe {
    /// By the ids of left and right: the lowest rank goes first.
    merges: HashMap<(u32, u32), Merge>,
    /// The token of each byte.
    byte_tokens: Vec<Option<u32>>,
}

impl CharacterBpe {
    pub(super) fn new(tokens: &Tokens, merges: &[String]) -> Result<Self, TokenizerError> {
        Ok(Self { merges: merges_by_pair(tokens, merges)?, byte_tokens: tokens.byte_tokens(None) })
    }

    /// Appends the tokens of `text`. A byte that has no token is left out.
    pub(super) fn encode(&self, tokens: &Tokens, text: &str, ids: &mut Vec<u32>) {
        let escaped = text.replace(' ', "▁");
        for run in runs(&escaped) {
            // Line ends that are a token together are it, whatever the merges say.
            let whole = run.starts_with('\n').then(|| tokens.find_text(run)).flatten();
            match whole {
                Some(id) => ids.push(id),
                None => self.merge(tokens, run, ids),
            }
        }
    }

    fn merge(&self, tokens: &Tokens, run: &str, ids: &mut Vec<u32>) {
        let symbol = |(at, c): (usize, char)| {
            let span = at..at + c.len_utf8();
            Symbol { token: tokens.find_text(&run[span.clone()]), span }
        };
        let merged = merge(run.char_indices().map(symbol).collect(), |left, right| {
            self.merges.get(&(left.token?, right.token?)).copied()
        });
        for Symbol { span, token } in merged {
            match token {
                Some(id) => ids.push(id),
                None => ids.extend(run[span].bytes().filter_map(|byte| self.byte_tokens[byte as usize])),
            }
        }
    }
}

/// Runs of line ends, and what is between them.
fn runs(mut text: &str) -> Vec<&str> {
    let mut runs = Vec::new();
    while let Some(first) = text.chars().next() {
        let end = text.find(|c| (c == '\n') != (first == '\n')).unwrap_or(text.len());
        let (run, rest) = text.split_at(end);
        runs.push(run);
        text = rest;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_stand_apart_from_lines() {
        assert_eq!(runs("\n\na▁b\r\nc"), ["\n\n", "a▁b\r", "\n", "c"]);
        assert!(runs("").is_empty());
    }
}
