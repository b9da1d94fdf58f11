//! A generation as text: whole characters, stop strings, and what is known about each token.

use std::{
    collections::VecDeque,
    mem,
    sync::Arc,
    time::{Duration, Instant},
};

use qmesh_models::tokenizer::{ControlTokens, Detokenizer, LeadingSpace, Tokenizer};
use qmesh_net::Sampled;

use super::{
    part::{AnswerPart, CallEvent},
    reading::Reading,
    stops::{Passed, Piece, Screened, Stops},
    token::{TokenText, Visibility},
};
use crate::generate::{Finish, FinishReason, GenerateError, GenerateEvent, Generation};

/// What a caller wants of the text.
#[derive(Clone, Debug)]
pub struct TextOptions {
    /// Strings that end the text; they are not part of it.
    pub stops: Vec<String>,
    /// Whether deltas come with their tokens.
    pub tokens: TokenDetail,
    /// Whether the space that some tokenizers put before a text is text.
    pub leading_space: LeadingSpace,
    /// Tells thoughts and calls from the text; without one, all of it is text.
    pub reading: Option<Reading>,
}

/// Whether deltas come with their tokens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TokenDetail {
    /// Text only.
    Off,
    /// Every token with its bytes and log-probabilities.
    On,
}

/// What happens to a text, in order.
#[derive(Clone, Debug)]
pub enum TextEvent {
    /// The prompt's rows, with `PromptRows::All` only.
    Prompt(Vec<Sampled>),
    /// More of the prompt is computed, but not all of it.
    Progress {
        /// Its tokens that an earlier request had left behind.
        cached_tokens: usize,
        /// Its tokens so far, with those.
        computed_tokens: usize,
        /// How long that took, from handing it in.
        took: Duration,
    },
    /// The prompt is computed.
    Prefilled {
        /// Its tokens that an earlier request had left behind.
        cached_tokens: usize,
        /// How long that took, from handing it in.
        took: Duration,
    },
    /// More text.
    Delta(TextDelta),
    /// More of what the model thinks, with a `reading` only.
    Thought(String),
    /// What it does, with a `reading` only.
    Call(CallEvent),
    /// The last event of a text that came to its end.
    Finished(TextEnd),
    /// The last event of one that did not.
    Failed(GenerateError),
}

/// More text; never both parts empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TextDelta {
    /// Whole characters that will not be taken back.
    pub text: String,
    /// The tokens whose text is out now, with `TokenDetail::On` only.
    pub tokens: Vec<TokenText>,
}

/// How a text ended, and what it took.
#[derive(Clone, Debug)]
pub struct TextEnd {
    /// Why.
    pub reason: TextEndReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated: the one that ends a generation counts, as do those of a stop string.
    pub generated_tokens: usize,
    /// Of the generated tokens, those at which thoughts came out.
    pub thought_tokens: usize,
    /// The stop string that came, if one did.
    pub stop: Option<String>,
    /// Tokens of the prompt that an earlier request had left behind.
    pub cached_tokens: usize,
    /// From admission to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TextEndReason {
    /// The model ended it.
    EndToken,
    /// A stop string came.
    StopString,
    /// It ended with calls, and waits for what comes of them.
    Calls,
    /// `max_tokens`, or the context was full.
    Length,
}

/// A generation as text. Dropping it cancels the generation.
#[derive(Debug)]
pub struct TextStream {
    /// Gone once the text has ended.
    generation: Option<Generation>,
    tokenizer: Arc<Tokenizer>,
    ends: Arc<[u32]>,
    detokenizer: Detokenizer,
    stops: Stops,
    reading: Option<Reading>,
    detail: TokenDetail,
    unsent: VecDeque<Unsent>,
    /// Bytes so far as they are spelled, with those of control tokens and of a stop string; characters of text.
    spelled: usize,
    decoded_chars: usize,
    /// Bytes of `spelled` that went out, or would have if they were text.
    sent: usize,
    ready: VecDeque<TextEvent>,
    prompt_tokens: usize,
    generated_tokens: usize,
    thought_tokens: usize,
    cached_tokens: usize,
    submitted: Instant,
    first_token: Option<Instant>,
}

/// A token whose text is not out yet: the bytes that it is spelled with.
#[derive(Debug)]
struct Unsent {
    start: usize,
    end: usize,
    token: TokenText,
}

/// Whether text goes on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Flow {
    Open,
    Ended,
}

impl TextStream {
    pub(super) fn new(
        generation: Generation,
        tokenizer: Arc<Tokenizer>,
        ends: Arc<[u32]>,
        prompt_tokens: usize,
        options: TextOptions,
    ) -> Self {
        Self {
            generation: Some(generation),
            detokenizer: Detokenizer::new(Arc::clone(&tokenizer), options.leading_space, ControlTokens::Hide),
            tokenizer,
            ends,
            stops: Stops::new(options.stops),
            reading: options.reading,
            detail: options.tokens,
            unsent: VecDeque::new(),
            spelled: 0,
            decoded_chars: 0,
            sent: 0,
            ready: VecDeque::new(),
            prompt_tokens,
            generated_tokens: 0,
            thought_tokens: 0,
            cached_tokens: 0,
            submitted: Instant::now(),
            first_token: None,
        }
    }

    /// The next event; `None` after `Finished` or `Failed`. Nothing is lost when the future is dropped.
    pub async fn next(&mut self) -> Option<TextEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            match self.generation.as_mut()?.next().await {
                // Of texts nobody wants a vector.
                Some(GenerateEvent::Pooled(_)) => {}
                Some(GenerateEvent::Prompt(rows)) => self.ready.push_back(TextEvent::Prompt(rows)),
                Some(GenerateEvent::Progress { cached_tokens, computed_tokens }) => {
                    let took = self.submitted.elapsed();
                    self.ready.push_back(TextEvent::Progress { cached_tokens, computed_tokens, took });
                }
                Some(GenerateEvent::Prefilled { cached_tokens }) => {
                    self.cached_tokens = cached_tokens;
                    let took = self.submitted.elapsed();
                    self.ready.push_back(TextEvent::Prefilled { cached_tokens, took });
                }
                Some(GenerateEvent::Token(row)) => self.take_token(&row),
                Some(GenerateEvent::Finished(finish)) => self.take_finish(&finish),
                Some(GenerateEvent::Failed(error)) => self.end(TextEvent::Failed(error)),
                None => self.end(TextEvent::Failed(GenerateError::Fault {
                    text: "the generation was cut off: its reader stayed behind, or the mesh went down".to_owned(),
                })),
            }
        }
    }

    fn take_token(&mut self, row: &Sampled) {
        self.generated_tokens += 1;
        self.first_token.get_or_insert_with(Instant::now);
        // A token that ends generations need not be a control token, and is no text either.
        let ends = self.ends.contains(&row.token);
        let hidden = ends || self.tokenizer.is_control(row.token);
        let spelled = hidden && !ends && self.reading.as_ref().is_some_and(|reading| reading.spells(row.token));
        let piece = if hidden {
            String::from_utf8_lossy(self.tokenizer.bytes(row.token)).into_owned()
        } else {
            self.detokenizer.push(row.token)
        };
        if self.detail == TokenDetail::On {
            let visibility = if hidden { Visibility::Hidden } else { Visibility::Shown };
            let token = TokenText::generated(&self.tokenizer, row, self.decoded_chars, visibility);
            self.unsent.push_back(Unsent { start: self.spelled, end: self.spelled + piece.len(), token });
        }
        let before = self.ready.len();
        self.send(match (hidden, spelled) {
            (false, _) => Piece::Shown(&piece),
            (true, false) => Piece::Hidden(&piece),
            (true, true) => Piece::Spelled(&piece),
        });
        let thinks = self.ready.iter().skip(before).any(|event| matches!(event, TextEvent::Thought(_)));
        self.thought_tokens += usize::from(thinks);
    }

    fn take_finish(&mut self, finish: &Finish) {
        let rest = self.detokenizer.finish();
        if self.send(Piece::Shown(&rest)) == Flow::Ended {
            return;
        }
        let held = self.stops.finish();
        self.release(held, |_| true);
        if self.generation.is_none() {
            return;
        }
        self.release_rest();
        let reason = match finish.reason {
            FinishReason::End => self.ending(TextEndReason::EndToken),
            FinishReason::Length => TextEndReason::Length,
        };
        self.end(TextEvent::Finished(self.finished(reason, finish.prefill, finish.decode)));
    }

    /// What was written goes through the stop strings and out.
    fn send(&mut self, piece: Piece<'_>) -> Flow {
        match piece {
            Piece::Shown(text) => {
                self.spelled += text.len();
                self.decoded_chars += text.chars().count();
            }
            Piece::Hidden(spelling) | Piece::Spelled(spelling) => self.spelled += spelling.len(),
        }
        match self.stops.push(piece) {
            Screened::Open(passed) => {
                let out = self.sent + passed.spelled;
                self.release(passed, |token| token.end <= out);
                if self.generation.is_some() { Flow::Open } else { Flow::Ended }
            }
            Screened::Stopped(passed) => {
                let cut = self.sent + passed.spelled;
                self.release(passed, |token| token.start < cut);
                if self.generation.is_some() {
                    self.release_rest();
                    self.stop(self.ending(TextEndReason::StopString));
                }
                Flow::Ended
            }
        }
    }

    /// Sends text with the tokens at the front that belong to it.
    fn release(&mut self, passed: Passed, belongs: impl Fn(&Unsent) -> bool) {
        self.sent += passed.spelled;
        let count = self.unsent.iter().take_while(|token| belongs(token)).count();
        let tokens: Vec<_> = self.unsent.drain(..count).map(|unsent| unsent.token).collect();
        let parts = match &mut self.reading {
            None => vec![AnswerPart::Content(passed.text)],
            Some(reading) => reading.push(&passed.text),
        };
        self.send_parts(parts, tokens);
        if self.reading.as_ref().is_some_and(Reading::has_ended) {
            self.stop(TextEndReason::Calls);
        }
    }

    /// Sends what was held by who reads the text.
    fn release_rest(&mut self) {
        if let Some(reading) = &mut self.reading {
            let parts = reading.finish();
            self.send_parts(parts, Vec::new());
        }
    }

    /// Tokens go with the text that they have written, or without any: their thoughts and calls go on their own.
    fn send_parts(&mut self, parts: Vec<AnswerPart>, mut tokens: Vec<TokenText>) {
        if !tokens.is_empty() && !parts.iter().any(|part| matches!(part, AnswerPart::Content(_))) {
            self.ready.push_back(TextEvent::Delta(TextDelta { text: String::new(), tokens: mem::take(&mut tokens) }));
        }
        for part in parts {
            match part {
                AnswerPart::Content(text) if text.is_empty() && tokens.is_empty() => {}
                AnswerPart::Content(text) => {
                    let tokens = mem::take(&mut tokens);
                    self.ready.push_back(TextEvent::Delta(TextDelta { text, tokens }));
                }
                AnswerPart::Thought(text) => self.ready.push_back(TextEvent::Thought(text)),
                AnswerPart::Call(call) => self.ready.push_back(TextEvent::Call(call)),
            }
        }
    }

    /// Why a text has ended, where calls were made or not.
    fn ending(&self, without_calls: TextEndReason) -> TextEndReason {
        let calls = self.reading.as_ref().is_some_and(|reading| reading.calls() > 0);
        if calls { TextEndReason::Calls } else { without_calls }
    }

    /// Ends a text before its generation.
    fn stop(&mut self, reason: TextEndReason) {
        let (now, first) = (Instant::now(), self.first_token.unwrap_or(self.submitted));
        let end = self.finished(reason, first - self.submitted, now - first);
        self.end(TextEvent::Finished(end));
    }

    fn finished(&self, reason: TextEndReason, prefill: Duration, decode: Duration) -> TextEnd {
        let Self { prompt_tokens, generated_tokens, thought_tokens, cached_tokens, .. } = *self;
        let stop = self.stops.came().map(str::to_owned);
        TextEnd { reason, prompt_tokens, generated_tokens, thought_tokens, stop, cached_tokens, prefill, decode }
    }

    fn end(&mut self, event: TextEvent) {
        self.ready.push_back(event);
        self.generation = None;
    }
}
