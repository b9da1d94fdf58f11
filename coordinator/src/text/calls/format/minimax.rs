//! MiniMax M2: calls as `<invoke name="name">` with a `<parameter name="key">` for each argument, within one mark. DeepSeek V3.2 has
//! the same within marks of its own, and says of each value whether it is a text or JSON.

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::{Arguments, Head},
    pairs::{Lines, Pairs, Types},
};

pub(super) static MINIMAX: Family = Family {
    name: "minimax",
    is_taught_by: |source| source.contains("<minimax:tool_call>"),
    // Further calls stand within the same mark.
    opens: &["<minimax:tool_call>", "<invoke name=\""],
    bare: Bare::Never,
    head: |text| head(text, "<invoke name=\"", &PAIRS),
    inner: &[],
    between: &[],
    closes: &["</minimax:tool_call>"],
    force: Force::Tagged { name: ("<invoke name=\"", "\">"), pairs: &PAIRS },
};

/// DeepSeek V3.2's.
pub(super) static DEEPSEEK_32: Family = Family {
    name: "deepseek-3.2",
    is_taught_by: |source| source.contains("｜DSML｜") && source.contains("function_calls"),
    opens: &["<｜DSML｜function_calls>", "<｜DSML｜invoke name=\""],
    bare: Bare::Never,
    head: |text| head(text, "<｜DSML｜invoke name=\"", &TYPED_PAIRS),
    inner: &["｜DSML｜"],
    between: &[],
    closes: &["</｜DSML｜function_calls>"],
    force: Force::Tagged { name: ("<｜DSML｜invoke name=\"", "\">"), pairs: &TYPED_PAIRS },
};

static PAIRS: Pairs = Pairs {
    key: ("<parameter name=\"", "\">"),
    value: ("", "</parameter>"),
    end: "</invoke>",
    lines: Lines::Shared,
    types: Types::BySchema,
};

static TYPED_PAIRS: Pairs = Pairs {
    key: ("<｜DSML｜parameter name=\"", "\">"),
    value: ("", "</｜DSML｜parameter>"),
    end: "</｜DSML｜invoke>",
    lines: Lines::Shared,
    types: Types::BehindKey { text: "\" string=\"true", json: "\" string=\"false" },
};

fn head(text: &str, before_name: &str, pairs: &'static Pairs) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    cursor.space().skip(before_name)?;
    let name = cursor.name()?;
    cursor.expect("\">")?;
    Ok(Head::Open { name: name.to_owned(), at: cursor.at(), arguments: Arguments::Pairs(pairs) })
}
