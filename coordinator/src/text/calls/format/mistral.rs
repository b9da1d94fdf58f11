//! Mistral: `[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, and since 2025 `[TOOL_CALLS]name[ARGS]{…}` for each call.

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::{Head, before_json, object},
};

/// The older one.
pub(super) static MISTRAL: Family = OBJECTS;

const OBJECTS: Family = Family {
    name: "mistral",
    is_taught_by: |source| source.contains("[TOOL_CALLS]"),
    opens: &["[TOOL_CALLS]"],
    bare: Bare::AtStart,
    head,
    inner: &["[ARGS]", "[CALL_ID]"],
    between: &[",", "]"],
    closes: &[],
    force: Force::Object { before: "[TOOL_CALLS][", arguments: "arguments", after: "]" },
};

/// The newer one.
pub(super) static MISTRAL_ARGS: Family = Family {
    name: "mistral-args",
    is_taught_by: |source| source.contains("[TOOL_CALLS]") && source.contains("[ARGS]"),
    force: Force::Named { before: ("[TOOL_CALLS]", "[ARGS]"), after: "" },
    ..OBJECTS
};

/// Either: models of one kind are given the other's template as well.
fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    if matches!(cursor.peek()?, '[' | '{') {
        return object(text);
    }
    let name = cursor.name()?;
    if cursor.space().skip("[CALL_ID]")? {
        cursor.name()?;
    }
    if cursor.peek()? != '{' {
        cursor.expect("[ARGS]")?;
    }
    before_json(name, &mut cursor)
}
