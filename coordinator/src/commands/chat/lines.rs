//! Where the user's lines come from: a terminal or a pipe.

use std::io::{self, BufRead, IsTerminal, Read};

use rustyline::{DefaultEditor, error::ReadlineError};

use crate::cli::Failure;

/// The source of lines.
pub(super) enum Lines {
    Terminal(Box<DefaultEditor>),
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
    pub(super) fn open() -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let editor = DefaultEditor::new().map_err(|e| Failure::failed(format!("cannot read the terminal: {e}")))?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    pub(super) fn interactive(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line, and those that it goes on in. Blocks.
    pub(super) fn read(&mut self) -> Result<Input, Failure> {
        whole(|prompt| self.read_one(prompt))
    }

    fn read_one(&mut self, prompt: &str) -> Result<Input, Failure> {
        match self {
            Self::Terminal(editor) => match editor.readline(prompt) {
                Ok(line) => {
                    // A history that does not take a line is no reason to stop.
                    let _kept = editor.add_history_entry(&line);
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
