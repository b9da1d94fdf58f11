//! What templates may call: minijinja's filters, tests and Python methods, those that grow behind a budget, and what
//! Hugging Face's chat templates expect besides.

use std::time::SystemTime;

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters, tests,
    value::{Rest, ValueKind, ValueOrKwargs},
};
use minijinja_contrib::pycompat;
use thiserror::Error;

use super::{
    budget::{RenderBudget, own_len},
    date,
    filters::FILTERS,
    guard, methods, operators, repr,
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
pub(super) fn environment(budget: &RenderBudget, now: SystemTime) -> Environment<'static> {
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
    own_filters(&mut env, budget);
    let own = budget.clone();
    env.set_unknown_method_callback(move |state, value, method, args| {
        own.count(value)?;
        if method == "format" {
            own.charge(format_cost(&[std::slice::from_ref(value), args].concat(), '{'))?;
        }
        match methods::method(&own, value, method, args)? {
            Some(found) => Ok(found),
            None => pycompat::unknown_method_callback(state, value, method, args),
        }
    });
    let own = budget.clone();
    env.set_formatter(move |out, _, value| {
        own.weigh(value)?;
        Ok(out.write_str(&repr::text(value)?)?)
    });
    let own = budget.clone();
    env.add_function("raise_exception", move |message: Value| {
        own.weigh(&message)?;
        let raised = Raised(repr::text(&message)?.into_owned());
        Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, "raised").with_source(raised))
    });
    let own = budget.clone();
    env.add_function("strftime_now", move |format: &str| {
        own.charge(format.len())?;
        date::strftime(format, now).map_err(|error| Error::new(ErrorKind::InvalidOperation, error))
    });
    env
}

/// The functions that `guard` calls.
fn guards(env: &mut Environment<'_>, budget: &RenderBudget) {
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
    env.add_function(guard::EACH, move |value: Value| operators::iterated(&own, value));
    let own = budget.clone();
    env.add_function(guard::TEXT, move |value: Value| operators::text(&own, value));
    let own = budget.clone();
    env.add_function(guard::SUM, move |left: &Value, right: &Value| operators::sum(&own, left, right));
    let own = budget.clone();
    env.add_function(guard::PRODUCT, move |left: &Value, right: &Value| operators::product(&own, left, right));
    let (own, format) = (budget.clone(), Value::from_function(filters::format));
    env.add_function(guard::REMAINDER, move |state: &mut State<'_, '_>, left: Value, right: Value| {
        if left.kind() != ValueKind::String {
            let mismatch = || Error::new(ErrorKind::InvalidOperation, "cannot divide these for a remainder");
            return operators::remainder(&left, &right).ok_or_else(mismatch);
        }
        own.weigh(&right)?;
        let several = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right] };
        let args = [vec![left], several].concat();
        own.charge(format_cost(&args, '%'))?;
        format.call(state, &args)
    });
    let own = budget.clone();
    env.add_function(guard::SLICE, move |value: &Value, start: &Value, stop: &Value, step: &Value| {
        operators::slice(&own, value, [start, stop, step])
    });
    env.add_function(guard::METHOD, operators::method_of_map);
    env.add_function(guard::CYCLE, |state: &mut State<'_, '_>, receiver: Value, args: Rest<Value>| {
        if args.is_empty() {
            Err(ErrorKind::MissingArgument.into())
        } else {
            receiver.call_method(state, "cycle", &args)
        }
    });
}

/// The tests that compare or scan: as arguments of `select` and its like they run once an item.
fn guarded_tests(env: &mut Environment<'_>, budget: &RenderBudget) {
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
    env.add_test("callable", |value: &Value| matches!(value.kind(), ValueKind::Plain | ValueKind::Undefined));
    env.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    env.add_test("sequence", |value: &Value| {
        use ValueKind::{Iterable, Map, Seq, String, Undefined};
        matches!(value.kind(), String | Seq | Map | Iterable | Undefined)
    });
}

/// The filters that make more than they take, or do it once an item.
fn guarded_filters(env: &mut Environment<'_>, budget: &RenderBudget) {
    let mut add = |name, filter, cost| growing(env, name, filter, cost, budget);
    add("format", Value::from_function(filters::format), |args| format_cost(args, '%'));
    add("map", Value::from_function(filters::map), each_cost);
    add("selectattr", Value::from_function(filters::selectattr), each_cost);
    add("rejectattr", Value::from_function(filters::rejectattr), each_cost);
    add("groupby", Value::from_function(filters::groupby), each_cost);
    add("sort", Value::from_function(filters::sort), each_cost);
    add("unique", Value::from_function(filters::unique), each_cost);
    add("min", Value::from_function(filters::min), each_cost);
    add("max", Value::from_function(filters::max), each_cost);
}

/// The filters that are ours, and those that Jinja has a default for.
fn own_filters(env: &mut Environment<'_>, budget: &RenderBudget) {
    for (name, filter) in FILTERS {
        let own = budget.clone();
        env.add_filter(name, move |args: Rest<ValueOrKwargs>| filter(&own, &args.into_values()));
    }
    let int = (Value::from_function(filters::int), Value::from(0));
    let float = (Value::from_function(filters::float), Value::from(0.0));
    for (name, (filter, default)) in [("int", int), ("float", float)] {
        env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let mut args = args.into_values();
            if let Some(text) = args.first().and_then(Value::as_str).map(str::trim) {
                args[0] = Value::from(text);
            }
            filter.call(state, &args).unwrap_or_else(|_| default.clone())
        });
    }
}

/// Puts `filter` behind its `cost`.
fn growing(
    env: &mut Environment<'_>,
    name: &'static str,
    filter: Value,
    cost: fn(&[Value]) -> usize,
    budget: &RenderBudget,
) {
    let own = budget.clone();
    env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        own.charge(cost(&args))?;
        filter.call(state, &args)
    });
}

/// `items|map(attribute=path)`: the texts among the arguments are used once an item.
fn each_cost(args: &[Value]) -> usize {
    let text_len = |value: &Value| value.as_str().map_or(0, str::len);
    let texts = |arg: &Value| text_len(arg) + arg.get_attr("attribute").as_ref().map_or(0, text_len);
    args.first().map_or(0, own_len).saturating_mul(args.iter().skip(1).map(texts).sum())
}

/// `text|format(…)`: each place may print every argument, and its width be as large as its digits say.
fn format_cost(args: &[Value], mark: char) -> usize {
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    let wide = text.split(|c: char| !c.is_ascii_digit()).any(|digits| digits.len() > WIDTH_DIGITS_MAX as usize);
    // With %, a star is a width that an argument says.
    if wide || mark == '%' && text.contains('*') {
        return usize::MAX;
    }
    let printed: usize = args.iter().map(|arg| own_len(arg) + 10_usize.pow(WIDTH_DIGITS_MAX)).sum();
    text.matches(mark).count().saturating_mul(printed)
}
