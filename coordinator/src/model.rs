//! A model as the coordinator holds it: its file, its shape, its tokenizer and its chat template.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::Arc,
};

use qmesh_models::{
    catalog,
    chat::{ChatTemplate, TemplateError},
    family,
    gguf::Gguf,
    spec::ModelSpec,
    tokenizer::{PretokenizerChoice, Tokenizer, TokenizerError, Vocabulary},
    weights::ModelFile,
};

use crate::generate::Pooling;

/// An opened model.
#[derive(Debug)]
pub struct Model {
    /// The name it is served under: the catalog's, or the file's stem.
    pub name: String,
    /// Its (first) file.
    pub path: PathBuf,
    /// Its shape.
    pub spec: ModelSpec,
    /// Its bytes.
    pub file: ModelFile,
    /// Its tokenizer; a file without a vocabulary has none, and can still be fed ids.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Its chat template, or why there is none.
    pub template: Result<Arc<ChatTemplate>, String>,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenModelError {
    /// The file is no model, or one that this program does not know.
    #[error(transparent)]
    File(#[from] family::ModelError),
    /// Its vocabulary makes no tokenizer.
    #[error("{}: {error}", path.display())]
    Tokenizer {
        /// The model's file.
        path: PathBuf,
        /// What is wrong with it.
        error: TokenizerError,
    },
    /// The file has no vocabulary.
    #[error("{name} has no tokenizer, so only `eval` with ids can use it")]
    NoTokenizer {
        /// The model's name.
        name: String,
    },
}

/// Why there is no tokenizer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NoTokenizer {
    /// The file has no vocabulary.
    #[error("the model has no tokenizer: it takes token ids only")]
    Missing,
    /// It has one that this program does not know.
    #[error(transparent)]
    Unusable(#[from] TokenizerError),
}

impl Model {
    /// Opens the model at `path` and builds its tokenizer. Blocks, for tenths of a second.
    ///
    /// # Errors
    /// The file is no model, or one that this program does not know; the text names it and says why.
    pub fn open(path: &Path) -> Result<Self, OpenModelError> {
        Self::open_with(path, PretokenizerChoice::FromModel)
    }

    /// The same with another pre-tokenizer.
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open_with(path: &Path, choice: PretokenizerChoice<'_>) -> Result<Self, OpenModelError> {
        let unusable = |error| OpenModelError::Tokenizer { path: path.to_owned(), error };
        let file = ModelFile::open(path)?;
        let vocabulary = vocabulary(file.gguf()).map_err(unusable)?;
        let template = match &vocabulary {
            Some(vocabulary) => ChatTemplate::from_vocabulary(vocabulary).map(Arc::new).map_err(no_template),
            None => Err(NoTokenizer::Missing.to_string()),
        };
        let tokenizer = vocabulary.map(|v| Tokenizer::new(v, choice)).transpose().map_err(unusable)?.map(Arc::new);
        Ok(Self {
            name: served_name(path),
            path: path.to_owned(),
            spec: file.spec().clone(),
            file,
            tokenizer,
            template,
        })
    }

    /// The folder of its file.
    pub fn folder(&self) -> &Path {
        self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// How its file says that texts become vectors, in llama.cpp's numbers; the last row where it does not say.
    pub fn pooling(&self) -> Pooling {
        match self.file.gguf().unsigned(&format!("{}.pooling_type", self.spec.family)) {
            Ok(1) => Pooling::Mean,
            Ok(2) => Pooling::First,
            Ok(_) | Err(_) => Pooling::Last,
        }
    }

    /// The ids that end a generation.
    pub fn ends(&self) -> Arc<[u32]> {
        self.tokenizer.as_ref().map_or_else(|| Arc::new([]) as Arc<[u32]>, |t| t.ends_of_generation().into())
    }
}

/// The tokenizer of a file that may hold no more than a vocabulary.
///
/// # Errors
/// The file has no vocabulary, or one that this program does not know.
pub fn tokenizer(gguf: &Gguf, choice: PretokenizerChoice<'_>) -> Result<Tokenizer, NoTokenizer> {
    Ok(Tokenizer::new(vocabulary(gguf)?.ok_or(NoTokenizer::Missing)?, choice)?)
}

/// The kind of tokenizer, where the file has one: llama.cpp writes `no_vocab` for none.
pub(crate) fn tokenizer_model(gguf: &Gguf) -> Option<Cow<'_, str>> {
    gguf.text_lossy("tokenizer.ggml.model").ok().filter(|model| !["no_vocab", "none"].contains(&&**model))
}

fn vocabulary(gguf: &Gguf) -> Result<Option<Vocabulary>, TokenizerError> {
    tokenizer_model(gguf).map(|_| Vocabulary::from_gguf(gguf)).transpose()
}

/// For people who want to chat.
fn no_template(error: TemplateError) -> String {
    if matches!(error, TemplateError::Missing) {
        return "it is a base model, without a chat template".to_owned();
    }
    error.to_string()
}

pub(crate) fn served_name(path: &Path) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let named = catalog::ALL.iter().find(|model| model.file == file);
    named.map_or_else(|| path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), |m| m.name.to_owned())
}
