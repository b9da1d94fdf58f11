//! Runs `qmesh_fuzz::ticket` on whatever the fuzzer thinks of.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    qmesh_fuzz::ticket(bytes);
});
