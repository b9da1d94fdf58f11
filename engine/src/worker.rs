//! A worker: a process (or, in tests, a task) that joins a mesh and serves a shard, while another one may come up beside it.
//!
//! [`run`] is the whole of it. Inside there are four rooms, none of which knows the ones after it:
//!
//! - `tensors` has the bytes of a shard's tensors on this machine: from its cache, the user's files or the coordinator;
//! - `compute` loads shards on one thread and computes their steps on another, with a [`Backend`](crate::backend::Backend);
//! - `links` moves frames to and from the neighbours in the pipeline;
//! - `state` decides: a state machine without IO, which is told what happened in the other rooms and says what to do.
//!
//! Beside them is `drafting`, which needs no mesh: a small model that says what may follow.
//!
//! Above them `membership` is one stay in a mesh, which does what the state machine says, and `run` is all stays, one after
//! the other.

mod assignment;
mod compute;
mod config;
mod console;
mod drafting;
mod known_mesh;
mod lasting;
mod links;
mod machine;
mod membership;
mod memory;
mod reach;
mod rendezvous;
mod run;
#[cfg(feature = "simulation")]
pub mod simulation;
mod speed;
mod state;
mod surroundings;
mod tensors;
mod turn;
mod whereabouts;

pub use self::{
    config::{MeasuredBy, Search, Stay, WayIn, WorkerConfig, WorkerEnd},
    console::Audience,
    drafting::{DraftingModel, DraftingRoom, draft},
    known_mesh::{KnownMesh, KnownMeshError},
    run::{WorkerError, run},
    tensors::{Blob, BlobState, Damage, OnDamage, Removal, Selection, StoreError, TensorCache, Usage, Verification},
};

#[cfg(test)]
mod tests;
