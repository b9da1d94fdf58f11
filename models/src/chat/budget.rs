//! What a render may still cost beyond its fuel, which sees neither the size of values nor how long an operation takes.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use minijinja::{Error, ErrorKind, Value, value::ValueKind};
use thiserror::Error;

/// Units for each value that is made of a piece of a text: it takes much more room than the piece.
const PIECE_UNITS: usize = 16;

/// Units left, each a byte of text or a value touched. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct RenderBudget(Arc<AtomicU64>);

/// The source of the error that ends a render whose budget is used up.
#[derive(Debug, Error)]
#[error("the budget is used up")]
pub(super) struct OverBudget;

impl RenderBudget {
    pub(super) fn new(units: usize) -> Self {
        Self(Arc::new(AtomicU64::new(units as u64)))
    }

    /// Takes `units`.
    pub(super) fn charge(&self, units: usize) -> Result<(), Error> {
        let take = |left: u64| left.checked_sub(units as u64);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map(|_| ()).map_err(|_| {
            Error::new(ErrorKind::InvalidOperation, "template costs more than its budget").with_source(OverBudget)
        })
    }

    /// Charges that many values made of pieces of a text.
    pub(super) fn pieces(&self, pieces: usize) -> Result<(), Error> {
        self.charge(pieces.saturating_mul(PIECE_UNITS))
    }

    /// Charges the value itself: the length of a text or a collection.
    pub(super) fn count(&self, value: &Value) -> Result<(), Error> {
        self.charge(1 + own_len(value))
    }

    /// Charges what finding one item costs: in a text or a lazy sequence its length.
    pub(super) fn touch(&self, value: &Value) -> Result<(), Error> {
        let scanned = matches!(value.kind(), ValueKind::String | ValueKind::Iterable);
        self.charge(if scanned { own_len(value) } else { 1 })
    }

    /// Charges the value and everything in it, as often as it is in it: what printing or comparing it costs.
    pub(super) fn weigh(&self, value: &Value) -> Result<(), Error> {
        self.walk(value, |value| self.count(value))
    }

    /// Refuses a value that holds a namespace or a loop: assigned to a namespace, it could make that contain itself.
    pub(super) fn acyclic(&self, value: &Value) -> Result<(), Error> {
        self.walk(value, |value| {
            self.charge(1)?;
            let kind = value.as_object().map_or("", |object| object.type_name());
            if kind.ends_with("::Namespace") || kind.ends_with("::Loop") {
                return Err(Error::new(ErrorKind::InvalidOperation, "a namespace may not hold a namespace or a loop"));
            }
            Ok(())
        })
    }

    /// Visits the value and everything in it. Without recursion: nothing bounds how deep it is.
    fn walk(&self, value: &Value, visit: impl Fn(&Value) -> Result<(), Error>) -> Result<(), Error> {
        let mut pending = vec![value.clone()];
        while let Some(value) = pending.pop() {
            visit(&value)?;
            if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
                for item in value.try_iter()? {
                    self.charge(1)?;
                    pending.push(item);
                }
            } else if value.kind() == ValueKind::Map {
                for key in value.try_iter()? {
                    self.charge(1)?;
                    pending.extend([value.get_item(&key)?, key]);
                }
            }
        }
        Ok(())
    }

    /// `value`, with a lazy sequence turned into a list: nested ones would be walked again and again, and recursively.
    pub(super) fn flatten(&self, value: Value) -> Result<Value, Error> {
        if value.kind() != ValueKind::Iterable {
            self.count(&value)?;
            return Ok(value);
        }
        value.try_iter()?.map(|item| self.charge(1).map(|()| item)).collect::<Result<Vec<_>, _>>().map(Value::from)
    }
}

/// Length in bytes of a text, in items of a collection, else 0.
pub(super) fn own_len(value: &Value) -> usize {
    value.as_bytes().map(<[u8]>::len).or_else(|| value.len()).unwrap_or(0)
}
