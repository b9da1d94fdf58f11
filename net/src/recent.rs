//! How long a stage's last steps took: what its report says beside the sums.

use crate::{
    codec::{Decode, Encode},
    plain_section::plain_section,
};

/// Computing times of a stage's last steps, whatever their rows. A section of `StageReport`.
#[derive(Clone, Copy, Debug, Decode, Default, Encode, Eq, PartialEq)]
pub struct RecentSteps {
    /// How many steps these are.
    pub steps: u32,
    /// Half of them took at most so many microseconds.
    pub p50_us: u32,
    /// 95 of 100 took at most so many microseconds.
    pub p95_us: u32,
}

plain_section!(
    RecentSteps,
    /// The tag of its section.
    22,
    /// What the sections of a `StageReport` say; `None` where they say nothing of it.
);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{section::Sections, sources::SectionContentError};

    #[test]
    fn its_bytes_never_change() {
        let mut sections = Sections::default();
        assert_eq!(RecentSteps::find(&sections), Ok(None));
        let recent = RecentSteps { steps: 3, p50_us: 258, p95_us: 1 << 24 };
        recent.put(&mut sections).unwrap();
        assert_eq!(sections.get(22).map(|bytes| &bytes[..]), Some(&[3, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 1][..]));
        assert_eq!(RecentSteps::find(&sections), Ok(Some(recent)));
        sections.set(RecentSteps::TAG, vec![0; 11]);
        assert!(matches!(RecentSteps::find(&sections), Err(SectionContentError::Malformed { tag: 22, .. })));
    }
}
