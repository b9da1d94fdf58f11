//! A tokenizer's raw material as a GGUF file states it, and its checks.

use std::collections::BTreeMap;

use crate::gguf::{Gguf, OptionalKey};

use super::{TokenizerError, token::TokenKind};

/// What a GGUF file says about its tokenizer, unchecked: `Tokenizer::new` checks it.
#[derive(Clone, Debug, Default)]
pub struct Vocabulary {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece-style BPE).
    pub model: String,
    /// Name of the pre-tokenizer; only `gpt2` needs one.
    pub pre: Option<String>,
    /// Text of each token, by id.
    pub tokens: Vec<String>,
    /// Score of each token, higher first; only `llama` needs them.
    pub scores: Vec<f32>,
    /// ggml's type number of each token; empty where all are normal.
    pub token_types: Vec<i32>,
    /// `left right`, the most important first; only `gpt2` has them.
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
    /// Whether a text begins with `bos`; `None` leaves it to the kind of tokenizer.
    pub add_bos: Option<bool>,
    /// Whether a text ends with `eos`.
    pub add_eos: Option<bool>,
    /// Whether a space goes before the text (`llama` only).
    pub add_space_prefix: Option<bool>,
    /// What becomes of white space after a special token in the text.
    pub after_special: AfterSpecial,
    /// Jinja source of the chat template.
    pub chat_template: Option<String>,
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
    /// A key is missing or of the wrong type, or a special token's id is negative or beyond `u32`.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let strings = |key: &str| -> Result<Vec<String>, TokenizerError> {
            Ok(gguf.strings(key).optional()?.map(|list| list.iter().map(str::to_owned).collect()).unwrap_or_default())
        };
        let owned =
            |key: &str| -> Result<Option<String>, TokenizerError> { Ok(gguf.text(key).optional()?.map(str::to_owned)) };
        let flag = |name: &str| gguf.boolean(&format!("tokenizer.ggml.{name}")).optional();
        let name = owned("general.name")?.unwrap_or_default().to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        Ok(Self {
            model: gguf.text("tokenizer.ggml.model")?.to_owned(),
            pre: owned("tokenizer.ggml.pre")?,
            tokens: gguf.strings("tokenizer.ggml.tokens")?.iter().map(str::to_owned).collect(),
            scores: gguf.floats("tokenizer.ggml.scores").optional()?.unwrap_or_default(),
            token_types: gguf.signeds("tokenizer.ggml.token_type").optional()?.unwrap_or_default(),
            merges: strings("tokenizer.ggml.merges")?,
            bos: token_id(gguf, "bos")?,
            eos: token_id(gguf, "eos")?,
            eot: token_id(gguf, "eot")?,
            eom: token_id(gguf, "eom")?,
            unknown: token_id(gguf, "unknown")?,
            padding: token_id(gguf, "padding")?,
            add_bos: flag("add_bos_token")?,
            add_eos: flag("add_eos_token")?,
            add_space_prefix: flag("add_space_prefix")?,
            after_special: if phi3 { AfterSpecial::Strip } else { AfterSpecial::Keep },
            chat_template: owned("tokenizer.chat_template")?,
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

    /// Checks lengths and ids, and returns the kind of each token.
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
        let ids = [
            ("bos", self.bos),
            ("eos", self.eos),
            ("eot", self.eot),
            ("eom", self.eom),
            ("unknown", self.unknown),
            ("padding", self.padding),
        ];
        if let Some((name, Some(id))) = ids.into_iter().find(|(_, id)| id.is_some_and(|id| id as usize >= tokens)) {
            return Err(TokenizerError::Id { name, id: id.into(), tokens });
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

fn token_id(gguf: &Gguf, name: &'static str) -> Result<Option<u32>, TokenizerError> {
    let Some(id) = gguf.signed(&format!("tokenizer.ggml.{name}_token_id")).optional()? else { return Ok(None) };
    let tokens = gguf.strings("tokenizer.ggml.tokens")?.len();
    u32::try_from(id).map(Some).map_err(|_| TokenizerError::Id { name, id, tokens })
}
