//! Replays what fuzzers start from through the same entries, and what they have found: bytes from outside cause no panic.

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub, reason = "it is the library of the fuzz targets")]
mod entries;

use std::{fs, path::PathBuf};

use entries::ENTRIES;
use qmesh_tests::root;

/// How many files each corpus has at least, of which some must be accepted and some refused.
const FILES_MIN: usize = 6;

#[test]
fn no_file_of_a_corpus_causes_a_panic() {
    for (name, entry) in ENTRIES {
        let files = corpus(name);
        assert!(files.len() >= FILES_MIN, "fuzz/corpus/{name} has only {} files", files.len());
        let (mut accepted, mut refused) = (0, 0);
        for path in files {
            let bytes = fs::read(&path).unwrap();
            let taken = std::panic::catch_unwind(|| entry(&bytes));
            let taken = taken.unwrap_or_else(|_| panic!("{} causes a panic", path.display()));
            // The names of the files that we made tell what is expected of them; those that a fuzzer found have others.
            let name = path.file_name().unwrap().to_string_lossy();
            assert!(taken || !name.starts_with("valid"), "{} is refused", path.display());
            assert!(!taken || !name.starts_with("bad"), "{} is accepted", path.display());
            if taken { accepted += 1 } else { refused += 1 }
        }
        assert!(accepted > 0 && refused > 0, "fuzz/corpus/{name}: {accepted} accepted, {refused} refused");
    }
}

#[test]
fn every_target_has_its_entry_and_every_corpus_its_target() {
    let manifest = fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for (name, _) in ENTRIES {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml lacks {name}");
        let target = fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(target.contains(&format!("qmesh_fuzz::{name}(bytes)")), "{name} runs something else");
    }
    for folder in fs::read_dir(root().join("fuzz/corpus")).unwrap() {
        let name = folder.unwrap().file_name();
        assert!(ENTRIES.iter().any(|(known, _)| name == *known), "nobody reads fuzz/corpus/{}", name.display());
    }
}

fn corpus(name: &str) -> Vec<PathBuf> {
    let folder = root().join("fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}
