//! Kimi K2: a section of calls, each with an id that holds the tool's name, as `functions.name:0`.

use super::super::{
    cursor::{Cursor, Stop},
    family::{Bare, Family, Force},
    head::{Head, before_json},
};

pub(super) static KIMI: Family = Family {
    name: "kimi",
    is_taught_by: |source| source.contains("<|tool_calls_section_begin|>"),
    opens: &["<|tool_calls_section_begin|>", "<|tool_call_begin|>"],
    bare: Bare::Never,
    head,
    inner: &["<|tool_call_argument_begin|>"],
    between: &["<|tool_call_end|>"],
    closes: &["<|tool_calls_section_end|>"],
    force: Force::Named {
        before: ("<|tool_calls_section_begin|><|tool_call_begin|>functions.", ":0<|tool_call_argument_begin|>"),
        after: "<|tool_call_end|><|tool_calls_section_end|>",
    },
};

fn head(text: &str) -> Result<Head, Stop> {
    let mut cursor = Cursor::new(text);
    cursor.space().skip("<|tool_call_begin|>")?;
    let id = cursor.name()?;
    cursor.space().expect("<|tool_call_argument_begin|>")?;
    let name = id.strip_prefix("functions.").unwrap_or(id);
    before_json(name.rsplit_once(':').map_or(name, |(name, _)| name), &mut cursor)
}
