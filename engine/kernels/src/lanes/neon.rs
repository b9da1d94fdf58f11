//! NEON with the byte dot product: four registers hold the sixteen lanes.

use std::{
    arch::{aarch64::*, asm, is_aarch64_feature_detected},
    mem::transmute,
};

use super::{Kernel, LANES, Lanes, gathered};

/// Proof that the CPU has the byte dot product, and keeps words little-endian; NEON itself is part of the target.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// The proof, where the CPU has the instructions.
    pub fn new() -> Option<Self> {
        (cfg!(target_endian = "little") && is_aarch64_feature_detected!("dotprod")).then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon,dotprod")]
        #[inline(never)]
        fn compiled<K: Kernel>(lanes: Neon, kernel: K) -> K::Output {
            kernel.compute(lanes)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Evaluates intrinsics inside a method of [`Neon`].
macro_rules! proven {
    ($e:expr) => {{
        // SAFETY: `self` proves that the CPU has the instructions; transmutes are between numbers of one size.
        unsafe { $e }
    }};
}

/// An intrinsic on each of the four registers.
macro_rules! each {
    ($f:ident, $($x:ident),+) => {
        proven!([$f($($x[0]),+), $f($($x[1]),+), $f($($x[2]),+), $f($($x[3]),+)])
    };
}

impl Lanes for Neon {
    type F = [float32x4_t; 4];
    type U = [uint32x4_t; 4];
    const LARGE_TILES: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [proven!(vdupq_n_f32(x)); 4]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        proven!(transmute::<[f32; LANES], Self::F>(*from))
    }

    #[inline(always)]
    fn load_half(self, from: &[u16; LANES]) -> Self::F {
        let halves = proven!(transmute::<[u16; LANES], [float16x4_t; 4]>(*from));
        each!(vcvt_f32_f16, halves)
    }

    #[inline(always)]
    fn load_half_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        let halves = proven!(transmute::<[u8; 2 * LANES], [float16x4_t; 4]>(*from));
        each!(vcvt_f32_f16, halves)
    }

    #[inline(always)]
    fn widen_half(self, x: Self::U) -> Self::F {
        let lower = each!(vmovn_u32, x);
        let halves = each!(vreinterpret_f16_u16, lower);
        each!(vcvt_f32_f16, halves)
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        *to = proven!(transmute::<Self::F, [f32; LANES]>(x));
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, to: &mut [u16; LANES]) {
        let halves = each!(vcvt_f16_f32, x);
        *to = proven!(transmute::<[float16x4_t; 4], [u16; LANES]>(halves));
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vaddq_f32, a, b)
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vsubq_f32, a, b)
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vmulq_f32, a, b)
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        each!(vdivq_f32, a, b)
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        each!(vfmaq_f32, c, a, b)
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        // `vmaxq_f32` would keep a NaN in `a` too, and order zeros by their sign.
        let greater = each!(vcgtq_f32, a, b);
        each!(vbslq_f32, greater, a, b)
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        let less = each!(vcltq_f32, a, b);
        each!(vbslq_f32, less, a, b)
    }

    #[inline(always)]
    fn to_bits(self, x: Self::F) -> Self::U {
        each!(vreinterpretq_u32_f32, x)
    }

    #[inline(always)]
    fn of_bits(self, x: Self::U) -> Self::F {
        each!(vreinterpretq_f32_u32, x)
    }

    #[inline(always)]
    fn to_float(self, x: Self::U) -> Self::F {
        let signed = each!(vreinterpretq_s32_u32, x);
        each!(vcvtq_f32_s32, signed)
    }

    #[inline(always)]
    fn splat_bits(self, x: u32) -> Self::U {
        [proven!(vdupq_n_u32(x)); 4]
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::U {
        proven!(transmute::<[u8; 4 * LANES], Self::U>(*from))
    }

    #[inline(always)]
    fn store_bits(self, x: Self::U, to: &mut [u8; 4 * LANES]) {
        *to = proven!(transmute::<Self::U, [u8; 4 * LANES]>(x));
    }

    #[inline(always)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        each!(vandq_u32, a, b)
    }

    #[inline(always)]
    fn or(self, a: Self::U, b: Self::U) -> Self::U {
        each!(vorrq_u32, a, b)
    }

    #[inline(always)]
    fn xor(self, a: Self::U, b: Self::U) -> Self::U {
        each!(veorq_u32, a, b)
    }

    #[inline(always)]
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U {
        each!(vaddq_u32, a, b)
    }

    #[inline(always)]
    fn max_bits(self, a: Self::U, b: Self::U) -> Self::U {
        each!(vmaxq_u32, a, b)
    }

    #[inline(always)]
    fn largest_word(self, [a, b, c, d]: Self::U) -> u32 {
        proven!(vmaxvq_u32(vmaxq_u32(vmaxq_u32(a, b), vmaxq_u32(c, d))))
    }

    #[inline(always)]
    fn sum_words(self, [a, b, c, d]: Self::U) -> u32 {
        proven!(vaddvq_u32(vaddq_u32(vaddq_u32(a, b), vaddq_u32(c, d))))
    }

    #[inline(always)]
    fn low_bytes(self, x: Self::U) -> [u8; LANES] {
        // The lower halves of two registers in one, then the lower bytes.
        let [a, b, c, d] = each!(vreinterpretq_u16_u32, x);
        let (low, high) = proven!((vuzp1q_u16(a, b), vuzp1q_u16(c, d)));
        let packed = proven!(vuzp1q_u8(vreinterpretq_u8_u16(low), vreinterpretq_u8_u16(high)));
        proven!(transmute::<uint8x16_t, [u8; LANES]>(packed))
    }

    #[inline(always)]
    fn widen_bytes(self, from: &[u8; LANES]) -> Self::U {
        proven!(transmute::<[u32; LANES], Self::U>(from.map(u32::from)))
    }

    #[inline(always)]
    fn translate(self, table: &[u8; 16], x: Self::U) -> Self::U {
        let tables = [proven!(transmute::<[u8; 16], uint8x16_t>(*table)); 4];
        let bytes = each!(vreinterpretq_u8_u32, x);
        let found = each!(vqtbl1q_u8, tables, bytes);
        each!(vreinterpretq_u32_u8, found)
    }

    #[inline(always)]
    fn gather<const N: usize, const SHIFT: u32>(self, table: &[u32; N], from: &[u8; 4 * LANES]) -> Self::U {
        proven!(transmute::<[u32; LANES], Self::U>(gathered::<N, SHIFT>(table, from)))
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::U) -> Self::U {
        let count = [proven!(vdupq_n_s32(N.cast_signed())); 4];
        each!(vshlq_u32, x, count)
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::U) -> Self::U {
        let count = [proven!(vdupq_n_s32(-N.cast_signed())); 4];
        each!(vshlq_u32, x, count)
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U {
        if WIDE {
            // The instruction takes signed bytes: w·a = (w − 128)·a + 128·a, and the last term is the same for all w.
            let (zeros, ones, tops) = (self.splat_bits(0), self.splat_bits(0x0101_0101), self.splat_bits(0x8080_8080));
            let sums = self.add_bits(sums, self.shl::<7>(each!(signed_dot, zeros, ones, a)));
            let w = each!(veorq_u32, w, tops);
            each!(signed_dot, sums, w, a)
        } else {
            each!(signed_dot, sums, w, a)
        }
    }

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        // SAFETY: a hint, which does nothing where the address is not valid.
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) from, options(nomem, nostack, preserves_flags)) }
    }
}

/// `sums` plus, per word, the four products of signed bytes.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn signed_dot(mut sums: uint32x4_t, w: uint32x4_t, a: uint32x4_t) -> uint32x4_t {
    // SAFETY: it changes no more than its register.
    unsafe {
        asm!(
            "sdot {0:v}.4s, {1:v}.16b, {2:v}.16b",
            inout(vreg) sums, in(vreg) w, in(vreg) a,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sums
}
