//! What templates may call: minijinja's filters, tests and Python methods, those that grow behind a budget, and what
//! Hugging Face's chat templates expect besides.

use std::time::SystemTime;

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters, tests,
    value::{Kwargs, Rest, ValueKind, ValueOrKwargs},
};
use minijinja_contrib::pycompat;
use thiserror::Error;

use super::{
    budget::{Budget, own_len},
    date, guard, json,
};

/// The source of the error that `raise_exception` makes.
#[derive(Debug, Error)]
#[error("{0}")]
pub(super) struct Raised(pub(super) String);

/// Filters that no chat template uses, and whose cost is not bounded by their input.
const REMOVED: [&str; 6] = ["batch", "chain", "pprint", "slice", "sum", "zip"];
/// Widest padding in a format string, as digits.
const WIDTH_DIGITS_MAX: u32 = 4;

/// Everything a template may call, each render's own.
pub(super) fn environment(budget: &Budget, now: SystemTime) -> Environment<'static> {
    let mut env = Environment::new();
    // In debug mode errors name what is undefined.
    env.set_debug(true);
    for name in REMOVED {
        env.remove_filter(name);
    }
    env.remove_global("debug");
    guards(&mut env, budget);
    guarded_tests(&mut env, budget);
    guarded_filters(&mut env, budget);
    let own = budget.clone();
    env.set_unknown_method_callback(move |state, value, method, args| {
        own.charge(method_cost(value, method, args))?;
        if method == "count" {
            own.weigh(value)?;
        }
        pycompat::unknown_method_callback(state, value, method, args)
    });
    let own = budget.clone();
    env.set_formatter(move |out, state, value| {
        own.weigh(value)?;
        minijinja::escape_formatter(out, state, value)
    });
    let own = budget.clone();
    env.add_function("raise_exception", move |message: Value| {
        own.weigh(&message)?;
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, "raised").with_source(Raised(message.to_string())))
    });
    let own = budget.clone();
    env.add_function("strftime_now", move |format: &str| {
        own.charge(format.len())?;
        date::strftime(format, now).map_err(|error| Error::new(ErrorKind::InvalidOperation, error))
    });
    env
}

/// The functions that `guard` calls.
fn guards(env: &mut Environment<'_>, budget: &Budget) {
    let own = budget.clone();
    env.add_function(guard::COUNT, move |value: Value| own.count(&value).map(|()| value));
    let own = budget.clone();
    env.add_function(guard::TOUCH, move |value: Value| own.touch(&value).map(|()| value));
    let own = budget.clone();
    env.add_function(guard::WEIGH, move |value: Value| own.weigh(&value).map(|()| value));
    let own = budget.clone();
    env.add_function(guard::ACYCLIC, move |value: Value| own.acyclic(&value).map(|()| value));
    let own = budget.clone();
    env.add_function(guard::FLATTEN, move |value: Value| own.flatten(value));
    let own = budget.clone();
    env.add_function(guard::PRODUCT, move |left: Value, right: Value| product(left, right, &own));
}

/// The tests that compare or scan: as arguments of `select` and its like they run once an item.
fn guarded_tests(env: &mut Environment<'_>, budget: &Budget) {
    let mut add = |names: &[&'static str], test: Value| {
        for &name in names {
            let (own, test) = (budget.clone(), test.clone());
            env.add_test(name, move |state: &mut State<'_, '_>, args: Rest<Value>| {
                args.iter().try_for_each(|arg| own.weigh(arg))?;
                test.call(state, &args)
            });
        }
    };
    add(&["eq", "equalto", "=="], Value::from_function(tests::is_eq));
    add(&["ne", "!="], Value::from_function(tests::is_ne));
    add(&["lt", "lessthan", "<"], Value::from_function(tests::is_lt));
    add(&["le", "<="], Value::from_function(tests::is_le));
    add(&["gt", "greaterthan", ">"], Value::from_function(tests::is_gt));
    add(&["ge", ">="], Value::from_function(tests::is_ge));
    add(&["in"], Value::from_function(tests::is_in));
    add(&["lower"], Value::from_function(tests::is_lower));
    add(&["upper"], Value::from_function(tests::is_upper));
    add(&["startingwith"], Value::from_function(tests::is_startingwith));
    add(&["endingwith"], Value::from_function(tests::is_endingwith));
}

/// The filters that make more than they take, or do it once an item.
fn guarded_filters(env: &mut Environment<'_>, budget: &Budget) {
    let mut add = |name, filter, cost| growing(env, name, filter, cost, budget);
    add("replace", Value::from_function(filters::replace), replace_cost);
    add("indent", Value::from_function(filters::indent), indent_cost);
    add("trim", Value::from_function(filters::trim), trim_cost);
    add("format", Value::from_function(filters::format), |args| format_cost(args, '%'));
    add("join", Value::from_function(filters::join), each_cost);
    add("map", Value::from_function(filters::map), each_cost);
    add("selectattr", Value::from_function(filters::selectattr), each_cost);
    add("rejectattr", Value::from_function(filters::rejectattr), each_cost);
    add("groupby", Value::from_function(filters::groupby), each_cost);
    add("sort", Value::from_function(filters::sort), each_cost);
    add("unique", Value::from_function(filters::unique), each_cost);
    add("min", Value::from_function(filters::min), each_cost);
    add("max", Value::from_function(filters::max), each_cost);
    let own = budget.clone();
    env.add_filter("tojson", move |value: &Value, indent: Option<usize>, options: Kwargs| {
        json::tojson(&own, value, indent, &options)
    });
}

/// Puts `filter` behind its `cost`.
fn growing(env: &mut Environment<'_>, name: &'static str, filter: Value, cost: fn(&[Value]) -> usize, budget: &Budget) {
    let own = budget.clone();
    env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        own.charge(cost(&args))?;
        filter.call(state, &args)
    });
}

/// What a Python method of a value costs beyond the length of both.
fn method_cost(value: &Value, method: &str, args: &[Value]) -> usize {
    let all = || [std::slice::from_ref(value), args].concat();
    match method {
        "replace" => replace_cost(&all()),
        "join" => args.first().map_or(0, |items| own_len(items).saturating_mul(own_len(value))),
        "format" => format_cost(&all(), '{'),
        "strip" | "lstrip" | "rstrip" => trim_cost(&all()),
        "count" => own_len(value).saturating_mul(args.first().map_or(0, own_len)),
        _ => own_len(value),
    }
}

/// `text|replace(from, to)`.
fn replace_cost(args: &[Value]) -> usize {
    let text = |index: usize| args.get(index).and_then(Value::as_str).unwrap_or_default();
    text(0).matches(text(1)).count().saturating_mul(text(2).len()).saturating_add(text(0).len())
}

/// `items|join(joiner)`, `items|map(attribute=path)`: the texts among the arguments are used once an item.
fn each_cost(args: &[Value]) -> usize {
    let text_len = |value: &Value| value.as_str().map_or(0, str::len);
    let texts = |arg: &Value| text_len(arg) + arg.get_attr("attribute").as_ref().map_or(0, text_len);
    args.first().map_or(0, own_len).saturating_mul(args.iter().skip(1).map(texts).sum())
}

/// `text|indent(width)`.
fn indent_cost(args: &[Value]) -> usize {
    let lines = args.first().and_then(Value::as_str).map_or(0, |text| text.split('\n').count());
    let given = |arg: &Value| arg.as_usize().or_else(|| arg.get_attr("width").ok()?.as_usize());
    let width = args.iter().skip(1).filter_map(given).max().unwrap_or(4);
    (lines + 1).saturating_mul(width)
}

/// `text|trim(characters)`.
fn trim_cost(args: &[Value]) -> usize {
    let [text, characters] = [0, 1].map(|index| args.get(index).map_or(0, own_len));
    text.saturating_mul(characters.max(1))
}

/// `text|format(…)`: each place may print every argument, and its width be as large as its digits say.
fn format_cost(args: &[Value], mark: char) -> usize {
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    let wide = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > WIDTH_DIGITS_MAX as usize);
    if wide || text.contains('*') {
        return usize::MAX;
    }
    let printed: usize = args.iter().map(|arg| own_len(arg) + 10_usize.pow(WIDTH_DIGITS_MAX)).sum();
    text.matches(mark).count().saturating_mul(printed)
}

/// `left * right`: numbers, or a text or a sequence and how often.
fn product(left: Value, right: Value, budget: &Budget) -> Result<Value, Error> {
    let repeats = |value: &Value| matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable);
    let invalid = |what| Error::new(ErrorKind::InvalidOperation, what);
    let (repeated, times) = match (repeats(&left), repeats(&right)) {
        (true, _) => (left, right),
        (false, true) => (right, left),
        (false, false) => return number_product(&left, &right).ok_or_else(|| invalid("cannot multiply these values")),
    };
    let times = times.as_i64().ok_or_else(|| invalid("can only repeat by an integer"))?;
    let times = usize::try_from(times).unwrap_or(0);
    budget.charge(own_len(&repeated).saturating_mul(times))?;
    if let Some(text) = repeated.as_str() {
        return Ok(Value::from(text.repeat(times)));
    }
    let items: Vec<Value> = repeated.try_iter()?.collect();
    Ok(Value::from_iter(std::iter::repeat_n(items, times).flatten()))
}

fn number_product(left: &Value, right: &Value) -> Option<Value> {
    if left.is_integer() && right.is_integer() {
        return left.as_i64()?.checked_mul(right.as_i64()?).map(Value::from);
    }
    let [left, right] = [left, right].map(|number| f64::try_from(number.clone()).ok());
    Some(Value::from(left? * right?))
}
