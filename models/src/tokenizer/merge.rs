//! Merging of adjacent symbols, the best pair first: the one loop of all kinds of BPE.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    ops::Range,
};

use super::{TokenizerError, token::Tokens};

/// A piece of a text, and its token if it is one.
#[derive(Clone, Debug)]
pub(super) struct Symbol {
    /// Where it lies in the text, in bytes; empty once it was merged into its left neighbour.
    pub(super) span: Range<usize>,
    /// Its token.
    pub(super) token: Option<u32>,
}

/// What two symbols become.
#[derive(Clone, Copy, Debug)]
pub(super) struct Merge {
    /// The lowest goes first; of equals the leftmost.
    pub(super) order: u32,
    /// The token of both together.
    pub(super) token: u32,
}

/// Merges `symbols`, adjacent and none of them empty, until `pair` has no merge for any two neighbours. O(n log n).
pub(super) fn merge(mut symbols: Vec<Symbol>, pair: impl Fn(&Symbol, &Symbol) -> Option<Merge>) -> Vec<Symbol> {
    let mut links = Links::new(symbols.len());
    let mut queue = BinaryHeap::new();
    let propose = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize, right: usize| {
        if let Some(Merge { order, token }) = pair(&symbols[left], &symbols[right]) {
            let span = symbols[left].span.start..symbols[right].span.end;
            queue.push(Reverse((order, left, right, token, span.len())));
        }
    };
    for right in 1..symbols.len() {
        propose(&mut queue, &symbols, right - 1, right);
    }
    while let Some(Reverse((_, left, right, token, len))) = queue.pop() {
        // A proposal is stale where one of its symbols has gone or grown since.
        let (l, r) = (&symbols[left].span, &symbols[right].span);
        if l.is_empty() || r.is_empty() || l.len() + r.len() != len {
            continue;
        }
        symbols[left] = Symbol { span: l.start..r.end, token: Some(token) };
        symbols[right].span = 0..0;
        links.remove(right);
        if let Some(before) = links.before(left) {
            propose(&mut queue, &symbols, before, left);
        }
        if let Some(after) = links.after(left) {
            propose(&mut queue, &symbols, left, after);
        }
    }
    symbols.retain(|symbol| !symbol.span.is_empty());
    symbols
}

/// Merges as a file has them, `left right`, the most important first, by the ids of left and right.
pub(super) fn merges_by_pair(tokens: &Tokens, merges: &[String]) -> Result<HashMap<(u32, u32), Merge>, TokenizerError> {
    let mut by_pair = HashMap::with_capacity(merges.len());
    let mut skipped = 0_usize;
    for (order, text) in (0_u32..).zip(merges) {
        // The left side may itself begin with a space.
        let cut = text.char_indices().skip(1).find(|&(_, c)| c == ' ').map(|(at, _)| at);
        let at = cut.ok_or_else(|| TokenizerError::Merge { index: order, text: text.clone() })?;
        let (left, right) = (&text[..at], &text[at + 1..]);
        let ids = [left, right, &format!("{left}{right}")].map(|part| tokens.find_text(part));
        if let [Some(left), Some(right), Some(token)] = ids {
            by_pair.entry((left, right)).or_insert(Merge { order, token });
        } else {
            skipped += 1;
        }
    }
    if skipped > 0 {
        tracing::warn!(skipped, "merges of or to texts that are no tokens");
    }
    Ok(by_pair)
}

/// A doubly linked list over indices.
struct Links(Vec<(usize, usize)>);

impl Links {
    fn new(len: usize) -> Self {
        Self((0..len).map(|index| (index.wrapping_sub(1), index + 1)).collect())
    }

    fn before(&self, index: usize) -> Option<usize> {
        Some(self.0[index].0).filter(|&before| before < self.0.len())
    }

    fn after(&self, index: usize) -> Option<usize> {
        Some(self.0[index].1).filter(|&after| after < self.0.len())
    }

    fn remove(&mut self, index: usize) {
        let (before, after) = self.0[index];
        if before < self.0.len() {
            self.0[before].1 = after;
        }
        if after < self.0.len() {
            self.0[after].0 = before;
        }
    }
}
