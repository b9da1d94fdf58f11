//! Who is there, and which pipelines are made of them: planned, loaded, linked and given up.
//!
//! `roster` decides, as a state machine; `choice` asks the planner, `pipeline` follows one plan, `speeds` remembers how fast
//! workers are, `slowness` tells when one of them no longer is, `troubles` remembers what went wrong, `openings` which stage owes an answer, `sources` says which workers have which
//! tensors. `ways` says where workers reach each other. `links` and `weights` are the tasks that move messages,
//! frames and tensor bytes.

mod choice;
pub(crate) mod links;
mod machines;
mod misconduct;
pub(crate) mod openings;
mod pipeline;
mod planned;
pub(crate) mod roster;
mod slowness;
mod sources;
mod speeds;
mod troubles;
mod ways;
pub(crate) mod weights;
mod worker;

pub(crate) use self::{
    misconduct::Misconduct,
    planned::PlannedModel,
    speeds::excerpt,
    troubles::Blame,
    worker::{Joined, WorkerId},
};
