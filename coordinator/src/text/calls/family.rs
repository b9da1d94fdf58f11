//! What a format of calls is made of.

use super::{cursor::Stop, head::Head, pairs::Pairs};

/// One way of writing calls, which models of a family were trained on.
#[derive(Debug)]
pub(super) struct Family {
    /// What people call it.
    pub(super) name: &'static str,
    /// Whether a chat template, given its source, teaches it.
    pub(super) is_taught_by: fn(&str) -> bool,
    /// What begins a call, or several.
    pub(super) opens: &'static [&'static str],
    /// Whether a call may begin the answer without any of these.
    pub(super) bare: Bare,
    /// Reads the beginning of a call behind what opened it.
    pub(super) head: fn(&str) -> Result<Head, Stop>,
    /// Marks within a call; `head` reads them.
    pub(super) inner: &'static [&'static str],
    /// What may stand between calls that were opened together.
    pub(super) between: &'static [&'static str],
    /// What ends them.
    pub(super) closes: &'static [&'static str],
    /// How an answer is made to be a call.
    pub(super) force: Force,
}

/// Whether calls may come without a mark.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Bare {
    /// What looks like a call and is not marked is text.
    Never,
    /// Small models forget the marks, and some families have none: a JSON object that begins the answer, perhaps in a
    /// fence, is a call if it names a tool.
    AtStart,
}

/// How an answer is made to be a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Force {
    /// By a JSON object with the tool's name and its arguments.
    Object {
        /// Before it.
        before: &'static str,
        /// The key of the arguments.
        arguments: &'static str,
        /// Behind it.
        after: &'static str,
    },
    /// By the arguments, the name before them.
    Named {
        /// Before the name, and between it and the arguments.
        before: (&'static str, &'static str),
        /// Behind the arguments.
        after: &'static str,
    },
    /// In another format where a call is demanded; where it is not, by keys and values between tags.
    Tagged {
        /// Before the tool's name, and between it and the pairs.
        name: (&'static str, &'static str),
        /// The tags.
        pairs: &'static Pairs,
    },
    /// In another format, since a JSON schema does not describe this one.
    Generic,
}

impl Family {
    /// Every text that means something in this format and might be a token of its own.
    pub(super) fn marks(&self) -> impl Iterator<Item = &'static str> {
        [self.opens, self.inner, self.between, self.closes].into_iter().flatten().copied()
    }
}
