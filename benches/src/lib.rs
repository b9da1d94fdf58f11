//! The benchmark harness: what `qmesh-bench` measures and how it says it. One file per command in `commands`.

pub mod bandwidth;
pub mod children;
pub mod clients;
pub mod commands;
pub mod compare;
pub mod datagram;
pub mod emulation;
pub mod http;
pub mod ideal;
pub mod machine;
pub mod model;
pub mod options;
pub mod peer;
pub mod pipeline;
pub mod plot;
pub mod random_blocks;
pub mod random_model;
pub mod receipt;
pub mod record;
pub mod report;
pub mod rpc;
pub mod statistics;
pub mod step_bench;
pub mod synthetic;
pub mod throttled;
