//! AVX-512 with VNNI: one register holds all sixteen lanes.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes, gathered};

/// Proof that the CPU has AVX-512 F, BW, VL, DQ and VNNI, and AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, where the CPU has the instructions.
    pub fn new() -> Option<Self> {
        let present = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: Kernel>(lanes: Avx512, kernel: K) -> K::Output {
            kernel.compute(lanes)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Evaluates an intrinsic inside a method of [`Avx512`].
macro_rules! proven {
    ($e:expr) => {{
        // SAFETY: `self` proves that the CPU has the instruction; loads and stores go through references to 16 lanes.
        unsafe { $e }
    }};
}

impl Lanes for Avx512 {
    type F = __m512;
    type U = __m512i;
    const LARGE_TILES: bool = true;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        proven!(_mm512_set1_ps(x))
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        proven!(_mm512_loadu_ps(from.as_ptr()))
    }

    #[inline(always)]
    fn load_half(self, from: &[u16; LANES]) -> Self::F {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn load_half_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        proven!(_mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn widen_half(self, x: Self::U) -> Self::F {
        proven!(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)))
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        proven!(_mm512_storeu_ps(to.as_mut_ptr(), x))
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, to: &mut [u16; LANES]) {
        proven!(_mm256_storeu_si256(to.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x)))
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        proven!(_mm512_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        proven!(_mm512_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        proven!(_mm512_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        proven!(_mm512_div_ps(a, b))
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        proven!(_mm512_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        proven!(_mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        proven!(_mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn to_bits(self, x: Self::F) -> Self::U {
        proven!(_mm512_castps_si512(x))
    }

    #[inline(always)]
    fn of_bits(self, x: Self::U) -> Self::F {
        proven!(_mm512_castsi512_ps(x))
    }

    #[inline(always)]
    fn to_float(self, x: Self::U) -> Self::F {
        proven!(_mm512_cvtepi32_ps(x))
    }

    #[inline(always)]
    fn splat_bits(self, x: u32) -> Self::U {
        proven!(_mm512_set1_epi32(x.cast_signed()))
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::U {
        proven!(_mm512_loadu_si512(from.as_ptr().cast()))
    }

    #[inline(always)]
    fn store_bits(self, x: Self::U, to: &mut [u8; 4 * LANES]) {
        proven!(_mm512_storeu_si512(to.as_mut_ptr().cast(), x))
    }

    #[inline(always)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        proven!(_mm512_and_si512(a, b))
    }

    #[inline(always)]
    fn or(self, a: Self::U, b: Self::U) -> Self::U {
        proven!(_mm512_or_si512(a, b))
    }

    #[inline(always)]
    fn xor(self, a: Self::U, b: Self::U) -> Self::U {
        proven!(_mm512_xor_si512(a, b))
    }

    #[inline(always)]
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U {
        proven!(_mm512_add_epi32(a, b))
    }

    #[inline(always)]
    fn max_bits(self, a: Self::U, b: Self::U) -> Self::U {
        proven!(_mm512_max_epu32(a, b))
    }

    #[inline(always)]
    fn largest_word(self, x: Self::U) -> u32 {
        proven!(_mm512_reduce_max_epu32(x))
    }

    #[inline(always)]
    fn sum_words(self, x: Self::U) -> u32 {
        proven!(_mm512_reduce_add_epi32(x)).cast_unsigned()
    }

    #[inline(always)]
    fn low_bytes(self, x: Self::U) -> [u8; LANES] {
        let mut bytes = [0; LANES];
        proven!(_mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(x)));
        bytes
    }

    #[inline(always)]
    fn widen_bytes(self, from: &[u8; LANES]) -> Self::U {
        proven!(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.as_ptr().cast())))
    }

    #[inline(always)]
    fn translate(self, table: &[u8; 16], x: Self::U) -> Self::U {
        proven!(_mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), x))
    }

    #[inline(always)]
    fn gather<const N: usize, const SHIFT: u32>(self, table: &[u32; N], from: &[u8; 4 * LANES]) -> Self::U {
        // Loads one by one: the instruction that gathers takes much longer on some of these CPUs.
        let found = gathered::<N, SHIFT>(table, from);
        proven!(_mm512_loadu_si512(found.as_ptr().cast()))
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::U) -> Self::U {
        proven!(_mm512_slli_epi32::<N>(x))
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::U) -> Self::U {
        proven!(_mm512_srli_epi32::<N>(x))
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U {
        proven!(_mm512_dpbusd_epi32(sums, w, a))
    }

    #[inline(always)]
    fn call<K: Kernel>(self, kernel: K) -> K::Output {
        self.run(kernel)
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(from.cast()))
    }
}
