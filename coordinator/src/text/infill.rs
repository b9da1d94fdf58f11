//! Texts whose middle the model fills in.

use qmesh_models::tokenizer::{Affixes, InfillTokens, Specials};

use super::{PromptError, TextModel};

/// A text without its middle.
#[derive(Clone, Debug, Default)]
pub struct Gap {
    /// What comes before the middle.
    pub before: String,
    /// What the middle begins with, if that is known already.
    pub begun: String,
    /// What comes after it.
    pub after: String,
    /// Other files that may help, the most important last.
    pub files: Vec<GapFile>,
}

/// A file beside the text.
#[derive(Clone, Debug)]
pub struct GapFile {
    /// Its name.
    pub name: String,
    /// What is in it.
    pub text: String,
}

impl TextModel {
    /// The ids after which the middle comes, in the order in which models are trained: other files, what comes before, what
    /// comes after.
    ///
    /// # Errors
    /// A model that does not fill in middles; text that cannot be split or is far too long.
    pub fn infill_prompt(&self, gap: &Gap) -> Result<Vec<u32>, PromptError> {
        let no_infill = || PromptError::NoInfill { name: self.name.clone() };
        let tokens = self.tokenizer.infill().ok_or_else(no_infill)?;
        let parts = gap.parts(tokens);
        let least = parts.iter().map(|part| match part {
            Piece::Token(_) => 1,
            Piece::Text(text) => self.tokenizer.fewest_tokens(text, Specials::Plain),
        });
        let least = least.sum();
        if least > self.context {
            return Err(PromptError::TooLong { least, context: self.context });
        }
        let mut ids: Vec<u32> = self.tokenizer.prefix().into_iter().collect();
        for part in parts {
            match part {
                Piece::Token(id) => ids.push(id),
                Piece::Text(text) => ids.extend(self.tokenizer.encode(&text, Specials::Plain, Affixes::None)?),
            }
        }
        Ok(ids)
    }
}

/// A piece of a prompt.
enum Piece {
    Token(u32),
    /// Split into tokens by itself, so that what comes before it stays the same as it changes.
    Text(String),
}

impl Gap {
    fn parts(&self, tokens: InfillTokens) -> Vec<Piece> {
        let InfillTokens { prefix, suffix, middle, repository, file } = tokens;
        let mut parts = Vec::new();
        let file_begins = |name: Option<&str>, parts: &mut Vec<Piece>| match (file, name) {
            (Some(file), name) => {
                parts.extend([Piece::Token(file), Piece::Text(format!("{}\n", name.unwrap_or(THIS_FILE)))]);
            }
            (None, Some(_)) => parts.push(Piece::Text(SNIPPET.to_owned())),
            (None, None) => {}
        };
        if !self.files.is_empty() {
            let repository = repository.map(|id| [Piece::Token(id), Piece::Text(format!("{REPOSITORY}\n"))]);
            parts.extend(repository.into_iter().flatten());
            for GapFile { name, text } in &self.files {
                file_begins(Some(name), &mut parts);
                parts.push(Piece::Text(text.clone()));
            }
            file_begins(None, &mut parts);
        }
        parts.extend([Piece::Token(prefix), Piece::Text(self.before.clone()), Piece::Text(self.begun.clone())]);
        parts.extend([Piece::Token(suffix), Piece::Text(self.after.clone()), Piece::Token(middle)]);
        parts
    }
}

/// Names where a client gives none: llama-server's.
const REPOSITORY: &str = "myproject";
const THIS_FILE: &str = "filename";
/// What goes before other files in models without a token for that, as llama-server has it.
const SNIPPET: &str = "\n\n--- snippet ---\n\n";
