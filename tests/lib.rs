//! The test kit: where the repository's files are, golden results and their rules, and real processes to drive.

pub mod golden;
pub mod http;
pub mod limit;
pub mod models_page;
pub mod process;
pub mod stand_in;

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

/// Which real models tests take, beside tiny ones that are made for them: as `QMESH_MODELS` says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RealModels {
    /// It is not set: none. Nothing is fetched from anywhere.
    None,
    /// `default`: the one that is served where nobody names another.
    Default,
    /// `all`: the four of the catalog.
    All,
}

/// What programs are given for the default model: its name, or the file that stands in for it.
pub fn default_model() -> String {
    match real_models() {
        RealModels::None => stand_in::file().to_string_lossy().into_owned(),
        RealModels::Default | RealModels::All => stand_in::NAME.to_owned(),
    }
}

/// Whether the default model is the real one; says aloud where a test leaves `what` out without it.
pub fn is_real(what: &str) -> bool {
    let is_real = real_models() != RealModels::None;
    if !is_real {
        eprintln!("SKIPPED without a real model (QMESH_MODELS=default): {what}");
    }
    is_real
}

/// Which of them these are.
///
/// # Panics
/// When the variable says something else.
pub fn real_models() -> RealModels {
    match std::env::var("QMESH_MODELS").unwrap_or_default().as_str() {
        "" => {
            assert!(std::env::var_os("CI").is_none(), "CI needs QMESH_MODELS=all");
            RealModels::None
        }
        "default" => RealModels::Default,
        "all" => RealModels::All,
        other => panic!("QMESH_MODELS is 'default' or 'all', not '{other}'"),
    }
}
