//! Activations as bytes and back: an f32 a value, little-endian, and so without a changed bit.

use bytes::{BufMut, Bytes, BytesMut};
use qmesh_net::limits::VALUE_BYTES;

/// The bytes of `values`.
pub(super) fn encode(values: &[f32]) -> Bytes {
    let mut out = BytesMut::with_capacity(values.len() * VALUE_BYTES);
    values.iter().for_each(|&value| out.put_f32_le(value));
    out.freeze()
}

/// The values of `bytes`, which are whole rows.
pub(super) fn decode(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<VALUE_BYTES>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_is_lost() {
        let values: Vec<f32> = (0..128).map(|i| (i as f32 - 50.0) * 0.37).chain([f32::MIN_POSITIVE; 32]).collect();
        let encoded = encode(&values);
        assert_eq!(encoded.len(), 640);
        assert_eq!(decode(&encoded), values);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut broken = vec![1.0; 32];
            broken[7] = bad;
            assert!(decode(&encode(&broken)).iter().any(|v| !v.is_finite()), "{bad} is hidden");
        }
        assert_eq!(decode(&encode(&[0.0; 32])), [0.0; 32]);
    }
}
