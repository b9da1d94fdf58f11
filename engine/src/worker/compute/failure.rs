//! Why a command failed; a panic is one of the reasons.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use thiserror::Error;

use crate::error::EngineError;

/// Why a command failed.
#[derive(Clone, Debug, Error, PartialEq)]
pub(crate) enum Failure {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error("a bug in this program (please report it): {0}")]
    Panic(String),
    #[error("no shard is loaded")]
    NoShard,
    #[error("cannot start the thread that loads it: {0}")]
    Thread(String),
}

/// Runs engine code: a panic there fails the command, not the thread.
pub(super) fn guarded<T>(work: impl FnOnce() -> Result<T, EngineError>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => Ok(result?),
        Err(panic) => Err(Failure::Panic(words(&*panic))),
    }
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}
