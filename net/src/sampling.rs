//! How tokens are chosen: the parameters that travel with a session.

use crate::{
    codec::{Decode, Encode},
    mask::TokenMask,
};

/// How tokens are chosen from logits. The default is greedy without penalties.
#[derive(Clone, Debug, Decode, Encode, PartialEq)]
pub struct Sampling {
    /// 0 is greedy.
    pub temperature: f32,
    /// Keep the so many best; 0 keeps all.
    pub top_k: u32,
    /// Keep the best that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Keep those at least this likely relative to the best; 0 keeps all.
    pub min_p: f32,
    /// Keep those whose surprise is nearest to the expected one, as many as together have this probability; 1 keeps all.
    pub typical_p: f32,
    /// How often the likeliest are left out, of those that have at least `xtc_threshold`; 0 is never.
    pub xtc_probability: f32,
    /// The probability of tokens of which only the least likely is kept then; above one half there is never more than one.
    pub xtc_threshold: f32,
    /// Divides positive and multiplies negative logits of tokens in the window; 1 is off.
    pub repeat_penalty: f32,
    /// Subtracted once per occurrence in the window; 0 is off.
    pub frequency_penalty: f32,
    /// Subtracted once from tokens in the window; 0 is off.
    pub presence_penalty: f32,
    /// How many last tokens the penalties see.
    pub penalty_window: u32,
    /// What keeps the text from repeating itself word for word, if anything.
    pub dry: Option<Box<Dry>>,
    /// Key of the noise, with `sequence` and the position.
    pub seed: u64,
    /// Tells the sequences of one request apart.
    pub sequence: u64,
    /// Tokens, each with what is added to its logit.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many candidates to report per sampled row, at most [`crate::limits::CANDIDATES`].
    pub top: u16,
    /// Whether to report a digest of the logits' bits.
    pub digest: Digest,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            typical_p: 1.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.1,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            penalty_window: 64,
            dry: None,
            seed: 0,
            sequence: 0,
            logit_bias: Vec::new(),
            top: 0,
            digest: Digest::Off,
        }
    }
}

/// What keeps a text from repeating itself: tokens that would lengthen a repetition are penalised, the longer it is the more.
#[derive(Clone, Debug, Decode, Encode, PartialEq)]
pub struct Dry {
    /// What is subtracted from the logit of a token that lengthens a repetition of `allowed_length`.
    pub multiplier: f32,
    /// By what factor that grows with each token of the repetition beyond those.
    pub base: f32,
    /// How many tokens may be repeated before the next one is penalised.
    pub allowed_length: u32,
    /// How many last tokens are looked at.
    pub window: u32,
    /// Tokens that no repetition goes across.
    pub breakers: TokenMask,
    /// Tokens that no repetition goes across where they follow each other.
    pub breaking_sequences: Vec<Vec<u32>>,
}

/// Whether sampled rows carry a digest of their logits.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub enum Digest {
    /// The digest is 0.
    #[default]
    Off,
    /// A hash over the bits of all logits.
    On,
}
