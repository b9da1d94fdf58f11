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
pub use qmesh_arithmetic::layout::LANES;

#[cfg(target_arch = "aarch64")]
pub use self::neon::Neon;
pub use self::scalar::Scalar;
#[cfg(target_arch = "x86_64")]
pub use self::{avx2::Avx2, avx512::Avx512};
use crate::KernelError;

/// Sixteen lanes on one instruction set. Methods are safe: holding the value proves that its instructions exist.
pub trait Lanes: Copy {
    /// Whether a register holds several lanes: else no row takes its weights straight from the packed bytes.
    const VECTORS: bool = true;
    /// Whether there are registers enough for tiles of 6 rows by 32 outputs or 16 by 16; elsewhere, of 2 by 32 or 4 by 16.
    const LARGE_TILES: bool;
    /// Sixteen f32.
    type F: Copy;
    /// Sixteen u32; also sixteen i32 (two's complement) or 64 bytes, in memory order.
    type U: Copy;

    /// `x` in every lane.
    fn splat(self, x: f32) -> Self::F;
    /// The lanes from memory.
    fn load(self, from: &[f32; LANES]) -> Self::F;
    /// Widens f16 bits.
    fn load_half(self, from: &[u16; LANES]) -> Self::F;
    /// Widens f16 bits, little-endian.
    fn load_half_bytes(self, from: &[u8; 2 * LANES]) -> Self::F;
    /// Widens the f16 bits in the lower half of each lane.
    fn widen_half(self, x: Self::U) -> Self::F;
    /// The lanes to memory.
    fn store(self, x: Self::F, to: &mut [f32; LANES]);
    /// Narrows to f16 bits, to nearest even.
    fn store_half(self, x: Self::F, to: &mut [u16; LANES]);
    /// a + b.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// a·b + c, rounded once.
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// a > b ? a : b, so that a NaN in `b` stays.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// a < b ? a : b, so that a NaN in `b` stays.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// The bits of the floats.
    fn to_bits(self, x: Self::F) -> Self::U;
    /// The floats with these bits.
    fn of_bits(self, x: Self::U) -> Self::F;
    /// The lanes as i32, converted.
    fn to_float(self, x: Self::U) -> Self::F;

    /// `x` in every lane.
    fn splat_bits(self, x: u32) -> Self::U;
    /// The lanes from memory, little-endian.
    fn load_bits(self, from: &[u8; 4 * LANES]) -> Self::U;
    /// The lanes to memory, little-endian.
    fn store_bits(self, x: Self::U, to: &mut [u8; 4 * LANES]);
    /// Bitwise.
    fn and(self, a: Self::U, b: Self::U) -> Self::U;
    /// Bitwise.
    fn or(self, a: Self::U, b: Self::U) -> Self::U;
    /// Bitwise.
    fn xor(self, a: Self::U, b: Self::U) -> Self::U;
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
    /// The elements of `table` that the lanes name, which come from memory: their bits from bit `SHIFT` on, as many as an index
    /// has, since `N` is a power of two.
    fn gather<const N: usize, const SHIFT: u32>(self, table: &[u32; N], from: &[u8; 4 * LANES]) -> Self::U;
    /// Each lane shifted left by `N` bits.
    fn shl<const N: u32>(self, x: Self::U) -> Self::U;
    /// Each lane shifted right by `N` bits, zeros following.
    fn shr<const N: u32>(self, x: Self::U) -> Self::U;

    /// Per lane, `sums` plus the four products of unsigned bytes `w` and signed bytes `a`. `WIDE` where `w` may exceed
    /// 127, which the 16-bit steps of some tiers must know.
    fn dot<const WIDE: bool>(self, sums: Self::U, w: Self::U, a: Self::U) -> Self::U;
    /// Lane i of row j becomes lane j of row i.
    fn transpose(self, rows: [Self::F; LANES]) -> [Self::F; LANES];
    /// Runs a kernel that others share, as a function of its own.
    fn call<K: Kernel>(self, kernel: K) -> K::Output;
    /// Asks for the cache line at `from`, which need not be valid, to come into the L2 cache.
    fn prefetch(self, from: *const u8);
}

/// Work that is compiled once per instruction set. `compute` must be `#[inline(always)]`, and so must all that it calls with
/// its lanes: only what is inlined into the tier's entry is compiled with its instructions.
pub trait Kernel {
    /// What it gives back, beside what it wrote.
    type Output;
    /// Carries it out.
    fn compute<L: Lanes>(self, lanes: L) -> Self::Output;
}

/// The instruction set that kernels run on, chosen once at run time.
#[derive(Clone, Copy, Debug)]
pub enum Simd {
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// AVX2 with FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// NEON with dot products.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
    /// Portable code.
    Scalar(Scalar),
}

impl Simd {
    /// All that this CPU has, the fastest first.
    pub fn available() -> Vec<Self> {
        let mut tiers = Vec::new();
        #[cfg(target_arch = "x86_64")]
        tiers.extend(Avx512::new().map(Self::Avx512).into_iter().chain(Avx2::new().map(Self::Avx2)));
        #[cfg(target_arch = "aarch64")]
        tiers.extend(Neon::new().map(Self::Neon));
        tiers.push(Self::Scalar(Scalar));
        tiers
    }

    /// The fastest, or the one that the environment variable `QMESH_SIMD` names; an empty one names none.
    pub fn choose() -> Result<Self, KernelError> {
        Self::named(std::env::var_os("QMESH_SIMD").filter(|v| !v.is_empty()).map(|v| v.to_string_lossy().into_owned()))
    }

    /// Its name in `QMESH_SIMD`.
    pub fn name(self) -> &'static str {
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
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(lanes) => lanes.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Self::Neon(lanes) => lanes.run(kernel),
            Self::Scalar(lanes) => kernel.compute(lanes),
        }
    }

    /// The fastest, or the one with this name in `QMESH_SIMD`.
    pub fn named(name: Option<String>) -> Result<Self, KernelError> {
        let tiers = Self::available();
        let wanted = tiers.iter().find(|t| name.as_ref().is_none_or(|n| n == t.name()));
        wanted.copied().ok_or_else(|| KernelError::Simd {
            value: name.unwrap_or_default(),
            known: tiers.iter().map(|t| t.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

/// Gives kernels their `run`, which is no generic function: so it is compiled here, and nowhere else.
macro_rules! entries {
    ($($kernel:ty => $output:ty),+ $(,)?) => {
        $(impl $kernel {
            /// Carries it out on this instruction set.
            pub fn run(self, simd: $crate::lanes::Simd) -> $output {
                simd.run(self)
            }
        })+
    };
}

pub(crate) use entries;

/// The sum of the lanes, by the one tree that all reductions end in.
#[inline(always)]
pub fn sum<L: Lanes>(l: L, x: L::F) -> f32 {
    fold(l, x, |a, b| a + b)
}

/// The largest lane (a lane that is NaN may stay or not).
#[inline(always)]
pub fn largest<L: Lanes>(l: L, x: L::F) -> f32 {
    fold(l, x, |a, b| if a > b { a } else { b })
}

/// [`Lanes::gather`] without lanes, written so that nothing is left to be a function of its own, and two indices are one load.
#[allow(clippy::needless_range_loop, reason = "plain indices leave the least to be inlined")]
#[inline(always)]
fn gathered<const N: usize, const SHIFT: u32>(table: &[u32; N], from: &[u8; 4 * LANES]) -> [u32; LANES] {
    const { assert!(N.is_power_of_two(), "an index is some bits") };
    let (pairs, mut found) = (from.as_chunks::<8>().0, [0; LANES]);
    for i in 0..LANES / 2 {
        let pair = u64::from_le_bytes(pairs[i]);
        found[2 * i] = table[(pair >> SHIFT) as usize % N];
        found[2 * i + 1] = table[(pair >> (32 + SHIFT)) as usize % N];
    }
    found
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
