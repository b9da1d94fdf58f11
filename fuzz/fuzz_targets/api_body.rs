//! Runs `qmesh_fuzz::api_body` on whatever the fuzzer thinks of.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    qmesh_fuzz::api_body(bytes);
});
