//! One answer: streamed to standard output as it comes, with its measures.

pub(super) mod remote;

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
    render::{output, progress::PromptProgress, report},
    text::{
        CallsWanted, ChatPrompt, ChatWanted, Reading, TextEnd, TextEvent, TextModel, TextOptions, ThoughtsWanted,
        TokenDetail, ToolChoice,
    },
};

/// What came of a request.
#[derive(Debug)]
pub(super) struct Answer {
    end: TextEnd,
    first_token: Duration,
}

impl Answer {
    /// How it ended, and what it took.
    pub(super) fn end(&self) -> &TextEnd {
        &self.end
    }

    /// One line of measures.
    pub(super) fn rates(&self) -> String {
        report::rates(&self.end, self.first_token)
    }

    /// The same beside what was expected, where something was.
    pub(super) fn compared(&self, prediction: Option<&Prediction>) -> Option<String> {
        report::compared(&self.end, self.first_token, prediction?)
    }
}

/// What is answered, and how the answer is to be read.
#[derive(Clone, Debug)]
pub(super) struct Prompt {
    ids: Vec<u32>,
    leading_space: LeadingSpace,
    /// Tells thoughts from what is said, in a conversation.
    reading: Option<Reading>,
}

impl Prompt {
    /// A text that goes on as it is.
    pub(super) fn raw(ids: Vec<u32>) -> Self {
        Self { ids, leading_space: LeadingSpace::Keep, reading: None }
    }

    /// A conversation up to where the model speaks.
    ///
    /// # Errors
    /// The model cannot chat, or not so.
    pub(super) fn of_chat(text: &TextModel, messages: &[Message]) -> Result<Self, Failure> {
        let wanted = ChatWanted {
            choice: ToolChoice::None,
            calls: CallsWanted::None,
            strict: Vec::new(),
            thoughts: ThoughtsWanted::Apart,
        };
        let prompt = text.chat(messages, &RenderOptions::dated(SystemTime::now()), &wanted);
        let ChatPrompt { ids, reading, leading_space, .. } = prompt.map_err(|e| Failure::failed(e.to_string()))?;
        Ok(Self { ids, leading_space, reading: Some(reading) })
    }

    /// The request of this process's only client.
    fn request(&self, text: &TextModel, max_tokens: usize, sampling: Sampling) -> GenerateRequest {
        let (ids, ends, grammar) = (self.ids.clone(), text.ends.clone(), None);
        let (prompt_rows, client) = (PromptRows::Last, ClientId(0));
        GenerateRequest { ids, max_tokens, sampling, ends, grammar, prompt_rows, client, key: None }
    }
}

/// Streams an answer to standard output, with a line end after it, and to `said`, which has no thoughts. Dropping the future
/// cancels it.
///
/// # Errors
/// The generation failed, or nobody reads standard output any more.
pub(super) async fn stream(
    text: &TextModel,
    mesh: &MeshHandle,
    prompt: Prompt,
    (max_tokens, sampling): (usize, Sampling),
    said: &mut String,
) -> Result<Answer, AnswerError> {
    let started = Instant::now();
    let (request, total) = (prompt.request(text, max_tokens, sampling), prompt.ids.len() as u64);
    let Prompt { leading_space, reading, .. } = prompt;
    let options = TextOptions { stops: Vec::new(), tokens: TokenDetail::Off, leading_space, reading };
    let mut stream = text.generate(mesh, request, options)?;
    let (mut shown, mut first_token, mut bar) = (output::Shown::Nothing, None, PromptProgress::default());
    let ended = loop {
        match stream.next().await {
            Some(TextEvent::Thought(thought)) => {
                first_token.get_or_insert_with(|| started.elapsed());
                shown = output::thought(&thought, shown)?;
            }
            Some(TextEvent::Progress { computed_tokens, .. }) => bar.advance(computed_tokens as u64, total),
            Some(TextEvent::Prefilled { .. }) => bar.done(),
            Some(TextEvent::Prompt(_) | TextEvent::Call(_)) => {}
            Some(TextEvent::Delta(delta)) => {
                first_token.get_or_insert_with(|| started.elapsed());
                shown = output::said(delta.text.as_bytes(), shown)?;
                said.push_str(&delta.text);
            }
            Some(TextEvent::Finished(end)) => break Ok(end),
            Some(TextEvent::Failed(error)) => break Err(error),
            None => break Err(GenerateError::ShuttingDown),
        }
    };
    bar.done();
    if shown == output::Shown::Thoughts || !said.is_empty() && !said.ends_with('\n') {
        output::raw(b"\n")?;
    }
    let end = ended?;
    Ok(Answer { end, first_token: first_token.unwrap_or_else(|| started.elapsed()) })
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use qmesh_models::chat::ChatTemplate;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        generate::GenerateEvent,
        text::fake::{END, FakeMesh, generation, model, row, word, written},
    };

    fn thinking() -> TextModel {
        let template = "{{ messages[0].content }}{% if false %}<think></think>{% endif %}";
        let template = ChatTemplate::new(template, "<s>", "</s>").unwrap();
        TextModel { template: Ok(Arc::new(template)), context: 4096, ..model() }
    }

    fn drawn() -> (usize, Sampling) {
        (100, Sampling::default())
    }

    #[tokio::test]
    async fn thoughts_are_no_part_of_what_is_said() {
        let tokens = [written("<think>\nOne and one?\n</think>\n\nTwo."), vec![END]].concat();
        let (mesh, text) = (FakeMesh::new(move |_| generation(&tokens)), thinking());
        let prompt = Prompt::of_chat(&text, &[Message::new("user", "x")]).unwrap();
        let mut said = String::new();
        stream(&text, &mesh.handle, prompt, drawn(), &mut said).await.unwrap();
        assert_eq!(said, "Two.");
        let (raw, mut said) = (Prompt::raw(vec![1, 5]), String::new());
        stream(&text, &mesh.handle, raw, drawn(), &mut said).await.unwrap();
        assert_eq!(said, "<think>\nOne and one?\n</think>\n\nTwo.", "a text that goes on has no thoughts");
    }

    #[tokio::test]
    async fn what_was_said_of_an_answer_that_is_stopped_is_known() {
        let mesh = FakeMesh::new(|_| vec![GenerateEvent::Token(row(word("Hello")))]);
        let (text, mut said) = (thinking(), String::new());
        let prompt = Prompt::of_chat(&text, &[Message::new("user", "x")]).unwrap();
        let answer = stream(&text, &mesh.handle, prompt, drawn(), &mut said);
        assert!(timeout(Duration::from_millis(200), answer).await.is_err(), "it has no end");
        assert_eq!(said, "Hello");
    }
}
