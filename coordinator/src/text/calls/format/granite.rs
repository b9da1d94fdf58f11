//! Granite 3: `<|tool_call|>[{"name": …, "arguments": {…}}, …]`; some write `<tool_call>` instead.

use super::super::{
    family::{Bare, Family, Force},
    head::object,
};

pub(super) static GRANITE: Family = Family {
    name: "granite",
    is_taught_by: |source| source.contains("<|tool_call|>"),
    opens: &["<|tool_call|>", "<tool_call>"],
    bare: Bare::AtStart,
    head: object,
    inner: &[],
    between: &[",", "]"],
    closes: &["</tool_call>"],
    force: Force::Object { before: "<|tool_call|>[", arguments: "arguments", after: "]" },
};
