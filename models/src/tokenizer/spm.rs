//! SentencePiece-style BPE: the whole text, merged by the tokens' scores, with bytes for what no token covers.

use super::{
    merge::{Merge, Symbol, merge},
    token::Tokens,
};

/// The scores of a SentencePiece vocabulary.
#[derive(Debug)]
pub(super) struct SentencePiece {
    /// By id: the lowest goes first.
    orders: Vec<u32>,
    /// Length in bytes of the longest token: longer pairs need no lookup.
    longest: usize,
    space_prefix: SpacePrefix,
    /// The token of each byte, else the one for the unknown.
    byte_tokens: Vec<Option<u32>>,
}

/// Whether a space goes before a text that begins or follows a special token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum SpacePrefix {
    /// Yes.
    Add,
    /// No.
    None,
}

impl SentencePiece {
    /// `scores` by id; empty where all are the same.
    pub(super) fn new(tokens: &Tokens, scores: &[f32], space_prefix: SpacePrefix, unknown: Option<u32>) -> Self {
        Self {
            orders: scores.iter().map(|&score| descending(score)).collect(),
            longest: tokens.iter().map(|(_, text, _)| text.len()).max().unwrap_or(0),
            space_prefix,
            byte_tokens: tokens.byte_tokens(unknown),
        }
    }

    pub(super) fn space_prefix(&self) -> SpacePrefix {
        self.space_prefix
    }

    /// Appends the tokens of `text`, which begins or follows a special token.
    pub(super) fn encode(&self, tokens: &Tokens, text: &str, ids: &mut Vec<u32>) {
        let mut escaped = text.replace(' ', "▁");
        if self.space_prefix == SpacePrefix::Add {
            escaped.insert(0, '▁');
        }
        let symbol = |(at, c): (usize, char)| {
            let span = at..at + c.len_utf8();
            Symbol { token: tokens.find_text(&escaped[span.clone()]), span }
        };
        let merged = merge(escaped.char_indices().map(symbol).collect(), |left, right| {
            let span = left.span.start..right.span.end;
            let token = (span.len() <= self.longest).then(|| tokens.find_text(&escaped[span]))??;
            Some(Merge { order: self.orders.get(token as usize).copied().unwrap_or_default(), token })
        });
        for Symbol { span, token } in merged {
            match token {
                Some(id) => ids.push(id),
                None => ids.extend(escaped[span].bytes().filter_map(|byte| self.byte_tokens[byte as usize])),
            }
        }
    }
}

/// An integer that sorts as the score does, the highest first. The score is not NaN.
fn descending(score: f32) -> u32 {
    // Adding zero turns -0.0 into 0.0, which is its equal.
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 1 { bits } else { !bits & 0x7FFF_FFFF }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_follow_scores() {
        let scores = [f32::INFINITY, 3.5, 1.0, 0.0, -0.5, -1000.0, f32::NEG_INFINITY];
        assert!(scores.map(descending).is_sorted_by(|a, b| a < b));
        assert_eq!(descending(-0.0), descending(0.0));
    }
}
