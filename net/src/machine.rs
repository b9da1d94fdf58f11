//! What a worker says of the machine that it runs on: what several workers share is counted once. A section of `Hello`.

use blake3::Hasher;

use crate::{
    codec::{Decode, Encode},
    ids::PeerId,
    limits::CPU_WORDS,
    section::Sections,
    sources::{SectionContentError, find_some, put, within},
};

/// The machine that a worker runs on, and what of it the worker may use.
#[derive(Clone, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct MachineShare {
    /// Which machine: its name in this mesh, see [`machine_name`].
    pub machine: [u8; 32],
    /// The CPUs that the worker may use: bit `n % 64` of word `n / 64` stands for CPU `n`. None where it cannot know.
    pub cpus: Vec<u64>,
    /// Which memory: that of the machine, or of a container that sets a limit of its own; a name as `machine` is.
    pub memory: [u8; 32],
    /// Bytes that processes could have of that memory when the worker joined.
    pub memory_bytes: u64,
}

impl MachineShare {
    /// The tag of its section.
    pub const TAG: u16 = 12;

    /// Puts it among the sections.
    ///
    /// # Errors
    /// It has more CPUs than a section may name.
    pub fn put(&self, sections: &mut Sections) -> Result<(), SectionContentError> {
        within(Self::TAG, "words of CPUs", self.cpus.len(), CPU_WORDS)?;
        put(Self::TAG, self, sections)
    }

    /// What the sections of a `Hello` say; `None` where they say nothing of it.
    ///
    /// # Errors
    /// The section is none, or names too many CPUs.
    pub fn find(sections: &Sections) -> Result<Option<Self>, SectionContentError> {
        let share: Option<Self> = find_some(Self::TAG, sections)?;
        within(Self::TAG, "words of CPUs", share.as_ref().map_or(0, |share| share.cpus.len()), CPU_WORDS)?;
        Ok(share)
    }
}

/// The name in one mesh of what `identity` names everywhere: two meshes cannot find out that they share a machine.
pub fn machine_name(coordinator: PeerId, identity: &[u8]) -> [u8; 32] {
    let mut hasher = Hasher::new_derive_key("qmesh machine 1");
    hasher.update(&coordinator.0).update(identity);
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share() -> MachineShare {
        MachineShare { machine: [1; 32], cpus: vec![3], memory: [2; 32], memory_bytes: 258 }
    }

    #[test]
    fn its_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!(MachineShare::find(&sections), Ok(None));
        share().put(&mut sections).unwrap();
        let hex = data_encoding::HEXLOWER.encode(sections.get(12).unwrap());
        let cpus = "01000000000000000300000000000000";
        assert_eq!(hex, ["01".repeat(32), cpus.into(), "02".repeat(32), "0201000000000000".into()].concat());
        assert_eq!(MachineShare::find(&sections), Ok(Some(share())));
    }

    #[test]
    fn too_many_cpus_and_other_bytes_are_refused() {
        let mut sections = Sections::default();
        let many = MachineShare { cpus: vec![1; CPU_WORDS + 1], ..share() };
        assert!(many.put(&mut sections).is_err());
        sections.set(MachineShare::TAG, vec![0; 9]);
        assert!(matches!(MachineShare::find(&sections), Err(SectionContentError::Malformed { tag: 12, .. })));
    }

    #[test]
    fn a_machine_has_another_machine_name_every_mesh() {
        let name = |mesh: u8| machine_name(PeerId([mesh; 32]), b"boot");
        assert_eq!(name(1), name(1));
        assert_ne!(name(1), name(2));
        assert_ne!(name(1), machine_name(PeerId([1; 32]), b"other"));
    }
}
