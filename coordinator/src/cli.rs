//! The command line: what can be typed, and what a failure looks like.

mod doctor;
mod draft;
mod dry;
mod failure;
mod generation;
mod mesh;
mod models;
mod reach;
mod remote;
mod share;
mod shell;
mod workers;

use std::{
    env,
    ffi::{OsStr, OsString},
};

use clap::{
    CommandFactory, FromArgMatches, Parser, Subcommand,
    builder::{FalseyValueParser, Resettable},
    error::ErrorKind,
};

use qmesh_logging::LogFormat;

pub(crate) use self::generation::{parse_length, share as share_of_one, temperature};
use self::models::model_ref;
pub use self::{
    doctor::DoctorArgs,
    draft::DraftArgs,
    dry::DryArgs,
    failure::{Exit, Failure},
    generation::{ChatArgs, DemoArgs, EvalArgs, LengthArgs, RunArgs, SamplingArgs, SplitArgs, VerifyArgs},
    mesh::{
        AddressArgs, ClientArgs, CoordinatorArgs, DiscoverArgs, Pin, PipelineArgs, PlacementArgs, PlanArgs, RoomArgs,
        ServeArgs, StatusArgs, TopArgs, WorkloadArgs,
    },
    models::{InspectArgs, ListArgs, ModelArg, TokenizeArgs, TokenizerArgs},
    reach::ReachArgs,
    remote::RemoteArgs,
    share::{PullArgs, ShareArgs},
    shell::{CompletionsArgs, ManArgs},
    workers::{AdmitArgs, ListWorkersArgs, TicketArgs, WorkerArgs, WorkersArgs, WorkersCommand},
};

/// Run a language model split over several machines.
///
/// The coordinator holds one copy of the model and deals its layers to shard-workers, which send activations to each
/// other over encrypted QUIC links. A model is a catalog name (see `list`), a GGUF file, `hf:org/repo[:QUANT]`, a
/// URL or a `qmesh:` link.
#[derive(Debug, Parser)]
#[command(name = "coordinator", version, max_term_width = 100, disable_help_subcommand = true, after_help = EXAMPLES)]
pub struct Cli {
    /// How lines on standard error look: for people, or a JSON object each for a log
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = "QMESH_LOG_FORMAT", default_value_t)]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch models into the cache
    Pull(PullArgs),
    /// Give a model to other machines, by a link
    Share(ShareArgs),
    /// List the models of the catalog and of the cache
    List(ListArgs),
    /// Show what a model is made of
    Inspect(InspectArgs),
    /// Turn text into the model's tokens, as JSON
    Tokenize(TokenizeArgs),
    /// Show which worker would hold which layers
    Plan(PlanArgs),
    /// Serve a model over HTTP, computed by the workers that join
    Serve(ServeArgs),
    /// Answer one prompt with workers on this machine
    Run(RunArgs),
    /// Talk to a model with workers on this machine
    Chat(ChatArgs),
    /// Show all of it: fetch a model, split it over two workers, ask it something
    Demo(DemoArgs),
    /// Show the state of a running coordinator
    Status(StatusArgs),
    /// Watch a running coordinator on the whole terminal
    Top(TopArgs),
    /// Print the join line of a coordinator that runs on this machine
    Ticket(TicketArgs),
    /// Let in a worker that asks to join (`serve --open`)
    Admit(AdmitArgs),
    /// List workers and their keys, or take away their right to join
    Workers(WorkersArgs),
    /// List the coordinators of the local network
    Discover(DiscoverArgs),
    /// Look whether this machine would be a good coordinator, and say what to do where it would not
    Doctor(DoctorArgs),
    /// Score prompts and continue them greedily, as JSON
    Eval(EvalArgs),
    /// Check that a split computes the same bits as one worker
    Verify(VerifyArgs),
    /// Print what a shell needs to complete commands and flags
    Completions(CompletionsArgs),
    /// Write manual pages
    Man(ManArgs),
}

impl Cli {
    /// The command line of this process. Help and version are printed here.
    ///
    /// # Errors
    /// What cannot be understood, as a usage failure; `Failure::done` after help.
    pub fn from_env() -> Result<Self, Failure> {
        Self::parse_words(env::args_os())
    }

    fn parse_words<T: Into<OsString>>(words: impl IntoIterator<Item = T>) -> Result<Self, Failure> {
        // llama.cpp's spelling, which clap cannot declare.
        let spell = |word: OsString| if word == "-np" { "--parallel".into() } else { word };
        let words: Vec<OsString> = words.into_iter().map(|word| spell(word.into())).collect();
        let refuse = |error| usage(&error, &words);
        let matches = command().try_get_matches_from(&words).map_err(refuse)?;
        Self::from_arg_matches(&matches).map_err(refuse)
    }
}

fn command() -> clap::Command {
    command_in(|variable| env::var_os(variable))
}

/// The whole command line, described for shells and manuals.
pub fn description() -> clap::Command {
    command_in(|_| None)
}

/// The command with what holds for every flag: environment values stay out of help, where a key would be seen, a switch
/// understands `QMESH_JSON=0`, and an empty variable, as compose files leave them, counts as not set.
fn command_in(value_of: impl Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    Cli::command().mut_subcommands(|command| with_variables(command, &value_of))
}

fn with_variables(command: clap::Command, value_of: &dyn Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    let command = command.mut_args(|arg| {
        let is_switch = matches!(arg.get_action(), clap::ArgAction::SetTrue);
        let is_blank = arg.get_env().and_then(value_of).is_some_and(|value| value.is_empty());
        let arg = arg.hide_env_values(true);
        let arg = if is_blank { arg.env(Resettable::Reset) } else { arg };
        if is_switch { arg.value_parser(FalseyValueParser::new()) } else { arg }
    });
    command.mut_subcommands(|command| with_variables(command, value_of))
}

/// clap's report in one line, with its tip or a pointer to the help as advice.
fn usage(error: &clap::Error, words: &[OsString]) -> Failure {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        // Nothing is left to do where help cannot be printed.
        let _closed = error.print();
        return Failure::done();
    }
    let report = error.to_string();
    let line = |paragraph: &str| paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut paragraphs = report.split("\n\n").map(line);
    let first = paragraphs.next().unwrap_or_default();
    // Without a command clap's report is the whole help.
    let missing = [ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, ErrorKind::MissingSubcommand];
    let text = if missing.contains(&error.kind()) { "no command" } else { first.trim_start_matches("error: ") };
    let tip = paragraphs.find_map(|p| p.strip_prefix("tip: ").map(str::to_owned));
    Failure::usage(text).with_advice(tip.unwrap_or_else(|| format!("coordinator {}--help", command_word(words))))
}

/// The command among what was typed, with a space after it; nothing where there is none.
fn command_word(words: &[OsString]) -> String {
    let typed = words.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    if command().find_subcommand(typed).is_some() { format!("{typed} ") } else { String::new() }
}

const EXAMPLES: &str = "\
Examples:
  coordinator demo
  coordinator run smollm2-135m -p \"Why is the sky blue?\"
  coordinator serve qwen2.5-coder-1.5b --listen 0.0.0.0:4433

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 no answer from the coordinator, 130 interrupted.
Every flag can be set in the environment: --ctx-size is QMESH_CTX_SIZE. Logs: RUST_LOG=info. No colours: NO_COLOR=1.";

#[cfg(test)]
mod tests;
