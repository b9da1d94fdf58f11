//! `chat`: a conversation in the terminal, or over a pipe.

use std::io::{self, BufRead, IsTerminal, Read};

use qmesh_models::{chat::Message, files::BYTE_ORDER_MARK, tokenizer::LeadingSpace};
use qmesh_net::Sampling;
use rustyline::{DefaultEditor, error::ReadlineError};

use super::{
    answer::{self, AnswerError},
    block_on_to_the_end,
    local_mesh::LocalMesh,
    opened::Opened,
    run::{TEMPERATURE, random_seed},
    signals::{Stop, next_stop, stop_asked},
};
use crate::{
    cli::{ChatArgs, Failure},
    mesh::MeshHandle,
    render::note,
    text::TextModel,
};

pub(super) fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let opened = Opened::open(&args.model, args.tokenizer.choice(), args.split.room, 1)?;
    let text = opened.text()?;
    if let Err(reason) = &text.template {
        return Err(Failure::failed(format!("{} cannot chat: {reason}", text.name))
            .with_advice(format!("coordinator run {} --raw -p \"…\"", args.model)));
    }
    let sampling = args.sampling.sampling(TEMPERATURE, random_seed());
    block_on_to_the_end(async {
        let local = tokio::select! {
            started = LocalMesh::start(&opened, &args.split) => started?,
            () = stop_asked() => return Err(Failure::interrupted()),
        };
        let system = args.system.iter().map(|system| Message::new("system", system)).collect();
        let conversation =
            Conversation { text: &text, mesh: local.handle(), sampling, max_tokens: args.length.max_tokens, system };
        let ended = conversation.hold().await;
        local.stop().await;
        ended
    })
}

struct Conversation<'a> {
    text: &'a TextModel,
    mesh: MeshHandle,
    sampling: Sampling,
    max_tokens: usize,
    /// The message before all others, if any.
    system: Vec<Message>,
}

/// What the user's line asks for.
#[derive(Debug, Eq, PartialEq)]
enum Request<'a> {
    Exit,
    Reset,
    Help,
    Nothing,
    Unknown(&'a str),
    Say(&'a str),
}

impl<'a> Request<'a> {
    fn parse(line: &'a str) -> Self {
        // A file that is piped in may begin with a byte order mark.
        match line.trim_start_matches(BYTE_ORDER_MARK).trim() {
            "" => Self::Nothing,
            "/exit" | "/quit" => Self::Exit,
            "/reset" => Self::Reset,
            "/help" | "/?" => Self::Help,
            line if line.starts_with('/') => Self::Unknown(line.split(' ').next().unwrap_or(line)),
            line => Self::Say(line),
        }
    }
}

/// How an answer went.
enum Turn {
    Said(String),
    /// Ctrl-C: what was said so far is forgotten, with the question.
    Cancelled,
    Stop,
}

impl Conversation<'_> {
    async fn hold(&self) -> Result<(), Failure> {
        let mut lines = Lines::open()?;
        if lines.interactive() {
            note(HELP);
        }
        let mut messages = self.system.clone();
        loop {
            let (returned, input) = next_line(lines).await?;
            lines = returned;
            let line = match input {
                Input::Line(line) => line,
                Input::Interrupt => {
                    note("Ctrl-D or /exit leaves");
                    continue;
                }
                Input::End => return Ok(()),
            };
            match Request::parse(&line) {
                Request::Exit => return Ok(()),
                Request::Nothing => {}
                Request::Help => note(HELP),
                Request::Unknown(word) => note(format_args!("{word} is no command; /help lists them")),
                Request::Reset => {
                    messages.clone_from(&self.system);
                    note("forgotten");
                }
                Request::Say(question) => {
                    messages.push(Message::new("user", question));
                    match self.turn(&messages).await {
                        Ok(Turn::Said(answer)) => messages.push(Message::new("assistant", answer)),
                        Ok(Turn::Cancelled) => drop(messages.pop()),
                        Ok(Turn::Stop) => return Ok(()),
                        // Over a pipe nobody could react.
                        Err(failure) if lines.interactive() && !failure.text.is_empty() => {
                            messages.pop();
                            failure.lines().into_iter().for_each(note);
                        }
                        Err(failure) => return Err(failure),
                    }
                }
            }
        }
    }

    async fn turn(&self, messages: &[Message]) -> Result<Turn, Failure> {
        let ids = answer::chat_prompt(self.text, messages)?;
        let request = answer::request(self.text, ids, self.max_tokens, self.sampling.clone());
        tokio::select! {
            answer = answer::stream(self.text, &self.mesh, request, LeadingSpace::Strip) => match answer {
                Ok(answer) => {
                    note(format_args!("[{}]", answer.rates()));
                    Ok(Turn::Said(answer.text))
                }
                Err(AnswerError::Generate(error)) => {
                    Err(Failure::failed(error.to_string()).with_advice("/reset forgets the conversation"))
                }
                Err(AnswerError::Output(error)) => Err(error.into()),
            },
            stop = next_stop() => match stop {
                Stop::Interrupt => {
                    note("\n[stopped]");
                    Ok(Turn::Cancelled)
                }
                Stop::Terminate => Ok(Turn::Stop),
            },
        }
    }
}

/// Where lines come from.
enum Lines {
    Terminal(Box<DefaultEditor>),
    Pipe,
}

enum Input {
    Line(String),
    Interrupt,
    End,
}

impl Lines {
    fn open() -> Result<Self, Failure> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Pipe);
        }
        let editor = DefaultEditor::new().map_err(|e| Failure::failed(format!("cannot read the terminal: {e}")))?;
        Ok(Self::Terminal(Box::new(editor)))
    }

    fn interactive(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }

    /// The next line. Blocks.
    fn read(&mut self) -> Result<Input, Failure> {
        match self {
            Self::Terminal(editor) => match editor.readline("> ") {
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

/// Reads a line where it may block, and gives the source back. Over a pipe, signals end the conversation.
async fn next_line(mut lines: Lines) -> Result<(Lines, Input), Failure> {
    let reading = tokio::task::spawn_blocking(move || {
        let input = lines.read();
        (lines, input)
    });
    tokio::select! {
        read = reading => {
            let (lines, input) = read.map_err(|e| Failure::failed(format!("reading ended: {e}")))?;
            Ok((lines, input?))
        }
        _ = next_stop() => Err(Failure::interrupted()),
    }
}

const HELP: &str = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer, /help shows this";
/// Longer than any context.
const LINE_BYTES_MAX: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_begin_with_a_slash_are_commands() {
        assert_eq!(Request::parse("  /reset "), Request::Reset);
        assert_eq!(Request::parse("/sing a song"), Request::Unknown("/sing"));
        assert_eq!(Request::parse(" \n"), Request::Nothing);
        assert_eq!(Request::parse("\u{feff}/reset\n"), Request::Reset);
        assert_eq!(Request::parse("what is /exit?\n"), Request::Say("what is /exit?"));
    }
}
