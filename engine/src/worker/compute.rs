//! Computing: shards are loaded on a thread of their own, and the compute thread owns those that are at work. [`Command`]
//! and [`Done`] are all that is said to these threads, and by them.

mod active;
mod command;
mod convert;
mod failure;
mod loading;
mod masks;
#[cfg(test)]
pub(crate) mod scripted;
mod shards;
mod thread;
mod trails;
mod wire;

#[cfg(feature = "simulation")]
pub(crate) use self::shards::Shards;
pub(crate) use self::{
    command::{Command, Done, Loaded, ShardState, Stepped},
    convert::sampling as sampling_parameters,
    failure::Failure,
    loading::LoadRequest,
    masks::{Place, StepMasks},
    thread::ComputeThread,
};
