//! Where the user's lines come from: a terminal or a pipe.

use std::io::{self, BufRead, IsTerminal, Read};

use rustyline::{DefaultEditor, error::ReadlineError};

use super::history::History;
use crate::{cli::Failure, render::note};

/// The source of lines.
pub(super) enum Lines {
    Terminal {
        editor: Box<DefaultEditor>,
        /// Where lines are kept for other conversations.
        history: Option<History>,
    },
    Pipe,
}

/// What came of reading.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Input {
    Line(String),
    Interrupt,
    End,
}

impl Lines {
    /// A terminal has the lines of earlier conversations, where they are kept.
    pub(super) fn open(history: Option<History>) -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let mut editor = DefaultEditor::new().map_err(|e| Failure::failed(format!("cannot read the terminal: {e}")))?;
        let history = history.and_then(|history| match history.lines() {
            Ok(lines) => {
                // A line that the editor does not take is no reason to stop.
                lines.into_iter().for_each(|line| drop(editor.add_history_entry(line)));
                Some(history)
            }
            Err(error) => {
                note(format_args!("earlier conversations are not at hand: {error}"));
                None
            }
        });
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    pub(super) fn interactive(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    /// The next line, and those that it goes on in. Blocks.
    pub(super) fn read(&mut self) -> Result<Input, Failure> {
        whole(|prompt| self.read_one(prompt))
    }

    fn read_one(&mut self, prompt: &str) -> Result<Input, Failure> {
        match self {
            Self::Terminal { editor, history } => match editor.readline(prompt) {
                Ok(line) => {
                    // A history that does not take a line is no reason to stop.
                    let _kept = editor.add_history_entry(&line);
                    if let Some(Err(error)) = history.as_ref().map(|history| history.keep(&line)) {
                        note(format_args!("this conversation is not kept: {error}"));
                        *history = None;
                    }
                    Ok(Input::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Input::Interrupt),
                Err(ReadlineError::Eof) => Ok(Input::End),
                Err(error) => Err(Failure::failed(format!("cannot read the terminal: {error}"))),
            },
            Self::Pipe => {
                let mut line = String::new();
                let read = io::stdin().lock().take(LINE_BYTES_MAX).read_line(&mut line);
                match read.map_err(|e| Failure::failed(format!("cannot read standard input: {e}")))? {
                    0 => Ok(Input::End),
                    _ => Ok(Input::Line(line)),
                }
            }
        }
    }
}

/// Reads lines until one does not end with a backslash: the text without these. An interrupt drops what there was.
fn whole(mut read: impl FnMut(&str) -> Result<Input, Failure>) -> Result<Input, Failure> {
    let mut text = String::new();
    let mut prompt = "> ";
    loop {
        match read(prompt)? {
            Input::Line(line) => match line.trim_end().strip_suffix('\\') {
                Some(more) => text += &format!("{more}\n"),
                None => return Ok(Input::Line(text + &line)),
            },
            Input::End if !text.is_empty() => return Ok(Input::Line(text)),
            ended @ (Input::Interrupt | Input::End) => return Ok(ended),
        }
        prompt = "… ";
    }
}

/// Longer than any context.
const LINE_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backslash_at_the_end_goes_on_in_the_next_line() {
        let mut lines = ["a\\\n", " b\\\\ \n", "c\n", "d\\", ""].into_iter();
        let mut next = || {
            whole(|_| match lines.next() {
                Some("") | None => Ok(Input::End),
                Some(line) => Ok(Input::Line(line.to_owned())),
            })
            .unwrap()
        };
        assert_eq!(next(), Input::Line("a\n b\\\nc\n".to_owned()));
        assert_eq!(next(), Input::Line("d\n".to_owned()), "the end comes instead of the next line");
        assert_eq!(next(), Input::End);
    }
}
