//! How layers with a state go through the rows of a step, whatever their rule is: session by session, head by head, and within
//! a head row by row. Heads know nothing of each other, so that they are the team's tasks.

use qmesh_kernels::{
    Cpu,
    columns::Columns,
    convolution::Convolve,
    delta::{DeltaRow, DeltaUpdate},
};

use crate::{
    batch::{Batch, Slice},
    states::{LastRows, LayerState, settled_after},
};

/// What a layer does with a row in one of its heads.
pub(crate) trait Rule: Sync {
    /// How large all is.
    fn shape(&self) -> RuleShape;

    /// Fills in what the head needs of the row at `position`.
    fn load(&self, cpu: Cpu<'_>, rows: &Rows<'_>, position: usize, head: usize, row: &mut HeadRow);

    /// What the row puts out with the state before it, and in `row.correction` how it changes that.
    fn answer(&self, cpu: Cpu<'_>, state: &[f32], row: &mut HeadRow);

    /// Writes what comes out of the head for the row.
    fn finish(&self, cpu: Cpu<'_>, rows: &Rows<'_>, position: usize, head: usize, row: &mut HeadRow, out: &mut [f32]);
}

/// How large a layer's heads, states and rows are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RuleShape {
    /// Which of the shard's layers it is: its place in the states.
    pub(crate) layer: usize,
    pub(crate) heads: usize,
    /// Elements of a key, and of a value: a head's state has as many rows and columns.
    pub(crate) keys: usize,
    pub(crate) values: usize,
    /// Elements at the beginning of a projected row that are held for later rows.
    pub(crate) row_len: usize,
}

/// The rows of one session: those of this step, and the last ones before it.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a> {
    last: &'a LastRows,
    /// (rows, width): as the layer's products have them.
    new: &'a [f32],
    width: usize,
    /// Position of the first new one.
    position: usize,
    end: usize,
}

/// A head's part of one row.
pub(crate) struct HeadRow {
    pub(crate) query: Vec<f32>,
    pub(crate) key: Vec<f32>,
    /// The value, then the correction.
    pub(crate) value: Vec<f32>,
    /// Of each key element.
    pub(crate) decay: Vec<f32>,
    /// How much of an error is corrected, where the rule corrects some.
    pub(crate) beta: f32,
    pub(crate) out: Vec<f32>,
    /// What goes past the state, where something does.
    pub(crate) skipped: Vec<f32>,
}

/// One head's way through the rows of one session.
struct Head<'a, R> {
    rule: &'a R,
    shape: RuleShape,
    cpu: Cpu<'a>,
    rows: Rows<'a>,
    /// Rows that are part of the state, before and after.
    settled: [usize; 2],
    head: usize,
    /// (keys, values)
    state: &'a mut [f32],
    /// The head's part of the step's rows.
    out: Columns<'a, f32>,
}

/// Takes every head through the rows of every session: (rows, heads · values). The states of the batch's sessions have the
/// rows in them, or beside them, afterwards.
pub(crate) fn run(rule: &impl Rule, batch: &mut Batch<'_>, projected: &[f32], width: usize) -> Vec<f32> {
    let shape = rule.shape();
    let RuleShape { layer, heads, keys, values, .. } = shape;
    let mut all = vec![0.0; projected.len() / width * heads * values];
    let (cpu, mut out) = (batch.cpu, &mut all[..]);
    let mut tasks = Vec::new();
    for Slice { states, first, rows, position, .. } in &mut batch.slices {
        let end = *position + *rows;
        let settled = [states.settled, settled_after(*position, end)];
        let LayerState { state, rows: last } = &mut states.layers[layer];
        let new = &projected[*first * width..(*first + *rows) * width];
        let rows_of = Rows { last, new, width, position: *position, end };
        let (own, rest) = std::mem::take(&mut out).split_at_mut(*rows * heads * values);
        out = rest;
        let parts = state.chunks_exact_mut(keys * values).zip(Columns::split(own, &vec![values; heads]));
        let task = |(head, (state, out))| Head { rule, shape, cpu, rows: rows_of, settled, head, state, out };
        tasks.extend(parts.enumerate().map(task));
    }
    cpu.team.each(tasks, Head::run);
    hold(batch, shape, projected, width);
    all
}

/// Holds the last of the step's rows beside the states.
fn hold(batch: &mut Batch<'_>, shape: RuleShape, projected: &[f32], width: usize) {
    for Slice { states, first, rows, position, .. } in &mut batch.slices {
        let last = &mut states.layers[shape.layer].rows;
        for row in 0..*rows {
            last.put(*position + row, &projected[(*first + row) * width..][..shape.row_len]);
        }
    }
}

impl<R: Rule> Head<'_, R> {
    fn run(mut self) {
        let RuleShape { keys, values, .. } = self.shape;
        let mut row = HeadRow::new(keys, values);
        let ([before, after], end) = (self.settled, self.rows.end);
        // The state with rows that may yet be taken back.
        let mut ahead = Vec::new();
        for position in before..end {
            let is_last = position + 1 == end;
            if position == after && !is_last {
                ahead.extend_from_slice(self.state);
            }
            self.rule.load(self.cpu, &self.rows, position, self.head, &mut row);
            let state = if ahead.is_empty() { &mut *self.state } else { &mut ahead[..] };
            self.rule.answer(self.cpu, state, &mut row);
            // No row comes after the last one yet.
            if position < after || !is_last {
                let HeadRow { key, value, decay, .. } = &row;
                DeltaUpdate { state, row: DeltaRow { decay, key }, correction: value }.run(self.cpu.simd);
            }
            if position >= self.rows.position {
                let out = self.out.row(position - self.rows.position);
                self.rule.finish(self.cpu, &self.rows, position, self.head, &mut row, out);
            }
        }
    }
}

impl HeadRow {
    fn new(keys: usize, values: usize) -> Self {
        let [query, key, decay] = [(); 3].map(|()| vec![0.0; keys]);
        let [value, out, skipped] = [(); 3].map(|()| vec![0.0; values]);
        Self { query, key, value, decay, beta: 0.0, out, skipped }
    }
}

impl<'a> Rows<'a> {
    /// The row at `position`: what was projected of it, or of an earlier one what is held.
    pub(crate) fn get(&self, position: usize) -> &'a [f32] {
        match position.checked_sub(self.position) {
            Some(row) => &self.new[row * self.width..][..self.width],
            None => self.last.get(position),
        }
    }

    /// The channels from `channel` on, convolved over the row at `position` and those before it by the factors `taps`,
    /// (taps, channels), the oldest row's first; a bias is one for each channel.
    pub(crate) fn convolve(
        &self,
        cpu: Cpu<'_>,
        position: usize,
        channel: usize,
        (taps, channels): (&[f32], usize),
        bias: Option<&[f32]>,
        out: &mut [f32],
    ) {
        let (count, part) = (taps.len() / channels, channel..channel + out.len());
        let first = (position + 1).saturating_sub(count);
        let taps = taps.chunks_exact(channels).skip(count - (position + 1 - first));
        let ones = vec![1.0; if bias.is_some() { out.len() } else { 0 }];
        let mut terms: Vec<(&[f32], &[f32])> = Vec::with_capacity(count + 1);
        terms.extend(bias.map(|bias| (&bias[part.clone()], &ones[..])));
        terms
            .extend(taps.zip(first..).map(|(taps, position)| (&taps[part.clone()], &self.get(position)[part.clone()])));
        Convolve { terms: &terms, out }.run(cpu.simd);
    }
}
