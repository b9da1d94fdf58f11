//! Text to token ids and back, exactly as the model was trained, from what a GGUF file says.

mod bpe;
mod character_bpe;
mod detokenizer;
mod error;
mod infill;
mod kind;
mod merge;
mod pretokenizer;
mod specials;
mod spm;
#[cfg(test)]
pub(crate) mod tests;
mod token;
mod vocabulary;

pub use self::{
    detokenizer::{ControlTokens, Detokenizer, LeadingSpace},
    error::TokenizerError,
    infill::{InfillIds, InfillTokens},
    pretokenizer::pretokenizers,
    vocabulary::{AfterSpecial, Vocabulary},
};

use std::{borrow::Cow, convert::Infallible};

use self::{
    bpe::ByteLevelBpe,
    character_bpe::CharacterBpe,
    kind::TokenKind,
    pretokenizer::Pretokenizer,
    specials::{Fragment, Partitioner},
    spm::{SentencePiece, SpacePrefix},
    token::{Spelling, Tokens},
};

/// Turns text into token ids and ids into bytes. Immutable: share it by `Arc`.
#[derive(Debug)]
pub struct Tokenizer {
    tokens: Tokens,
    algorithm: Algorithm,
    partitioner: Partitioner,
    bos: Option<u32>,
    eos: Option<u32>,
    prefix: Option<u32>,
    suffix: Option<u32>,
    infill: Option<InfillTokens>,
    /// Sorted.
    endings: Vec<u32>,
    /// See `longest()`.
    longest: usize,
}

/// Which pre-tokenizer to use.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PretokenizerChoice<'a> {
    /// The one that the file names; none or an unknown one is an error.
    FromModel,
    /// This one instead.
    Named(&'a str),
}

/// What becomes of control tokens that are spelled out in a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Specials {
    /// They are control tokens: for a text that is trusted.
    Parse,
    /// They are control tokens, but for those with this character in them, see [`Tokenizer::mark`]; the character itself
    /// is no text. For a rendered chat template.
    ParseUnmarked(char),
    /// They are ordinary text: for text from outside.
    Plain,
}

/// Whether BOS and EOS go around a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Affixes {
    /// As the model asks; no second one where a parsed text itself begins or ends with it.
    AsModel,
    /// None.
    None,
}

#[derive(Debug)]
enum Algorithm {
    ByteLevelBpe(ByteLevelBpe),
    CharacterBpe(CharacterBpe),
    SentencePiece(SentencePiece),
}

impl Tokenizer {
    /// The tokenizer of `vocabulary`.
    ///
    /// # Errors
    /// The vocabulary contradicts itself, or asks for a tokenizer or pre-tokenizer that is not known.
    pub fn new(mut vocabulary: Vocabulary, choice: PretokenizerChoice<'_>) -> Result<Self, TokenizerError> {
        let strays = vocabulary.take_stray_ids();
        for (name, id) in &strays {
            let tokens = vocabulary.tokens.len();
            tracing::warn!(
                "tokenizer.ggml.{name}_token_id is {id}, but there are {tokens} tokens: it counts as not given"
            );
        }
        let (tokens, algorithm) = match vocabulary.model.as_str() {
            "gpt2" => byte_level(&vocabulary, choice)?,
            "llama" => sentence_piece(&mut vocabulary)?,
            "gemma4" => {
                // Its models want a BOS whatever the file says.
                vocabulary.add_bos = vocabulary.bos.map(|_| true);
                character_level(&vocabulary)?
            }
            _ => return Err(TokenizerError::Model { found: vocabulary.model }),
        };
        let default_bos = match &algorithm {
            Algorithm::ByteLevelBpe(bpe) => bpe.add_bos() && vocabulary.bos.is_some(),
            Algorithm::CharacterBpe(_) | Algorithm::SentencePiece(_) => vocabulary.bos.is_some(),
        };
        let missing = |name| match strays.iter().find(|(stray, _)| *stray == name) {
            Some(&(_, id)) => TokenizerError::Id { name, id, tokens: vocabulary.tokens.len() },
            None => TokenizerError::Affix { name },
        };
        let affix = |name, wanted: bool, id: Option<u32>| match (wanted, id) {
            (false, _) => Ok(None),
            (true, Some(id)) => Ok(Some(id)),
            (true, None) => Err(missing(name)),
        };
        Ok(Self {
            partitioner: Partitioner::new(&tokens, vocabulary.after_special)?,
            prefix: affix("bos", vocabulary.add_bos.unwrap_or(default_bos), vocabulary.bos)?,
            suffix: affix("eos", vocabulary.add_eos.unwrap_or(false), vocabulary.eos)?,
            endings: tokens.endings([vocabulary.eos, vocabulary.eot, vocabulary.eom].into_iter().flatten()),
            bos: vocabulary.bos,
            eos: vocabulary.eos,
            longest: longest(&tokens, &algorithm),
            infill: InfillTokens::of(&tokens, vocabulary.infill),
            tokens,
            algorithm,
        })
    }

    /// The ids of `text`, in time near-linear in its length.
    ///
    /// # Errors
    /// The pre-tokenizer gave up on the text.
    pub fn encode(&self, text: &str, specials: Specials, affixes: Affixes) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 2);
        self.each_fragment(text, specials, |fragment| self.encode_fragment(fragment, &mut ids))?;
        if affixes == Affixes::AsModel {
            if let Some(bos) = self.prefix.filter(|bos| ids.first() != Some(bos)) {
                ids.insert(0, bos);
            }
            ids.extend(self.suffix.filter(|eos| ids.last() != Some(eos)));
        }
        Ok(ids)
    }

    /// The fewest tokens that `text` can become, counted in a fraction of the time and memory that [`Self::encode`] takes:
    /// for a text that may be far too long. A byte that has no token counts as if it had one.
    pub fn fewest_tokens(&self, text: &str, specials: Specials) -> usize {
        let mut fewest = 0;
        let Ok(()) = self.each_fragment(text, specials, |fragment| {
            fewest += match fragment {
                Fragment::Token(_) => 1,
                Fragment::Text(text) => text.len().div_ceil(self.longest),
            };
            Ok::<(), Infallible>(())
        });
        fewest
    }

    /// Most bytes of a text that one token can cover; at least 1.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// `text` with `mark` inside of every control token that it spells, for [`Specials::ParseUnmarked`]: so a template can
    /// put a text from outside among its own. The mark must not be in the text before.
    pub fn mark<'t>(&self, text: &'t str, mark: char) -> Cow<'t, str> {
        self.partitioner.mark(text, mark)
    }

    /// The text of `ids`, with U+FFFD for bytes that are no UTF-8.
    pub fn decode(&self, ids: &[u32], control: ControlTokens) -> String {
        let mut decoding = detokenizer::DecoderState::new(LeadingSpace::Strip, control);
        let mut text: String = ids.iter().map(|&id| decoding.push(self, id)).collect();
        text.push_str(&decoding.finish());
        text
    }

    /// How many tokens there are; ids are below it.
    pub fn vocab_len(&self) -> usize {
        self.tokens.len()
    }

    /// The token's text as the file spells it; `None` for an id that is no token.
    pub fn text(&self, id: u32) -> Option<&str> {
        self.tokens.text(id)
    }

    /// The bytes that the token stands for, maybe half a character; none for an id that is no token.
    pub fn bytes(&self, id: u32) -> &[u8] {
        self.tokens.bytes(id)
    }

    /// The token that the file spells so.
    pub fn find(&self, text: &str) -> Option<u32> {
        self.tokens.find(text)
    }

    /// Whether the token steers the model and is no text.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.tokens.kind(id), Some(TokenKind::Control | TokenKind::Unknown))
    }

    /// Whether no text has this token: it fills the vocabulary up.
    pub fn is_unused(&self, id: u32) -> bool {
        self.tokens.kind(id) == Some(TokenKind::Unused)
    }

    /// Whether generation ends with this token.
    pub fn is_end_of_generation(&self, id: u32) -> bool {
        self.endings.binary_search(&id).is_ok()
    }

    /// The tokens with which generation ends, sorted.
    pub fn ends_of_generation(&self) -> &[u32] {
        &self.endings
    }

    /// What [`Affixes::AsModel`] puts before a text.
    pub fn prefix(&self) -> Option<u32> {
        self.prefix
    }

    /// What [`Affixes::AsModel`] puts after a text.
    pub fn suffix(&self) -> Option<u32> {
        self.suffix
    }

    /// The token that begins a text, whether or not the model asks for it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Those by which the model fills in the middle of a text, if it does.
    pub fn infill(&self) -> Option<InfillTokens> {
        self.infill
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The parts of `text`, in order.
    fn each_fragment<E>(
        &self,
        text: &str,
        specials: Specials,
        mut each: impl FnMut(Fragment<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for fragment in self.partitioner.split(&self.tokens, text, specials) {
            match (fragment, specials) {
                (Fragment::Text(text), Specials::ParseUnmarked(mark)) if text.contains(mark) => {
                    let unmarked = text.replace(mark, "");
                    for fragment in self.partitioner.split(&self.tokens, &unmarked, Specials::Plain) {
                        each(fragment)?;
                    }
                }
                (fragment, Specials::Parse | Specials::ParseUnmarked(_) | Specials::Plain) => each(fragment)?,
            }
        }
        Ok(())
    }

    fn encode_fragment(&self, fragment: Fragment<'_>, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        match (fragment, &self.algorithm) {
            (Fragment::Token(id), _) => ids.push(id),
            (Fragment::Text(text), Algorithm::ByteLevelBpe(bpe)) => bpe.encode(&self.tokens, text, ids)?,
            (Fragment::Text(text), Algorithm::CharacterBpe(bpe)) => bpe.encode(&self.tokens, text, ids),
            (Fragment::Text(text), Algorithm::SentencePiece(spm)) => spm.encode(&self.tokens, text, ids),
        }
        Ok(())
    }

    /// Whether encoding puts a space before a text, which decoding takes away again.
    fn adds_space(&self) -> bool {
        match &self.algorithm {
            Algorithm::ByteLevelBpe(_) | Algorithm::CharacterBpe(_) => false,
            Algorithm::SentencePiece(spm) => spm.space_prefix() == SpacePrefix::Add,
        }
    }
}

fn byte_level(v: &Vocabulary, choice: PretokenizerChoice<'_>) -> Result<(Tokens, Algorithm), TokenizerError> {
    if v.merges.is_empty() {
        return Err(TokenizerError::MergesMissing);
    }
    let pretokenizer = Pretokenizer::named(match choice {
        PretokenizerChoice::FromModel => v.pre.as_deref(),
        PretokenizerChoice::Named(name) => Some(name),
    })?;
    let tokens = Tokens::new(v, Spelling::ByteLevel)?;
    let bpe = ByteLevelBpe::new(&tokens, &v.merges, pretokenizer)?;
    Ok((tokens, Algorithm::ByteLevelBpe(bpe)))
}

fn character_level(v: &Vocabulary) -> Result<(Tokens, Algorithm), TokenizerError> {
    if v.merges.is_empty() {
        return Err(TokenizerError::MergesMissing);
    }
    let tokens = Tokens::new(v, Spelling::SentencePiece)?;
    let bpe = CharacterBpe::new(&tokens, &v.merges)?;
    Ok((tokens, Algorithm::CharacterBpe(bpe)))
}

fn sentence_piece(v: &mut Vocabulary) -> Result<(Tokens, Algorithm), TokenizerError> {
    // Where the file does not say, SentencePiece's own ids hold.
    let default = |id: Option<u32>, own: u32| id.or(Some(own).filter(|&own| (own as usize) < v.tokens.len()));
    (v.unknown, v.bos, v.eos) = (default(v.unknown, 0), default(v.bos, 1), default(v.eos, 2));
    let tokens = Tokens::new(v, Spelling::SentencePiece)?;
    let prefix = if v.add_space_prefix.unwrap_or(true) { SpacePrefix::Add } else { SpacePrefix::None };
    let spm = SentencePiece::new(&tokens, &v.scores, prefix, v.unknown);
    Ok((tokens, Algorithm::SentencePiece(spm)))
}

/// Most bytes of a text that one token can cover; at least 1.
fn longest(tokens: &Tokens, algorithm: &Algorithm) -> usize {
    let covered = |(id, text, kind): (u32, &str, TokenKind)| match (algorithm, kind) {
        (Algorithm::ByteLevelBpe(_), TokenKind::Normal) => tokens.bytes(id).len(),
        // Where U+2581 stands for a space, a text may have that character itself.
        (Algorithm::ByteLevelBpe(_) | Algorithm::CharacterBpe(_) | Algorithm::SentencePiece(_), _) => text.len(),
    };
    tokens.iter().map(covered).max().unwrap_or(0).max(1)
}
