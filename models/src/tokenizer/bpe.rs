//! Byte-level BPE: words of bytes, merged by rank.

use std::collections::HashMap;

use super::{
    TokenizerError,
    merge::{Merge, Symbol, merge, merges_by_pair},
    pretokenizer::{Pretokenizer, WholeWords},
    token::{Tokens, byte_characters},
};

/// The merges of a byte-level vocabulary.
#[derive(Debug)]
pub(super) struct ByteLevelBpe {
    pretokenizer: Pretokenizer,
    /// By the ids of left and right: the lowest rank goes first.
    merges: HashMap<(u32, u32), Merge>,
    /// By byte.
    characters: Vec<char>,
    /// The token of each byte; real vocabularies lack those that UTF-8 never has.
    byte_tokens: Vec<Option<u32>>,
}

impl ByteLevelBpe {
    pub(super) fn new(tokens: &Tokens, merges: &[String], pretokenizer: Pretokenizer) -> Result<Self, TokenizerError> {
        let characters = byte_characters();
        let byte_tokens = characters.iter().map(|c| tokens.find_text(c.encode_utf8(&mut [0; 4]))).collect();
        Ok(Self { pretokenizer, merges: merges_by_pair(tokens, merges)?, characters, byte_tokens })
    }

    /// Whether texts begin with BOS where the file does not say.
    pub(super) fn add_bos(&self) -> bool {
        self.pretokenizer.add_bos()
    }

    /// Appends the tokens of `text`. A byte that has no token is left out.
    pub(super) fn encode(&self, tokens: &Tokens, text: &str, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        for word in self.pretokenizer.split(text)? {
            match self.whole(tokens, word) {
                Some(id) => ids.push(id),
                None => ids.extend(self.merge(word).into_iter().filter_map(|symbol| symbol.token)),
            }
        }
        Ok(())
    }

    /// The token of the whole word, where those skip the merges.
    fn whole(&self, tokens: &Tokens, word: &str) -> Option<u32> {
        match self.pretokenizer.whole_words() {
            WholeWords::Merge => None,
            WholeWords::Keep => {
                tokens.find_text(&word.bytes().map(|byte| self.characters[byte as usize]).collect::<String>())
            }
        }
    }

    fn merge(&self, word: &str) -> Vec<Symbol> {
        let symbol = |(at, byte): (usize, u8)| Symbol { span: at..at + 1, token: self.byte_tokens[byte as usize] };
        merge(word.bytes().enumerate().map(symbol).collect(), |left, right| {
            self.merges.get(&(left.token?, right.token?)).copied()
        })
    }
}
