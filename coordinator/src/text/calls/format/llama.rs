//! Llama 3: `{"name": …, "parameters": {…}}` in place of an answer, perhaps behind `<|python_tag|>`.

use super::super::{
    family::{Bare, Family, Force},
    head::object,
};

pub(super) static LLAMA: Family = Family {
    name: "llama",
    is_taught_by: |source| source.contains("<|start_header_id|>") && source.contains("\"parameters\""),
    opens: &["<|python_tag|>"],
    bare: Bare::AtStart,
    head: object,
    inner: &[],
    between: &[";", ",", "]"],
    closes: &[],
    force: Force::Object { before: "", arguments: "parameters", after: "" },
};
