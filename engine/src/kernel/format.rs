//! The quantised block formats of GGUF: how the blocks of sixteen rows become a panel of unsigned bytes and scales.

use std::array::from_fn;

use super::lanes::{LANES, Lanes};

/// Blocks of 32 that a panel holds: 256 values of K.
pub(super) const PANEL_BLOCKS: usize = 8;

/// Sixteen rows × up to 256 values of K, unpacked: lane = row. Lives in L1.
#[repr(align(64))]
pub(super) struct Panel {
    /// Four K of sixteen rows each; eight lines a block of 32.
    pub(super) lines: [[u8; 64]; 8 * PANEL_BLOCKS],
    /// One line a scale, `Format::SCALES` a block.
    pub(super) scales: [[f32; LANES]; 2 * PANEL_BLOCKS],
    /// One line a block, of formats that have minima.
    pub(super) minima: [[f32; LANES]; PANEL_BLOCKS],
}

impl Panel {
    pub(super) fn new() -> Self {
        Self { lines: [[0; 64]; _], scales: [[0.0; LANES]; _], minima: [[0.0; LANES]; _] }
    }
}

/// A quantised format: weight = scale · (q − `OFFSET`) + minimum, with q in 0..=255.
pub(super) trait Format<const BYTES: usize> {
    /// Elements per block of the file.
    const LEN: usize;
    /// Scales per 32 elements.
    const SCALES: usize = 1;
    /// What is subtracted from q.
    const OFFSET: i32 = 0;
    /// Whether there are minima.
    const MINIMA: bool = false;

    /// Unpacks one block of each of sixteen rows as the panel's block of 32 number `at` (and those after it).
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; BYTES]; LANES], at: usize, panel: &mut Panel);
}

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

impl Format<18> for Q4_0 {
    const LEN: usize = 32;
    const OFFSET: i32 = 8;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 18]; LANES], at: usize, panel: &mut Panel) {
        let [d, ..] = pieces(l, &blocks, 0);
        l.store(l.widen_half(d), &mut panel.scales[at]);
        nibbles(l, &blocks, 2, &mut panel.lines[8 * at..8 * at + 8]);
    }
}

impl Format<20> for Q4_1 {
    const LEN: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 20]; LANES], at: usize, panel: &mut Panel) {
        let [d_m, ..] = pieces(l, &blocks, 0);
        l.store(l.widen_half(d_m), &mut panel.scales[at]);
        l.store(l.widen_half(l.shr::<16>(d_m)), &mut panel.minima[at]);
        nibbles(l, &blocks, 4, &mut panel.lines[8 * at..8 * at + 8]);
    }
}

impl Format<22> for Q5_0 {
    const LEN: usize = 32;
    const OFFSET: i32 = 16;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 22]; LANES], at: usize, panel: &mut Panel) {
        let [d_high, high, ..] = pieces(l, &blocks, 0);
        l.store(l.widen_half(d_high), &mut panel.scales[at]);
        let lines = &mut panel.lines[8 * at..8 * at + 8];
        nibbles(l, &blocks, 6, lines);
        fifth_bits(l, l.or(l.shr::<16>(d_high), l.shl::<16>(high)), lines);
    }
}

impl Format<24> for Q5_1 {
    const LEN: usize = 32;
    const MINIMA: bool = true;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 24]; LANES], at: usize, panel: &mut Panel) {
        let [d_m, high, ..] = pieces(l, &blocks, 0);
        l.store(l.widen_half(d_m), &mut panel.scales[at]);
        l.store(l.widen_half(l.shr::<16>(d_m)), &mut panel.minima[at]);
        let lines = &mut panel.lines[8 * at..8 * at + 8];
        nibbles(l, &blocks, 8, lines);
        fifth_bits(l, high, lines);
    }
}

impl Format<34> for Q8_0 {
    const LEN: usize = 32;
    const OFFSET: i32 = 128;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 34]; LANES], at: usize, panel: &mut Panel) {
        let [d, ..] = pieces(l, &blocks, 0);
        l.store(l.widen_half(d), &mut panel.scales[at]);
        for half in 0..2 {
            let lines = pieces(l, &blocks, 2 + 16 * half);
            for (i, line) in lines.into_iter().enumerate() {
                let unsigned = l.xor(line, l.splat_bits(0x8080_8080));
                l.store_bits(unsigned, &mut panel.lines[8 * at + 4 * half + i]);
            }
        }
    }
}

impl Format<144> for Q4K {
    const LEN: usize = 256;
    const MINIMA: bool = true;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 144]; LANES], _at: usize, panel: &mut Panel) {
        six_bit_scales(l, &blocks, panel);
        for part in 0..8 {
            // 32 bytes hold two blocks of 32: the low nibbles, then the high ones.
            let first = 16 * (part / 2) + 4 * (part % 2);
            let lines = pieces(l, &blocks, 16 + 16 * part);
            for (i, line) in lines.into_iter().enumerate() {
                l.store_bits(low_nibbles(l, line), &mut panel.lines[first + i]);
                l.store_bits(high_nibbles(l, line), &mut panel.lines[first + i + 8]);
            }
        }
    }
}

impl Format<176> for Q5K {
    const LEN: usize = 256;
    const MINIMA: bool = true;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 176]; LANES], _at: usize, panel: &mut Panel) {
        six_bit_scales(l, &blocks, panel);
        let bit = l.splat_bits(0x1010_1010);
        for half in 0..2 {
            // Byte i of the high bits holds those of element i of all eight blocks of 32.
            let mut high = pieces(l, &blocks, 16 + 16 * half);
            for pair in 0..4 {
                let lines = pieces(l, &blocks, 48 + 32 * pair + 16 * half);
                let first = 16 * pair + 4 * half;
                for (i, line) in lines.into_iter().enumerate() {
                    let low = l.or(low_nibbles(l, line), l.and(l.shl::<4>(high[i]), bit));
                    let top = l.or(high_nibbles(l, line), l.and(l.shl::<3>(high[i]), bit));
                    l.store_bits(low, &mut panel.lines[first + i]);
                    l.store_bits(top, &mut panel.lines[first + i + 8]);
                    high[i] = l.shr::<2>(high[i]);
                }
            }
        }
    }
}

impl Format<210> for Q6K {
    const LEN: usize = 256;
    const SCALES: usize = 2;
    const OFFSET: i32 = 32;

    #[inline(always)]
    fn unpack<L: Lanes>(l: L, blocks: [&[u8; 210]; LANES], _at: usize, panel: &mut Panel) {
        let [.., d] = pieces(l, &blocks, 194);
        let d = l.widen_half(l.shr::<16>(d));
        let scales = pieces(l, &blocks, 192);
        for (i, mut scales) in scales.into_iter().enumerate() {
            for j in 0..4 {
                // A signed byte: moved to the top, converted, and scaled back, which is exact.
                let scale = l.mul(l.to_float(l.shl::<24>(scales)), l.splat(1.0 / (1 << 24) as f32));
                l.store(l.mul(d, scale), &mut panel.scales[4 * i + j]);
                scales = l.shr::<8>(scales);
            }
        }
        let bits = l.splat_bits(0x3030_3030);
        // Each half of 128: 64 bytes of low nibbles, 32 of high pairs; each byte of pairs serves four elements 32 apart.
        for part in 0..4 {
            let (half, quarter) = (part / 2, part % 2);
            let low = pieces(l, &blocks, 64 * half + 16 * quarter);
            let low_next = pieces(l, &blocks, 64 * half + 16 * quarter + 32);
            let high = pieces(l, &blocks, 128 + 32 * half + 16 * quarter);
            for i in 0..4 {
                let elements = [
                    l.or(low_nibbles(l, low[i]), l.and(l.shl::<4>(high[i]), bits)),
                    l.or(low_nibbles(l, low_next[i]), l.and(l.shl::<2>(high[i]), bits)),
                    l.or(high_nibbles(l, low[i]), l.and(high[i], bits)),
                    l.or(high_nibbles(l, low_next[i]), l.and(l.shr::<2>(high[i]), bits)),
                ];
                for (block, line) in elements.into_iter().enumerate() {
                    l.store_bits(line, &mut panel.lines[32 * half + 8 * block + 4 * quarter + i]);
                }
            }
        }
    }
}

/// The 16 bytes at `at` of each row, transposed: four lines.
#[inline(always)]
fn pieces<L: Lanes, const BYTES: usize>(l: L, blocks: &[&[u8; BYTES]; LANES], at: usize) -> [L::U; 4] {
    l.interleave(from_fn(|i| blocks[i][at..].first_chunk().expect("the piece lies inside the block")))
}

/// Sixteen bytes at `at` hold elements 0 to 15 in their low and 16 to 31 in their high nibbles.
#[inline(always)]
fn nibbles<L: Lanes, const BYTES: usize>(l: L, blocks: &[&[u8; BYTES]; LANES], at: usize, lines: &mut [[u8; 64]]) {
    let packed = pieces(l, blocks, at);
    for (i, line) in packed.into_iter().enumerate() {
        l.store_bits(low_nibbles(l, line), &mut lines[i]);
        l.store_bits(high_nibbles(l, line), &mut lines[i + 4]);
    }
}

#[inline(always)]
fn low_nibbles<L: Lanes>(l: L, line: L::U) -> L::U {
    l.and(line, l.splat_bits(0x0f0f_0f0f))
}

#[inline(always)]
fn high_nibbles<L: Lanes>(l: L, line: L::U) -> L::U {
    l.and(l.shr::<4>(line), l.splat_bits(0x0f0f_0f0f))
}

/// Adds bit k of each row's `high` word to element k as its fifth bit.
#[inline(always)]
fn fifth_bits<L: Lanes>(l: L, mut high: L::U, lines: &mut [[u8; 64]]) {
    for line in lines {
        // Four bits times 1 + 2^7 + 2^14 + 2^21: bit j lands, without a carry, at the bottom of byte j.
        let spread = l.mul_bits(l.and(high, l.splat_bits(0xf)), l.splat_bits(0x0020_4081));
        let fifth = l.shl::<4>(l.and(spread, l.splat_bits(0x0101_0101)));
        l.store_bits(l.or(l.load_bits(line), fifth), line);
        high = l.shr::<4>(high);
    }
}

/// Q4_K and Q5_K: d and dmin, then eight 6-bit scales and eight 6-bit minima in twelve bytes.
#[inline(always)]
fn six_bit_scales<L: Lanes, const BYTES: usize>(l: L, blocks: &[&[u8; BYTES]; LANES], panel: &mut Panel) {
    let [d_dmin, a, b, c] = pieces(l, blocks, 0);
    let d = l.widen_half(d_dmin);
    let dmin = l.sub(l.splat(0.0), l.widen_half(l.shr::<16>(d_dmin)));
    let (six, four, two) = (l.splat_bits(0x3f3f_3f3f), l.splat_bits(0x0f0f_0f0f), l.splat_bits(0x3030_3030));
    let fields = [
        (l.and(a, six), l.and(b, six)),
        (l.or(l.and(c, four), l.and(l.shr::<2>(a), two)), l.or(l.and(l.shr::<4>(c), four), l.and(l.shr::<2>(b), two))),
    ];
    for (i, (mut scales, mut minima)) in fields.into_iter().enumerate() {
        for j in 0..4 {
            let byte = l.splat_bits(0xff);
            l.store(l.mul(d, l.to_float(l.and(scales, byte))), &mut panel.scales[4 * i + j]);
            l.store(l.mul(dmin, l.to_float(l.and(minima, byte))), &mut panel.minima[4 * i + j]);
            (scales, minima) = (l.shr::<8>(scales), l.shr::<8>(minima));
        }
    }
}
