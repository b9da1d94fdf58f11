//! The test kit: where the repository's files are, golden results and their rules, and real processes to drive.

pub mod golden;
pub mod http;
pub mod limit;
pub mod models_page;
pub mod process;

use std::path::{Path, PathBuf};

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}

/// A file below `tests/golden/`; its absence fails the test that wants it.
///
/// # Panics
/// When it does not exist.
pub fn golden_file(name: &str) -> PathBuf {
    let path = root().join("tests/golden").join(name);
    assert!(path.exists(), "{} is missing: restore it, tests are not skipped", path.display());
    path
}

/// Whether the golden tests run on all four real models or on the default one alone.
pub fn all_models() -> bool {
    std::env::var("QMESH_MODELS").is_ok_and(|v| v == "all")
}
