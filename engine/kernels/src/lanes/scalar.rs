//! The portable tier: plain arrays, and the oracle of the others. What is long as code for one lane after the other is a call: its
//! copies would be two fifths of all kernels.

use std::array::from_fn;

use half::f16;

use super::{Kernel, LANES, Lanes, gathered};

/// Needs nothing of the CPU.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Lanes for Scalar {
    type F = [f32; LANES];
    type U = [u32; LANES];
    const VECTORS: bool = false;
    const LARGE_TILES: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        *from
    }

    #[inline(never)]
    fn load_half(self, from: &[u16; LANES]) -> Self::F {
        from_fn(|i| f16::from_bits(from[i]).to_f32())
    }

    #[inline(never)]
    fn load_half_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        from_fn(|i| f16::from_le_bytes([from[2 * i], from[2 * i + 1]]).to_f32())
    }

    #[inline(never)]
    fn widen_half(self, x: Self::U) -> Self::F {
        x.map(|v| f16::from_bits(v as u16).to_f32())
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = x;
    }

    #[inline(never)]
    fn store_half(self, x: Self::F, to: &mut [u16; LANES]) {
        *to = x.map(|x| f16::from_f32(x).to_bits());
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }

    #[inline(never)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }

    #[inline(always)]
    fn to_bits(self, x: Self::F) -> Self::U {
        x.map(f32::to_bits)
    }

    #[inline(always)]
    fn of_bits(self, x: Self::U) -> Self::F {
        x.map(f32::from_bits)
    }

    #[inline(always)]
    fn to_float(self, x: Self::U) -> Self::F {
        x.map(|v| v.cast_signed() as f32)
    }

    #[inline(always)]
    fn splat_bits(self, x: u32) -> Self::U {
        [x; LANES]
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::U {
        let words = from.as_chunks().0;
        from_fn(|i| u32::from_le_bytes(words[i]))
    }

    #[inline(always)]
    fn store_bits(self, x: Self::U, to: &mut [u8; 4 * LANES]) {
        for (word, lane) in to.as_chunks_mut().0.iter_mut().zip(x) {
            *word = lane.to_le_bytes();
        }
    }

    #[inline(always)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        from_fn(|i| a[i] & b[i])
    }

    #[inline(always)]
    fn or(self, a: Self::U, b: Self::U) -> Self::U {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn xor(self, a: Self::U, b: Self::U) -> Self::U {
        from_fn(|i| a[i] ^ b[i])
    }

    #[inline(always)]
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    fn max_bits(self, a: Self::U, b: Self::U) -> Self::U {
        from_fn(|i| a[i].max(b[i]))
    }

    #[inline(always)]
    fn largest_word(self, x: Self::U) -> u32 {
        x.into_iter().fold(0, u32::max)
    }

    #[inline(always)]
    fn sum_words(self, x: Self::U) -> u32 {
        x.into_iter().fold(0, u32::wrapping_add)
    }

    #[inline(always)]
    fn low_bytes(self, x: Self::U) -> [u8; LANES] {
        x.map(|word| word as u8)
    }

    #[inline(always)]
    fn widen_bytes(self, from: &[u8; LANES]) -> Self::U {
        from.map(u32::from)
    }

    #[inline(never)]
    fn translate(self, table: &[u8; 16], x: Self::U) -> Self::U {
        x.map(|word| u32::from_le_bytes(word.to_le_bytes().map(|byte| table[usize::from(byte)])))
    }

    #[inline(never)]
    fn gather<const N: usize, const SHIFT: u32>(self, table: &[u32; N], from: &[u8; 4 * LANES]) -> Self::U {
        gathered::<N, SHIFT>(table, from)
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::U) -> Self::U {
        x.map(|v| v << N)
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::U) -> Self::U {
        x.map(|v| v >> N)
    }

    #[inline(never)]
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U {
        from_fn(|i| {
            let products = w[i].to_le_bytes().into_iter().zip(a[i].to_le_bytes());
            let dot: i32 = products.map(|(w, a)| i32::from(w) * i32::from(a.cast_signed())).sum();
            sums[i].wrapping_add_signed(dot)
        })
    }

    #[inline(never)]
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES] {
        from_fn(|lane| from_fn(|row| rows[row][lane]))
    }

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        #[inline(never)]
        fn compiled<K: Kernel>(lanes: Scalar, kernel: K) -> K::Output {
            kernel.compute(lanes)
        }
        compiled(self, kernel)
    }

    #[inline(always)]
    fn prefetch(self, _from: *const u8) {}
}
