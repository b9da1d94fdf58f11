//! A family's view of the metadata: its own keys, each checked against its range.

use std::{cell::RefCell, collections::HashSet, fmt::Debug, ops::RangeInclusive};

use super::ModelError;
use crate::gguf::{Gguf, Value};

/// Deepest model; the deepest published ones have under 130 layers.
pub(super) const LAYERS_MAX: usize = 1024;
/// Most elements of a hidden state or between the products of an FFN.
pub(super) const WIDTH_MAX: usize = 1 << 20;
/// Most attention heads, and most elements of one.
pub(super) const HEADS_MAX: usize = 4096;
/// Most positions; the longest published contexts are some ten million.
pub(super) const CONTEXT_MAX: usize = 1 << 30;
/// RoPE bases: 10,000 in the paper, up to some 10^9 in long-context models.
pub(super) const ROPE_BASE: RangeInclusive<f32> = 1.0..=1e12;

/// Keys that change what a model computes, with the value that changes nothing. A family that does not read one of them
/// would run the model wrongly, so it is refused.
const DECISIVE: &[(&str, f64)] = &[
    ("attention.causal", 1.0),
    ("attention.clamp_kqv", 0.0),
    ("attention.max_alibi_bias", 0.0),
    ("attention.scale", 0.0),
    ("attention.sliding_window", 0.0),
    ("attn_logit_softcapping", 0.0),
    ("embedding_scale", 1.0),
    ("expert_count", 0.0),
    ("expert_gating_func", 1.0),
    ("final_logit_softcapping", 0.0),
    ("logit_scale", 1.0),
    ("residual_scale", 1.0),
    ("rope.dimension_sections", 0.0),
    ("rope.scaling.attn_factor", 1.0),
    ("use_parallel_residual", 0.0),
];

/// The keys of one architecture, named here without it: `block_count` for `llama.block_count`.
pub(super) struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
    read: RefCell<HashSet<&'static str>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(gguf: &'a Gguf, architecture: &'a str) -> Self {
        Self { gguf, architecture, read: RefCell::default() }
    }

    /// The file, for what is not the architecture's own.
    pub(super) fn gguf(&self) -> &'a Gguf {
        self.gguf
    }

    pub(super) fn has_tensor(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// Width of the hidden state.
    pub(super) fn hidden(&self) -> Result<usize, ModelError> {
        self.count("embedding_length", 1..=WIDTH_MAX)
    }

    /// Layers of the file, with those at its end that draft ahead (`nextn_predict_layers`: NextN, multi-token prediction).
    pub(super) fn block_count(&self) -> Result<usize, ModelError> {
        self.count("block_count", 1..=LAYERS_MAX)
    }

    /// Layers that are computed: those of the file but for those that draft ahead.
    pub(super) fn layer_count(&self) -> Result<usize, ModelError> {
        let all = self.block_count()?;
        Ok(all - self.count_or("nextn_predict_layers", 0, 0..=all - 1)?)
    }

    pub(super) fn context(&self) -> Result<usize, ModelError> {
        self.count("context_length", 1..=CONTEXT_MAX)
    }

    /// Whether `key` is there.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.gguf.value(&self.full(key)).is_some()
    }

    pub(super) fn count(&self, key: &'static str, allowed: RangeInclusive<usize>) -> Result<usize, ModelError> {
        let found = self.gguf.unsigned(&self.full(key))?;
        self.in_range(key, usize::try_from(found).unwrap_or(usize::MAX), allowed)
    }

    pub(super) fn count_or(
        &self,
        key: &'static str,
        default: usize,
        allowed: RangeInclusive<usize>,
    ) -> Result<usize, ModelError> {
        if self.has(key) { self.count(key, allowed) } else { Ok(default) }
    }

    /// A count for each of `layers` layers: one for all, or an array, which may go on with the layers that draft ahead.
    pub(super) fn counts(
        &self,
        key: &'static str,
        layers: usize,
        allowed: RangeInclusive<usize>,
    ) -> Result<Vec<usize>, ModelError> {
        let full = self.full(key);
        if !matches!(self.gguf.value(&full), Some(Value::Array(_))) {
            return Ok(vec![self.count(key, allowed)?; layers]);
        }
        let found = self.gguf.unsigneds(&full)?;
        self.one_each(key, found.len(), layers)?;
        let checked = |count: u32| self.in_range(key, usize::try_from(count).unwrap_or(usize::MAX), allowed.clone());
        found.into_iter().take(layers).map(checked).collect()
    }

    /// A finite float.
    pub(super) fn float(&self, key: &'static str, allowed: RangeInclusive<f32>) -> Result<f32, ModelError> {
        self.in_range(key, self.gguf.float(&self.full(key))?, allowed)
    }

    pub(super) fn float_or(
        &self,
        key: &'static str,
        default: f32,
        allowed: RangeInclusive<f32>,
    ) -> Result<f32, ModelError> {
        if self.has(key) { self.float(key, allowed) } else { Ok(default) }
    }

    /// A float for each of `layers` layers: one for all, or an array, which may go on with the layers that draft ahead; `default`
    /// where there is none.
    pub(super) fn floats_or(
        &self,
        key: &'static str,
        layers: usize,
        default: f32,
        allowed: RangeInclusive<f32>,
    ) -> Result<Vec<f32>, ModelError> {
        let full = self.full(key);
        if !matches!(self.gguf.value(&full), Some(Value::Array(_))) {
            return Ok(vec![self.float_or(key, default, allowed)?; layers]);
        }
        let found = self.gguf.floats(&full)?;
        self.one_each(key, found.len(), layers)?;
        found.into_iter().take(layers).map(|x| self.in_range(key, x, allowed.clone())).collect()
    }

    pub(super) fn text_or(&self, key: &'static str, default: &'a str) -> Result<&'a str, ModelError> {
        if self.has(key) { Ok(self.gguf.text(&self.full(key))?) } else { Ok(default) }
    }

    pub(super) fn flag_or(&self, key: &'static str, default: bool) -> Result<bool, ModelError> {
        if self.has(key) { Ok(self.gguf.boolean(&self.full(key))?) } else { Ok(default) }
    }

    /// A flag for each of `layers` layers, where `key` holds an array.
    pub(super) fn flags(&self, key: &'static str, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let full = self.full(key);
        if !matches!(self.gguf.value(&full), Some(Value::Array(_))) {
            return Ok(None);
        }
        let mut found = self.gguf.booleans(&full)?;
        self.one_each(key, found.len(), layers)?;
        found.truncate(layers);
        Ok(Some(found))
    }

    /// Takes note that a key, whatever it says, changes nothing in this family.
    pub(super) fn pass_over(&self, key: &'static str) {
        self.read.borrow_mut().insert(key);
    }

    /// Refuses what the family did not read although it would change the result.
    pub(super) fn check_unread(&self) -> Result<(), ModelError> {
        for &(key, neutral) in DECISIVE {
            if self.read.borrow().contains(key) {
                continue;
            }
            let Some(value) = self.gguf.value(&self.full(key)) else { continue };
            let number = value.float().or_else(|| value.signed().map(|n| n as f64));
            if number.or_else(|| value.boolean().map(|b| f64::from(u8::from(b)))) != Some(neutral) {
                return Err(self.unsupported(key, value.describe(), &neutral.to_string()));
            }
        }
        Ok(())
    }

    pub(super) fn unsupported(&self, key: &'static str, found: String, supported: &str) -> ModelError {
        ModelError::Unsupported { key: self.full(key), found, supported: supported.to_owned() }
    }

    pub(super) fn out_of_range(&self, key: &'static str, found: impl Debug, allowed: String) -> ModelError {
        ModelError::Range { key: self.full(key), found: format!("{found:?}"), allowed }
    }

    /// The key with its architecture; remembers that it was read.
    fn full(&self, key: &'static str) -> String {
        self.read.borrow_mut().insert(key);
        format!("{}.{key}", self.architecture)
    }

    fn one_each(&self, key: &'static str, found: usize, layers: usize) -> Result<(), ModelError> {
        if found == layers || found == self.block_count()? {
            return Ok(());
        }
        let (found, allowed) = (format!("an array of {found}"), format!("one value for each of {layers} layers"));
        Err(ModelError::Range { key: self.full(key), found, allowed })
    }

    fn in_range<T: Debug + PartialOrd>(
        &self,
        key: &'static str,
        found: T,
        allowed: RangeInclusive<T>,
    ) -> Result<T, ModelError> {
        if allowed.contains(&found) {
            return Ok(found);
        }
        Err(self.out_of_range(key, found, format!("{:?} to {:?}", allowed.start(), allowed.end())))
    }
}
