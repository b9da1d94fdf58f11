//! Methods of texts, lists and dictionaries that minijinja-contrib lacks or has otherwise than Python.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Tuple, ValueKind},
};

use super::{
    args::{bound, integer, required_text},
    budget::RenderBudget,
    operators::clamped,
};

/// Widest padding, in characters.
const WIDTH_MAX: i64 = 9999;

/// Where to strip.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Sides {
    Left,
    Right,
    Both,
}

/// Whether lines keep their ends.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum LineEnds {
    Keep,
    Cut,
}

/// `value.name(args)`; `None` where the method is not one of these.
pub(super) fn method(budget: &RenderBudget, value: &Value, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    match (value.kind(), name) {
        (ValueKind::String, _) => text_method(budget, value.as_str().unwrap_or_default(), name, args),
        (ValueKind::Seq, "index" | "count") => {
            let [wanted] = bound(args, ["value"])?;
            budget.weigh(value)?;
            let mut found = value.try_iter()?.enumerate().filter(|(_, item)| Some(item) == wanted.as_ref());
            if name == "count" {
                return Ok(Some(Value::from(found.count())));
            }
            found
                .next()
                .map(|(place, _)| Some(Value::from(place)))
                .ok_or_else(|| invalid("the item is not in the list"))
        }
        // Nothing can change them, so that a copy need not be one.
        (ValueKind::Seq | ValueKind::Map, "copy") => bound(args, []).map(|[]| Some(value.clone())),
        _ => Ok(None),
    }
}

fn text_method(budget: &RenderBudget, text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let value = match name {
        "strip" | "lstrip" | "rstrip" => {
            let [chars] = bound(args, ["chars"])?;
            let sides = match name {
                "lstrip" => Sides::Left,
                "rstrip" => Sides::Right,
                _ => Sides::Both,
            };
            strip(budget, text, chars.as_ref(), sides)?
        }
        "split" | "rsplit" => {
            let [separator, limit] = bound(args, ["sep", "maxsplit"])?;
            let limit = usize::try_from(integer(limit.as_ref())?.unwrap_or(-1)).unwrap_or(usize::MAX);
            let separator = separator.filter(|separator| !separator.is_none());
            let separator = separator.as_ref().map(|separator| required_text(Some(separator))).transpose()?;
            let pieces = if name == "split" { split(text, separator, limit)? } else { rsplit(text, separator, limit)? };
            pieces_value(budget, pieces)?
        }
        "splitlines" => {
            let [keep] = bound(args, ["keepends"])?;
            let ends = if keep.is_some_and(|keep| keep.is_true()) { LineEnds::Keep } else { LineEnds::Cut };
            pieces_value(budget, lines(text, ends))?
        }
        "startswith" | "endswith" | "find" | "rfind" | "index" | "rindex" | "count" => return search(text, name, args),
        "replace" => {
            let [old, new, count] = bound(args, ["old", "new", "count"])?;
            let (old, new) = (required_text(old.as_ref())?, required_text(new.as_ref())?);
            replace(budget, text, old, new, integer(count.as_ref())?)?
        }
        "join" => {
            let [items] = bound(args, ["iterable"])?;
            join(budget, text, &items.unwrap_or_default())?
        }
        "partition" | "rpartition" => {
            let [separator] = bound(args, ["sep"])?;
            partition(text, required_text(separator.as_ref())?, name == "rpartition")?
        }
        "removeprefix" | "removesuffix" => {
            let [affix] = bound(args, ["affix"])?;
            let affix = required_text(affix.as_ref())?;
            let rest = if name == "removeprefix" { text.strip_prefix(affix) } else { text.strip_suffix(affix) };
            Value::from(rest.unwrap_or(text))
        }
        "title" => bound(args, []).map(|[]| Value::from(title(text)))?,
        "swapcase" => bound(args, []).map(|[]| Value::from(swapcase(text)))?,
        "casefold" => bound(args, []).map(|[]| Value::from(text.to_lowercase().replace('ß', "ss")))?,
        "ljust" | "rjust" | "center" | "zfill" => padded(budget, text, name, args)?,
        _ => return Ok(None),
    };
    Ok(Some(value))
}

/// `text.strip(chars)`, or of one side; null for white space.
pub(super) fn strip(budget: &RenderBudget, text: &str, chars: Option<&Value>, sides: Sides) -> Result<Value, Error> {
    let chars: Option<Vec<char>> = match chars.filter(|chars| !chars.is_none()) {
        Some(chars) => Some(required_text(Some(chars))?.chars().collect()),
        None => None,
    };
    budget.charge(text.len().saturating_mul(chars.as_ref().map_or(1, Vec::len)))?;
    let stripped = |c: char| chars.as_ref().map_or_else(|| is_space(c), |chars| chars.contains(&c));
    let text = if sides == Sides::Right { text } else { text.trim_start_matches(stripped) };
    Ok(Value::from(if sides == Sides::Left { text } else { text.trim_end_matches(stripped) }))
}

/// `text.replace(old, new, count)`; a negative count is all of them.
pub(super) fn replace(
    budget: &RenderBudget,
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
) -> Result<Value, Error> {
    let count = usize::try_from(count.unwrap_or(-1)).unwrap_or(usize::MAX);
    budget.charge(text.len())?;
    let replaced = text.matches(old).count().min(count);
    budget.charge(replaced.saturating_mul(new.len()))?;
    Ok(Value::from(text.replacen(old, new, replaced)))
}

/// The lines of a text, ended by whatever Unicode has for it.
pub(super) fn lines(text: &str, ends: LineEnds) -> Vec<&str> {
    let mut lines = Vec::new();
    let (mut begin, mut chars) = (0, text.char_indices().peekable());
    while let Some((at, c)) = chars.next() {
        if !matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}') {
            continue;
        }
        let mut next = at + c.len_utf8();
        if c == '\r' && chars.next_if(|&(_, c)| c == '\n').is_some() {
            next += 1;
        }
        lines.push(&text[begin..if ends == LineEnds::Keep { next } else { at }]);
        begin = next;
    }
    if begin < text.len() {
        lines.push(&text[begin..]);
    }
    lines
}

/// Python's white space, which has four control characters more than Unicode.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// The pieces between separators, or between stretches of white space, `limit` splits at most.
fn split<'t>(text: &'t str, separator: Option<&str>, limit: usize) -> Result<Vec<&'t str>, Error> {
    match separator {
        Some("") => Err(invalid("the separator is empty")),
        Some(separator) => Ok(text.splitn(limit.saturating_add(1), separator).collect()),
        None => {
            let (mut pieces, mut rest) = (Vec::new(), text.trim_start_matches(is_space));
            while !rest.is_empty() {
                let end = if pieces.len() < limit { rest.find(is_space) } else { None };
                let (piece, after) = rest.split_at(end.unwrap_or(rest.len()));
                pieces.push(piece);
                rest = after.trim_start_matches(is_space);
            }
            Ok(pieces)
        }
    }
}

/// As `split`, from the end.
fn rsplit<'t>(text: &'t str, separator: Option<&str>, limit: usize) -> Result<Vec<&'t str>, Error> {
    let mut pieces: Vec<_> = match separator {
        Some("") => return Err(invalid("the separator is empty")),
        Some(separator) => text.rsplitn(limit.saturating_add(1), separator).collect(),
        None => {
            let (mut pieces, mut rest) = (Vec::new(), text.trim_end_matches(is_space));
            while !rest.is_empty() {
                let begin = if pieces.len() < limit { rest.rmatch_indices(is_space).next() } else { None };
                let (before, piece) = rest.split_at(begin.map_or(0, |(at, space)| at + space.len()));
                pieces.push(piece);
                rest = before.trim_end_matches(is_space);
            }
            pieces
        }
    };
    pieces.reverse();
    Ok(pieces)
}

fn pieces_value(budget: &RenderBudget, pieces: Vec<&str>) -> Result<Value, Error> {
    budget.pieces(pieces.len())?;
    Ok(pieces.into_iter().map(Value::from).collect())
}

/// The methods that look for a text, between a start and an end in characters.
fn search(text: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let [wanted, start, end] = bound(args, ["sub", "start", "end"])?;
    let (window, skipped) = match (integer(start.as_ref())?, integer(end.as_ref())?) {
        (None, None) => (text, 0),
        (start, end) => match window(text, start.unwrap_or(0), end.unwrap_or(i64::MAX)) {
            Some(found) => found,
            None => return not_found(name),
        },
    };
    if let "startswith" | "endswith" = name {
        let affix =
            |affix: &str| if name == "startswith" { window.starts_with(affix) } else { window.ends_with(affix) };
        let several = wanted.as_ref().filter(|wanted| wanted.kind() == ValueKind::Seq);
        let found = match several {
            Some(several) => several.try_iter()?.any(|one| one.as_str().is_some_and(affix)),
            None => affix(required_text(wanted.as_ref())?),
        };
        return Ok(Some(Value::from(found)));
    }
    let wanted = required_text(wanted.as_ref())?;
    if name == "count" {
        return Ok(Some(Value::from(window.matches(wanted).count())));
    }
    let place = if name.starts_with('r') { window.rfind(wanted) } else { window.find(wanted) };
    match place {
        Some(place) => Ok(Some(Value::from(skipped + window[..place].chars().count()))),
        None => not_found(name),
    }
}

/// What a search answers that cannot find anything.
fn not_found(name: &str) -> Result<Option<Value>, Error> {
    match name {
        "index" | "rindex" => Err(invalid("the text was not found")),
        "find" | "rfind" => Ok(Some(Value::from(-1))),
        "count" => Ok(Some(Value::from(0))),
        _ => Ok(Some(Value::from(false))),
    }
}

/// The part of a text from character `start` to `end`, and how many are before it; `None` where it begins after its end.
fn window(text: &str, start: i64, end: i64) -> Option<(&str, usize)> {
    let len = text.chars().count();
    let start = if start > 0 { start } else { clamped(start, len, 0, 0) };
    let end = clamped(end, len, 0, i64::try_from(len).unwrap_or(i64::MAX));
    if start > end {
        return None;
    }
    let [start, end] = [start, end].map(|bound| usize::try_from(bound).unwrap_or(0));
    let byte = |chars: usize| text.char_indices().nth(chars).map_or(text.len(), |(at, _)| at);
    Some((&text[byte(start)..byte(end)], start))
}

fn join(budget: &RenderBudget, separator: &str, items: &Value) -> Result<Value, Error> {
    if items.is_none() {
        return Err(invalid("none cannot be joined"));
    }
    let mut out = String::new();
    for (index, item) in items.try_iter()?.enumerate() {
        let item = item.as_str().ok_or_else(|| invalid("only texts can be joined"))?;
        let separator = if index == 0 { "" } else { separator };
        budget.charge(separator.len().saturating_add(item.len()))?;
        out.extend([separator, item]);
    }
    Ok(Value::from(out))
}

fn partition(text: &str, separator: &str, last: bool) -> Result<Value, Error> {
    if separator.is_empty() {
        return Err(invalid("the separator is empty"));
    }
    let parts = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match parts {
        Some((before, after)) => [before, separator, after],
        None if last => ["", "", text],
        None => [text, "", ""],
    };
    Ok(Value::from(Tuple::from(parts.map(Value::from))))
}

/// Each letter after something that is none in upper case, the others in lower case.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut inside = false;
    for c in text.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        };
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

fn swapcase(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_uppercase() {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        };
    }
    out
}

fn padded(budget: &RenderBudget, text: &str, name: &str, args: &[Value]) -> Result<Value, Error> {
    let [width, fill] = bound(args, ["width", "fillchar"])?;
    let width = integer(width.as_ref())?.ok_or(ErrorKind::MissingArgument)?;
    if width > WIDTH_MAX {
        return Err(invalid("a text is padded to 9999 characters at most"));
    }
    let fill = match (&fill, name) {
        (_, "zfill") => "0",
        (None, _) => " ",
        (Some(fill), _) => required_text(Some(fill))
            .ok()
            .filter(|fill| fill.chars().count() == 1)
            .ok_or_else(|| invalid("padding is one character"))?,
    };
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    budget.charge(text.len() + missing.saturating_mul(fill.len()))?;
    let pad = |count: usize| fill.repeat(count);
    Ok(Value::from(match name {
        "ljust" => [text, &pad(missing)].concat(),
        "rjust" => [&pad(missing), text].concat(),
        "zfill" => {
            let digits = text.trim_start_matches(['-', '+']);
            let sign = if text.len() - digits.len() == 1 { &text[..1] } else { "" };
            [sign, &pad(missing), &text[sign.len()..]].concat()
        }
        _ => {
            // Of an odd number, Python puts the greater half left where the width is odd.
            let left = missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1);
            [&pad(left), text, &pad(missing - left)].concat()
        }
    }))
}

fn invalid(what: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}
