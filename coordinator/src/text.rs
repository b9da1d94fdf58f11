//! Text at the edge of the mesh: prompts become ids, generations become text. The mesh itself knows token ids only.

mod breakers;
mod calls;
mod chat;
mod facts;
#[cfg(test)]
pub(crate) mod fake;
mod history;
mod infill;
mod outside;
mod part;
mod reading;
mod stops;
mod stream;
#[cfg(test)]
mod tests;
mod token;

use std::sync::Arc;

use qmesh_models::{
    chat::{ChatTemplate, TemplateError},
    tokenizer::{Affixes, Specials, Tokenizer, TokenizerError},
};
use thiserror::Error;

pub use self::{
    breakers::{BreakerError, BreakerShelf, DryRules},
    calls::{ForcedCall, Format, ToolChoice, Tools, forced_call, held_calls, possible_calls},
    chat::{ChatPrompt, ChatWanted, ToolsShown},
    facts::ModelFacts,
    infill::{Gap, GapFile},
    part::{AnswerPart, CallEvent},
    reading::{CallsWanted, Reading, ThoughtsWanted},
    stream::{TextDelta, TextEnd, TextEndReason, TextEvent, TextOptions, TextStream, TokenDetail},
    token::{Spelled, TokenText, Visibility},
};
pub use crate::grammar::GrammarDesk;
use crate::{
    generate::{GenerateError, GenerateRequest, Pooling},
    grammar::{CompiledGrammar, Grammar, GrammarError},
    mesh::MeshHandle,
    model::{Model, OpenModelError},
};

/// A model's text side. Immutable: share it by `Arc`.
#[derive(Clone, Debug)]
pub struct TextModel {
    /// The name it is served by.
    pub name: String,
    /// Text to ids and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text, or why there is no way.
    pub template: Result<Arc<ChatTemplate>, String>,
    /// The architecture, by its name in the model's file.
    pub family: String,
    /// What is told of it to those who ask what it is.
    pub facts: Arc<ModelFacts>,
    /// The most positions a session may hold, prompt and answer together.
    pub context: usize,
    /// The ids that end a generation.
    pub ends: Arc<[u32]>,
    /// Values of a row, and of the vector that a text becomes.
    pub hidden: usize,
    /// Which rows make that vector.
    pub pooling: Pooling,
    /// What compiles grammars for it, from the first one on.
    pub grammars: GrammarDesk,
    /// What breaks repetitions, in its tokens.
    pub breakers: BreakerShelf,
}

/// Why a prompt could not become ids.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The model has no chat template, or one that we cannot use.
    #[error("{name} cannot chat: {reason}; complete plain text instead")]
    NoTemplate {
        /// The model.
        name: String,
        /// What is wrong with its template.
        reason: String,
    },
    /// The model's chat template knows no tools.
    #[error("{name} knows no tools: leave 'tools' out")]
    NoTools {
        /// The model.
        name: String,
    },
    /// The template refuses these messages, or costs too much.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The text could not be split.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The model's file names no tokens for a text without its middle.
    #[error(
        "{name} does not fill in the middle of a text, so there can be no suffix: its file names no tokens for that"
    )]
    NoInfill {
        /// The model.
        name: String,
    },
    /// The texts use characters that no text may have.
    #[error("the messages have all of U+FDD0 to U+FDEF, which are no characters: leave them out")]
    Noncharacters,
    /// The text is too long for any way of splitting it.
    #[error("the prompt has at least {least} tokens, the context holds {context}: shorten it or raise --ctx-size")]
    TooLong {
        /// The fewest tokens that it could be.
        least: usize,
        /// That a session may hold.
        context: usize,
    },
    /// Nothing is left to continue.
    #[error("the prompt is empty, and {name} has no token that begins a text")]
    Empty {
        /// The model.
        name: String,
    },
}

impl TextModel {
    /// The text side of a model, for sessions of `context` positions.
    ///
    /// # Errors
    /// The model has no tokenizer.
    pub fn of(model: &Model, context: usize) -> Result<Self, OpenModelError> {
        let (name, template, ends) = (model.name.clone(), model.template.clone(), model.ends());
        let (grammars, breakers) = (GrammarDesk::default(), BreakerShelf::default());
        match model.tokenizer.clone() {
            Some(tokenizer) => {
                let (family, hidden, pooling) = (model.spec.family.clone(), model.spec.hidden, model.pooling());
                let facts = Arc::new(ModelFacts::of(model));
                Ok(Self {
                    name,
                    tokenizer,
                    template,
                    family,
                    facts,
                    context,
                    ends,
                    hidden,
                    pooling,
                    grammars,
                    breakers,
                })
            }
            None => Err(OpenModelError::NoTokenizer { name }),
        }
    }

    /// The ids of a text that is continued as it is; an empty one becomes the token that begins a text.
    ///
    /// # Errors
    /// Text that cannot be split, that is far too long, or nothing at all.
    pub fn raw_prompt(&self, text: &str, specials: Specials) -> Result<Vec<u32>, PromptError> {
        // Splitting takes a hundred times the memory of a text, and seconds for a long word.
        let least = self.tokenizer.fewest_tokens(text, specials);
        if least > self.context {
            return Err(PromptError::TooLong { least, context: self.context });
        }
        let mut ids = self.tokenizer.encode(text, specials, Affixes::AsModel)?;
        if ids.is_empty() {
            ids.extend(self.tokenizer.bos().or(self.tokenizer.eos()));
        }
        if ids.is_empty() { Err(PromptError::Empty { name: self.name.clone() }) } else { Ok(ids) }
    }

    /// Compiles a grammar for texts of this model, unless it was asked for of late. Blocks: the first time for as long as it takes to sort the vocabulary.
    ///
    /// # Errors
    /// What is wrong with the grammar; a model whose texts have no end.
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<CompiledGrammar>, GrammarError> {
        self.grammars.compile(grammar, &self.tokenizer, &self.ends)
    }

    /// A text of more bytes than this is longer than any prompt.
    pub fn longest_prompt_bytes(&self) -> usize {
        self.context.saturating_mul(self.tokenizer.longest())
    }

    /// Starts a generation as text.
    ///
    /// # Errors
    /// As [`MeshHandle::submit`].
    pub fn generate(
        &self,
        mesh: &MeshHandle,
        request: GenerateRequest,
        options: TextOptions,
    ) -> Result<TextStream, GenerateError> {
        let (prompt_tokens, ends) = (request.ids.len(), Arc::clone(&request.ends));
        Ok(TextStream::new(mesh.submit(request)?, Arc::clone(&self.tokenizer), ends, prompt_tokens, options))
    }
}
