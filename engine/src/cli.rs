//! The command line: what can be typed, and which part of the program does it.

mod cache;
mod doctor;
mod draft;
mod join;
mod measure;
mod report;
mod shell;

use std::{
    env,
    ffi::{OsStr, OsString},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, builder::Resettable};
use qmesh_logging::LogFormat;
use qmesh_models::terminal::escaped;
use qmesh_net::without_tickets;

use self::report::{USAGE, in_one_line, say};

/// Lend this machine to a qmesh mesh: it holds some of a model's layers and computes them.
#[derive(Parser)]
#[command(name = "shard-worker", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    /// How lines on standard error look: for people, or a JSON object each for a log
    #[arg(long, global = true, value_enum, value_name = "FORMAT", env = "QMESH_LOG_FORMAT", default_value_t)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Join the mesh that a ticket belongs to, and serve it until stopped
    #[command(after_help = join::JOIN_HELP)]
    Join(Box<join::JoinArgs>),
    /// List, delete or check the tensors that workers keep on this machine
    #[command(after_help = cache::CACHE_HELP)]
    Cache(cache::CacheArgs),
    /// Look whether this machine would be a good worker, and say what to do where it would not
    #[command(after_help = doctor::DOCTOR_HELP)]
    Doctor(doctor::DoctorArgs),
    /// Find out how fast this machine computes: reads the spec of a small model, writes times, both as JSON
    #[command(hide = true)]
    Measure(measure::MeasureArgs),
    /// Say what may follow, by a model of this machine: a coordinator starts this, and orders over standard input
    #[command(hide = true)]
    Draft(draft::DraftArgs),
    /// Print what a shell needs to complete commands and flags
    Completions(shell::CompletionsArgs),
    /// Write manual pages
    Man(shell::ManArgs),
}

/// The process: reads the command line, and does what it says.
pub(crate) fn main() -> ExitCode {
    let parsed = command(|variable| env::var_os(variable)).try_get_matches().and_then(|m| Cli::from_arg_matches(&m));
    let Cli { log_format, command } = match parsed {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    qmesh_logging::begin(log_format);
    let ended = match command {
        Command::Join(args) => return join::run(*args),
        Command::Cache(args) => cache::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Measure(args) => measure::run(&args),
        Command::Draft(args) => draft::run(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man(args) => shell::man(&args),
    };
    ended.unwrap_or_else(|error| {
        say(&in_one_line(&error));
        ExitCode::FAILURE
    })
}

/// The command line, in which an empty variable counts as not set.
fn command(value_of: impl Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    without_blanks(Cli::command(), &value_of)
}

fn without_blanks(command: clap::Command, value_of: &dyn Fn(&OsStr) -> Option<OsString>) -> clap::Command {
    command
        .mut_args(|arg| {
            let is_blank = arg.get_env().and_then(value_of).is_some_and(|value| value.is_empty());
            if is_blank { arg.env(Resettable::Reset) } else { arg }
        })
        .mut_subcommands(|command| without_blanks(command, value_of))
}

/// Prints clap's report: what was typed is part of it.
fn refuse(error: &clap::Error) -> ExitCode {
    if error.use_stderr() {
        // A ticket that stands in the wrong place is a secret all the same.
        eprint!("{}", escaped(&without_tickets(&error.to_string())));
        return ExitCode::from(USAGE);
    }
    // Nothing is left to do where help cannot be printed.
    let _closed = error.print();
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_empty_variable_counts_as_not_set() {
        let heeded = |value: &str| {
            let command = command(|_| Some(value.into()));
            let direct = command.get_subcommands().chain(command.get_subcommands().flat_map(|c| c.get_subcommands()));
            let args = direct.flat_map(|command| command.get_arguments());
            args.filter(|arg| arg.get_env().is_some()).count()
        };
        assert_eq!((heeded(""), heeded("0") > 5), (0, true));
    }

    #[test]
    fn what_the_packages_start_is_understood() {
        let packaging = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging"));
        let read = |file: &str| std::fs::read_to_string(packaging.join(file)).unwrap();
        let (unit, compose) = (read("systemd/qmesh-worker.service"), read("compose.yaml"));
        let in_unit = unit.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).unwrap();
        let in_compose = compose.lines().find_map(|line| line.strip_prefix("  command: ")).unwrap();
        for (started, file) in [(in_unit, "${CREDENTIALS_DIRECTORY}/ticket"), (in_compose, "/run/qmesh/ticket")] {
            let matches = Cli::command().try_get_matches_from(started.split_whitespace()).unwrap();
            let join = matches.subcommand_matches("join").unwrap();
            let given: &std::path::PathBuf = join.get_one("ticket_file").unwrap();
            assert_eq!(given.to_str(), Some(file), "{started}");
        }
    }
}
