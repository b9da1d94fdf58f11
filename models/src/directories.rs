//! Where qmesh keeps its files: the XDG base directories, each with a `qmesh` folder of its own.

use std::{
    env,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use etcetera::{BaseStrategy, HomeDirError};

/// Overrides the cache folder.
pub const CACHE_VARIABLE: &str = "QMESH_CACHE";

/// The folders that qmesh uses. None of them need exist: who writes into one creates it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Directories {
    cache: PathBuf,
    config: PathBuf,
    keys: PathBuf,
}

/// Why the folders are not known.
#[derive(Debug, thiserror::Error)]
pub enum DirectoriesError {
    /// There is no home to keep them in.
    #[error("cannot tell the home directory: set HOME")]
    NoHome(#[from] HomeDirError),
    /// The override is relative and the working directory is gone.
    #[error("cannot make {CACHE_VARIABLE} absolute: {0}")]
    Relative(#[from] io::Error),
}

impl Directories {
    /// `qmesh` in `$XDG_CACHE_HOME`, `$XDG_CONFIG_HOME` and `$XDG_DATA_HOME` (for keys) or their defaults;
    /// `$QMESH_CACHE`, where it is set, is the cache folder itself.
    ///
    /// # Errors
    /// When there is no home directory.
    pub fn from_env() -> Result<Self, DirectoriesError> {
        Self::resolve(&etcetera::choose_base_strategy()?, env::var_os(CACHE_VARIABLE))
    }

    /// All of them inside `root`: for tests and for portable installations.
    pub fn under(root: &Path) -> Self {
        Self { cache: root.join("cache"), config: root.join("config"), keys: root.join("keys") }
    }

    /// What can be fetched or computed again.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// What the user writes: `config.toml`.
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// What must outlive the cache and be nobody else's: the machine's key.
    pub fn keys(&self) -> &Path {
        &self.keys
    }

    /// Pulled models, inside the cache.
    pub fn models(&self) -> PathBuf {
        self.cache.join("models")
    }

    fn resolve(base: &impl BaseStrategy, cache: Option<OsString>) -> Result<Self, DirectoriesError> {
        let cache = match cache.filter(|path| !path.is_empty()) {
            Some(path) => std::path::absolute(path)?,
            None => base.cache_dir().join("qmesh"),
        };
        Ok(Self { cache, config: base.config_dir().join("qmesh"), keys: base.data_dir().join("qmesh") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_override_wins_and_an_empty_one_counts_as_unset() {
        let base = etcetera::choose_base_strategy().unwrap();
        let plain = Directories::resolve(&base, None).unwrap();
        assert!(
            plain.cache().ends_with("qmesh") && plain.config().ends_with("qmesh") && plain.keys().ends_with("qmesh")
        );
        assert_eq!(Directories::resolve(&base, Some(OsString::new())).unwrap(), plain);

        let moved = Directories::resolve(&base, Some("/elsewhere".into())).unwrap();
        assert_eq!(moved.models(), Path::new("/elsewhere/models"));
        assert_eq!(moved.config(), plain.config());
        assert!(Directories::resolve(&base, Some("here".into())).unwrap().cache().is_absolute());
    }
}
