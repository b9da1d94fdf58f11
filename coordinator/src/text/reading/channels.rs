//! gpt-oss's answers: messages, each with a channel and perhaps with a recipient.
//!
//! `<|channel|>analysis<|message|>` begins thoughts, `<|channel|>final<|message|>` what is said, and
//! `<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>` a call; `<|end|>`, `<|call|>`, `<|return|>`
//! or the next `<|start|>` ends them.

use crate::text::{
    calls::{Ids, Rest, marks},
    part::{AnswerPart, CallEvent, add},
};

const START: &str = "<|start|>";
const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const CONSTRAIN: &str = "<|constrain|>";

/// Everything that steers.
pub(crate) const MARKS: [&str; 7] = [START, CHANNEL, MESSAGE, CONSTRAIN, "<|end|>", "<|call|>", "<|return|>"];

/// Reads messages, behind the `<|start|>assistant` that ends the prompt.
#[derive(Clone, Debug)]
pub(crate) struct Channels {
    wanted: Wanted,
    ids: Ids,
    held: String,
    place: Place,
    /// How many calls have begun.
    begun: usize,
    /// Whether there were thoughts, and whether something was said.
    thought: Said,
    content: Said,
}

/// Whether calls are read.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Wanted {
    Calls,
    Text,
}

#[derive(Clone, Debug)]
enum Place {
    /// Before `<|message|>`: what stands there.
    Head(String),
    Body(Kind),
}

/// What a message is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Thought,
    Content,
    Call(Said),
}

/// Whether anything was said.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Said {
    Nothing,
    Something,
    /// And a message has begun since.
    Before,
}

/// Whether a step has changed anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Progress {
    Made,
    Waits,
}

impl Channels {
    pub(crate) fn new(wanted: Wanted, ids: Ids) -> Self {
        Self {
            wanted,
            ids,
            held: String::new(),
            place: Place::Head(String::new()),
            begun: 0,
            thought: Said::Nothing,
            content: Said::Nothing,
        }
    }

    /// Takes more text, and all that is left with the last of it.
    pub(crate) fn push(&mut self, text: &str, rest: Rest, parts: &mut Vec<AnswerPart>) {
        self.held.push_str(text);
        while self.step(rest, parts) == Progress::Made {}
    }

    fn step(&mut self, rest: Rest, parts: &mut Vec<AnswerPart>) -> Progress {
        let mark = marks::first(&self.held, MARKS.into_iter());
        let decided = match (mark, rest) {
            (Some((at, _)), _) => at,
            (None, Rest::Open) => marks::undecided(&self.held, MARKS.into_iter()),
            (None, Rest::Ended) => self.held.len(),
        };
        match &mut self.place {
            Place::Head(head) => {
                if head.is_empty() && !may_be_head(&self.held[..decided], rest) {
                    self.place = Place::Body(Kind::Content);
                    return Progress::Made;
                }
                // It is put together of whole words: what may still grow into another one waits.
                if mark.is_some() || rest == Rest::Ended {
                    head.extend(self.held.drain(..decided));
                }
            }
            Place::Body(kind) => {
                let (kind, text) = (*kind, self.held.drain(..decided).collect());
                self.say(kind, text, parts);
            }
        }
        match mark {
            Some((_, mark)) => {
                self.held.drain(..mark.len());
                self.turn(mark, parts);
                Progress::Made
            }
            None => {
                if rest == Rest::Ended {
                    self.close(parts);
                }
                Progress::Waits
            }
        }
    }

    /// A mark has come.
    fn turn(&mut self, mark: &str, parts: &mut Vec<AnswerPart>) {
        match (&mut self.place, mark) {
            (Place::Head(head), MESSAGE) => {
                let head = std::mem::take(head);
                self.open(&head, parts);
            }
            (Place::Head(head), CHANNEL | CONSTRAIN) => head.push_str(mark),
            (Place::Body(_), MESSAGE | CONSTRAIN) => {}
            (Place::Body(_), CHANNEL) => {
                self.close(parts);
                self.place = Place::Head(CHANNEL.to_owned());
            }
            (Place::Head(_) | Place::Body(_), _) => self.close(parts),
        }
    }

    /// A message begins.
    fn open(&mut self, head: &str, parts: &mut Vec<AnswerPart>) {
        let recipient = word_behind(head, "to=").filter(|to| !["assistant", "user", "all"].contains(to));
        let kind = match (recipient, word_behind(head, CHANNEL)) {
            (Some(name), _) if self.wanted == Wanted::Calls => {
                let name = name.strip_prefix("functions.").unwrap_or(name).to_owned();
                let index = self.begun;
                add(parts, AnswerPart::Call(CallEvent::Begun { index, id: (self.ids)(index), name }));
                self.begun += 1;
                Kind::Call(Said::Nothing)
            }
            (_, Some("analysis")) => Kind::Thought,
            (_, _) => Kind::Content,
        };
        self.place = Place::Body(kind);
    }

    fn say(&mut self, kind: Kind, text: String, parts: &mut Vec<AnswerPart>) {
        if text.is_empty() {
            return;
        }
        // Messages of one kind stand on lines of their own.
        let line = |said: &mut Said, text: String| match std::mem::replace(said, Said::Something) {
            Said::Nothing | Said::Something => text,
            Said::Before => format!("\n{text}"),
        };
        match kind {
            Kind::Thought => add(parts, AnswerPart::Thought(line(&mut self.thought, text))),
            Kind::Content => add(parts, AnswerPart::Content(line(&mut self.content, text))),
            Kind::Call(_) => {
                add(parts, AnswerPart::Call(CallEvent::Arguments { index: self.begun - 1, text }));
                self.place = Place::Body(Kind::Call(Said::Something));
            }
        }
    }

    /// A message ends.
    fn close(&mut self, parts: &mut Vec<AnswerPart>) {
        if let Place::Body(Kind::Call(said)) = self.place {
            let index = self.begun - 1;
            if said == Said::Nothing {
                add(parts, AnswerPart::Call(CallEvent::Arguments { index, text: "{}".to_owned() }));
            }
            add(parts, AnswerPart::Call(CallEvent::Ended { index }));
        }
        for said in [&mut self.thought, &mut self.content] {
            if *said == Said::Something {
                *said = Said::Before;
            }
        }
        self.place = Place::Head(String::new());
    }
}

/// Whether a text may be what stands before a message: nothing, a role or a recipient. Anything else is an answer
/// without channels.
fn may_be_head(text: &str, rest: Rest) -> bool {
    let text = text.trim_start();
    let grows = |word: &str| text.starts_with(word) || rest == Rest::Open && word.starts_with(text);
    text.is_empty() || grows("to=") || grows("assistant")
}

fn word_behind<'h>(head: &'h str, before: &str) -> Option<&'h str> {
    let behind = &head[head.find(before)? + before.len()..];
    behind.split([' ', '\n', '<']).next().filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(wanted: Wanted, text: &str, length: usize) -> Vec<AnswerPart> {
        let mut channels = Channels::new(wanted, |index| format!("id{index}"));
        let mut parts = Vec::new();
        for piece in text.chars().collect::<Vec<_>>().chunks(length) {
            channels.push(&piece.iter().collect::<String>(), Rest::Open, &mut parts);
        }
        channels.push("", Rest::Ended, &mut parts);
        parts
    }

    fn thought(text: &str) -> AnswerPart {
        AnswerPart::Thought(text.to_owned())
    }

    fn content(text: &str) -> AnswerPart {
        AnswerPart::Content(text.to_owned())
    }

    fn call(index: usize, name: &str, arguments: &str) -> Vec<AnswerPart> {
        let begun = CallEvent::Begun { index, id: format!("id{index}"), name: name.to_owned() };
        let events = [begun, CallEvent::Arguments { index, text: arguments.to_owned() }, CallEvent::Ended { index }];
        events.into_iter().map(AnswerPart::Call).collect()
    }

    #[test]
    fn channels_are_read_whatever_the_pieces() {
        let thinks = "<|channel|>analysis<|message|>They want < 2 cities.<|end|>";
        for (text, parts) in [
            (
                format!("{thinks}<|start|>assistant<|channel|>final<|message|>Two.<|return|>"),
                vec![thought("They want < 2 cities."), content("Two.")],
            ),
            (
                format!(
                    "{thinks}<|start|>assistant<|channel|>commentary to=functions.weather <|constrain|>json<|message|>\
                     {{\"city\": \"Zürich\"}}<|call|>"
                ),
                [vec![thought("They want < 2 cities.")], call(0, "weather", "{\"city\": \"Zürich\"}")].concat(),
            ),
            (" to=functions.now<|channel|>commentary json<|message|><|call|>".to_owned(), call(0, "now", "{}")),
            (
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.now<|channel|>commentary\
                 <|message|>{}<|call|><|start|>assistant<|channel|>commentary to=functions.now<|message|>{\"a\""
                    .to_owned(),
                [vec![content("I look.")], call(0, "now", "{}"), call(1, "now", "{\"a\"")].concat(),
            ),
            (
                "<|channel|>analysis<|message|>a<|end|><|channel|>analysis<|message|>b<|channel|>final<|message|>c"
                    .to_owned(),
                vec![thought("a\nb"), content("c")],
            ),
            ("to go, or <not>".to_owned(), vec![content("to go, or <not>")]),
            ("Plain.".to_owned(), vec![content("Plain.")]),
            ("to=".to_owned(), vec![]),
            ("<|channel|>fin".to_owned(), vec![]),
            (String::new(), vec![]),
        ] {
            for length in 1..=text.chars().count().max(1) {
                assert_eq!(read(Wanted::Calls, &text, length), parts, "{text:?} by {length}");
            }
        }
    }

    #[test]
    fn without_tools_a_call_is_text() {
        let text = "<|channel|>analysis to=python code<|message|>1+1<|call|><|start|>assistant<|channel|>commentary \
                    to=functions.f <|constrain|>json<|message|>{}<|call|>";
        assert_eq!(read(Wanted::Text, text, 3), [thought("1+1"), content("{}")]);
    }
}
