//! GLM 4.5 and later: `<tool_call>name`, then `<arg_key>` and `<arg_value>` for each argument, `</tool_call>`.

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::{Arguments, Head, object},
    pairs::{Lines, Pairs, Types},
};

pub(super) static GLM: Family = Family {
    name: "glm",
    is_taught_by: |source| source.contains("<arg_key>"),
    opens: &["<tool_call>"],
    bare: Bare::Never,
    head,
    inner: &["<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
    between: &[],
    closes: &["</tool_call>"],
    force: Force::Tagged { name: ("<tool_call>", ""), pairs: &PAIRS },
};

static PAIRS: Pairs = Pairs {
    key: ("<arg_key>", "</arg_key>"),
    value: ("<arg_value>", "</arg_value>"),
    end: "</tool_call>",
    lines: Lines::Shared,
    types: Types::BySchema,
};

fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    if cursor.peek()? == '{' {
        return object(text);
    }
    let name = cursor.name()?;
    let at = cursor.at();
    // Words that only stand behind the mark are no call.
    if !cursor.space().skip("<arg_key>")? {
        cursor.expect("</tool_call>")?;
    }
    Ok(Head::Open { name: name.to_owned(), at, arguments: Arguments::Pairs(&PAIRS) })
}
