//! DeepSeek V3, R1 and V3.1: calls between marks, the name first. The older ones fence the arguments.

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::{Head, before_json},
};

/// V3 and R1: the type, the name, and the arguments in a fence.
pub(super) static DEEPSEEK: Family = FENCED;

const FENCED: Family = Family {
    name: "deepseek",
    is_taught_by: |source| source.contains("<｜tool▁calls▁begin｜>") && source.contains("```json"),
    opens: &["<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"],
    bare: Bare::Never,
    head,
    inner: &["<｜tool▁sep｜>"],
    between: &["```", "<｜tool▁call▁end｜>"],
    closes: &["<｜tool▁calls▁end｜>"],
    force: Force::Named {
        before: ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>", "\n```json\n"),
        after: "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    },
};

/// V3.1: the name and the arguments.
pub(super) static DEEPSEEK_31: Family = Family {
    name: "deepseek-3.1",
    is_taught_by: |source| source.contains("<｜tool▁calls▁begin｜>"),
    force: Force::Named {
        before: ("<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "<｜tool▁sep｜>"),
        after: "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    },
    ..FENCED
};

fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    cursor.space().skip("<｜tool▁call▁begin｜>")?;
    let mut name = cursor.name()?;
    cursor.space().expect("<｜tool▁sep｜>")?;
    // What came first is the type where a name follows.
    if cursor.peek()? != '{' {
        name = cursor.name()?;
        if cursor.space().skip("```")? {
            cursor.skip("json")?;
        }
    }
    before_json(name, &mut cursor)
}
