//! Walks: how far one text has come along its grammar, and what may follow.

use std::{fmt, sync::Arc};

use llguidance::Matcher;
use qmesh_net::TokenMask;

use super::{GrammarError, compiler::in_words};

/// A grammar for the tokens of one vocabulary, for any number of texts.
pub struct CompiledGrammar {
    start: Matcher,
    ends: Arc<[u32]>,
    drafts: Drafts,
}

/// Whether a grammar can be gone along for a while and back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Drafts {
    Followed,
    /// Some of Lark's extras cannot be taken back.
    NotFollowed,
}

/// Where one text stands in its grammar.
pub struct GrammarWalk {
    matcher: Matcher,
    ends: Arc<[u32]>,
    drafts: Drafts,
    ended: bool,
}

impl CompiledGrammar {
    /// Tries a grammar out at its start, so that what cannot be followed at all is told at once.
    pub(super) fn new(mut start: Matcher, ends: Arc<[u32]>) -> Result<Self, GrammarError> {
        let refused = |error: anyhow::Error| GrammarError::Refused { text: in_words(&error.to_string()) };
        let mask = start.compute_mask_or_eos().map_err(refused)?;
        let mut first = None;
        mask.iter_set_entries(|token| first = first.or_else(|| u32::try_from(token).ok()));
        let mut trial = start.deep_clone();
        let mut drafts = Drafts::NotFollowed;
        if let Some(token) = first.filter(|token| !ends.contains(token)) {
            // Some limits are met only here.
            trial.consume_token(token).map_err(refused)?;
            if trial.rollback(1).is_ok() {
                drafts = Drafts::Followed;
            }
        }
        Ok(Self { start, ends, drafts })
    }

    /// A walk for one text, from the start.
    pub fn start(&self) -> GrammarWalk {
        // A deep one: walks share no state that could fill up.
        let (matcher, ends) = (self.start.deep_clone(), Arc::clone(&self.ends));
        GrammarWalk { matcher, ends, drafts: self.drafts, ended: false }
    }
}

impl GrammarWalk {
    /// What may follow: the tokens that end a text are among it where the text is complete.
    ///
    /// # Errors
    /// Nothing can follow, or finding out would take too long.
    pub fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        if self.ended {
            return Err(GrammarError::Lost { text: "it has ended".to_owned() });
        }
        let mask = self.matcher.compute_mask_or_eos().map_err(lost)?;
        let bits = mask.as_slice()[..mask.len().div_ceil(32)].iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(TokenMask::of_bits(bits))
    }

    /// Whether drafts can be checked against it before they are sent.
    pub fn follows_drafts(&self) -> bool {
        self.drafts == Drafts::Followed
    }

    /// What may follow after the text, and after each token of `draft` behind it. The draft is cut before the first token
    /// that may not follow, and before one that ends the text. The walk stays where it is.
    ///
    /// # Errors
    /// As [`GrammarWalk::mask`].
    pub fn masks(&mut self, draft: &mut Vec<u32>) -> Result<Vec<TokenMask>, GrammarError> {
        if self.drafts == Drafts::NotFollowed {
            draft.clear();
        }
        let mut masks = vec![self.mask()?];
        for (at, token) in draft.iter().enumerate() {
            if self.ends.contains(token) || !masks[at].allows(*token) {
                break;
            }
            self.matcher.consume_token(*token).map_err(lost)?;
            masks.push(self.mask()?);
        }
        draft.truncate(masks.len() - 1);
        self.matcher.rollback(draft.len()).map_err(lost)?;
        Ok(masks)
    }

    /// The text goes on with a token.
    ///
    /// # Errors
    /// The token may not follow.
    pub fn advance(&mut self, token: u32) -> Result<(), GrammarError> {
        let ends = self.ends.contains(&token);
        let may_follow = match ends {
            true => self.mask()?.allows(token),
            false => !self.ended && self.matcher.validate_tokens(&[token]).map_err(lost)? == 1,
        };
        if !may_follow {
            return Err(GrammarError::Lost { text: format!("token {token} may not follow") });
        }
        self.ended = ends;
        if ends { Ok(()) } else { self.matcher.consume_token(token).map_err(lost) }
    }
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompiledGrammar").field("drafts", &self.drafts).finish_non_exhaustive()
    }
}

impl fmt::Debug for GrammarWalk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarWalk").field("ended", &self.ended).finish_non_exhaustive()
    }
}

fn lost(error: anyhow::Error) -> GrammarError {
    GrammarError::Lost { text: in_words(&error.to_string()) }
}
