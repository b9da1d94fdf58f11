//! Where coordinators were found that were not at their tickets' addresses, as a worker remembers it over restarts.

use std::{fs, path::PathBuf};

use qmesh_discovery::is_dialable;
use qmesh_net::{PeerId, replace_private};

/// Where a ticket's coordinator was found before. It is tried beside the ticket's addresses, and is as little trusted.
#[derive(Clone, Debug, Default)]
pub(super) struct Whereabouts {
    folder: Option<PathBuf>,
    coordinator: Option<PeerId>,
    addresses: Vec<String>,
}

impl Whereabouts {
    /// As they are kept in the folder; for this run only without one.
    pub(super) fn kept_in(folder: Option<PathBuf>) -> Self {
        Self { folder, ..Self::default() }
    }

    /// Where this coordinator was, the last place first.
    pub(super) fn of(&mut self, coordinator: PeerId) -> &[String] {
        if self.coordinator != Some(coordinator) {
            self.coordinator = Some(coordinator);
            // What cannot be read is found again.
            let text = self.path().and_then(|path| fs::read_to_string(path).ok()).unwrap_or_default();
            self.addresses = text.lines().filter(|line| is_dialable(line)).take(PLACES).map(str::to_owned).collect();
        }
        &self.addresses
    }

    /// It was found here.
    pub(super) fn found(&mut self, coordinator: PeerId, address: String) {
        if self.of(coordinator).first() == Some(&address) {
            return;
        }
        self.addresses.retain(|known| *known != address);
        self.addresses.insert(0, address);
        self.addresses.truncate(PLACES);
        if let Some(Err(error)) = self.path().map(|path| replace_private(&path, self.addresses.join("\n").as_bytes())) {
            tracing::warn!(%error, "where the coordinator was found is not remembered");
        }
    }

    fn path(&self) -> Option<PathBuf> {
        let mark = qmesh_discovery::mark_of(self.coordinator?);
        Some(self.folder.as_ref()?.join(format!("coordinator-{mark}.places")))
    }
}

/// Places that are remembered of a coordinator.
const PLACES: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_remembered_by_the_coordinators_key() {
        let folder = tempfile::tempdir().unwrap();
        let kept = || Whereabouts::kept_in(Some(folder.path().to_owned()));
        let (one, other) = (PeerId([1; 32]), PeerId([2; 32]));
        let mut places = kept();
        assert!(places.of(one).is_empty());
        (0..9).for_each(|port| places.found(one, format!("10.0.0.1:{port}")));
        places.found(one, "10.0.0.1:6".into());
        assert!(places.of(other).is_empty());
        let expected = ["10.0.0.1:6", "10.0.0.1:8", "10.0.0.1:7", "10.0.0.1:5"];
        assert_eq!(kept().of(one), expected);
        fs::write(kept_path(folder.path(), one), "\u{1b}[31m:1\n[::1]:9\nnone").unwrap();
        assert_eq!(kept().of(one), ["[::1]:9"]);
        let mut forgetful = Whereabouts::kept_in(None);
        forgetful.found(one, "10.0.0.1:6".into());
        assert_eq!(forgetful.of(one), ["10.0.0.1:6"]);
    }

    fn kept_path(folder: &std::path::Path, coordinator: PeerId) -> PathBuf {
        let places = Whereabouts { coordinator: Some(coordinator), ..Whereabouts::kept_in(Some(folder.to_owned())) };
        places.path().unwrap()
    }
}
