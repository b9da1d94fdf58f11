//! The rules on dependencies that `Cargo.lock` and the manifests can show, offline.

use std::{collections::BTreeMap, fs, path::Path};

#[test]
fn security_floors_hold() {
    let locked = locked();
    for (name, floor) in FLOORS {
        for version in locked.get(name).into_iter().flatten() {
            assert!(numbers(version) >= numbers(floor), "{name} {version} is below {floor}, which fixes a known flaw");
        }
    }
    for name in ["quinn", "quinn-proto", "rustls", "memmap2"] {
        assert!(locked.contains_key(name) || name == "memmap2", "{name} is gone: drop its floor");
    }
}

#[test]
fn bincode_is_the_pinned_version() {
    // 3.0.0 is one `compile_error!`.
    assert_eq!(locked()["bincode"], ["2.0.1"]);
}

#[test]
fn nothing_forsaken_is_linked() {
    let locked = locked();
    let forsaken =
        ["serde_yaml", "serde_yml", "backoff", "fxhash", "async-std", "number_prefix", "openssl-sys", "rkyv"];
    for name in forsaken {
        assert!(!locked.contains_key(name), "{name}: unmaintained or unsound, choose another");
    }
}

#[test]
fn every_source_is_the_registry() {
    let text = lock_file();
    let foreign = text.lines().find(|l| l.starts_with("source = ") && !l.contains("registry+"));
    assert_eq!(foreign, None, "only published crates");
}

#[test]
fn only_tests_and_benchmarks_have_the_simulated_network() {
    for package in ["models", "net", "engine", "coordinator"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package).join("Cargo.toml");
        let manifest = fs::read_to_string(path).expect("every package has a manifest");
        let shipped = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        assert!(!shipped.contains("\"simulation\""), "{package}: enable it below [dev-dependencies] only");
    }
}

fn locked() -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let text = lock_file();
    let field = |line: &str, key: &str| line.strip_prefix(key)?.trim_matches('"').to_owned().into();
    let mut name = String::new();
    for line in text.lines() {
        if let Some(value) = field(line, "name = ") {
            name = value;
        } else if let Some(version) = field(line, "version = ") {
            found.entry(name.clone()).or_default().push(version);
        }
    }
    found
}

fn lock_file() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    fs::read_to_string(path).expect("Cargo.lock is committed")
}

fn numbers(version: &str) -> Vec<u64> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

/// Versions that fix published advisories.
const FLOORS: [(&str, &str); 9] = [
    ("h2", "0.4.16"),
    ("memmap2", "0.9.11"),
    ("quinn", "0.11.12"),
    ("quinn-proto", "0.11.19"),
    ("ring", "0.17.12"),
    ("rustls-webpki", "0.103.13"),
    ("time", "0.3.47"),
    ("tokio", "1.44.2"),
    ("tracing-subscriber", "0.3.20"),
];
