//! Whether a conversation is to be answered, or ends with the beginning of the answer, which goes on.

use qmesh_models::chat::{GenerationPrompt, Message};
use serde_json::Value;

use crate::api::error::ApiError;

/// Where the prompt of a chat ends, by vLLM's two parameters. Where neither is sent, an answer that the client has begun goes on,
/// as llama-server has it.
///
/// # Errors
/// `Invalid` where the parameters contradict each other, or there is nothing that could go on.
pub(super) fn ending(
    messages: &[Message],
    continues: Option<bool>,
    answers: Option<bool>,
) -> Result<GenerationPrompt, ApiError> {
    const CONTINUE: &str = "continue_final_message";
    match (continues, answers) {
        (Some(true), Some(true)) => {
            let text = format!("'{CONTINUE}' and 'add_generation_prompt' contradict each other: send one of them");
            Err(ApiError::invalid(CONTINUE, text))
        }
        (Some(true), Some(false) | None) => match begun(messages)? {
            GenerationPrompt::Continue => Ok(GenerationPrompt::Continue),
            GenerationPrompt::Add | GenerationPrompt::Omit => {
                let text = format!("'{CONTINUE}' needs a last message of the assistant's with text and without calls");
                Err(ApiError::invalid(CONTINUE, text))
            }
        },
        (Some(false) | None, Some(false)) => Ok(GenerationPrompt::Omit),
        (Some(false), Some(true) | None) | (None, Some(true)) => Ok(GenerationPrompt::Add),
        (None, None) => begun(messages),
    }
}

/// Whether the last message is the beginning of the answer: a text of the assistant's.
///
/// # Errors
/// `Invalid` where it is the second one in a row: nobody could say what of them goes on.
pub(crate) fn begun(messages: &[Message]) -> Result<GenerationPrompt, ApiError> {
    let speaks = |message: &Message| message.role == "assistant" && !message.extra.contains_key("tool_calls");
    let says = |message: &Message| {
        speaks(message) && message.content.as_ref().and_then(Value::as_str).is_some_and(|text| !text.trim().is_empty())
    };
    match messages {
        [.., before, last] if speaks(before) && says(last) => {
            let place = format!("messages[{}]", messages.len() - 1);
            let text = "the last two messages are the assistant's: an answer that goes on is begun in one";
            Err(ApiError::invalid(place, text))
        }
        [.., last] if says(last) => Ok(GenerationPrompt::Continue),
        _ => Ok(GenerationPrompt::Add),
    }
}

/// The same for dialects in which nothing else of the assistant's can be the last message.
///
/// # Errors
/// As [`begun`]; a last message of the assistant's that could not go on.
pub(crate) fn begun_or_asked(messages: &[Message]) -> Result<GenerationPrompt, ApiError> {
    let ending = begun(messages)?;
    if ending == GenerationPrompt::Add && messages.last().is_some_and(|last| last.role == "assistant") {
        let text =
            "the last message is the assistant's: send what came of its calls, or a text that the answer begins with";
        return Err(ApiError::invalid("messages", text));
    }
    Ok(ending)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conversation(last: &[&str]) -> Vec<Message> {
        let said = last.iter().map(|text| Message::new("assistant", *text));
        [Message::new("user", "x")].into_iter().chain(said).collect()
    }

    #[test]
    fn an_answer_that_is_begun_goes_on() {
        use GenerationPrompt::{Add, Continue, Omit};
        for (last, continues, answers, expected) in [
            (&["No"][..], None, None, Continue),
            (&["No"], Some(true), Some(false), Continue),
            (&["No"], Some(true), None, Continue),
            (&["No"], Some(false), None, Add),
            (&["No"], None, Some(true), Add),
            (&["No"], Some(false), Some(false), Omit),
            (&[], None, Some(false), Omit),
            (&[], None, None, Add),
            (&[" "], None, None, Add),
        ] {
            let found = ending(&conversation(last), continues, answers).expect("sound");
            assert_eq!(found, expected, "{last:?} {continues:?} {answers:?}");
        }
    }

    #[test]
    fn what_nobody_could_continue_is_refused_by_name() {
        let param = |messages: &[Message], continues, answers| match ending(messages, continues, answers) {
            Err(ApiError::Invalid { param, .. }) => param,
            other => panic!("{other:?}"),
        };
        let continues = Some("continue_final_message".to_owned());
        assert_eq!(param(&conversation(&["No"]), Some(true), Some(true)), continues);
        assert_eq!(param(&conversation(&[]), Some(true), None), continues);
        let mut calls = conversation(&["I look."]);
        calls[1].extra.insert("tool_calls".to_owned(), serde_json::json!([]));
        assert_eq!(param(&calls, Some(true), None), continues);
        assert_eq!(ending(&calls, None, None).expect("sound"), GenerationPrompt::Add);
        assert!(begun_or_asked(&calls).is_err() && begun_or_asked(&conversation(&[])).is_ok());
        assert_eq!(param(&conversation(&["a", "b"]), None, None), Some("messages[2]".to_owned()));
    }
}
