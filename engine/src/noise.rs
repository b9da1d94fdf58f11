//! Sampling noise that can be made anywhere: a function of (seed, sequence, position, id), with no state.

use qmesh_kernels::real;

/// The noise of one step of one sequence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Noise {
    pub(crate) seed: u64,
    pub(crate) sequence: u64,
    /// Position of the token that is being sampled.
    pub(crate) position: u32,
}

impl Noise {
    /// A sample of the standard Gumbel distribution for token `id`: the id with the largest logit plus noise is a
    /// sample of the softmax.
    pub(crate) fn gumbel(self, id: u32) -> f64 {
        -real::ln(-real::ln(self.uniform(id)))
    }

    /// A number in (0, 1), never at an end, that belongs to no token.
    pub(crate) fn chance(self) -> f64 {
        self.uniform(NO_TOKEN)
    }

    fn uniform(self, id: u32) -> f64 {
        let [low, high] = halves(self.sequence);
        let [a, b, ..] = philox([id, self.position, low, high], halves(self.seed));
        let bits = u64::from(a) << 32 | u64::from(b);
        ((bits >> 12) as f64 + 0.5) / (1_u64 << 52) as f64
    }
}

/// An id that no vocabulary has.
const NO_TOKEN: u32 = u32::MAX;

fn halves(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// Philox4x32-10 (Salmon et al., 2011): a counter and a key to 128 random bits.
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let [low_0, high_0] = halves(u64::from(counter[0]) * 0xd251_1f53);
        let [low_1, high_1] = halves(u64::from(counter[2]) * 0xcd9e_8d57);
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0];
        key = [key[0].wrapping_add(0x9e37_79b9), key[1].wrapping_add(0xbb67_ae85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn noise_depends_on_every_part_of_its_key() {
        let base = Noise { seed: 1, sequence: 2, position: 3 };
        let others =
            [Noise { seed: 1 << 40, ..base }, Noise { sequence: 2 << 40, ..base }, Noise { position: 4, ..base }];
        assert_eq!(base.gumbel(5), Noise { ..base }.gumbel(5));
        assert!(others.iter().all(|n| n.gumbel(5) != base.gumbel(5)) && base.gumbel(6) != base.gumbel(5));
        assert!(others.iter().all(|n| n.chance() != base.chance()) && base.chance() == Noise { ..base }.chance());
    }
}
