//! One prompt through a mesh, with what is known of each of its rows.

use qmesh_net::Sampled;

use crate::{
    cli::Failure,
    generate::{FinishReason, GenerateEvent, GenerateRequest},
    mesh::MeshHandle,
};

/// The rows of one prompt.
#[derive(Default)]
pub(super) struct Rows {
    /// After each id of the prompt.
    pub(super) prompt: Vec<Sampled>,
    /// The tokens that follow it.
    pub(super) generated: Vec<Sampled>,
    /// Whether the last of them ends the text.
    pub(super) ended: bool,
}

/// Computes one prompt and what follows it.
///
/// # Errors
/// Names the prompt that failed.
pub(super) async fn rows(handle: &MeshHandle, request: &GenerateRequest, id: &str) -> Result<Rows, Failure> {
    let failed = |text: String| Failure::failed(format!("prompt `{id}`: {text}"));
    let mut generation = handle.submit(request.clone()).map_err(|e| failed(e.to_string()))?;
    let mut rows = Rows::default();
    loop {
        match generation.next().await {
            Some(GenerateEvent::Prompt(prompt)) => rows.prompt = prompt,
            Some(GenerateEvent::Progress { .. } | GenerateEvent::Prefilled { .. } | GenerateEvent::Pooled(_)) => {}
            Some(GenerateEvent::Token(row)) => rows.generated.push(row),
            Some(GenerateEvent::Finished(finish)) => {
                rows.ended = finish.reason == FinishReason::End;
                break;
            }
            Some(GenerateEvent::Failed(error)) => return Err(failed(error.to_string())),
            None => return Err(failed("the mesh ended".to_owned())),
        }
    }
    let scored = rows.prompt.iter().rev().skip(1).all(|row| row.target_logprob.is_finite());
    if rows.prompt.len() == request.ids.len() && scored {
        Ok(rows)
    } else {
        Err(failed(format!("{} of {} rows came back scored", rows.prompt.len(), request.ids.len())))
    }
}
