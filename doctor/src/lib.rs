//! What about a machine keeps a mesh from working well, and what to do about it: the checks that `coordinator doctor` and
//! `shard-worker doctor` share.
//!
//! Every check has two halves. One gathers facts from the system and does nothing else; the other one, a pure function,
//! judges them and says what was found and what to do. What a system does not tell is said to be unknown, and is no fault.

pub mod clock;
pub mod disk;
pub mod memory;
pub mod network;
pub mod port;
mod report;

pub use self::report::{Finding, Report, Verdict};
