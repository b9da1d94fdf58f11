//! What an answer is made of, once it has been read.

/// A piece of an answer, in the order in which the model wrote them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum AnswerPart {
    /// What the model thinks before it answers.
    Thought(String),
    /// What it says.
    Content(String),
    /// What it does.
    Call(CallEvent),
}

/// What happens to a call of a tool. Calls come one after the other: each has ended before the next one begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum CallEvent {
    /// Call number `index` of the answer begins, from 0.
    Begun {
        /// Its number.
        index: usize,
        /// By which its result will name it; no other call has the same.
        id: String,
        /// The tool's name, as the model wrote it.
        name: String,
    },
    /// More of its arguments; all of them together are JSON, unless the answer was cut off.
    Arguments {
        /// The call's number.
        index: usize,
        /// A piece of JSON.
        text: String,
    },
    /// It is complete.
    Ended {
        /// The call's number.
        index: usize,
    },
}

/// Adds a part to others, as one with the last where both are text of the same kind.
pub(super) fn add(parts: &mut Vec<AnswerPart>, part: AnswerPart) {
    match (parts.last_mut(), part) {
        (_, AnswerPart::Thought(text) | AnswerPart::Content(text)) if text.is_empty() => {}
        (Some(AnswerPart::Thought(last)), AnswerPart::Thought(more))
        | (Some(AnswerPart::Content(last)), AnswerPart::Content(more)) => {
            last.push_str(&more);
        }
        (
            Some(AnswerPart::Call(CallEvent::Arguments { index, text })),
            AnswerPart::Call(CallEvent::Arguments { index: of, text: more }),
        ) if *index == of => text.push_str(&more),
        (_, part) => parts.push(part),
    }
}
