//! What becomes of frames and shards on this machine: shards are loaded on a thread of their own, and the compute thread
//! owns those that are loaded. [`Command`] and [`Done`] are all that is said across.

mod active;
mod command;
mod convert;
mod emulation;
mod failure;
mod loading;
mod thread;
mod trails;
mod wire;

#[cfg(test)]
pub(crate) use self::emulation::Computer;
pub use self::emulation::{Compute, Emulation};
pub(crate) use self::{
    command::{Command, Done, Loaded, ShardState, Stepped},
    failure::Failure,
    loading::LoadRequest,
    thread::ComputeThread,
};
