//! Token ids to text, one at a time, never half a character.

use std::{mem, sync::Arc};

use super::Tokenizer;

/// Turns a stream of token ids into text as it comes.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    state: DecoderState,
}

/// What becomes of control tokens in decoded text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ControlTokens {
    /// They are left out.
    Hide,
    /// They are spelled out.
    Show,
}

/// What becomes of the space that encoding put before the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LeadingSpace {
    /// It goes: the ids begin a text.
    Strip,
    /// It stays: the ids continue a text.
    Keep,
}

impl Detokenizer {
    /// A decoder at the start of a stream.
    pub fn new(tokenizer: Arc<Tokenizer>, leading_space: LeadingSpace, control: ControlTokens) -> Self {
        Self { tokenizer, state: DecoderState::new(leading_space, control) }
    }

    /// The text that is certain once `id` has come; an incomplete character is held back.
    pub fn push(&mut self, id: u32) -> String {
        self.state.push(&self.tokenizer, id)
    }

    /// The rest: U+FFFD if the stream ended inside a character. The decoder is then at the end of its text, and new
    /// ids continue it.
    pub fn finish(&mut self) -> String {
        self.state.finish()
    }
}

/// Where a decoder stands.
#[derive(Debug)]
pub(super) struct DecoderState {
    /// The beginning of a character: at most three bytes between calls.
    pending: Vec<u8>,
    leading_space: LeadingSpace,
    control: ControlTokens,
}

impl DecoderState {
    pub(super) fn new(leading_space: LeadingSpace, control: ControlTokens) -> Self {
        Self { pending: Vec::new(), leading_space, control }
    }

    pub(super) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if self.control == ControlTokens::Hide && tokenizer.is_control(id) {
            return String::new();
        }
        let mut bytes = tokenizer.bytes(id);
        if !bytes.is_empty() && mem::replace(&mut self.leading_space, LeadingSpace::Keep) == LeadingSpace::Strip {
            let space = tokenizer.adds_space() && !tokenizer.is_control(id);
            bytes = bytes.strip_prefix(b" ").filter(|_| space).unwrap_or(bytes);
        }
        self.pending.extend_from_slice(bytes);
        self.take_complete()
    }

    pub(super) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&mem::take(&mut self.pending)).into_owned()
    }

    /// Everything but a last character that more bytes could complete.
    fn take_complete(&mut self) -> String {
        let mut text = String::with_capacity(self.pending.len());
        let mut held = 0;
        let mut chunks = self.pending.utf8_chunks().peekable();
        while let Some(chunk) = chunks.next() {
            text.push_str(chunk.valid());
            let invalid = chunk.invalid();
            let may_grow = || str::from_utf8(invalid).is_err_and(|error| error.error_len().is_none());
            if chunks.peek().is_none() && may_grow() {
                held = invalid.len();
            } else if !invalid.is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.pending.drain(..self.pending.len() - held);
        text
    }
}
