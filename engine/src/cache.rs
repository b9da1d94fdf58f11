//! The KV cache: pages of f16 keys and values for all layers of the shard, handed to sessions from one budget.
//!
//! A page holds the same positions of every layer and head. Nothing beyond a session's length is ever read, so pages are
//! neither cleared nor copied, and a session rolls back by forgetting its length. Sessions with a common beginning share
//! its pages, which nobody writes any more; they count once.

use std::{ops::Range, sync::Arc};

use qmesh_kernels::attend::{HeadLayout, PAGE_POSITIONS};
use qmesh_models::spec::Mixer;

use crate::error::EngineError;

/// The page budget of a shard and its unused pages.
#[derive(Debug)]
pub(crate) struct Cache {
    layers: Vec<LayerPart>,
    page_len: usize,
    budget: usize,
    /// Pages that sessions hold; shared ones count once.
    used: usize,
    unused: Vec<Page>,
}

/// The memory of a page, from the beginning of a cache line on.
#[derive(Debug)]
struct Page {
    memory: Vec<u16>,
    start: usize,
}

/// Elements in a cache line.
const LINE: usize = 32;

/// One layer's part of every page.
#[derive(Clone, Copy, Debug)]
struct LayerPart {
    start: usize,
    heads: usize,
    layout: HeadLayout,
    /// Elements of an indexer's keys, which stand behind the heads' parts.
    index_len: usize,
}

/// The pages of one session: position p lies in page p / 64.
#[derive(Debug, Default)]
pub(crate) struct Pages {
    /// Positions written and not rolled back.
    pub(crate) len: usize,
    /// Pages at the beginning that other sessions may hold too.
    shared: usize,
    held: Vec<Arc<Page>>,
}

impl Cache {
    /// A cache of `positions`, rounded up to whole pages, for layers of these shapes.
    pub(crate) fn new<'a>(mixers: impl Iterator<Item = &'a Mixer>, positions: usize) -> Self {
        let mut page_len = 0;
        let layers = mixers.map(|mixer| {
            let (heads, layout) = match mixer {
                Mixer::Attention(attention) => {
                    (attention.own_kv_heads(), HeadLayout::Apart { head_dim: attention.head_dim })
                }
                // It has no part of the pages.
                Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => (0, HeadLayout::Apart { head_dim: 0 }),
                Mixer::Latent(latent) => {
                    (1, HeadLayout::Shared { key_dim: latent.key_dim(), value_dim: latent.latent_dim })
                }
            };
            let part = LayerPart { start: page_len, heads, layout, index_len: index_len(mixer) };
            page_len += part.heads_len() + part.index_len;
            part
        });
        let layers = layers.collect();
        Self { layers, page_len, budget: positions.div_ceil(PAGE_POSITIONS), used: 0, unused: Vec::new() }
    }

    /// Positions that sessions hold, in whole pages.
    pub(crate) fn used_positions(&self) -> usize {
        self.used * PAGE_POSITIONS
    }

    /// Positions that sessions can still take.
    pub(crate) fn free_positions(&self) -> usize {
        (self.budget - self.used).saturating_mul(PAGE_POSITIONS)
    }

    /// Whether a session could ever come to hold `positions`.
    pub(crate) fn is_large_enough(&self, positions: usize) -> bool {
        positions.div_ceil(PAGE_POSITIONS) <= self.budget
    }

    /// Pages of a session whose first `shared` positions, whole pages that `source` has written, are the source's.
    pub(crate) fn fork(&self, source: &mut Pages, shared: usize) -> Pages {
        let (len, shared) = (shared, shared / PAGE_POSITIONS);
        source.shared = source.shared.max(shared);
        Pages { len, shared, held: source.held[..shared].to_vec() }
    }

    /// Takes back what a session has beyond its first `positions`.
    pub(crate) fn shorten(&mut self, pages: &mut Pages, positions: usize) {
        pages.len = pages.len.min(positions);
        for page in pages.held.drain(pages.len.div_ceil(PAGE_POSITIONS)..) {
            // Whoever holds a shared page last takes it off the books.
            if let Some(page) = Arc::into_inner(page) {
                self.unused.push(page);
                self.used -= 1;
            }
        }
    }

    /// Takes a session's pages back.
    pub(crate) fn release(&mut self, mut pages: Pages) {
        self.shorten(&mut pages, 0);
    }

    /// Makes sure that `pages` has memory for positions below `end`, for which there is room.
    pub(crate) fn extend(&mut self, pages: &mut Pages, end: usize) -> Result<(), EngineError> {
        while pages.lacks(end) > 0 {
            let page = match self.unused.pop() {
                Some(page) => page,
                None => self.allocate()?,
            };
            pages.held.push(Arc::new(page));
            self.used += 1;
        }
        Ok(())
    }

    /// The layer's part, head after head and then an indexer's keys, of each page that holds some of `positions`, and which of
    /// them.
    pub(crate) fn parts_mut<'a>(
        &self,
        layer: usize,
        pages: &'a mut Pages,
        positions: Range<usize>,
    ) -> impl Iterator<Item = (Range<usize>, &'a mut [u16])> {
        let part = self.layers[layer];
        let place = part.start..part.start + part.heads_len() + part.index_len;
        let numbers = positions.start / PAGE_POSITIONS..positions.end.div_ceil(PAGE_POSITIONS);
        pages.held[numbers.clone()].iter_mut().zip(numbers).map(move |(page, number)| {
            let (first, end) = (number * PAGE_POSITIONS, (number + 1) * PAGE_POSITIONS);
            let page = Arc::get_mut(page).expect("only what lies before Pages::fixed is shared, and it is not written");
            (positions.start.max(first)..positions.end.min(end), &mut page.elements_mut()[place.clone()])
        })
    }

    /// One head's part of the pages `numbers`.
    pub(crate) fn head<'a>(
        &self,
        layer: usize,
        pages: &'a Pages,
        head: usize,
        numbers: Range<usize>,
    ) -> Vec<&'a [u16]> {
        let LayerPart { start, layout, .. } = self.layers[layer];
        let start = start + head * layout.page_len();
        pages.held[numbers].iter().map(|page| &page.elements()[start..start + layout.page_len()]).collect()
    }

    /// An indexer's keys of the pages `numbers`.
    pub(crate) fn index_keys<'a>(&self, layer: usize, pages: &'a Pages, numbers: Range<usize>) -> Vec<&'a [u16]> {
        let part = self.layers[layer];
        let start = part.start + part.heads_len();
        pages.held[numbers].iter().map(|page| &page.elements()[start..start + part.index_len]).collect()
    }

    /// KV heads of a layer.
    pub(crate) fn heads(&self, layer: usize) -> usize {
        self.layers[layer].heads
    }

    /// How a layer's heads lie in their part of a page.
    pub(crate) fn layout(&self, layer: usize) -> HeadLayout {
        self.layers[layer].layout
    }

    fn allocate(&self) -> Result<Page, EngineError> {
        let mut memory = Vec::new();
        let len = self.page_len + LINE;
        memory.try_reserve_exact(len).map_err(|_| EngineError::OutOfMemory {
            needed: 2 * len as u64,
            tensor: "a page of the KV cache".into(),
        })?;
        memory.resize(len, 0);
        let start = memory.as_ptr().align_offset(2 * LINE).min(LINE);
        Ok(Page { memory, start })
    }
}

impl LayerPart {
    /// Elements of all heads of a page.
    fn heads_len(self) -> usize {
        self.heads * self.layout.page_len()
    }
}

/// Elements of an indexer's keys in a page.
fn index_len(mixer: &Mixer) -> usize {
    match mixer {
        Mixer::GatedDelta(_) | Mixer::StateSpace(_) | Mixer::None => 0,
        Mixer::Attention(attention) => attention.blocks.as_ref().map_or(0, |indexer| PAGE_POSITIONS * indexer.head_dim),
        Mixer::Latent(latent) => latent.indexer().map_or(0, |indexer| PAGE_POSITIONS * indexer.head_dim),
    }
}

impl Pages {
    /// Positions that are not written any more, as other sessions may share them.
    pub(crate) fn fixed(&self) -> usize {
        self.shared * PAGE_POSITIONS
    }

    /// Positions, in whole pages, that it has to take to hold those below `end`.
    pub(crate) fn lacks(&self, end: usize) -> usize {
        end.div_ceil(PAGE_POSITIONS).saturating_sub(self.held.len()) * PAGE_POSITIONS
    }
}

impl Page {
    fn elements(&self) -> &[u16] {
        &self.memory[self.start..][..self.memory.len() - LINE]
    }

    fn elements_mut(&mut self) -> &mut [u16] {
        let len = self.memory.len() - LINE;
        &mut self.memory[self.start..][..len]
    }
}

#[cfg(test)]
mod tests {
    use qmesh_models::spec::{AttentionSpec, Bias, KvSource, OutputGate, QkNorm, Sinks, Values, Window};

    use super::*;

    fn attention(kv_heads: usize, head_dim: usize) -> Mixer {
        Mixer::Attention(AttentionSpec {
            heads: kv_heads,
            kv_heads,
            head_dim,
            scale: 1.0,
            soft_cap: None,
            sinks: Sinks::None,
            window: Window::Full,
            rope: None,
            qk_norm: QkNorm::None,
            temperature: None,
            source: KvSource::Own,
            values: Values::Own,
            blocks: None,
            qkv_bias: Bias::None,
            output_bias: Bias::None,
            output_gate: OutputGate::None,
        })
    }

    #[test]
    fn pages_are_taken_whole_and_come_back() {
        let mut cache = Cache::new([attention(2, 16)].iter(), 200);
        assert!(cache.is_large_enough(256) && !cache.is_large_enough(257));
        let (mut first, mut second) = (Pages::default(), Pages::default());
        assert_eq!((first.lacks(0), first.lacks(65)), (0, 128));
        cache.extend(&mut first, 65).unwrap();
        assert_eq!((cache.used_positions(), cache.free_positions()), (128, 128));
        cache.extend(&mut first, 128).unwrap();
        cache.extend(&mut second, 128).unwrap();
        assert_eq!((cache.free_positions(), second.lacks(129)), (0, 64));
        cache.release(first);
        cache.release(second);
        assert_eq!((cache.used_positions(), cache.free_positions()), (0, 256));
    }

    #[test]
    fn shared_pages_count_once_and_go_with_their_last_holder() {
        let mut cache = Cache::new([attention(1, 16)].iter(), 640);
        let mut first = Pages::default();
        cache.extend(&mut first, 300).unwrap();
        first.len = 200;
        cache.shorten(&mut first, 200);
        assert_eq!((cache.used_positions(), first.held.len()), (256, 4));
        let mut second = cache.fork(&mut first, 128);
        assert_eq!((second.len, second.fixed(), first.fixed(), cache.used_positions()), (128, 128, 128, 256));
        cache.extend(&mut second, 200).unwrap();
        assert_eq!(cache.parts_mut(0, &mut second, 128..200).count(), 2);
        assert_eq!(cache.used_positions(), 384);
        cache.release(first);
        assert_eq!((cache.used_positions(), cache.unused.len()), (256, 2));
        cache.release(second);
        assert_eq!((cache.used_positions(), cache.unused.len()), (0, 6));
    }

    #[test]
    fn memory_comes_with_the_positions_and_is_used_again() {
        let mut cache = Cache::new([attention(1, 16), attention(2, 40)].iter(), 1 << 40);
        let mut pages = Pages::default();
        cache.extend(&mut pages, 65).unwrap();
        assert_eq!(pages.held.len(), 2);
        assert_eq!(pages.held[0].elements().len(), 64 * (16 + 16 + 2 * (40 + 48)));
        let head_len = 64 * (40 + 48);
        for (positions, part) in cache.parts_mut(1, &mut pages, 62..65) {
            assert_eq!(part.len(), 2 * head_len);
            part[head_len] = positions.start as u16;
        }
        let second: Vec<_> = cache.head(1, &pages, 1, 0..2).iter().map(|page| page[0]).collect();
        assert_eq!(second, [62, 64]);
        cache.release(pages);
        let mut again = Pages::default();
        cache.extend(&mut again, 64).unwrap();
        assert_eq!((cache.unused.len(), again.held.len()), (1, 1));
    }
}
