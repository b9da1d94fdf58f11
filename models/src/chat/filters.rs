//! Filters that differ from minijinja's, as Jinja and transformers have them.

use std::borrow::Cow;

use minijinja::{Error, ErrorKind, Value, value::ValueKind};

use super::{
    args::{bound, integer, required_text, truth},
    budget::RenderBudget,
    escape::escaped,
    json, methods, repr,
};

/// A filter of ours: its arguments begin with the value.
pub(super) type Filter = fn(&RenderBudget, &[Value]) -> Result<Value, Error>;

/// Filters by name.
pub(super) const FILTERS: [(&str, Filter); 14] = [
    ("count", length),
    ("d", default),
    ("default", default),
    ("e", escape),
    ("escape", escape),
    ("first", first),
    ("indent", indent),
    ("join", join),
    ("length", length),
    ("list", list),
    ("replace", replace),
    ("string", string),
    ("tojson", json::tojson),
    ("trim", trim),
];

fn default(_: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value, default, boolean] = bound(args, ["value", "default_value", "boolean"])?;
    let value = value.unwrap_or_default();
    let replaced = value.is_undefined() || truth(boolean.as_ref()) && !value.is_true();
    Ok(if replaced { default.unwrap_or_else(|| Value::from("")) } else { value })
}

fn escape(_: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value] = bound(args, ["s"])?;
    escaped(&value.unwrap_or_default()).map(Value::from_safe_string)
}

fn first(_: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value] = bound(args, ["seq"])?;
    let value = value.unwrap_or_default();
    if value.is_none() {
        return Err(Error::new(ErrorKind::InvalidOperation, "none has no first item"));
    }
    Ok(value.try_iter()?.next().unwrap_or_default())
}

fn indent(budget: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value, width, first, blank] = bound(args, ["s", "width", "first", "blank"])?;
    let value = value.filter(|value| value.kind() == ValueKind::String);
    let text = required_text(value.as_ref())?;
    let margin = match width.as_ref().and_then(Value::as_str) {
        Some(margin) => Cow::Borrowed(margin),
        None => {
            let width = usize::try_from(integer(width.as_ref())?.unwrap_or(4).max(0)).unwrap_or(usize::MAX);
            budget.charge(width)?;
            Cow::Owned(" ".repeat(width))
        }
    };
    // Jinja adds a line end first, so that one at the end of the text is kept.
    let whole = format!("{text}\n");
    let lines = methods::lines(&whole, methods::LineEnds::Cut);
    budget.charge((lines.len() + 1).saturating_mul(margin.len()))?;
    let mut out = String::with_capacity(text.len());
    for (index, line) in lines.iter().enumerate() {
        out.push_str(if index == 0 { "" } else { "\n" });
        let indented = if index == 0 { truth(first.as_ref()) } else { !line.is_empty() || truth(blank.as_ref()) };
        out.push_str(if indented { &margin } else { "" });
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn join(budget: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value, separator, attribute] = bound(args, ["value", "d", "attribute"])?;
    let separator = separator.unwrap_or_default();
    let separator = repr::text(&separator)?;
    let mut out = String::new();
    for (index, item) in value.unwrap_or_default().try_iter()?.enumerate() {
        let item = match &attribute {
            Some(path) => attribute_of(budget, item, path)?,
            None => item,
        };
        let text = repr::text(&item)?;
        let separator = if index == 0 { "" } else { &separator };
        budget.charge(separator.len().saturating_add(text.len()))?;
        out.extend([separator, &text]);
    }
    Ok(Value::from(out))
}

/// What a dotted path leads to from a value; its numbers are indices.
fn attribute_of(budget: &RenderBudget, value: Value, path: &Value) -> Result<Value, Error> {
    let path = repr::text(path)?;
    budget.charge(path.len())?;
    path.split('.').try_fold(value, |value, part| match part.parse::<usize>() {
        Ok(index) => value.get_item_by_index(index),
        Err(_) => value.get_attr(part),
    })
}

fn length(_: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value] = bound(args, ["obj"])?;
    let value = value.unwrap_or_default();
    let none = || Error::new(ErrorKind::InvalidOperation, format!("{} has no length", value.kind()));
    if value.is_undefined() { Ok(Value::from(0)) } else { value.len().map(Value::from).ok_or_else(none) }
}

fn list(budget: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value] = bound(args, ["value"])?;
    let value = value.unwrap_or_default();
    if let Some(text) = value.as_str() {
        budget.pieces(text.len())?;
    }
    Ok(Value::from(value.try_iter()?.collect::<Vec<_>>()))
}

fn replace(budget: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value, old, new, count] = bound(args, ["s", "old", "new", "count"])?;
    let text = |value: Option<Value>| repr::text(&value.unwrap_or_default()).map(Cow::into_owned);
    methods::replace(budget, &text(value)?, &text(old)?, &text(new)?, integer(count.as_ref())?)
}

fn string(_: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value] = bound(args, ["object"])?;
    let value = value.unwrap_or_default();
    if value.kind() == ValueKind::String { Ok(value) } else { Ok(Value::from(repr::text(&value)?.into_owned())) }
}

fn trim(budget: &RenderBudget, args: &[Value]) -> Result<Value, Error> {
    let [value, chars] = bound(args, ["value", "chars"])?;
    let value = value.unwrap_or_default();
    let trimmed = methods::strip(budget, &repr::text(&value)?, chars.as_ref(), methods::Sides::Both)?;
    let safe = |text: &Value| Value::from_safe_string(text.to_string());
    Ok(if value.is_safe() { safe(&trimmed) } else { trimmed })
}
