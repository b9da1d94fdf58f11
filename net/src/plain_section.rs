//! Sections of a few numbers, which are all read and written in one way.

/// Gives a type its tag, and how it is put among sections and found there.
macro_rules! plain_section {
    ($type:ty, $(#[$of_tag:meta])* $tag:literal, $(#[$of_find:meta])*) => {
        impl $type {
            $(#[$of_tag])*
            pub const TAG: u16 = $tag;

            /// Puts it among the sections.
            ///
            /// # Errors
            /// None that numbers could cause.
            pub fn put(&self, sections: &mut crate::section::Sections) -> Result<(), crate::sources::SectionContentError> {
                crate::sources::put(Self::TAG, self, sections)
            }

            $(#[$of_find])*
            ///
            /// # Errors
            /// The section is none.
            pub fn find(
                sections: &crate::section::Sections,
            ) -> Result<Option<Self>, crate::sources::SectionContentError> {
                crate::sources::find_some(Self::TAG, sections)
            }
        }
    };
}

pub(crate) use plain_section;
