//! AVX2 with FMA and F16C: two registers hold the sixteen lanes.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes, gathered};

/// Proof that the CPU has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, where the CPU has the instructions.
    pub fn new() -> Option<Self> {
        let present =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        present.then_some(Self(()))
    }

    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        #[inline(never)]
        fn compiled<K: Kernel>(lanes: Avx2, kernel: K) -> K::Output {
            kernel.compute(lanes)
        }
        // SAFETY: `self` proves that the CPU has these features.
        unsafe { compiled(self, kernel) }
    }
}

/// Evaluates an intrinsic inside a method of [`Avx2`].
macro_rules! proven {
    ($e:expr) => {{
        // SAFETY: `self` proves that the CPU has the instruction; loads and stores go through references to 16 lanes.
        unsafe { $e }
    }};
}

impl Lanes for Avx2 {
    type F = [__m256; 2];
    type U = [__m256i; 2];
    const LARGE_TILES: bool = false;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [proven!(_mm256_set1_ps(x)); 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::F {
        proven!([_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())])
    }

    #[inline(always)]
    fn load_half(self, from: &[u16; LANES]) -> Self::F {
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
        ])
    }

    #[inline(always)]
    fn load_half_bytes(self, from: &[u8; 2 * LANES]) -> Self::F {
        proven!([
            _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(from[16..].as_ptr().cast())),
        ])
    }

    #[inline(always)]
    fn widen_half(self, x: Self::U) -> Self::F {
        let lower = proven!(_mm256_set1_epi32(0xffff));
        let [a, b] = proven!([_mm256_and_si256(x[0], lower), _mm256_and_si256(x[1], lower)]);
        // Packing works within 128-bit halves: the quarters come out as a0, b0, a1, b1.
        let packed = proven!(_mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(a, b)));
        proven!([
            _mm256_cvtph_ps(_mm256_castsi256_si128(packed)),
            _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(packed)),
        ])
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        proven!({
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), x[1]);
        })
    }

    #[inline(always)]
    fn store_half(self, x: Self::F, to: &mut [u16; LANES]) {
        proven!({
            _mm_storeu_si128(to.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[0]));
            _mm_storeu_si128(to[8..].as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(x[1]));
        })
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        proven!([_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        proven!([_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        proven!([_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        proven!([_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        proven!([_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])])
    }

    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        proven!([_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        proven!([_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])])
    }

    #[inline(always)]
    fn to_bits(self, x: Self::F) -> Self::U {
        proven!([_mm256_castps_si256(x[0]), _mm256_castps_si256(x[1])])
    }

    #[inline(always)]
    fn of_bits(self, x: Self::U) -> Self::F {
        proven!([_mm256_castsi256_ps(x[0]), _mm256_castsi256_ps(x[1])])
    }

    #[inline(always)]
    fn to_float(self, x: Self::U) -> Self::F {
        proven!([_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])])
    }

    #[inline(always)]
    fn splat_bits(self, x: u32) -> Self::U {
        [proven!(_mm256_set1_epi32(x.cast_signed())); 2]
    }

    #[inline(always)]
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::U {
        proven!([_mm256_loadu_si256(from.as_ptr().cast()), _mm256_loadu_si256(from[32..].as_ptr().cast())])
    }

    #[inline(always)]
    fn store_bits(self, x: Self::U, to: &mut [u8; 4 * LANES]) {
        proven!({
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to[32..].as_mut_ptr().cast(), x[1]);
        })
    }

    #[inline(always)]
    fn and(self, a: Self::U, b: Self::U) -> Self::U {
        proven!([_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn or(self, a: Self::U, b: Self::U) -> Self::U {
        proven!([_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn xor(self, a: Self::U, b: Self::U) -> Self::U {
        proven!([_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])])
    }

    #[inline(always)]
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U {
        proven!([_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])])
    }

    #[inline(always)]
    fn max_bits(self, a: Self::U, b: Self::U) -> Self::U {
        proven!([_mm256_max_epu32(a[0], b[0]), _mm256_max_epu32(a[1], b[1])])
    }

    #[inline(always)]
    fn largest_word(self, x: Self::U) -> u32 {
        words(self, proven!(_mm256_max_epu32(x[0], x[1]))).into_iter().fold(0, u32::max)
    }

    #[inline(always)]
    fn sum_words(self, x: Self::U) -> u32 {
        words(self, proven!(_mm256_add_epi32(x[0], x[1]))).into_iter().fold(0, u32::wrapping_add)
    }

    #[inline(always)]
    fn low_bytes(self, x: Self::U) -> [u8; LANES] {
        let mut bytes = [0; LANES];
        for (half, to) in x.into_iter().zip(bytes.chunks_exact_mut(8)) {
            for (word, to) in words(self, half).into_iter().zip(to) {
                *to = word as u8;
            }
        }
        bytes
    }

    #[inline(always)]
    fn widen_bytes(self, from: &[u8; LANES]) -> Self::U {
        let bytes = proven!(_mm_loadu_si128(from.as_ptr().cast()));
        proven!([_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_unpackhi_epi64(bytes, bytes))])
    }

    #[inline(always)]
    fn translate(self, table: &[u8; 16], x: Self::U) -> Self::U {
        let table = proven!(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())));
        proven!([_mm256_shuffle_epi8(table, x[0]), _mm256_shuffle_epi8(table, x[1])])
    }

    #[inline(always)]
    fn gather<const N: usize, const SHIFT: u32>(self, table: &[u32; N], from: &[u8; 4 * LANES]) -> Self::U {
        // Loads one by one: the instruction that gathers takes twice as long on many CPUs, and much longer on some.
        let found = gathered::<N, SHIFT>(table, from);
        proven!([_mm256_loadu_si256(found.as_ptr().cast()), _mm256_loadu_si256(found[8..].as_ptr().cast())])
    }

    #[inline(always)]
    fn shl<const N: u32>(self, x: Self::U) -> Self::U {
        let count = proven!(_mm_cvtsi32_si128(N.cast_signed()));
        proven!([_mm256_sll_epi32(x[0], count), _mm256_sll_epi32(x[1], count)])
    }

    #[inline(always)]
    fn shr<const N: u32>(self, x: Self::U) -> Self::U {
        let count = proven!(_mm_cvtsi32_si128(N.cast_signed()));
        proven!([_mm256_srl_epi32(x[0], count), _mm256_srl_epi32(x[1], count)])
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U {
        [dot::<WIDE>(self, sums[0], w[0], a[0]), dot::<WIDE>(self, sums[1], w[1], a[1])]
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

/// The words of one register.
#[inline(always)]
fn words(_proof: Avx2, x: __m256i) -> [u32; 8] {
    let mut words = [0; 8];
    proven!(_mm256_storeu_si256(words.as_mut_ptr().cast(), x));
    words
}

/// One register of [`Lanes::dot`]. Pairs are summed in 16 bits: 127·127·2 fits, 255·127·2 would saturate, so wide
/// weights are split at their highest bit.
#[inline(always)]
fn dot<const WIDE: bool>(_proof: Avx2, sums: __m256i, w: __m256i, a: __m256i) -> __m256i {
    let ones = proven!(_mm256_set1_epi16(1));
    if WIDE {
        let top = proven!(_mm256_set1_epi8(i8::MIN));
        let (low, high) = proven!((_mm256_andnot_si256(top, w), _mm256_and_si256(top, w)));
        let (low, high) = proven!((_mm256_maddubs_epi16(low, a), _mm256_maddubs_epi16(high, a)));
        let both = proven!(_mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)));
        proven!(_mm256_add_epi32(sums, both))
    } else {
        proven!(_mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(w, a), ones)))
    }
}
