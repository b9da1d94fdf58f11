//! Sixteen lanes of f32 or u32: the one vector width that every kernel is written in, once, for all instruction sets.
//!
//! A kernel is safe code over a [`Lanes`] value; the value is the proof that the CPU has the instructions. All tiers
//! give the same bits: each operation is exact or rounds once, to nearest even, as IEEE 754 says.

#![allow(unsafe_code, reason = "vector instructions; each tier's value proves that the CPU has them")]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;

/// Number of lanes.
pub(crate) use qmesh_models::footprint::LANES;

#[cfg(target_arch = "aarch64")]
pub(crate) use self::neon::Neon;
use self::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub(crate) use self::{avx2::Avx2, avx512::Avx512};
use crate::error::EngineError;

/// Sixteen lanes on one instruction set. Methods are safe: holding the value proves that its instructions exist.
pub(crate) trait Lanes: Copy {
    /// Whether there are registers enough for tiles of 6 rows by 32 outputs or 16 by 16; elsewhere, of 2 by 32 or 4 by 16.
    const LARGE_TILES: bool;
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen u32; also sixteen i32 (two's complement) or 64 bytes, in memory order.
    type U: Copy;

    fn splat(self, x: f32) -> Self::F;
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Widens f16 bits.
    fn load_half(self, from: &[u16; LANES]) -> Self::F;
    /// Widens f16 bits, little-endian.
    fn load_half_bytes(self, from: &[u8; 2 * LANES]) -> Self::F;
    /// Widens the f16 bits in the lower half of each lane.
    fn widen_half(self, x: Self::U) -> Self::F;
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Narrows to f16 bits, to nearest even.
    fn store_half(self, x: Self::F, to: &mut [u16; LANES]);
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a > b ? a : b, so that a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a < b ? a : b, so that a NaN in `b` stays.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    fn to_bits(self, x: Self::F) -> Self::U;
    fn of_bits(self, x: Self::U) -> Self::F;
    /// The lanes as i32, converted.
    fn to_float(self, x: Self::U) -> Self::F;

    fn splat_bits(self, x: u32) -> Self::U;
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::U;
    fn store_bits(self, x: Self::U, to: &mut [u8; 4 * LANES]);
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    fn or(self, a: Self::U, b: Self::U) -> Self::U;
    /// Wrapping.
    fn add_bits(self, a: Self::U, b: Self::U) -> Self::U;
    /// The larger one of each lane.
    fn max_bits(self, a: Self::U, b: Self::U) -> Self::U;
    /// The largest lane.
    fn largest_word(self, x: Self::U) -> u32;
    /// The sum of all lanes, wrapping.
    fn sum_words(self, x: Self::U) -> u32;
    /// The lowest byte of each lane.
    fn low_bytes(self, x: Self::U) -> [u8; LANES];
    /// One byte to each lane.
    fn widen_bytes(self, from: &[u8; LANES]) -> Self::U;
    /// Each byte of `x`, which must be below 16, becomes that byte of `table`.
    fn translate(self, table: &[u8; 16], x: Self::U) -> Self::U;
    fn shl<const N: u32>(self, x: Self::U) -> Self::U;
    fn shr<const N: u32>(self, x: Self::U) -> Self::U;

    /// Per lane, `sums` plus the four products of unsigned bytes `w` and signed bytes `a`. `WIDE` where `w` may exceed
    /// 127, which the 16-bit steps of some tiers must know.
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U;
    /// Asks for the cache line at `from`, which need not be valid, to come into the L2 cache.
    fn prefetch(self, from: *const u8);
}

/// Work that is compiled once per instruction set. `run` must be `#[inline(always)]`, and so must all that it calls with
/// its lanes: only what is inlined into the tier's entry is compiled with its instructions.
pub(crate) trait Kernel {
    type Output;
    fn run<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// The instruction set that kernels run on, chosen once at run time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Simd {
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    Scalar(Scalar),
}

impl Simd {
    /// All that this CPU has, the fastest first.
    pub(crate) fn available() -> Vec<Self> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        tiers.extend(Avx512::new().map(Self::Avx512).into_iter().chain(Avx2::new().map(Self::Avx2)));
        #[cfg(target_arch = "aarch64")]
        tiers.extend(Neon::new().map(Self::Neon));
        tiers.push(Self::Scalar(Scalar));
        tiers
    }

    /// The fastest, or the one that the environment variable `QMESH_SIMD` names; an empty one names none.
    pub(crate) fn choose() -> Result<Self, EngineError> {
        Self::named(std::env::var_os("QMESH_SIMD").filter(|v| !v.is_empty()).map(|v| v.to_string_lossy().into_owned()))
    }

    /// Its name in `QMESH_SIMD`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon(_) => "neon",
            Self::Scalar(_) => "scalar",
        }
    }

    /// Runs the kernel compiled for this instruction set.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(lanes) => lanes.run(kernel),
            Self::Scalar(lanes) => kernel.run(lanes),
        }
    }

    fn named(name: Option<String>) -> Result<Self, EngineError> {
        let tiers = Self::available();
        let wanted = tiers.iter().find(|t| name.as_ref().is_none_or(|n| n == t.name()));
        wanted.copied().ok_or_else(|| EngineError::Simd {
            value: name.unwrap_or_default(),
            known: tiers.iter().map(|t| t.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

/// The sum of the lanes, by the one tree that all reductions end in.
#[inline(always)]
pub(super) fn sum<L: Lanes>(l: L, x: L::F) -> f32 {
    fold(l, x, |a, b| a + b)
}

/// The largest lane (a lane that is NaN may stay or not).
#[inline(always)]
pub(super) fn largest<L: Lanes>(l: L, x: L::F) -> f32 {
    fold(l, x, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn fold<L: Lanes>(l: L, x: L::F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut s = [0.0; LANES];
    l.store(x, &mut s);
    // Sizes that the compiler knows make these vector operations.
    let eight: [f32; 8] = std::array::from_fn(|i| f(s[i], s[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| f(eight[i], eight[i + 4]));
    f(f(four[0], four[2]), f(four[1], four[3]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every operation on fixed, awkward inputs; all lanes of all results as bits.
    struct Everything;

    impl Kernel for Everything {
        type Output = Vec<u32>;

        #[inline(always)]
        fn run<L: Lanes>(self, l: L) -> Vec<u32> {
            let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7e3_f32.powi(i as i32 % 5 - 2));
            let b: [f32; LANES] = std::array::from_fn(|i| 0.1 + i as f32 * 0.37 * if i % 3 == 0 { -1.0 } else { 1.0 });
            let bytes: [u8; 64] = std::array::from_fn(|i| (i as u32 * 97 + 13) as u8);
            let signed: [u8; 64] = std::array::from_fn(|i| (127 - (i as i32 * 53) % 255) as u8);
            let halves: [u16; LANES] = std::array::from_fn(|i| [0x0001, 0x3c00, 0xbbff, 0x7bff][i % 4] + 3 * i as u16);
            let (x, y) = (l.load(&a), l.load(&b));
            let (w, s) = (l.load_bits(&bytes), l.load_bits(&signed));
            let narrow = l.and(w, l.splat_bits(0x3f3f_3f3f));
            let start = l.splat_bits(-4096_i32 as u32);
            let floats = [
                l.add(x, y),
                l.sub(x, y),
                l.mul(x, y),
                l.div(x, y),
                l.fma(x, y, x),
                l.max(x, y),
                l.min(x, y),
                l.load_half(&halves),
                l.load_half_bytes(halves.map(u16::to_le_bytes).as_flattened().first_chunk().unwrap()),
                l.widen_half(l.and(w, l.splat_bits(0xffff_bbff))),
                l.splat(sum(l, x)),
                l.splat(largest(l, x)),
                l.to_float(s),
                l.of_bits(l.to_bits(x)),
            ];
            let words = [
                l.or(w, s),
                l.add_bits(w, s),
                l.max_bits(w, s),
                l.splat_bits(l.largest_word(w)),
                l.splat_bits(l.sum_words(s)),
                l.load_bits(
                    [l.low_bytes(w), l.low_bytes(s), l.low_bytes(start), l.low_bytes(w)]
                        .as_flattened()
                        .first_chunk()
                        .unwrap(),
                ),
                l.widen_bytes(&l.low_bytes(w)),
                l.translate(bytes.first_chunk().unwrap(), l.and(s, l.splat_bits(0x0f0f_0f0f))),
                l.shl::<5>(w),
                l.shr::<7>(s),
                l.dot::<true>(start, w, s),
                l.dot::<false>(start, narrow, s),
            ];
            let mut out = Vec::new();
            for x in [x, l.mul(y, l.splat(1e-6)), l.splat(f32::INFINITY)] {
                let mut halves = [0; LANES];
                l.store_half(x, &mut halves);
                out.extend(halves.map(u32::from));
            }
            for word in words.into_iter().chain(floats.map(|f| l.to_bits(f))) {
                let mut bytes = [0; 64];
                l.store_bits(word, &mut bytes);
                out.extend(bytes.as_chunks().0.iter().map(|c| u32::from_le_bytes(*c)));
            }
            out
        }
    }

    #[test]
    fn every_tier_gives_the_bits_of_the_scalar_one() {
        let expected = Simd::Scalar(Scalar).run(Everything);
        for simd in Simd::available() {
            assert_eq!(simd.run(Everything), expected, "{}", simd.name());
        }
    }

    #[test]
    fn an_unknown_tier_is_refused_by_name() {
        assert!(Simd::named(Some("scalar".into())).is_ok());
        let error = Simd::named(Some("mmx".into())).unwrap_err().to_string();
        assert!(error.contains("QMESH_SIMD=mmx") && error.contains("scalar"), "{error}");
    }
}
