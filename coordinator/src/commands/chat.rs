//! `chat`: a conversation in the terminal, or over a pipe.

mod dialogue;
mod lines;

use qmesh_models::chat::Message;
use qmesh_net::Sampling;

use self::{
    dialogue::{Dialogue, Request},
    lines::{Input, Lines},
};
use super::{
    answer::{self, AnswerError, Prompt},
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
    let opened = opened.with_drafter(&args.split.pipeline.draft)?;
    let text = opened.text()?;
    if let Err(reason) = &text.template {
        return Err(Failure::failed(format!("{} cannot chat: {reason}", text.name))
            .with_advice(format!("coordinator run {} --raw -p \"…\"", args.model)));
    }
    let dry = args.dry.read(&text)?.map(Box::new);
    let sampling = Sampling { dry, ..args.sampling.sampling(TEMPERATURE, random_seed()) };
    block_on_to_the_end(async {
        let local = tokio::select! {
            started = LocalMesh::start(&opened, &args.split) => started?,
            () = stop_asked() => return Err(Failure::interrupted()),
        };
        let conversation =
            Conversation { text: &text, mesh: local.handle(), sampling, max_tokens: args.length.max_tokens };
        let ended = conversation.hold(Dialogue::new(args.system.clone())).await;
        local.stop().await;
        ended
    })
}

struct Conversation<'a> {
    text: &'a TextModel,
    mesh: MeshHandle,
    sampling: Sampling,
    max_tokens: usize,
}

/// How an answer went.
enum Turn {
    /// All of it, or with Ctrl-C what was said so far.
    Said(String),
    /// Ctrl-C before anything was said: the question is forgotten.
    Cancelled,
    Stop,
}

impl Conversation<'_> {
    async fn hold(&self, mut dialogue: Dialogue) -> Result<(), Failure> {
        let mut lines = Lines::open()?;
        if lines.interactive() {
            HELP.lines().for_each(note);
        }
        // How often the last question was asked: each answer to it is drawn with a seed of its own.
        let mut tries = 0;
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
            let question = match Request::parse(&line) {
                Request::Exit => return Ok(()),
                Request::Say(question) => {
                    tries = 0;
                    Some(question.to_owned())
                }
                Request::Retry => {
                    tries += 1;
                    dialogue.take_back()
                }
                Request::Help => {
                    HELP.lines().for_each(note);
                    continue;
                }
                Request::Unknown(word) => {
                    note(format_args!("{word} is no command, or lacks something; /help lists them"));
                    continue;
                }
                Request::Change(change) => {
                    note(dialogue.change(&change));
                    continue;
                }
                Request::Nothing => continue,
            };
            let Some(question) = question else {
                note("there is no question yet");
                continue;
            };
            dialogue.ask(&question);
            match self.turn(&dialogue.messages(), tries).await {
                Ok(Turn::Said(answer)) => dialogue.answered(answer),
                Ok(Turn::Cancelled) => drop(dialogue.take_back()),
                Ok(Turn::Stop) => return Ok(()),
                // Over a pipe nobody could react.
                Err(failure) if lines.interactive() && !failure.text.is_empty() => {
                    dialogue.take_back();
                    failure.lines().into_iter().for_each(note);
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    async fn turn(&self, messages: &[Message], tries: u64) -> Result<Turn, Failure> {
        let prompt = Prompt::of_chat(self.text, messages)?;
        let sampling = Sampling { seed: self.sampling.seed.wrapping_add(tries), ..self.sampling.clone() };
        let (drawn, mut said) = ((self.max_tokens, sampling), String::new());
        tokio::select! {
            answer = answer::stream(self.text, &self.mesh, prompt, drawn, &mut said) => match answer {
                Ok(answer) => {
                    note(format_args!("[{}]", answer.rates()));
                    Ok(Turn::Said(said))
                }
                Err(AnswerError::Generate(error)) => {
                    Err(Failure::failed(error.to_string()).with_advice("/reset forgets the conversation"))
                }
                Err(AnswerError::Output(error)) => Err(error.into()),
            },
            stop = next_stop() => match stop {
                Stop::Interrupt => {
                    note("\n[stopped]");
                    Ok(if said.is_empty() { Turn::Cancelled } else { Turn::Said(said) })
                }
                Stop::Terminate => Ok(Turn::Stop),
            },
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

const HELP: &str = "\
/reset forgets the conversation, /undo its last question, /retry answers that anew, /system TEXT replaces the system message,
/save FILE keeps the conversation; a line that ends with \\ goes on in the next; Ctrl-C stops an answer, /exit or Ctrl-D leaves";
