//! What was said, and the commands that change it.

use std::{fs::File, io::Write};

use qmesh_models::{chat::Message, files::BYTE_ORDER_MARK};

/// What the user's line asks for.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Request<'a> {
    Exit,
    Help,
    Nothing,
    /// To answer the last question anew.
    Retry,
    Change(Change<'a>),
    /// What answers took so far.
    Stats,
    /// To draw answers otherwise.
    Set(&'a str),
    Unknown(&'a str),
    Say(&'a str),
}

/// What only changes, or keeps, what was said.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Change<'a> {
    /// To forget all but the system message.
    Reset,
    /// To forget the last question and its answer.
    Undo,
    /// To begin with another system message, or with none.
    System(&'a str),
    /// To write everything to this file.
    Save(&'a str),
}

impl<'a> Request<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        // A file that is piped in may begin with a byte order mark.
        let line = line.trim_start_matches(BYTE_ORDER_MARK).trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match (word, rest.trim()) {
            ("", _) => Self::Nothing,
            ("/exit" | "/quit", "") => Self::Exit,
            ("/help" | "/?", "") => Self::Help,
            ("/retry", "") => Self::Retry,
            ("/stats", "") => Self::Stats,
            ("/set", said) => Self::Set(said),
            ("/reset", "") => Self::Change(Change::Reset),
            ("/undo", "") => Self::Change(Change::Undo),
            ("/system", text) => Self::Change(Change::System(text)),
            ("/save", file) if !file.is_empty() => Self::Change(Change::Save(file)),
            (word, _) if word.starts_with('/') => Self::Unknown(word),
            _ => Self::Say(line),
        }
    }
}

/// A conversation: a system message, if any, then questions and their answers.
#[derive(Debug, Default)]
pub(super) struct Dialogue {
    system: Option<String>,
    /// The last question may have no answer yet.
    turns: Vec<(String, Option<String>)>,
}

impl Dialogue {
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, turns: Vec::new() }
    }

    /// All that was said, as a template reads it.
    pub(super) fn messages(&self) -> Vec<Message> {
        let system = self.system.iter().map(|text| Message::new("system", text));
        let turns = self.turns.iter().flat_map(|(question, answer)| {
            let answer = answer.iter().map(|text| Message::new("assistant", text));
            [Message::new("user", question)].into_iter().chain(answer)
        });
        system.chain(turns).collect()
    }

    pub(super) fn ask(&mut self, question: &str) {
        self.turns.push((question.to_owned(), None));
    }

    pub(super) fn answered(&mut self, text: String) {
        if let Some((_, answer)) = self.turns.last_mut() {
            *answer = Some(text);
        }
    }

    /// Forgets the last question and its answer; the question.
    pub(super) fn take_back(&mut self) -> Option<String> {
        self.turns.pop().map(|(question, _)| question)
    }

    /// Does what is asked for, and says what was done.
    pub(super) fn change(&mut self, change: &Change<'_>) -> String {
        match *change {
            Change::Reset => {
                self.turns.clear();
                "forgotten".to_owned()
            }
            Change::Undo => match self.take_back() {
                Some(question) => format!("forgotten: {question}"),
                None => "there is nothing to forget".to_owned(),
            },
            Change::System(text) => {
                self.system = (!text.is_empty()).then(|| text.to_owned());
                if text.is_empty() { "no system message from now on" } else { "a new system message from now on" }
                    .to_owned()
            }
            Change::Save(file) => match self.save(file) {
                Ok(()) => format!("saved to {file}"),
                Err(error) => format!("cannot save to {file}: {error}"),
            },
        }
    }

    /// Writes the messages as JSON, as an API takes them. A file that is there already is left alone.
    fn save(&self, file: &str) -> std::io::Result<()> {
        let mut text = serde_json::to_vec_pretty(&self.messages())?;
        text.push(b'\n');
        File::create_new(file)?.write_all(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_begin_with_a_slash_are_commands() {
        assert_eq!(Request::parse("  /reset "), Request::Change(Change::Reset));
        assert_eq!(Request::parse("/sing a song"), Request::Unknown("/sing"));
        assert_eq!(Request::parse(" \n"), Request::Nothing);
        assert_eq!(Request::parse("\u{feff}/reset\n"), Request::Change(Change::Reset));
        assert_eq!(Request::parse("what is /exit?\n"), Request::Say("what is /exit?"));
        assert_eq!(Request::parse("/system Be brief.\n"), Request::Change(Change::System("Be brief.")));
        assert_eq!(Request::parse("/system"), Request::Change(Change::System("")));
        assert_eq!(Request::parse("/save"), Request::Unknown("/save"), "it wants a file");
        assert_eq!(Request::parse("/set seed  7 "), Request::Set("seed  7"));
        assert_eq!((Request::parse("/set"), Request::parse("/stats")), (Request::Set(""), Request::Stats));
        assert_eq!(Request::parse("/retry now"), Request::Unknown("/retry"));
    }

    #[test]
    fn commands_change_what_the_next_answer_follows() {
        let mut dialogue = Dialogue::new(Some("Be brief.".to_owned()));
        for (question, answer) in [("a?", "A"), ("b?", "B")] {
            dialogue.ask(question);
            dialogue.answered(answer.to_owned());
        }
        let said = |dialogue: &Dialogue| {
            let text = |message: &Message| message.content.as_ref().and_then(|text| text.as_str()).map(str::to_owned);
            dialogue.messages().iter().filter_map(text).collect::<Vec<_>>()
        };
        assert_eq!(said(&dialogue), ["Be brief.", "a?", "A", "b?", "B"]);
        assert_eq!(dialogue.change(&Change::Undo), "forgotten: b?");
        dialogue.change(&Change::System("Be kind."));
        assert_eq!(said(&dialogue), ["Be kind.", "a?", "A"]);
        dialogue.change(&Change::Reset);
        dialogue.change(&Change::System(""));
        assert_eq!(said(&dialogue), Vec::<String>::new());
        assert_eq!(dialogue.change(&Change::Undo), "there is nothing to forget");
    }

    #[test]
    fn a_conversation_is_saved_as_messages_and_replaces_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("talk.json");
        let file = file.to_str().unwrap();
        let mut dialogue = Dialogue::default();
        dialogue.ask("Why?");
        assert_eq!(dialogue.change(&Change::Save(file)), format!("saved to {file}"));
        let saved: Vec<Message> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!(saved, dialogue.messages());
        assert!(dialogue.change(&Change::Save(file)).contains("exists"));
    }
}
