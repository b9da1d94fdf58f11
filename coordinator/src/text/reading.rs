//! Reads what a model writes: which of it are thoughts, which is the answer, and which are calls of tools.

mod channels;
#[cfg(test)]
mod tests;
mod thoughts;

use std::sync::Arc;

pub(crate) use self::thoughts::Tags;
use self::{
    channels::{Channels, MARKS, Wanted},
    thoughts::Thoughts,
};
use super::{
    calls::{Calls, Format, Ids, Rest, Tools, id},
    part::{AnswerPart, CallEvent, add},
};

/// What a client wants of an answer's thoughts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ThoughtsWanted {
    /// Apart from the answer.
    Apart,
    /// In its text, as the model wrote them.
    InText,
    /// Not at all.
    Dropped,
}

/// Which calls a client wants of an answer.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum CallsWanted {
    /// None: what looks like one is text.
    None,
    /// The first one, with which the answer ends.
    One,
    /// As many as there are.
    All,
}

/// What is to be read, and how the model writes it.
#[derive(Clone, Debug)]
pub(crate) struct Manner {
    /// How it writes calls.
    pub(crate) format: Format,
    /// The tools that it may call.
    pub(crate) tools: Arc<Tools>,
    pub(crate) calls: CallsWanted,
    /// What is around its thoughts, if it thinks.
    pub(crate) tags: Option<Tags>,
    pub(crate) thoughts: ThoughtsWanted,
    pub(crate) opening: Opening,
    pub(crate) ids: Ids,
}

/// Where an answer begins.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Opening {
    Answer,
    /// The prompt has begun the thoughts.
    Thoughts,
}

/// A reader of one answer. It takes text as it comes and gives the parts as soon as they are certain.
#[derive(Clone, Debug)]
pub struct Reading {
    reader: Reader,
    thoughts: ThoughtsWanted,
    calls: CallsWanted,
    /// The control tokens that it wants spelled.
    spelled: Arc<[u32]>,
    place: Place,
    /// How many calls have begun.
    begun: usize,
}

#[derive(Clone, Debug)]
enum Reader {
    Marked { thoughts: Option<Thoughts>, calls: Box<Calls> },
    Channels(Channels),
}

/// What a reading has come to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    Answer,
    /// Thoughts that stand in the text have begun.
    Thoughts,
    /// The last call that was wanted has ended.
    Ended,
}

impl Reading {
    /// A reader at the beginning of an answer. `control` finds the control token that is spelled so.
    pub(crate) fn new(manner: &Manner, control: impl Fn(&str) -> Option<u32>) -> Self {
        let Manner { format, calls, thoughts, .. } = *manner;
        let format = if calls == CallsWanted::None && format != Format::CHANNELS { Format::NONE } else { format };
        let tags = manner.tags.filter(|_| format != Format::CHANNELS);
        let channels: &[&'static str] = if format == Format::CHANNELS { &MARKS } else { &[] };
        let around = tags.iter().flat_map(|tags| [tags.open, tags.close]);
        // Thoughts that stay in the text keep what is around them.
        let shown: Vec<_> = around.clone().filter(|_| thoughts == ThoughtsWanted::InText).collect();
        let marks = format.marks().chain(around).chain(channels.iter().copied());
        let controls: Vec<_> = marks.filter_map(|mark| Some((mark, control(mark)?))).collect();
        let silent = controls.iter().map(|&(mark, _)| mark).filter(|mark| !shown.contains(mark)).collect();
        let tags = tags.filter(|_| thoughts != ThoughtsWanted::InText);
        let reader = if format == Format::CHANNELS {
            let wanted = if calls == CallsWanted::None { Wanted::Text } else { Wanted::Calls };
            Reader::Channels(Channels::new(wanted, manner.ids))
        } else {
            let thoughts = tags.map(|tags| match manner.opening {
                Opening::Answer => Thoughts::before(tags),
                Opening::Thoughts => Thoughts::inside(tags),
            });
            Reader::Marked {
                thoughts,
                calls: Box::new(Calls::new(format, Arc::clone(&manner.tools), silent, manner.ids)),
            }
        };
        let spelled = controls.iter().map(|&(_, id)| id).collect();
        Self { reader, thoughts, calls, spelled, place: Place::Answer, begun: 0 }
    }

    /// Whether it wants to have this control token spelled in the text. It shows none of them, but for those around
    /// thoughts that stay in the text.
    pub(crate) fn spells(&self, control: u32) -> bool {
        self.spelled.contains(&control)
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Vec<AnswerPart> {
        self.read(text, Rest::Open)
    }

    /// No more text comes: gives what was held.
    pub fn finish(&mut self) -> Vec<AnswerPart> {
        self.read("", Rest::Ended)
    }

    /// Whether the last call that was wanted has ended: the rest is not wanted.
    pub fn has_ended(&self) -> bool {
        self.place == Place::Ended
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.begun
    }

    fn read(&mut self, text: &str, rest: Rest) -> Vec<AnswerPart> {
        let mut read = Vec::new();
        match &mut self.reader {
            Reader::Marked { thoughts: Some(thoughts), calls } => {
                let mut parts = Vec::new();
                thoughts.push(text, rest, &mut parts);
                for part in parts {
                    match part {
                        AnswerPart::Content(text) => calls.push(&text, &mut read),
                        AnswerPart::Thought(_) | AnswerPart::Call(_) => add(&mut read, part),
                    }
                }
            }
            Reader::Marked { thoughts: None, calls } => calls.push(text, &mut read),
            Reader::Channels(channels) => channels.push(text, rest, &mut read),
        }
        if let (Reader::Marked { calls, .. }, Rest::Ended) = (&mut self.reader, rest) {
            calls.finish(&mut read);
        }
        let mut wanted = Vec::new();
        for part in read {
            self.pass(part, &mut wanted);
        }
        if rest == Rest::Ended && self.place == Place::Thoughts {
            self.place = Place::Answer;
            add(&mut wanted, AnswerPart::Content(CLOSE.to_owned()));
        }
        wanted
    }

    /// Lets a part through in the form that is wanted.
    fn pass(&mut self, part: AnswerPart, wanted: &mut Vec<AnswerPart>) {
        if matches!(part, AnswerPart::Call(CallEvent::Begun { .. })) && self.place != Place::Ended {
            self.begun += 1;
        }
        let ends = matches!(part, AnswerPart::Call(CallEvent::Ended { .. })) && self.calls == CallsWanted::One;
        match (part, self.thoughts, self.place) {
            (_, _, Place::Ended) | (AnswerPart::Thought(_), ThoughtsWanted::Dropped, _) => {}
            (AnswerPart::Thought(text), ThoughtsWanted::InText, place) => {
                if place == Place::Answer {
                    add(wanted, AnswerPart::Content(OPEN.to_owned()));
                    self.place = Place::Thoughts;
                }
                add(wanted, AnswerPart::Content(text));
            }
            (part @ (AnswerPart::Content(_) | AnswerPart::Call(_)), _, Place::Thoughts) => {
                self.place = Place::Answer;
                add(wanted, AnswerPart::Content(CLOSE.to_owned()));
                add(wanted, part);
            }
            (part, _, Place::Answer | Place::Thoughts) => add(wanted, part),
        }
        if ends {
            self.place = Place::Ended;
        }
    }
}

/// Around thoughts that were in a channel of their own and are wanted in the text.
const OPEN: &str = "<think>";
const CLOSE: &str = "</think>\n\n";

impl Manner {
    /// For a chat template, given its source.
    pub(crate) fn of_template(source: &str) -> Self {
        Self {
            format: Format::of_template(source),
            tools: Arc::default(),
            calls: CallsWanted::None,
            tags: Tags::of_template(source),
            thoughts: ThoughtsWanted::Apart,
            opening: Opening::Answer,
            ids: id::new,
        }
    }
}
