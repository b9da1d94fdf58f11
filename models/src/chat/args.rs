//! Arguments of filters and methods, by position or by name.

use minijinja::{Error, ErrorKind, Value};

/// The arguments of these names, in their order; `None` where not given.
pub(super) fn bound<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Option<Value>; N], Error> {
    let (positional, named) = match args.split_last() {
        Some((last, rest)) if last.is_kwargs() => (rest, Some(last)),
        _ => (args, None),
    };
    if positional.len() > N {
        return Err(ErrorKind::TooManyArguments.into());
    }
    let mut values = std::array::from_fn(|index| positional.get(index).cloned());
    if let Some(named) = named {
        for key in named.try_iter()? {
            let place = names.iter().position(|&name| key.as_str() == Some(name));
            let unknown = || Error::new(ErrorKind::TooManyArguments, format!("there is no argument {key}"));
            values[place.ok_or_else(unknown)?] = Some(named.get_item(&key)?);
        }
    }
    Ok(values)
}

/// An argument that has to be a text.
pub(super) fn required_text(value: Option<&Value>) -> Result<&str, Error> {
    value.and_then(Value::as_str).ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "an argument must be a text"))
}

/// An argument that may be an integer; null is none.
pub(super) fn integer(value: Option<&Value>) -> Result<Option<i64>, Error> {
    match value.filter(|value| !value.is_none()) {
        None => Ok(None),
        Some(value) if value.is_integer() => i64::try_from(value.clone()).map(Some),
        Some(_) => Err(Error::new(ErrorKind::InvalidOperation, "an argument must be an integer")),
    }
}

/// An argument that may be true; not given it is not.
pub(super) fn truth(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}
