//! Command R7B and Command A: `<|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}, …]<|END_ACTION|>`.

use super::super::{
    family::{Bare, Family, Force},
    head::object,
};

pub(super) static COHERE: Family = Family {
    name: "cohere",
    is_taught_by: |source| source.contains("<|START_ACTION|>"),
    opens: &["<|START_ACTION|>"],
    bare: Bare::Never,
    head: object,
    inner: &[],
    between: &[",", "]"],
    closes: &["<|END_ACTION|>"],
    force: Force::Generic,
};
