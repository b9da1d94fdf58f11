//! How a command ends when it does not end well: one line, perhaps one of advice, and an exit code.

use std::io;

use qmesh_models::tokenizer::TokenizerError;
use qmesh_net::without_tickets;

use crate::{
    api::ServeError,
    local::CannotStart,
    mesh::MeshError,
    model::{NoTokenizer, OpenModelError},
    plan::PlanError,
};

/// Exit codes, the same for all commands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exit {
    /// Done, or the reader of the output has gone.
    Done = 0,
    /// It was tried and failed.
    Failed = 1,
    /// Wrong usage or configuration.
    Usage = 2,
    /// No answer from the coordinator.
    Unreachable = 3,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a command ends early.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// The process's exit code.
    pub exit: Exit,
    /// One line without `error: `; empty for a quiet end.
    pub text: String,
    /// One line without `try: `.
    pub advice: Option<String>,
}

impl Failure {
    /// It was tried and failed.
    pub fn failed(text: impl Into<String>) -> Self {
        Self { exit: Exit::Failed, text: text.into(), advice: None }
    }

    /// Wrong usage or configuration.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { exit: Exit::Usage, ..Self::failed(text) }
    }

    /// No answer from the coordinator.
    pub fn unreachable(text: impl Into<String>) -> Self {
        Self { exit: Exit::Unreachable, ..Self::failed(text) }
    }

    /// Ctrl-C: nothing needs to be said.
    pub fn interrupted() -> Self {
        Self { exit: Exit::Interrupted, ..Self::failed("") }
    }

    /// Nothing left to do.
    pub fn done() -> Self {
        Self { exit: Exit::Done, ..Self::failed("") }
    }

    /// The same with a line that says what to do.
    pub fn with_advice(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }

    /// What to print: `error: …` and perhaps `try: …`, each one line; nothing for a quiet end.
    pub fn lines(&self) -> Vec<String> {
        if self.text.is_empty() {
            return Vec::new();
        }
        // What was typed may be a ticket, in the wrong place.
        let line = |label: &str, text: &str| {
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{label}: {}", without_tickets(&text))
        };
        [line("error", &self.text)].into_iter().chain(self.advice.as_ref().map(|text| line("try", text))).collect()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<io::Error>() {
            Ok(error) => error.into(),
            Err(error) => Self { advice: advice(&error), ..Self::failed(format!("{error:#}")) },
        }
    }
}

/// Output errors only: whoever reads a file names it.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::done()
        } else {
            Self::failed(format!("cannot write: {error}"))
        }
    }
}

fn advice(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref() {
        Some(NoTokenizer::Unusable(error)) => tokenizer_advice(error),
        Some(NoTokenizer::Missing) | None => None,
    }
}

fn tokenizer_advice(error: &TokenizerError) -> Option<String> {
    let pretokenizer =
        matches!(error, TokenizerError::PretokenizerMissing { .. } | TokenizerError::Pretokenizer { .. });
    pretokenizer.then(|| "--pre NAME, with the name of the one that the model was trained with".to_owned())
}

impl From<OpenModelError> for Failure {
    fn from(error: OpenModelError) -> Self {
        let advice = match &error {
            OpenModelError::Tokenizer { error, .. } => tokenizer_advice(error),
            OpenModelError::File(_) | OpenModelError::NoTokenizer { .. } => None,
        };
        Self { advice, ..Self::failed(error.to_string()) }
    }
}

impl From<MeshError> for Failure {
    fn from(error: MeshError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<CannotStart> for Failure {
    fn from(error: CannotStart) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<PlanError> for Failure {
    fn from(error: PlanError) -> Self {
        let exit = match &error {
            PlanError::DoesNotFit(_) | PlanError::CutDoesNotFit { .. } => Exit::Failed,
            PlanError::NoWorkers
            | PlanError::BadCut { .. }
            | PlanError::CutsOff { .. }
            | PlanError::BadPin { .. }
            | PlanError::CutNeedsWorkers { .. } => Exit::Usage,
        };
        Self { exit, text: error.to_string(), advice: error.advice() }
    }
}
