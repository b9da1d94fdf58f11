//! Phi-4-mini: `<|tool_call|>[{"name": …, "arguments": {…}}, …]<|/tool_call|>`.

use super::super::{
    family::{Bare, Family, Force},
    head::object,
};

pub(super) static PHI: Family = Family {
    name: "phi",
    is_taught_by: |source| source.contains("<|/tool_call|>") || source.contains("<|/tool|>"),
    opens: &["<|tool_call|>"],
    bare: Bare::AtStart,
    head: object,
    inner: &[],
    between: &[",", "]"],
    closes: &["<|/tool_call|>"],
    force: Force::Object { before: "<|tool_call|>[", arguments: "arguments", after: "]<|/tool_call|>" },
};
