//! Every element type that ggml has numbered, so that a file with types that we cannot compute can still be described.

use std::fmt;

use crate::tensor::TensorType;

/// ggml's number of an element type, known to us or not.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct GgmlType(pub u32);

impl GgmlType {
    /// The same type where we can compute with it.
    pub fn tensor_type(self) -> Option<TensorType> {
        TensorType::from_ggml(self.0)
    }

    /// Elements and bytes per block; `None` where ggml no longer has, or we do not know, the type.
    pub fn block(self) -> Option<(u64, u64)> {
        if let Some(known) = self.tensor_type() {
            return Some((known.block_len() as u64, known.block_bytes() as u64));
        }
        FOREIGN.iter().find(|(id, ..)| *id == self.0).map(|&(_, _, len, bytes)| (len, bytes))
    }
}

impl From<TensorType> for GgmlType {
    fn from(known: TensorType) -> Self {
        Self(known.ggml_id())
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(known) = self.tensor_type() {
            return known.fmt(f);
        }
        if let Some((_, name, ..)) = FOREIGN.iter().find(|(id, ..)| *id == self.0) {
            return f.write_str(name);
        }
        match REMOVED.iter().find(|(id, _)| *id == self.0) {
            Some((_, name)) => write!(f, "{name} (removed from ggml)"),
            None => write!(f, "ggml type {}", self.0),
        }
    }
}

/// Number, name, elements and bytes per block of the types that we only describe.
const FOREIGN: [(u32, &str, u64, u64); 7] = [
    (9, "Q8_1", 32, 36),
    (15, "Q8_K", 256, 292),
    (24, "I8", 1, 1),
    (25, "I16", 1, 2),
    (26, "I32", 1, 4),
    (27, "I64", 1, 8),
    (28, "F64", 1, 8),
];

/// Types that files of their time may still hold.
const REMOVED: [(u32, &str); 8] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_one_name() {
        let names: Vec<_> = (0..=42).map(|id| GgmlType(id).to_string()).collect();
        assert!(names.iter().all(|name| !name.starts_with("ggml type")));
        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
        assert_eq!(GgmlType(17).to_string(), "IQ2_XS");
        assert_eq!(GgmlType(4).to_string(), "Q4_2 (removed from ggml)");
        assert_eq!(GgmlType(99).to_string(), "ggml type 99");
        assert!(TensorType::ALL.iter().all(|t| FOREIGN.iter().all(|(id, ..)| *id != t.ggml_id())));
    }
}
