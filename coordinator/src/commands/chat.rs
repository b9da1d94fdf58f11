//! `chat`: a conversation in the terminal, or over a pipe.

mod dialogue;
mod history;
mod lines;
mod settings;

use qmesh_models::chat::Message;
use qmesh_net::Sampling;

use self::{
    dialogue::{Dialogue, Request},
    history::History,
    lines::{Input, Lines},
    settings::{Settings, Stats},
};
use super::{
    answer::{self, Answer, AnswerError, Prompt, remote, remote::RemoteRequest},
    block_on_to_the_end, directories,
    local_mesh::LocalMesh,
    opened::Opened,
    run::{TEMPERATURE, random_seed},
    signals::{Stop, next_stop, stop_asked},
    status,
};
use crate::{
    cli::{ChatArgs, CoordinatorArgs, DryArgs, Failure},
    mesh::MeshHandle,
    render::note,
    text::TextModel,
};

pub(super) fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let history = if args.no_history { None } else { Some(History::of(&directories()?)) };
    let sampling = args.sampling.sampling(TEMPERATURE, random_seed());
    let settings = Settings { sampling, max_tokens: args.length.max_tokens };
    let dialogue = Dialogue::new(args.system.clone());
    let whom = args.remote.coordinator(args.model.as_ref(), &args.split)?;
    match (&args.model, whom) {
        (_, Some(coordinator)) => {
            // Whatever is wrong with address or key is said before the first question.
            let (_, status) = status::ask(&coordinator)?;
            note(format_args!("{} serves {}", coordinator.url, status.model));
            let whom = Answering::There { coordinator, dry: args.dry.clone() };
            let mut conversation = Conversation { whom, settings, stats: Stats::default() };
            block_on_to_the_end(conversation.hold(dialogue, history))
        }
        (Some(model), None) => {
            let opened = Opened::open(model, args.tokenizer.choice(), args.split.room, 1)?;
            let opened = opened.with_drafter(&args.split.pipeline.draft)?;
            let text = opened.text()?;
            if let Err(reason) = &text.template {
                return Err(Failure::failed(format!("{} cannot chat: {reason}", text.name))
                    .with_advice(format!("coordinator run {model} --raw -p \"…\"")));
            }
            let dry = args.dry.read(&text)?.map(Box::new);
            let settings = Settings { sampling: Sampling { dry, ..settings.sampling }, ..settings };
            block_on_to_the_end(async {
                let local = tokio::select! {
                    started = LocalMesh::start(&opened, &args.split) => started?,
                    () = stop_asked() => return Err(Failure::interrupted()),
                };
                let whom = Answering::Here { text: &text, mesh: local.handle() };
                let mut conversation = Conversation { whom, settings, stats: Stats::default() };
                let ended = conversation.hold(dialogue, history).await;
                local.stop().await;
                ended
            })
        }
        (None, None) => Err(Failure::usage("neither a MODEL nor the --url of a coordinator")),
    }
}

struct Conversation<'a> {
    whom: Answering<'a>,
    settings: Settings,
    stats: Stats,
}

/// Who answers.
enum Answering<'a> {
    /// Workers on this machine.
    Here { text: &'a TextModel, mesh: MeshHandle },
    /// A coordinator that runs already.
    There { coordinator: CoordinatorArgs, dry: DryArgs },
}

/// What a line leads to.
#[derive(Debug)]
enum Step {
    /// A question, asked so often before.
    Ask(String, u64),
    /// The next line.
    Next,
    Exit,
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
    async fn hold(&mut self, mut dialogue: Dialogue, history: Option<History>) -> Result<(), Failure> {
        let mut lines = Lines::open(history)?;
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
            let question = match self.step(&mut dialogue, &line, tries) {
                Step::Ask(question, before) => {
                    tries = before;
                    question
                }
                Step::Next => continue,
                Step::Exit => return Ok(()),
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

    /// Does what a line asks for, but for answering.
    fn step(&mut self, dialogue: &mut Dialogue, line: &str, tries: u64) -> Step {
        match Request::parse(line) {
            Request::Exit => return Step::Exit,
            Request::Say(question) => return Step::Ask(question.to_owned(), 0),
            Request::Retry => match dialogue.take_back() {
                Some(question) => return Step::Ask(question, tries + 1),
                None => note("there is no question yet"),
            },
            Request::Help => HELP.lines().for_each(note),
            Request::Unknown(word) => {
                note(format_args!("{word} is no command, or lacks something; /help lists them"));
            }
            Request::Change(change) => note(dialogue.change(&change)),
            Request::Stats => note(&self.stats),
            Request::Set(said) => note(self.settings.set(said)),
            Request::Nothing => {}
        }
        Step::Next
    }

    async fn turn(&mut self, messages: &[Message], tries: u64) -> Result<Turn, Failure> {
        let mut said = String::new();
        tokio::select! {
            answer = self.answer(messages, tries, &mut said) => {
                let answer = answer?;
                note(format_args!("[{}]", answer.rates()));
                self.stats.add(answer.end());
                Ok(Turn::Said(said))
            }
            stop = next_stop() => match stop {
                Stop::Interrupt => {
                    note("\n[stopped]");
                    Ok(if said.is_empty() { Turn::Cancelled } else { Turn::Said(said) })
                }
                Stop::Terminate => Ok(Turn::Stop),
            },
        }
    }

    /// Streams the answer. Dropping the future stops it.
    async fn answer(&self, messages: &[Message], tries: u64, said: &mut String) -> Result<Answer, Failure> {
        let Settings { sampling, max_tokens } = self.settings.clone();
        let sampling = Sampling { seed: sampling.seed.wrapping_add(tries), ..sampling };
        let advised = |failure: Failure| failure.with_advice("/reset forgets the conversation");
        match &self.whom {
            Answering::Here { text, mesh } => {
                let prompt = Prompt::of_chat(text, messages)?;
                match answer::stream(text, mesh, prompt, (max_tokens, sampling), said).await {
                    Ok(answer) => Ok(answer),
                    Err(AnswerError::Generate(error)) => Err(advised(Failure::failed(error.to_string()))),
                    Err(AnswerError::Output(error)) => Err(error.into()),
                }
            }
            Answering::There { coordinator, dry } => {
                let request = RemoteRequest::chat(messages).drawn(max_tokens, &sampling, dry);
                remote::stream(coordinator, request, said).await
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

const HELP: &str = "\
/reset forgets the conversation, /undo its last question, /retry answers that anew, /system TEXT replaces the system message,
/save FILE keeps the conversation; /stats says what answers took, /set NAME VALUE draws them otherwise (temperature, top_p, seed,
max_tokens), /set alone says how they are drawn; a line that ends with \\ goes on in the next; Ctrl-C stops an answer, /exit or Ctrl-D leaves";
