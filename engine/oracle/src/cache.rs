//! What one layer holds of one session: tensors that grow.

use candle_core::{DType, Result, Tensor};

use crate::rounding::CacheType;

/// What one layer holds of one session: what is of no use to its kind is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct LayerCache {
    pub(crate) keys_values: KeysValues,
    pub(crate) past: PastRows,
}

/// The rows so far that came into a layer whose state is made of them: (positions, hidden).
#[derive(Clone, Debug, Default)]
pub(crate) struct PastRows(Option<Tensor>);

/// Keys, normalised and rotated, and values of the positions so far; each (kv_heads, positions, head_dim).
#[derive(Clone, Debug, Default)]
pub(crate) struct KeysValues(Option<(Tensor, Tensor)>);

impl LayerCache {
    /// Forgets all positions from `positions` on.
    pub(crate) fn keep(&mut self, positions: usize) -> Result<()> {
        self.keys_values.keep(positions)?;
        self.past.keep(positions)
    }
}

impl PastRows {
    fn keep(&mut self, positions: usize) -> Result<()> {
        let Some(rows) = &self.0 else { return Ok(()) };
        let kept = positions.min(rows.dim(0)?);
        self.0 = if kept == 0 { None } else { Some(rows.narrow(0, 0, kept)?) };
        Ok(())
    }

    /// Appends rows; all of them then.
    pub(crate) fn append(&mut self, rows: &Tensor) -> Result<Tensor> {
        let all = match self.0.take() {
            Some(earlier) => Tensor::cat(&[&earlier, rows], 0)?,
            None => rows.contiguous()?,
        };
        self.0 = Some(all.clone());
        Ok(all)
    }
}

impl KeysValues {
    /// Forgets all positions from `positions` on.
    fn keep(&mut self, positions: usize) -> Result<()> {
        let Some((keys, values)) = &self.0 else { return Ok(()) };
        let kept = positions.min(keys.dim(1)?);
        self.0 = if kept == 0 { None } else { Some((keys.narrow(1, 0, kept)?, values.narrow(1, 0, kept)?)) };
        Ok(())
    }

    /// All keys and all values, where there are some.
    pub(crate) fn held(&self) -> Option<(Tensor, Tensor)> {
        self.0.clone()
    }

    /// Appends (kv_heads, rows, head_dim) each; all keys and all values then.
    pub(crate) fn append(&mut self, keys: &Tensor, values: &Tensor, held_as: CacheType) -> Result<(Tensor, Tensor)> {
        let (keys, values) = (rounded(keys, held_as)?, rounded(values, held_as)?);
        let all = match self.0.take() {
            Some((earlier_keys, earlier_values)) => {
                (Tensor::cat(&[earlier_keys, keys], 1)?, Tensor::cat(&[earlier_values, values], 1)?)
            }
            None => (keys, values),
        };
        self.0 = Some(all.clone());
        Ok(all)
    }
}

/// x as it is kept.
pub(crate) fn rounded(x: &Tensor, held_as: CacheType) -> Result<Tensor> {
    match held_as {
        CacheType::F32 => x.contiguous(),
        CacheType::F16 => x.contiguous()?.to_dtype(DType::F16)?.to_dtype(DType::F32),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn positions_come_behind_each_other_and_go_from_the_end() {
        let rows = |first: f32, rows: usize| {
            Tensor::arange(first, first + rows as f32, &Device::Cpu).unwrap().reshape((1, rows, 1)).unwrap()
        };
        let mut cache = KeysValues::default();
        let append = |cache: &mut KeysValues, first: f32, count| {
            let (keys, values) = cache.append(&rows(first, count), &rows(-first, count), CacheType::F32).unwrap();
            (keys.flatten_all().unwrap().to_vec1::<f32>().unwrap(), values.dims().to_vec())
        };
        assert_eq!(append(&mut cache, 1.0, 2), (vec![1.0, 2.0], vec![1, 2, 1]));
        assert_eq!(append(&mut cache, 5.0, 1), (vec![1.0, 2.0, 5.0], vec![1, 3, 1]));
        cache.keep(1).unwrap();
        assert_eq!(append(&mut cache, 9.0, 1), (vec![1.0, 9.0], vec![1, 2, 1]));
        cache.keep(0).unwrap();
        assert_eq!(append(&mut cache, 7.0, 1), (vec![7.0], vec![1, 1, 1]));
    }

    #[test]
    fn halves_have_eleven_bits() {
        let x = Tensor::new(&[[[1.0_f32 + 1.0 / 1024.0, 1.0 + 1.0 / 4096.0]]], &Device::Cpu).unwrap();
        let held = |held_as| {
            let (keys, _) = KeysValues::default().append(&x, &x, held_as).unwrap();
            keys.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(held(CacheType::F16), [1.0 + 1.0 / 1024.0, 1.0]);
        assert_eq!(held(CacheType::F32), [1.0 + 1.0 / 1024.0, 1.0 + 1.0 / 4096.0]);
    }
}
