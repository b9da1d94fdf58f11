//! For templates that teach no format we know: what our own instructions ask for, and the marks that are most usual.

use super::super::{
    family::{Bare, Family, Force},
    head::object,
};

pub(super) static GENERIC: Family = Family {
    name: "generic",
    is_taught_by: |_| true,
    opens: &["<tool_call>", "<|tool_call|>", "<function_call>"],
    bare: Bare::AtStart,
    head: object,
    inner: &[],
    between: &[",", ";", "]"],
    closes: &["</tool_call>", "<|/tool_call|>", "</function_call>"],
    force: Force::Object { before: "<tool_call>\n", arguments: "arguments", after: "\n</tool_call>" },
};
