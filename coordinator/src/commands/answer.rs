//! One answer: streamed to standard output as it comes, with its measures.

use std::time::{Duration, Instant, SystemTime};

use qmesh_models::{
    chat::{Message, RenderOptions},
    tokenizer::LeadingSpace,
};
use qmesh_net::Sampling;

use crate::{
    cli::Failure,
    generate::{ClientId, GenerateError, GenerateRequest, PromptRows},
    mesh::MeshHandle,
    plan::prediction::Prediction,
    render::{output, report},
    text::{TextEnd, TextEvent, TextModel, TextOptions, TokenDetail},
};

/// What came of a request.
#[derive(Debug)]
pub(super) struct Answer {
    /// All of it.
    pub(super) text: String,
    end: TextEnd,
    first_token: Duration,
}

impl Answer {
    /// One line of measures.
    pub(super) fn rates(&self) -> String {
        report::rates(&self.end, self.first_token)
    }

    /// The same beside what was expected, where something was.
    pub(super) fn compared(&self, prediction: Option<&Prediction>) -> Option<String> {
        report::compared(&self.end, self.first_token, prediction?)
    }
}

/// The ids of a conversation up to where the model speaks.
pub(super) fn chat_prompt(text: &TextModel, messages: &[Message]) -> Result<Vec<u32>, Failure> {
    let options = RenderOptions::dated(SystemTime::now());
    text.chat_prompt(messages, &options).map_err(|e| Failure::failed(e.to_string()))
}

/// A request of this process's only client.
pub(super) fn request(text: &TextModel, ids: Vec<u32>, max_tokens: usize, sampling: Sampling) -> GenerateRequest {
    let (ends, grammar, prompt_rows, client) = (text.ends.clone(), None, PromptRows::Last, ClientId(0));
    GenerateRequest { ids, max_tokens, sampling, ends, grammar, prompt_rows, client, key: None }
}

/// Streams an answer to standard output, with a line end after it. Dropping the future cancels it.
///
/// # Errors
/// The generation failed, or nobody reads standard output any more.
pub(super) async fn stream(
    text: &TextModel,
    mesh: &MeshHandle,
    request: GenerateRequest,
    leading_space: LeadingSpace,
) -> Result<Answer, AnswerError> {
    let started = Instant::now();
    let options = TextOptions { stops: Vec::new(), tokens: TokenDetail::Off, leading_space, reading: None };
    let mut stream = text.generate(mesh, request, options)?;
    let (mut answer, mut first_token) = (String::new(), None);
    let ended = loop {
        match stream.next().await {
            Some(
                TextEvent::Prompt(_)
                | TextEvent::Progress { .. }
                | TextEvent::Prefilled { .. }
                | TextEvent::Thought(_)
                | TextEvent::Call(_),
            ) => {}
            Some(TextEvent::Delta(delta)) => {
                first_token.get_or_insert_with(|| started.elapsed());
                output::raw(delta.text.as_bytes())?;
                answer.push_str(&delta.text);
            }
            Some(TextEvent::Finished(end)) => break Ok(end),
            Some(TextEvent::Failed(error)) => break Err(error),
            None => break Err(GenerateError::ShuttingDown),
        }
    };
    if !answer.is_empty() && !answer.ends_with('\n') {
        output::raw(b"\n")?;
    }
    let end = ended?;
    Ok(Answer { text: answer, end, first_token: first_token.unwrap_or_else(|| started.elapsed()) })
}

/// Why there is no answer, or only a part of one.
#[derive(Debug, thiserror::Error)]
pub(super) enum AnswerError {
    #[error(transparent)]
    Generate(#[from] GenerateError),
    #[error(transparent)]
    Output(#[from] std::io::Error),
}

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        match error {
            AnswerError::Generate(error) => Self::failed(error.to_string()),
            AnswerError::Output(error) => error.into(),
        }
    }
}
