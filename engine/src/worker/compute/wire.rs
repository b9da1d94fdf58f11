//! Activations as bytes and back: an f32 a value, little-endian, and so without a changed bit.

use bytes::Bytes;
use qmesh_net::limits::VALUE_BYTES;

/// The bytes of `values`: the same memory, where the machine's own order is that of the wire.
pub(super) fn encode(values: Vec<f32>) -> Bytes {
    if cfg!(target_endian = "little") {
        Bytes::from_owner(Activation(values))
    } else {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }
}

/// Rows that are sent as they lie in memory.
struct Activation(Vec<f32>);

impl AsRef<[u8]> for Activation {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
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
        let encoded = encode(values.clone());
        assert_eq!(encoded.len(), 640);
        assert_eq!(decode(&encoded), values);
        for bad in [f32::NAN, f32::INFINITY] {
            let mut broken = vec![1.0; 32];
            broken[7] = bad;
            assert!(decode(&encode(broken)).iter().any(|v| !v.is_finite()), "{bad} is hidden");
        }
        assert_eq!(decode(&encode(vec![0.0; 32])), [0.0; 32]);
    }
}
