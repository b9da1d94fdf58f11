//! Every operation on lanes, on every tier.

use qmesh_kernels::lanes::{Kernel, LANES, Lanes, Simd, largest, sum};

/// Every operation on fixed, awkward inputs; all lanes of all results as bits.
struct Everything;

impl Kernel for Everything {
    type Output = Vec<u32>;

    #[inline(always)]
    fn compute<L: Lanes>(self, l: L) -> Vec<u32> {
        let a: [f32; LANES] = std::array::from_fn(|i| (i as f32 - 7.3) * 1.7e3_f32.powi(i as i32 % 5 - 2));
        let b: [f32; LANES] = std::array::from_fn(|i| 0.1 + i as f32 * 0.37 * if i % 3 == 0 { -1.0 } else { 1.0 });
        let bytes: [u8; 64] = std::array::from_fn(|i| (i as u32 * 97 + 13) as u8);
        let signed: [u8; 64] = std::array::from_fn(|i| (127 - (i as i32 * 53) % 255) as u8);
        let halves: [u16; LANES] = std::array::from_fn(|i| [0x0001, 0x3c00, 0xbbff, 0x7bff][i % 4] + 3 * i as u16);
        let table: [u32; 64] = std::array::from_fn(|i| 0x9e37_79b9_u32.wrapping_mul(i as u32 + 1));
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
            l.xor(w, s),
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
            l.gather::<64, 0>(&table, &bytes),
            l.gather::<64, 23>(&table, &signed),
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
    let expected = Simd::available().pop().unwrap().run(Everything);
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
