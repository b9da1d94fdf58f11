//! Operators as Python has them, behind the budget. `guard` calls them in place of minijinja's.

use minijinja::{
    Error, ErrorKind, Value,
    value::{Tuple, ValueKind},
};

use super::{
    budget::{RenderBudget, own_len},
    escape::escaped,
    repr,
};

/// `left + right`: numbers, texts, lists or tuples.
pub(super) fn sum(budget: &RenderBudget, left: &Value, right: &Value) -> Result<Value, Error> {
    budget.count(left)?;
    budget.count(right)?;
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        let safe = left.is_safe() || right.is_safe();
        return Ok(if safe {
            Value::from_safe_string(escaped(left)? + &escaped(right)?)
        } else {
            Value::from([a, b].concat())
        });
    }
    if left.kind() == ValueKind::Seq && right.kind() == ValueKind::Seq && left.is_tuple() == right.is_tuple() {
        return Ok(like(left, left.try_iter()?.chain(right.try_iter()?).collect()));
    }
    arithmetic(left, right, i128::checked_add, |a, b| Some(a + b)).ok_or_else(|| mismatch("add", left, right))
}

/// `left * right`: numbers, or a text or a sequence and how often.
pub(super) fn product(budget: &RenderBudget, left: &Value, right: &Value) -> Result<Value, Error> {
    let repeats = |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq);
    let (repeated, times) = match (repeats(left), repeats(right)) {
        (true, _) => (left, right),
        (false, true) => (right, left),
        (false, false) => {
            let number = arithmetic(left, right, i128::checked_mul, |a, b| Some(a * b));
            return number.ok_or_else(|| mismatch("multiply", left, right));
        }
    };
    let times = integer(times).ok_or_else(|| mismatch("multiply", left, right))?;
    // Whatever a budget holds, it is less than all of memory.
    let times = usize::try_from(times.max(0)).unwrap_or(usize::MAX);
    budget.charge(own_len(repeated).saturating_mul(times))?;
    if let Some(text) = repeated.as_str() {
        return Ok(Value::from(text.repeat(if text.is_empty() { 0 } else { times })));
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    let times = if items.is_empty() { 0 } else { times };
    Ok(like(repeated, std::iter::repeat_n(items, times).flatten().collect()))
}

/// `left % right` of numbers, whose sign is the right one's; `None` of other values.
pub(super) fn remainder(left: &Value, right: &Value) -> Option<Value> {
    let of_integers = |left: i128, right| Some(left.checked_rem(right)?.checked_add(right)?.wrapping_rem(right));
    let of_floats = |left: f64, right: f64| (right != 0.0).then(|| left - right * (left / right).floor());
    arithmetic(left, right, of_integers, of_floats)
}

/// `value[start:stop:step]`.
pub(super) fn slice(budget: &RenderBudget, value: &Value, bounds: [&Value; 3]) -> Result<Value, Error> {
    budget.count(value)?;
    let mut parts = [None; 3];
    for (part, bound) in parts.iter_mut().zip(bounds) {
        if !bound.is_none() {
            let index = integer(bound).ok_or_else(|| invalid("can only slice by integers".to_owned()))?;
            *part = Some(i64::try_from(index).unwrap_or(if index < 0 { i64::MIN } else { i64::MAX }));
        }
    }
    let [start, stop, step] = parts;
    let step = step.unwrap_or(1);
    if step == 0 {
        return Err(invalid("cannot slice by steps of 0".to_owned()));
    }
    if let Some(text) = value.as_str() {
        let chars: Vec<char> = text.chars().collect();
        return Ok(Value::from(picked(chars.len(), start, stop, step).map(|index| chars[index]).collect::<String>()));
    }
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
        return Err(invalid(format!("cannot slice {}", value.kind())));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    Ok(like(value, picked(items.len(), start, stop, step).map(|index| items[index].clone()).collect()))
}

/// The value as text, for `left ~ right`.
pub(super) fn text(budget: &RenderBudget, value: Value) -> Result<Value, Error> {
    budget.weigh(&value)?;
    if value.kind() == ValueKind::String && !value.is_safe() {
        return Ok(value);
    }
    Ok(Value::from(repr::text(&value)?.into_owned()))
}

/// A value that is iterated over: null is not empty.
pub(super) fn iterated(budget: &RenderBudget, value: Value) -> Result<Value, Error> {
    if value.is_none() {
        return Err(invalid("none cannot be iterated over".to_owned()));
    }
    budget.count(&value)?;
    Ok(value)
}

/// `map.items` and the like without a call: Jinja finds the method before the key. A template can only ask whether it is
/// there, so any function will do. Those that change a dictionary are hidden, and their keys with them.
pub(super) fn method_of_map(value: &Value, name: &str) -> Result<Value, Error> {
    let is_namespace = value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"));
    if value.kind() == ValueKind::Map && !is_namespace {
        let hidden = matches!(name, "clear" | "pop" | "popitem" | "setdefault" | "update");
        return Ok(if hidden { Value::UNDEFINED } else { Value::from_function(|| Value::UNDEFINED) });
    }
    value.get_attr(name)
}

/// The index in a sequence of `len` that Python makes of `bound`, kept between `low` and `high`.
pub(super) fn clamped(bound: i64, len: usize, low: i64, high: i64) -> i64 {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    if bound < 0 { bound.saturating_add(len).max(low) } else { bound.min(high) }
}

/// The indices that a slice of a sequence of `len` picks.
fn picked(len: usize, start: Option<i64>, stop: Option<i64>, step: i64) -> impl Iterator<Item = usize> {
    let end = i64::try_from(len).unwrap_or(i64::MAX);
    let (low, high) = if step > 0 { (0, end) } else { (-1, end - 1) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let mut next = start.map_or(first, |start| clamped(start, len, low, high));
    let stop = stop.map_or(last, |stop| clamped(stop, len, low, high));
    std::iter::from_fn(move || {
        let index = if step > 0 { next < stop } else { next > stop }.then_some(next)?;
        next = next.saturating_add(step);
        usize::try_from(index).ok()
    })
}

/// A list of these items, or a tuple where `old` is one.
fn like(old: &Value, items: Vec<Value>) -> Value {
    if old.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) }
}

/// An integer, which a truth value is too.
fn integer(value: &Value) -> Option<i128> {
    if value.is_integer() || value.kind() == ValueKind::Bool { i128::try_from(value.clone()).ok() } else { None }
}

fn arithmetic(
    left: &Value,
    right: &Value,
    of_integers: fn(i128, i128) -> Option<i128>,
    of_floats: fn(f64, f64) -> Option<f64>,
) -> Option<Value> {
    if let (Some(left), Some(right)) = (integer(left), integer(right)) {
        let number = of_integers(left, right)?;
        return Some(i64::try_from(number).map_or_else(|_| Value::from(number), Value::from));
    }
    let float = |value: &Value| match integer(value) {
        Some(integer) => Some(integer as f64),
        None => (value.kind() == ValueKind::Number).then(|| f64::try_from(value.clone()).ok())?,
    };
    of_floats(float(left)?, float(right)?).map(Value::from)
}

fn mismatch(verb: &str, left: &Value, right: &Value) -> Error {
    invalid(format!("cannot {verb} {} and {}", left.kind(), right.kind()))
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, what)
}
