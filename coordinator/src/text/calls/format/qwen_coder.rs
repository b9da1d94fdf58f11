//! Qwen3-Coder: `<tool_call><function=name><parameter=key>value</parameter></function></tool_call>`; Seed-OSS has the
//! same within marks of its own.

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::{Arguments, Head, object},
    pairs::{Lines, Pairs, Types},
};

pub(super) static QWEN_CODER: Family = Family {
    name: "qwen3-coder",
    is_taught_by: |source| source.contains("<function=") && source.contains("<parameter="),
    // The outer mark is sometimes forgotten.
    opens: &["<tool_call>", "<seed:tool_call>", "<function="],
    bare: Bare::Never,
    head,
    inner: &[],
    between: &[],
    closes: &["</tool_call>", "</seed:tool_call>"],
    force: Force::Tagged { name: ("<function=", ">"), pairs: &PAIRS },
};

static PAIRS: Pairs = Pairs {
    key: ("<parameter=", ">"),
    value: ("", "</parameter>"),
    end: "</function>",
    lines: Lines::Own,
    types: Types::BySchema,
};

fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    if cursor.peek()? == '{' {
        return object(text);
    }
    cursor.skip("<function=")?;
    let name = cursor.name()?;
    cursor.expect(">")?;
    Ok(Head::Open { name: name.to_owned(), at: cursor.at(), arguments: Arguments::Pairs(&PAIRS) })
}
