//! Runs `qmesh_fuzz::frame_head` on whatever the fuzzer thinks of.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    qmesh_fuzz::frame_head(bytes);
});
