//! The tokens of a vocabulary: text, bytes and kind of each, and which end a generation.

use std::{collections::HashMap, sync::Arc};

use super::{TokenizerError, kind::TokenKind, vocabulary::Vocabulary};

/// How a normal token's text stands for bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Spelling {
    /// Each byte is one character, as GPT-2 maps them.
    ByteLevel,
    /// As it is, with U+2581 for a space.
    SentencePiece,
}

/// The tokens by id and by text.
#[derive(Debug)]
pub(super) struct Tokens {
    texts: Vec<Arc<str>>,
    bytes: Vec<Box<[u8]>>,
    kinds: Vec<TokenKind>,
    by_text: HashMap<Arc<str>, u32>,
}

/// Texts of control tokens after which llama.cpp ends a generation, whatever the file says.
const ENDINGS: [&str; 33] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<end_of_turn>",
    "<turn|>",
    "<|tool_response>",
    "<eos>",
    "<|endoftext|>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
    "</s>",
];

impl TokenKind {
    /// The kind with ggml's number.
    pub(super) fn from_ggml(number: i32) -> Option<Self> {
        match number {
            0 | 1 => Some(Self::Normal),
            2 => Some(Self::Unknown),
            3 => Some(Self::Control),
            4 => Some(Self::UserDefined),
            5 => Some(Self::Unused),
            6 => Some(Self::Byte),
            _ => None,
        }
    }

    /// As ggml calls it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Unknown => "unknown",
            Self::Control => "control",
            Self::UserDefined => "user-defined",
            Self::Unused => "unused",
            Self::Byte => "byte",
        }
    }

    /// Whether ordinary text can contain it; the others must not come out of merges, or text could forge them.
    fn is_text(self) -> bool {
        match self {
            Self::Normal | Self::UserDefined | Self::Unused => true,
            Self::Unknown | Self::Control | Self::Byte => false,
        }
    }
}

impl Tokens {
    /// The checked tokens of `vocabulary`.
    pub(super) fn new(vocabulary: &Vocabulary, spelling: Spelling) -> Result<Self, TokenizerError> {
        let mut kinds = vocabulary.check()?;
        let texts: Vec<Arc<str>> = vocabulary.tokens.iter().map(|text| Arc::from(text.as_str())).collect();
        let mut by_text = HashMap::with_capacity(texts.len());
        let mut duplicates = 0_usize;
        // Without a `<s>` that begins texts, `</s>` does not end them: it is HTML, as in Gemma's vocabulary.
        let html = !texts.iter().zip(&kinds).any(|(text, &kind)| &**text == "<s>" && kind == TokenKind::Control);
        for (id, (text, kind)) in (0_u32..).zip(texts.iter().zip(&mut kinds)) {
            // What ends generations is no text, whatever the file calls it.
            let written = matches!(kind, TokenKind::Normal | TokenKind::UserDefined) && !(html && &**text == "</s>");
            if written && ENDINGS.contains(&&**text) {
                *kind = TokenKind::Control;
            }
            duplicates += usize::from(by_text.insert(Arc::clone(text), id).is_some());
        }
        if duplicates > 0 {
            tracing::warn!(duplicates, "tokens with the same text; the last of each is used");
        }
        let spell = decoder(spelling);
        let bytes = texts.iter().zip(&kinds).map(|(text, &kind)| spell(text, kind)).collect();
        Ok(Self { texts, bytes, kinds, by_text })
    }

    pub(super) fn len(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn text(&self, id: u32) -> Option<&str> {
        self.texts.get(id as usize).map(|text| &**text)
    }

    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    pub(super) fn kind(&self, id: u32) -> Option<TokenKind> {
        self.kinds.get(id as usize).copied()
    }

    /// Every token with its text and kind.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &str, TokenKind)> {
        (0_u32..).zip(self.texts.iter().zip(&self.kinds)).map(|(id, (text, &kind))| (id, &**text, kind))
    }

    /// The token of that text, of any kind.
    pub(super) fn find(&self, text: &str) -> Option<u32> {
        self.by_text.get(text).copied()
    }

    /// The token of that text, if ordinary text can contain it.
    pub(super) fn find_text(&self, text: &str) -> Option<u32> {
        self.find(text).filter(|&id| self.kinds[id as usize].is_text())
    }

    /// The token of each byte, written `<0xE2>`, or `otherwise`.
    pub(super) fn byte_tokens(&self, otherwise: Option<u32>) -> Vec<Option<u32>> {
        (0..=u8::MAX).map(|byte| self.find(&format!("<0x{byte:02X}>")).or(otherwise)).collect()
    }

    /// The ids after which a generation ends: what the file says and what the control tokens' texts say.
    pub(super) fn endings(&self, declared: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let control = |text: &str| self.find(text).filter(|&id| self.kind(id) == Some(TokenKind::Control));
        let known = ENDINGS.iter().filter_map(|text| control(text));
        let mut ids: Vec<u32> = declared.into_iter().chain(known).collect();
        // Where a turn has several messages, this only ends a message.
        let has = |text: &str| control(text).is_some();
        if has("<|return|>") && has("<|call|>") || has("<|flush|>") && (has("<|call|>") || has("<|calls|>")) {
            ids.retain(|&id| self.text(id) != Some("<|end|>"));
        }
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// The character that stands for each byte in the texts of a byte-level vocabulary: itself where it is printable, else
/// the next from U+0100.
pub(super) fn byte_characters() -> Vec<char> {
    let mut spare = '\u{100}'..;
    let character = |byte: u8| match byte {
        b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => Some(char::from(byte)),
        _ => spare.next(),
    };
    (0..=u8::MAX).filter_map(character).collect()
}

/// Turns a token's text into its bytes.
fn decoder(spelling: Spelling) -> impl Fn(&str, TokenKind) -> Box<[u8]> {
    let to_byte: HashMap<char, u8> = byte_characters().into_iter().zip(0..=u8::MAX).collect();
    move |text, kind| match (kind, spelling) {
        (TokenKind::Unused, _) => Box::default(),
        (TokenKind::Control | TokenKind::Unknown | TokenKind::UserDefined, _) => text.as_bytes().into(),
        (TokenKind::Byte, _) => byte_value(text).map_or_else(|| text.as_bytes().into(), |byte| [byte].into()),
        (TokenKind::Normal, Spelling::SentencePiece) => text.replace('▁', " ").into_bytes().into(),
        (TokenKind::Normal, Spelling::ByteLevel) => {
            let bytes: Option<Box<[u8]>> = text.chars().map(|c| to_byte.get(&c).copied()).collect();
            bytes.unwrap_or_else(|| text.as_bytes().into())
        }
    }
}

/// The byte of a token written `<0xE2>`.
fn byte_value(text: &str) -> Option<u8> {
    let digits = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}
