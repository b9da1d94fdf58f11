//! The KV cache: pages of f16 keys and values for all layers of the shard, handed to sessions from one budget.
//!
//! A page holds the same positions of every layer and head. Nothing beyond a session's length is ever read, so pages are
//! neither cleared nor copied, and a session rolls back by forgetting its length.

use qmesh_models::spec::AttentionSpec;

use crate::{
    error::EngineError,
    kernel::attend::{HeadLayout, PAGE_POSITIONS},
};

/// The page budget of a shard and its unused pages.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerPart>,
    page_len: usize,
    budget: usize,
    reserved: usize,
    unused: Vec<Vec<u16>>,
}

/// One layer's part of every page.
#[derive(Debug)]
struct LayerPart {
    start: usize,
    heads: usize,
    layout: HeadLayout,
}

/// The pages of one session: position p lies in page p / 64.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Positions written and not rolled back.
    pub(crate) len: usize,
    reserved: usize,
    held: Vec<Vec<u16>>,
}

impl Cache {
    /// A cache of `positions`, rounded up to whole pages, for layers of these shapes.
    pub(crate) fn new<'a>(attentions: impl Iterator<Item = &'a AttentionSpec>, positions: usize) -> Self {
        let mut page_len = 0;
        let layers = attentions.map(|attention| {
            let part = LayerPart {
                start: page_len,
                heads: attention.kv_heads,
                layout: HeadLayout { head_dim: attention.head_dim },
            };
            page_len += part.heads * part.layout.page_len();
            part
        });
        let layers = layers.collect();
        Self { layers, page_len, budget: positions.div_ceil(PAGE_POSITIONS), reserved: 0, unused: Vec::new() }
    }

    /// Positions reserved, in whole pages.
    pub(crate) fn reserved_positions(&self) -> usize {
        self.reserved * PAGE_POSITIONS
    }

    /// Sets pages for `positions` aside; `None` where the budget has no room.
    pub(crate) fn reserve(&mut self, positions: usize) -> Option<Pages> {
        let reserved = positions.div_ceil(PAGE_POSITIONS);
        (reserved <= self.budget - self.reserved).then_some(())?;
        self.reserved += reserved;
        Some(Pages { len: 0, reserved, held: Vec::new() })
    }

    /// Positions that can still be reserved.
    pub(crate) fn free_positions(&self) -> usize {
        (self.budget - self.reserved).saturating_mul(PAGE_POSITIONS)
    }

    /// Takes a session's pages back.
    pub(crate) fn release(&mut self, pages: Pages) {
        self.reserved -= pages.reserved;
        self.unused.extend(pages.held);
    }

    /// Makes sure that `pages` has memory for positions below `end`, which lies within its reservation.
    pub(crate) fn extend(&mut self, pages: &mut Pages, end: usize) -> Result<(), EngineError> {
        while pages.held.len() * PAGE_POSITIONS < end {
            let page = match self.unused.pop() {
                Some(page) => page,
                None => self.allocate()?,
            };
            pages.held.push(page);
        }
        Ok(())
    }

    /// Writes the keys and values (heads · head_dim) of one position.
    pub(crate) fn write(&self, layer: usize, pages: &mut Pages, position: usize, keys: &[f32], values: &[f32]) {
        let LayerPart { heads, layout, .. } = self.layers[layer];
        let rows = keys.chunks_exact(layout.head_dim).zip(values.chunks_exact(layout.head_dim));
        let page = &mut pages.held[position / PAGE_POSITIONS];
        for (head, (key, value)) in (0..heads).zip(rows) {
            layout.write(&mut page[self.place(layer, head)], position % PAGE_POSITIONS, key, value);
        }
    }

    /// One head's part of the pages that hold positions below `end`.
    pub(crate) fn head<'a>(&self, layer: usize, pages: &'a Pages, head: usize, end: usize) -> Vec<&'a [u16]> {
        let place = self.place(layer, head);
        pages.held[..end.div_ceil(PAGE_POSITIONS)].iter().map(|page| &page[place.clone()]).collect()
    }

    /// How a layer's heads lie in their part of a page.
    pub(crate) fn layout(&self, layer: usize) -> HeadLayout {
        self.layers[layer].layout
    }

    fn place(&self, layer: usize, head: usize) -> std::ops::Range<usize> {
        let LayerPart { start, layout, .. } = self.layers[layer];
        let start = start + head * layout.page_len();
        start..start + layout.page_len()
    }

    fn allocate(&self) -> Result<Vec<u16>, EngineError> {
        let mut page = Vec::new();
        page.try_reserve_exact(self.page_len).map_err(|_| EngineError::OutOfMemory {
            needed: 2 * self.page_len as u64,
            tensor: "a page of the KV cache".into(),
        })?;
        page.resize(self.page_len, 0);
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use qmesh_models::spec::{Bias, QkNorm, Rope, RopePairing, RopeScaling, Window};

    use super::*;

    fn attention(kv_heads: usize, head_dim: usize) -> AttentionSpec {
        let rope = Rope { pairing: RopePairing::Halves, dims: head_dim, base: 1e4, scaling: RopeScaling::None };
        let (window, qk_norm, qkv_bias) = (Window::Full, QkNorm::None, Bias::None);
        AttentionSpec { heads: kv_heads, kv_heads, head_dim, scale: 1.0, window, rope, qk_norm, qkv_bias }
    }

    #[test]
    fn pages_are_reserved_whole_and_come_back() {
        let mut cache = Cache::new([attention(2, 16)].iter(), 200);
        let first = cache.reserve(65).unwrap();
        assert_eq!((cache.reserved_positions(), cache.free_positions()), (128, 128));
        assert!(cache.reserve(129).is_none());
        let second = cache.reserve(128).unwrap();
        assert!(cache.reserve(1).is_none());
        cache.release(first);
        cache.release(second);
        assert_eq!((cache.reserved_positions(), cache.free_positions()), (0, 256));
    }

    #[test]
    fn memory_comes_with_the_positions_and_is_used_again() {
        let mut cache = Cache::new([attention(1, 16), attention(2, 40)].iter(), 1 << 40);
        let mut pages = cache.reserve(1 << 30).unwrap();
        cache.extend(&mut pages, 65).unwrap();
        assert_eq!(pages.held.len(), 2);
        assert_eq!(pages.held[0].len(), 64 * (16 + 16 + 2 * (40 + 48)));
        cache.write(1, &mut pages, 64, &[1.0; 80], &[2.0; 80]);
        let heads: Vec<_> = (0..2).map(|head| cache.head(1, &pages, head, 65)[1][0]).collect();
        assert_eq!(heads, [0x3c00, 0x3c00]);
        cache.release(pages);
        let mut again = cache.reserve(64).unwrap();
        cache.extend(&mut again, 64).unwrap();
        assert_eq!((cache.unused.len(), again.held.len()), (1, 1));
    }
}
