//! Calls of tools in what a model writes, read as it comes.
//!
//! A format says what begins a call. From there on text is held until it is certain that a tool is called and which;
//! then the call begins, and its arguments go out as they come. What turns out to be no call goes out as the text that
//! it is: nothing is lost, and nothing comes twice.

mod cursor;
mod family;
mod forced;
mod format;
mod head;
mod held;
pub(crate) mod id;
mod json;
pub(crate) mod marks;
mod pairs;
#[cfg(test)]
mod tests;
mod tools;

use std::{mem, sync::Arc};

pub use self::{
    forced::{ForcedCall, ToolChoice, forced_call, possible_calls},
    format::Format,
    held::held_calls,
    tools::Tools,
};

use self::{
    cursor::Stop,
    family::{Bare, Family},
    head::{Arguments, Head},
    json::{Scanner, Step},
    pairs::{PairReader, Taken},
};
use super::part::{AnswerPart, CallEvent, add};

/// Makes the id of a call from its number.
pub(crate) type Ids = fn(usize) -> String;

/// Reads calls that are marked within a text.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    family: &'static Family,
    tools: Arc<Tools>,
    /// Marks that are tokens which are never shown.
    silent: Vec<&'static str>,
    ids: Ids,
    /// What is not decided yet.
    held: String,
    state: State,
    /// How many calls have begun.
    begun: usize,
    start: Start,
}

/// Whether more text may come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Rest {
    Open,
    Ended,
}

/// Whether the answer is still to begin.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Start {
    Here,
    Past,
}

/// Whether a step has changed anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Progress {
    Made,
    Waits,
}

#[derive(Clone, Debug)]
enum State {
    Text,
    /// Something that may be a call has begun.
    Head(Attempt),
    /// A call has begun.
    Arguments(Body),
    /// A call has ended.
    After(After),
}

/// What may be a call, at the front of what is held.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    /// White space, and then a mark or a fence, end here.
    space: usize,
    opened: usize,
    by: Opened,
}

/// What makes one think of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Opened {
    Mark,
    /// Nothing but its form: it must name a tool.
    Form(Fence),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fence {
    Open,
    None,
}

/// Arguments under way.
#[derive(Clone, Debug)]
enum Body {
    Json { scanner: Scanner, inside: usize, fence: Fence },
    Pairs(PairReader),
}

/// What may follow a call.
#[derive(Clone, Debug)]
struct After {
    /// What is left of the objects around the arguments.
    tail: Option<Scanner>,
    fence: Fence,
    block: Block,
}

/// Whether more calls may come without a mark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Block {
    Open,
    Closed,
}

/// What ends a fence.
const FENCE: [&str; 1] = ["```"];

impl Calls {
    /// Reads calls of these tools. Of the format's marks, the `silent` ones are not shown where they are no part of a
    /// call.
    pub(crate) fn new(format: Format, tools: Arc<Tools>, silent: Vec<&'static str>, ids: Ids) -> Self {
        let family = format.family().or(Format::NONE.family()).expect("it reads marks, if none at all");
        Self { family, tools, silent, ids, held: String::new(), state: State::Text, begun: 0, start: Start::Here }
    }

    /// Takes more text.
    pub(crate) fn push(&mut self, text: &str, parts: &mut Vec<AnswerPart>) {
        self.held.push_str(text);
        while self.step(Rest::Open, parts) == Progress::Made {}
    }

    /// No more text comes.
    pub(crate) fn finish(&mut self, parts: &mut Vec<AnswerPart>) {
        while self.step(Rest::Ended, parts) == Progress::Made {}
    }

    fn step(&mut self, rest: Rest, parts: &mut Vec<AnswerPart>) -> Progress {
        match mem::replace(&mut self.state, State::Text) {
            State::Text => self.text(rest, parts),
            State::Head(attempt) => self.head(attempt, rest, parts),
            State::Arguments(body) => self.arguments(body, rest, parts),
            State::After(after) => self.after(after, rest),
        }
    }

    fn text(&mut self, rest: Rest, parts: &mut Vec<AnswerPart>) -> Progress {
        if self.start == Start::Here && self.family.bare == Bare::AtStart {
            match bare(&self.held) {
                Ok(attempt) => {
                    self.state = State::Head(attempt);
                    return Progress::Made;
                }
                Err(Stop::Wait) if rest == Rest::Open => return Progress::Waits,
                Err(Stop::Wait | Stop::Wrong) => {}
            }
        }
        let marks = || self.family.opens.iter().chain(&self.silent).copied();
        if let Some((at, mark)) = marks::first(&self.held, marks()) {
            self.say(self.held[..at].trim_end().len(), parts);
            let space = self.held.len() - self.held.trim_start().len();
            if self.family.opens.contains(&mark) {
                self.state = State::Head(Attempt { space, opened: space + mark.len(), by: Opened::Mark });
            } else {
                self.say(space, parts);
                self.held.drain(..mark.len());
            }
            return Progress::Made;
        }
        let decided = match rest {
            // White space before a call is no text.
            Rest::Open if !self.family.opens.is_empty() => {
                self.held[..marks::undecided(&self.held, marks())].trim_end().len()
            }
            Rest::Open => marks::undecided(&self.held, marks()),
            Rest::Ended => self.held.len(),
        };
        self.say(decided, parts);
        Progress::Waits
    }

    fn head(&mut self, attempt: Attempt, rest: Rest, parts: &mut Vec<AnswerPart>) -> Progress {
        let head = match (self.family.head)(&self.held[attempt.opened..]) {
            Err(Stop::Wait) if rest == Rest::Open => {
                self.state = State::Head(attempt);
                return Progress::Waits;
            }
            Err(Stop::Wait | Stop::Wrong) => None,
            Ok(head) => Some(head),
        };
        let (Head::Open { name, .. } | Head::Whole { name, .. }) = match &head {
            Some(head) if attempt.by == Opened::Mark || self.tools.has(head.name()) => head,
            Some(_) | None => {
                self.give_up(attempt, parts);
                return Progress::Made;
            }
        };
        let index = self.begun;
        add(parts, AnswerPart::Call(CallEvent::Begun { index, id: (self.ids)(index), name: name.clone() }));
        self.begun += 1;
        self.start = Start::Past;
        let fence = attempt.fence();
        match head {
            Some(Head::Open { name, at, arguments }) => {
                self.held.drain(..attempt.opened + at);
                self.state = State::Arguments(match arguments {
                    Arguments::Json { inside } => Body::Json { scanner: Scanner::value(), inside, fence },
                    Arguments::Pairs(pairs) => Body::Pairs(PairReader::new(pairs, &name)),
                });
            }
            Some(Head::Whole { arguments, at, .. }) => {
                self.held.drain(..attempt.opened + at);
                add(parts, AnswerPart::Call(CallEvent::Arguments { index, text: arguments }));
                self.end(After { tail: None, fence, block: Block::Open }, parts);
            }
            None => {}
        }
        Progress::Made
    }

    /// It is no call: its mark is text, and what is behind it may be anything.
    fn give_up(&mut self, attempt: Attempt, parts: &mut Vec<AnswerPart>) {
        self.start = Start::Past;
        self.say(attempt.space, parts);
        let mark = attempt.opened - attempt.space;
        if self.silent.contains(&&self.held[..mark]) {
            self.held.drain(..mark);
        } else {
            self.say(mark, parts);
        }
    }

    fn arguments(&mut self, mut body: Body, rest: Rest, parts: &mut Vec<AnswerPart>) -> Progress {
        let mut json = String::new();
        let taken = match &mut body {
            Body::Json { scanner, .. } => pass(scanner, &self.held, &mut json),
            Body::Pairs(reader) => reader.take(&self.held, &self.tools, &mut json),
        };
        let (bytes, ended) = match taken {
            Taken::Open(bytes) => (bytes, rest == Rest::Ended),
            Taken::Ended(bytes) | Taken::Broken(bytes) => (bytes, true),
        };
        self.held.drain(..bytes);
        if let (Body::Pairs(reader), Taken::Open(_), true) = (&body, taken, ended) {
            reader.close(&mut json);
        }
        if !json.is_empty() {
            add(parts, AnswerPart::Call(CallEvent::Arguments { index: self.begun - 1, text: json }));
        }
        if !ended {
            self.state = State::Arguments(body);
            return Progress::Waits;
        }
        let after = match (body, taken) {
            (Body::Json { inside, fence, .. }, Taken::Ended(_)) => {
                let tail = (inside > 0).then(|| Scanner::inside_objects(inside));
                After { tail, fence, block: Block::Open }
            }
            (Body::Json { .. }, _) => After { tail: None, fence: Fence::None, block: Block::Closed },
            (Body::Pairs(_), _) => After { tail: None, fence: Fence::None, block: Block::Open },
        };
        self.end(after, parts);
        Progress::Made
    }

    fn end(&mut self, after: After, parts: &mut Vec<AnswerPart>) {
        add(parts, AnswerPart::Call(CallEvent::Ended { index: self.begun - 1 }));
        self.state = State::After(after);
    }

    /// Passes over what belongs to calls, up to the next one or to text.
    fn after(&mut self, mut after: After, rest: Rest) -> Progress {
        if let Some(tail) = &mut after.tail {
            let (bytes, ended) = skip(tail, &self.held);
            self.held.drain(..bytes);
            if !ended && rest == Rest::Open {
                self.state = State::After(after);
                return Progress::Waits;
            }
            after.tail = None;
        }
        self.held.drain(..self.held.len() - self.held.trim_start().len());
        let fence: &[&str] = if after.fence == Fence::Open { &FENCE } else { &[] };
        let closing = || self.family.closes.iter().chain(fence).copied();
        let between: &[&str] = if after.block == Block::Open { self.family.between } else { &[] };
        let passed = || between.iter().chain(&self.silent).copied();
        let starts = |mark: &&str| self.held.starts_with(mark);
        let begins = |mark: &str| mark.len() > self.held.len() && mark.starts_with(&self.held);
        if self.family.opens.iter().any(starts) {
            return Progress::Made;
        }
        if let Some(mark) = closing().find(starts) {
            after = After { tail: None, fence: Fence::None, block: Block::Closed };
            self.held.drain(..mark.len());
        } else if let Some(mark) = passed().find(starts) {
            self.held.drain(..mark.len());
        } else if rest == Rest::Open && closing().chain(passed()).chain(self.family.opens.iter().copied()).any(begins) {
            self.state = State::After(after);
            return Progress::Waits;
        } else {
            if after.block == Block::Open && self.held.starts_with('{') {
                self.state = State::Head(Attempt { space: 0, opened: 0, by: Opened::Mark });
            }
            return Progress::Made;
        }
        self.state = State::After(after);
        Progress::Made
    }

    /// Lets the first bytes of what is held go out as text.
    fn say(&mut self, bytes: usize, parts: &mut Vec<AnswerPart>) {
        let text: String = self.held.drain(..bytes).collect();
        if !text.trim_start().is_empty() {
            self.start = Start::Past;
        }
        add(parts, AnswerPart::Content(text));
    }
}

impl Attempt {
    fn fence(self) -> Fence {
        match self.by {
            Opened::Mark => Fence::None,
            Opened::Form(fence) => fence,
        }
    }
}

/// A JSON object or a list at the beginning of an answer, perhaps in a fence.
fn bare(text: &str) -> Result<Attempt, Stop> {
    let mut cursor = cursor::Cursor::new(text);
    let mut fence = Fence::None;
    cursor.peek()?;
    let space = cursor.at();
    if cursor.skip("```")? {
        fence = Fence::Open;
        let _language = cursor.skip("json")? || cursor.skip("tool_call")?;
    }
    match cursor.peek()? {
        '{' | '[' => Ok(Attempt { space, opened: cursor.at(), by: Opened::Form(fence) }),
        _ => Err(Stop::Wrong),
    }
}

/// Passes JSON on. What a string may only have escaped, models forget to escape.
fn pass(scanner: &mut Scanner, text: &str, json: &mut String) -> Taken {
    for (at, character) in text.char_indices() {
        let mut bytes = [0; 4];
        for &byte in character.encode_utf8(&mut bytes).as_bytes() {
            match scanner.take(byte) {
                Step::More => {}
                Step::Done => {
                    json.push(character);
                    return Taken::Ended(at + character.len_utf8());
                }
                Step::DoneBefore => return Taken::Ended(at),
                Step::Wrong => return Taken::Broken(at),
            }
        }
        match character {
            '\0'..='\u{1F}' if scanner.is_in_string() => json.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => json.push(character),
        }
    }
    Taken::Open(text.len())
}

/// How many bytes belong to what is scanned, and whether it has ended with them.
fn skip(scanner: &mut Scanner, text: &str) -> (usize, bool) {
    for (at, byte) in text.bytes().enumerate() {
        match scanner.take(byte) {
            Step::More => {}
            Step::Done => return (at + 1, true),
            Step::DoneBefore | Step::Wrong => return (at, true),
        }
    }
    (text.len(), false)
}
