//! Walks: how far one text has come along its grammar, and what may follow.

use std::{fmt, sync::Arc};

use llguidance::{
    Matcher,
    toktrie::{TokEnv, TokTrie},
};
use qmesh_net::TokenMask;

use super::{
    GrammarError,
    compiler::in_words,
    lazy::{HeldCalls, Listener},
};

/// A grammar for the tokens of one vocabulary, for any number of texts.
pub struct CompiledGrammar {
    start: Start,
    ends: Arc<[u32]>,
}

/// Where texts begin.
enum Start {
    /// On a path.
    Bound(Box<Path>),
    /// In the open.
    Free(Arc<Held>),
}

/// What is held of texts that are free otherwise.
pub(super) struct Held {
    calls: HeldCalls,
    /// Of each of the calls, where its arguments begin.
    paths: Vec<Path>,
    tokens: TokEnv,
}

/// A place in a grammar.
pub(super) struct Path {
    matcher: Matcher,
    drafts: Drafts,
}

/// Whether a grammar can be gone along for a while and back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Drafts {
    Followed,
    /// Some of Lark's extras cannot be taken back.
    NotFollowed,
}

/// Where one text stands in its grammar.
pub struct GrammarWalk {
    /// The way that is to be gone; without one, anything may follow.
    path: Option<Path>,
    /// What hears where the text is held, where it is not held as a whole.
    listener: Option<(Listener, Arc<Held>)>,
    ends: Arc<[u32]>,
    ended: bool,
}

impl CompiledGrammar {
    /// A grammar that holds all of a text.
    ///
    /// # Errors
    /// What cannot be followed at all.
    pub(super) fn bound(start: Matcher, ends: Arc<[u32]>) -> Result<Self, GrammarError> {
        Ok(Self { start: Start::Bound(Box::new(Path::new(start, &ends)?)), ends })
    }

    /// One that holds the arguments of calls; `starts` are where those of each begin.
    ///
    /// # Errors
    /// What cannot be followed at all.
    pub(super) fn held(
        calls: HeldCalls,
        starts: Vec<Matcher>,
        tokens: TokEnv,
        ends: Arc<[u32]>,
    ) -> Result<Self, GrammarError> {
        let paths = starts.into_iter().map(|start| Path::new(start, &ends)).collect::<Result<_, _>>()?;
        Ok(Self { start: Start::Free(Arc::new(Held { calls, paths, tokens })), ends })
    }

    /// A walk for one text, from the start.
    pub fn start(&self) -> GrammarWalk {
        let (path, listener) = match &self.start {
            Start::Bound(path) => (Some(path.again()), None),
            Start::Free(held) => (None, Some((Listener::new(&held.calls), Arc::clone(held)))),
        };
        GrammarWalk { path, listener, ends: Arc::clone(&self.ends), ended: false }
    }
}

impl Path {
    /// Tries a grammar out at its start, so that what cannot be followed at all is told at once.
    fn new(mut start: Matcher, ends: &[u32]) -> Result<Self, GrammarError> {
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
        Ok(Self { matcher: start, drafts })
    }

    /// The same place for another text.
    fn again(&self) -> Self {
        // A deep one: walks share no state that could fill up.
        Self { matcher: self.matcher.deep_clone(), drafts: self.drafts }
    }

    fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(lost)?;
        let bits = mask.as_slice()[..mask.len().div_ceil(32)].iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(TokenMask::of_bits(bits))
    }
}

impl Held {
    /// What a token says; of one that is no text, how it is spelled.
    fn said(&self, token: u32) -> &[u8] {
        let bytes = self.tokens.tok_trie().token(token);
        bytes.strip_prefix(&[TokTrie::SPECIAL_TOKEN_MARKER]).unwrap_or(bytes)
    }
}

impl GrammarWalk {
    /// Whether anything may follow now.
    pub fn is_free(&self) -> bool {
        self.path.is_none()
    }

    /// What may follow: the tokens that end a text are among it where the text is complete.
    ///
    /// # Errors
    /// Nothing can follow, or finding out would take too long.
    pub fn mask(&mut self) -> Result<TokenMask, GrammarError> {
        if self.ended {
            return Err(GrammarError::Lost { text: "it has ended".to_owned() });
        }
        match (&mut self.path, &self.listener) {
            (Some(path), _) => path.mask(),
            (None, Some((_, held))) => {
                Ok(TokenMask::of_bits(vec![u8::MAX; held.tokens.tok_trie().vocab_size().div_ceil(8)]))
            }
            (None, None) => Err(GrammarError::Lost { text: "it has no way to go".to_owned() }),
        }
    }

    /// Whether drafts can be checked against it before they are sent.
    pub fn follows_drafts(&self) -> bool {
        self.path.as_ref().is_none_or(|path| path.drafts == Drafts::Followed)
    }

    /// What may follow after the text, and after each token of `draft` behind it; no masks where anything may. The draft is cut
    /// before the first token that may not follow, before one that ends the text, and before one with which the text becomes free
    /// or is so no more. The walk stays where it is.
    ///
    /// # Errors
    /// As [`GrammarWalk::mask`].
    pub fn masks(&mut self, draft: &mut Vec<u32>) -> Result<Vec<TokenMask>, GrammarError> {
        if !self.follows_drafts() {
            draft.clear();
        }
        if self.is_free() && !self.ended {
            self.cut_unheard(draft);
            return Ok(Vec::new());
        }
        let first = self.mask()?;
        let Some(path) = &mut self.path else { return Ok(Vec::new()) };
        let mut masks = vec![first];
        for (at, token) in draft.iter().enumerate() {
            if self.ends.contains(token) || !masks[at].allows(*token) {
                break;
            }
            path.matcher.consume_token(*token).map_err(lost)?;
            if self.listener.is_some() && path.matcher.is_accepting().map_err(lost)? {
                path.matcher.rollback(1).map_err(lost)?;
                break;
            }
            masks.push(path.mask()?);
        }
        draft.truncate(masks.len() - 1);
        path.matcher.rollback(draft.len()).map_err(lost)?;
        Ok(masks)
    }

    /// Cuts a draft before a token from which on the text would be held.
    fn cut_unheard(&self, draft: &mut Vec<u32>) {
        let Some((listener, held)) = &self.listener else { return };
        let mut listener = listener.clone();
        let heard = |token: &u32| listener.hear(held.said(*token), &held.calls).is_some();
        if let Some(at) = draft.iter().position(heard) {
            draft.truncate(at);
        }
    }

    /// The text goes on with a token.
    ///
    /// # Errors
    /// The token may not follow.
    pub fn advance(&mut self, token: u32) -> Result<(), GrammarError> {
        let ends = self.ends.contains(&token);
        let may_follow = match (ends, &mut self.path) {
            (true, _) => self.mask()?.allows(token),
            (false, Some(path)) => !self.ended && path.matcher.validate_tokens(&[token]).map_err(lost)? == 1,
            (false, None) => !self.ended,
        };
        if !may_follow {
            return Err(GrammarError::Lost { text: format!("token {token} may not follow") });
        }
        self.ended = ends;
        if ends { Ok(()) } else { self.step(token) }
    }

    /// Goes on with a token that may follow.
    fn step(&mut self, token: u32) -> Result<(), GrammarError> {
        match (&mut self.path, &mut self.listener) {
            (Some(path), listener) => {
                path.matcher.consume_token(token).map_err(lost)?;
                if let Some((listener, _)) = listener
                    && path.matcher.is_accepting().map_err(lost)?
                {
                    listener.go_on();
                    self.path = None;
                }
            }
            (None, Some((listener, held))) => {
                let heard = listener.hear(held.said(token), &held.calls);
                self.path = heard.and_then(|call| held.paths.get(call)).map(Path::again);
            }
            (None, None) => {}
        }
        Ok(())
    }
}

impl fmt::Debug for CompiledGrammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.start {
            Start::Bound(_) => "bound",
            Start::Free(_) => "free",
        };
        f.debug_struct("CompiledGrammar").field("start", &what).finish_non_exhaustive()
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
