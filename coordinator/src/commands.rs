//! The commands. Their arguments are parsed already (`cli`); each calls the library and prints what it found
//! (`render`).

mod answer;
mod chat;
mod demo;
mod discover;
mod doctor;
mod eval;
mod header;
mod inspect;
mod list;
mod local_mesh;
mod opened;
mod plan;
mod prompts;
mod pull;
mod room;
mod rows;
mod run;
mod serve;
mod server_events;
mod share;
mod shared;
mod shell;
mod signals;
mod status;
mod ticket;
mod tokenize;
mod top;
mod verify;
mod workers;

use std::{future::Future, path::PathBuf, process::ExitCode, time::Duration};

use qmesh_models::{directories::Directories, pull::ModelRef};

use crate::{
    cli::{Cli, Command, Exit, Failure},
    render::progress::Progress,
};

/// The process: reads the command line, runs the command, says how it failed.
pub fn main() -> ExitCode {
    let exit = match Cli::from_env().and_then(execute) {
        Ok(()) => Exit::Done,
        Err(failure) => {
            failure.lines().iter().for_each(|line| qmesh_logging::error(line));
            failure.exit
        }
    };
    ExitCode::from(exit as u8)
}

fn execute(cli: Cli) -> Result<(), Failure> {
    qmesh_logging::begin(cli.log_format);
    match cli.command {
        Command::Pull(args) => pull::pull(&args),
        Command::Share(args) => share::share(&args),
        Command::List(args) => list::list(&args),
        Command::Inspect(args) => inspect::inspect(&args),
        Command::Tokenize(args) => tokenize::tokenize(&args),
        Command::Plan(args) => plan::plan(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Run(args) => run::run(&args),
        Command::Chat(args) => chat::chat(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Status(args) => status::status(&args),
        Command::Top(args) => top::top(args),
        Command::Ticket(args) => ticket::ticket(&args),
        Command::Admit(args) => workers::admit(&args),
        Command::Workers(args) => workers::workers(&args),
        Command::Discover(args) => block_on(discover::discover(&args)),
        Command::Doctor(args) => doctor::doctor(&args),
        Command::Eval(args) => eval::eval(&args),
        Command::Verify(args) => verify::verify(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    }
}

/// The model's file, fetched with a progress bar where it is not there yet.
fn fetch(model: &ModelRef) -> Result<PathBuf, Failure> {
    let directories = directories()?;
    if let ModelRef::Shared(shared) = model {
        return shared::fetch(shared, &directories);
    }
    qmesh_models::pull::fetch(model, &directories, &mut Progress::new()).map_err(|e| Failure::failed(e.to_string()))
}

fn directories() -> Result<Directories, Failure> {
    Directories::from_env().map_err(|e| Failure::usage(e.to_string()))
}

/// Runs `work` to its end, or drops it at Ctrl-C or SIGTERM: what it started ends with it.
fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    block_on_to_the_end(async {
        tokio::select! {
            done = work => done,
            () = signals::stop_asked() => Err(Failure::interrupted()),
        }
    })
}

/// Runs `work`, which looks after signals by itself.
fn block_on_to_the_end(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("cannot start the runtime: {e}")))?;
    let done = runtime.block_on(work);
    // A read of standard input cannot be cancelled, and must not hold the process up.
    runtime.shutdown_timeout(RUNTIME_ENDING);
    done
}

/// For tasks to see that they are over.
const RUNTIME_ENDING: Duration = Duration::from_millis(200);
