//! Models that other machines share: what names one, and its place in the cache. How they come is not known here.

use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
};

use super::{ModelRef, Progress, PullError, folder, names, part, record_path, slot, slot::SlotRecord};
use crate::{directories::Directories, files::bytes_on_disk};

/// What every link begins with.
const PREFIX: &str = "qmesh:";
/// Characters that stand for the manifest, the same whoever shares the model.
const MANIFEST_CHARS: usize = 52;
/// More than the longest link has.
const LINK_CHARS: usize = 16 << 10;

/// A shared model: by its manifest alone, where it is in the cache, or by the whole link, which gives the right to read it.
#[derive(Clone, Eq, PartialEq)]
pub struct SharedRef {
    text: String,
}

/// The place of a shared model in the cache, while it comes: nobody else pulls the same.
#[derive(Debug)]
pub struct SharedSlot {
    folder: PathBuf,
    files: Vec<String>,
    _lock: File,
}

impl SharedRef {
    /// Whether a word of the command line is meant to be a link.
    pub(super) fn is_meant(text: &str) -> bool {
        text.trim_start().get(..PREFIX.len()).is_some_and(|start| start.eq_ignore_ascii_case(PREFIX))
    }

    /// The link, or what stands for its manifest. White space and capital letters do not matter.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_ascii_lowercase();
        let rest = text.strip_prefix(PREFIX)?;
        let fits = (MANIFEST_CHARS..LINK_CHARS).contains(&rest.len());
        (fits && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))).then(|| Self { text: text.clone() })
    }

    /// What stands for the manifest.
    pub fn manifest(&self) -> &str {
        &self.text[PREFIX.len()..PREFIX.len() + MANIFEST_CHARS]
    }

    /// The whole link, if this is one. It is a secret.
    pub fn link(&self) -> Option<&str> {
        (self.text.len() > PREFIX.len() + MANIFEST_CHARS).then_some(&self.text)
    }
}

/// Without the right to read.
impl fmt::Display for SharedRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.manifest())
    }
}

impl fmt::Debug for SharedRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl SharedSlot {
    /// Makes a place for files of these names and lengths, if the disk has room for what is missing.
    ///
    /// # Errors
    /// There is no room, another process pulls the same model, or a name is none that a file can have.
    pub fn open(
        reference: &SharedRef,
        directories: &Directories,
        files: &[(&str, u64)],
        progress: &mut dyn Progress,
    ) -> Result<Self, PullError> {
        if let Some((name, _)) = files.iter().find(|(name, _)| !is_file_name(name)) {
            return Err(PullError::Name { name: (*name).into() });
        }
        let reference = ModelRef::Shared(reference.clone());
        let folder = folder(&reference, directories);
        let lock = slot::lock(&folder, super::LOCK_WAIT, progress)?;
        let there =
            |name: &str| bytes_on_disk(&part::part_path(&folder.join(name))) + bytes_on_disk(&folder.join(name));
        let needed = files.iter().map(|(name, bytes)| bytes.saturating_sub(there(name))).fold(0, u64::saturating_add);
        slot::ensure_space(&folder, needed)?;
        let names: Vec<String> = files.iter().map(|(name, _)| (*name).to_owned()).collect();
        let record = SlotRecord { name: reference.to_string(), files: names };
        record.write(&record_path(&reference, &folder))?;
        Ok(Self { folder, files: record.files, _lock: lock })
    }

    /// Where the file is once it is whole.
    pub fn target(&self, file: usize) -> PathBuf {
        self.folder.join(&self.files[file])
    }

    /// Where it is until then.
    pub fn part(&self, file: usize) -> PathBuf {
        part::part_path(&self.target(file))
    }
}

/// A name that a file can have on every system, for one that a file has here; `None` where nothing usable remains.
pub fn file_name(path: &Path) -> Option<String> {
    names::local_name(&path.file_name()?.to_string_lossy())
}

/// Whether a name from elsewhere is one that a model's file can have on every system.
pub fn is_file_name(name: &str) -> bool {
    names::local_name(name).as_deref() == Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull::{Silent, fetch, local};

    const MANIFEST: &str = "aaaabbbbccccddddeeeeffffgggghhhhiiiijjjjkkkkllllmmmm";

    #[test]
    fn a_link_names_its_manifest_and_keeps_its_right() {
        let link = format!("qmesh:{MANIFEST}zzzz2345");
        let ModelRef::Shared(shared) = format!(" {}\n", link.to_uppercase()).parse().unwrap() else { panic!() };
        assert_eq!((shared.manifest(), shared.link()), (MANIFEST, Some(link.as_str())));
        assert_eq!((shared.to_string(), format!("{shared:?}")), (format!("qmesh:{MANIFEST}"), shared.to_string()));
        let name: ModelRef = shared.to_string().parse().unwrap();
        assert!(matches!(&name, ModelRef::Shared(shared) if shared.link().is_none()), "{name:?}");
        for rest in ["", "short", &format!("{MANIFEST}1"), &format!("{MANIFEST}/..")] {
            let error = format!("qmesh:{rest}").parse::<ModelRef>().unwrap_err().to_string();
            assert!(error.contains("coordinator share") && (rest.is_empty() || !error.contains(rest)), "{error}");
        }
    }

    #[test]
    fn a_model_is_there_once_all_its_files_are() {
        let root = tempfile::tempdir().unwrap();
        let directories = Directories::under(root.path());
        let shared = SharedRef::parse(&format!("qmesh:{MANIFEST}")).unwrap();
        let reference = ModelRef::Shared(shared.clone());
        let wrong = SharedSlot::open(&shared, &directories, &[("../a.gguf", 1)], &mut Silent);
        assert!(matches!(wrong, Err(PullError::Name { .. })));
        let full = SharedSlot::open(&shared, &directories, &[("a.gguf", u64::MAX)], &mut Silent);
        assert!(matches!(full, Err(PullError::NoSpace { .. })));
        let slot = SharedSlot::open(&shared, &directories, &[("a.gguf", 1), ("b.gguf", 1)], &mut Silent).unwrap();
        std::fs::write(slot.target(0), "a").unwrap();
        std::fs::write(slot.part(1), "b").unwrap();
        assert_eq!(local(&reference, &directories), None);
        std::fs::rename(slot.part(1), slot.target(1)).unwrap();
        assert_eq!(local(&reference, &directories), Some(slot.target(0)));
        let other = format!("qmesh:{}", MANIFEST.replace('a', "z")).parse().unwrap();
        let missing = fetch(&other, &directories, &mut Silent);
        assert!(matches!(missing, Err(PullError::Elsewhere { .. })), "{missing:?}");
    }
}
