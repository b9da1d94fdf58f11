//! A tokenizer's raw material as a GGUF file states it, and its checks.

use std::{borrow::Cow, collections::BTreeMap};

use crate::gguf::{Gguf, KeyError, OptionalKey};

use super::{InfillIds, TokenizerError, kind::TokenKind};

/// What a GGUF file says about its tokenizer, unchecked: `Tokenizer::new` checks it.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `gpt2` (byte-level BPE), `llama` (SentencePiece-style BPE) or `gemma4` (BPE on characters).
    pub model: String,
    /// Name of the pre-tokenizer; only `gpt2` needs one.
    pub pre: Option<String>,
    /// Text of each token, by id.
    pub tokens: Vec<String>,
    /// Score of each token, higher first; only `llama` needs them.
    pub scores: Vec<f32>,
    /// ggml's type number of each token; empty where all are normal.
    pub token_types: Vec<i32>,
    /// `left right`, the most important first; `llama` has none.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Ends a turn.
    pub eot: Option<u32>,
    /// Ends a message to a tool.
    pub eom: Option<u32>,
    /// Stands for what no token covers.
    pub unknown: Option<u32>,
    /// Fills batches; never generated.
    pub padding: Option<u32>,
    /// What stands around a text whose middle is to be filled in.
    pub infill: InfillIds,
    /// Whether a text begins with `bos`; `None` leaves it to the kind of tokenizer.
    pub add_bos: Option<bool>,
    /// Whether a text ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a space goes before the text (`llama` only).
    pub add_space_prefix: Option<bool>,
    /// What becomes of white space after a special token in the text.
    pub after_special: AfterSpecial,
    /// Jinja source of the chat template, or why it cannot be read: only who chats needs it.
    pub chat_template: Option<Result<String, KeyError>>,
}

/// What becomes of white space after a special token in the text.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum AfterSpecial {
    /// It stays.
    #[default]
    Keep,
    /// It goes, as Phi-3 was trained; GGUF has no key for it.
    Strip,
}

impl Vocabulary {
    /// The vocabulary of a GGUF file.
    ///
    /// # Errors
    /// A key is missing or of the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let strings = |key: &str| -> Result<Vec<String>, TokenizerError> {
            Ok(gguf.strings(key).optional()?.map(|list| list.iter().map(str::to_owned).collect()).unwrap_or_default())
        };
        let lossy = |key: &str| gguf.text_lossy(key).optional();
        let flag = |name: &str| gguf.boolean(&format!("tokenizer.ggml.{name}")).optional();
        let name = lossy("general.name")?.unwrap_or_default().to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let model = gguf.text("tokenizer.ggml.model")?;
        let merges = match strings("tokenizer.ggml.merges") {
            Err(_) if model != "gpt2" && model != "gemma4" => Vec::new(),
            merges => merges?,
        };
        Ok(Self {
            model: model.to_owned(),
            // One that is not UTF-8 is not known, which matters only where no other is named.
            pre: lossy("tokenizer.ggml.pre")?.map(Cow::into_owned),
            tokens: gguf.strings("tokenizer.ggml.tokens")?.iter().map(str::to_owned).collect(),
            scores: gguf.floats("tokenizer.ggml.scores").optional()?.unwrap_or_default(),
            token_types: gguf.signeds("tokenizer.ggml.token_type").optional()?.unwrap_or_default(),
            merges,
            bos: token_id(gguf, "bos")?,
            eos: token_id(gguf, "eos")?,
            eot: token_id(gguf, "eot")?,
            eom: token_id(gguf, "eom")?,
            unknown: token_id(gguf, "unknown")?,
            padding: token_id(gguf, "padding")?,
            infill: infill_ids(gguf)?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            after_special: if phi3 { AfterSpecial::Strip } else { AfterSpecial::Keep },
            chat_template: gguf.text("tokenizer.chat_template").map(str::to_owned).optional().transpose(),
        })
    }

    /// How many tokens the file declares to be of each kind: normal, control, byte and so on.
    pub fn kinds(&self) -> BTreeMap<&'static str, usize> {
        let mut kinds = BTreeMap::new();
        for &number in &self.token_types {
            *kinds.entry(TokenKind::from_ggml(number).map_or("of no known kind", TokenKind::name)).or_default() += 1;
        }
        if self.token_types.is_empty() {
            kinds.insert(TokenKind::Normal.name(), self.tokens.len());
        }
        kinds
    }

    /// Takes out the ids that are no token's, with their names: as with llama.cpp they count as not given, since there are
    /// files whose padding is -1.
    pub(super) fn take_stray_ids(&mut self) -> Vec<(&'static str, u32)> {
        let tokens = self.tokens.len();
        let ids = [
            ("bos", &mut self.bos),
            ("eos", &mut self.eos),
            ("eot", &mut self.eot),
            ("eom", &mut self.eom),
            ("unknown", &mut self.unknown),
            ("padding", &mut self.padding),
            ("fim_pre", &mut self.infill.prefix),
            ("fim_suf", &mut self.infill.suffix),
            ("fim_mid", &mut self.infill.middle),
            ("fim_rep", &mut self.infill.repository),
            ("fim_sep", &mut self.infill.file),
        ];
        let stray = |(name, id): (_, &mut Option<u32>)| Some((name, id.take_if(|id| *id as usize >= tokens)?));
        ids.into_iter().filter_map(stray).collect()
    }

    /// Checks lengths, and returns the kind of each token.
    pub(super) fn check(&self) -> Result<Vec<TokenKind>, TokenizerError> {
        let tokens = self.tokens.len();
        if tokens == 0 || u32::try_from(tokens).is_err() {
            return Err(TokenizerError::Size { tokens });
        }
        for (key, found) in [("scores", self.scores.len()), ("token_type", self.token_types.len())] {
            if found != 0 && found != tokens {
                return Err(TokenizerError::Lengths { key, found, tokens });
            }
        }
        if let Some(index) = self.scores.iter().position(|score| score.is_nan()) {
            return Err(TokenizerError::Score { index });
        }
        if self.token_types.is_empty() {
            return Ok(vec![TokenKind::Normal; tokens]);
        }
        let kind = |(index, &found): (usize, &i32)| {
            TokenKind::from_ggml(found).ok_or(TokenizerError::TokenType { index, found })
        };
        self.token_types.iter().enumerate().map(kind).collect()
    }
}

/// Older files have other names for the first three.
fn infill_ids(gguf: &Gguf) -> Result<InfillIds, KeyError> {
    let either = |name, older| Ok::<_, KeyError>(token_id(gguf, name)?.or(token_id(gguf, older)?));
    Ok(InfillIds {
        prefix: either("fim_pre", "prefix")?,
        suffix: either("fim_suf", "suffix")?,
        middle: either("fim_mid", "middle")?,
        repository: token_id(gguf, "fim_rep")?,
        file: token_id(gguf, "fim_sep")?,
    })
}

fn token_id(gguf: &Gguf, name: &str) -> Result<Option<u32>, KeyError> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    match gguf.unsigned(&key).optional() {
        Ok(id) => Ok(id.map(|id| u32::try_from(id).unwrap_or(NO_TOKEN))),
        // Some files say -1.
        Err(_) => gguf.signed(&key).map(|_| Some(NO_TOKEN)),
    }
}

/// An id that no token has; what -1 is to those who read it without its sign.
const NO_TOKEN: u32 = u32::MAX;
