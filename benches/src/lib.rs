//! The benchmark harness: what `qmesh-bench` measures and how it says it. One file per command in `commands`.

pub mod bandwidth;
pub mod commands;
pub mod compare;
pub mod machine;
pub mod model;
pub mod options;
pub mod peer;
pub mod receipt;
pub mod report;
pub mod statistics;
pub mod synthetic;
