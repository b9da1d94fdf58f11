//! Hermes, Qwen 2.5 and 3, Granite 4 and many more: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`.

use super::super::{
    family::{Bare, Family, Force},
    head::object,
};

pub(super) static HERMES: Family = Family {
    name: "hermes",
    is_taught_by: |source| source.contains("<tool_call>"),
    // Small models write the others, which their prompts have around other things.
    opens: &["<tool_call>", "<tools>", "<function_call>"],
    bare: Bare::AtStart,
    head: object,
    inner: &[],
    between: &[",", ";", "]"],
    closes: &["</tool_call>", "</tools>", "</function_call>"],
    force: Force::Object { before: "<tool_call>\n", arguments: "arguments", after: "\n</tool_call>" },
};
