//! AVX-512 with VNNI: one register holds all sixteen lanes.

use std::arch::x86_64::*;

use super::{Kernel, LANES, Lanes};

/// Proof that the CPU has AVX-512 F, BW, VL, DQ and VNNI, and AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512(());

impl Avx512 {
    /// The proof, where the CPU has the instructions.
    pub(crate) fn new() -> Option<Self> {
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
        fn compiled<K: Kernel>(lanes: Avx512, kernel: K) -> K::Output {
            kernel.run(lanes)
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
    fn widen_half(self, x: Self::U) -> Self::F {
        proven!(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)))
    }

    #[inline(always)]
    fn store(self, x: Self::F, to: &mut [f32; LANES]) {
        proven!(_mm512_storeu_ps(to.as_mut_ptr(), x))
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
    fn mul_bits(self, a: Self::U, b: Self::U) -> Self::U {
        proven!(_mm512_mullo_epi32(a, b))
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
    fn interleave(self, pieces: [&[u8; LANES]; LANES]) -> [Self::U; 4] {
        let (a, b, c, d) =
            (quad(self, &pieces, 0), quad(self, &pieces, 1), quad(self, &pieces, 2), quad(self, &pieces, 3));
        let (ab, cd) = proven!((_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d)));
        let (ab_high, cd_high) = proven!((_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d)));
        proven!([
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ])
    }

    #[inline(always)]
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U {
        proven!(_mm512_dpbusd_epi32(sums, w, a))
    }

    #[inline(always)]
    fn prefetch(self, from: *const u8) {
        proven!(_mm_prefetch::<_MM_HINT_T1>(from.cast()))
    }
}

/// Rows j, j+4, j+8 and j+12 as the quarters of a register: transposing each quarter then leaves the rows in order.
#[inline(always)]
fn quad(_proof: Avx512, pieces: &[&[u8; LANES]; LANES], j: usize) -> __m512i {
    proven!({
        let first = _mm512_castsi128_si512(_mm_loadu_si128(pieces[j].as_ptr().cast()));
        let second = _mm512_inserti32x4::<1>(first, _mm_loadu_si128(pieces[j + 4].as_ptr().cast()));
        let third = _mm512_inserti32x4::<2>(second, _mm_loadu_si128(pieces[j + 8].as_ptr().cast()));
        _mm512_inserti32x4::<3>(third, _mm_loadu_si128(pieces[j + 12].as_ptr().cast()))
    })
}
