//! What breaks repetitions (DRY), as tokens: workers see no text.

use qmesh_models::tokenizer::{Affixes, Specials};
use qmesh_net::TokenMask;

use super::TextModel;

/// Tokens that no repetition goes across.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Breakers {
    /// Those that have a breaking text in them.
    pub tokens: TokenMask,
    /// Those that have its beginning at their end, each with the tokens of the rest.
    pub sequences: Vec<Vec<u32>>,
}

impl TextModel {
    /// The tokens that write one of these texts, alone or with others; none where there are too many ways to. Blocks: it
    /// looks at all of the vocabulary.
    pub fn breakers(&self, texts: &[String]) -> Option<Breakers> {
        let mut bits = vec![0_u8; self.tokenizer.vocab_len().div_ceil(8)];
        let mut sequences = Vec::new();
        let ids = 0..u32::try_from(self.tokenizer.vocab_len()).unwrap_or(u32::MAX);
        for (id, text) in ids.flat_map(|id| texts.iter().map(move |text| (id, text))) {
            let (token, breaking) = (self.tokenizer.bytes(id), text.as_bytes());
            if token.windows(breaking.len()).any(|part| part == breaking) {
                bits[id as usize / 8] |= 1 << (id % 8);
                continue;
            }
            let shorter = 1..breaking.len().min(token.len() + 1);
            for written in shorter.filter(|&written| token.ends_with(&breaking[..written])) {
                sequences.extend(self.sequence(id, text.get(written..)));
            }
            if sequences.len() > SEQUENCES {
                return None;
            }
        }
        sequences.sort_unstable();
        sequences.dedup();
        Some(Breakers { tokens: TokenMask::of_bits(bits), sequences })
    }

    /// A token and those of the rest of a text.
    fn sequence(&self, id: u32, rest: Option<&str>) -> Option<Vec<u32>> {
        let mut tail = self.tokenizer.encode(rest?, Specials::Plain, Affixes::None).ok()?;
        tail.truncate(TAIL);
        Some([vec![id], tail].concat())
    }
}

/// Most ways to write a breaking text with several tokens.
const SEQUENCES: usize = 4096;
/// Most tokens behind the first one.
const TAIL: usize = 20;

#[cfg(test)]
mod tests {
    use crate::text::fake::{CONTROL, byte, model, word};

    #[test]
    fn breakers_are_all_tokens_that_write_them() {
        let breakers = model().breakers(&["o".to_owned(), "STOP".to_owned()]).expect("few ways");
        let alone: Vec<u32> = (0..300).filter(|id| breakers.tokens.allows(*id)).collect();
        assert_eq!(alone, [CONTROL, byte(b'o'), word("Hello"), word("▁world"), word("▁more")]);
        // "ST" and the byte "S" may begin the other one.
        assert!(breakers.sequences.iter().any(|sequence| sequence[..] == [word("▁ST"), word("OP")]), "{breakers:?}");
        let begin: Vec<u32> = breakers.sequences.iter().map(|sequence| sequence[0]).collect();
        assert_eq!(begin, [byte(b'S'), word("▁ST")]);
        assert!(model().breakers(&[]).expect("no ways").sequences.is_empty());
    }
}
