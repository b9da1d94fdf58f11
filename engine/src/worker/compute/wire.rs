//! Activations as bytes and back: the one place that knows how each wire type writes its values.
//!
//! `F32` is lossless; the others round, the same way on every machine.

use bytes::{BufMut, Bytes, BytesMut};
use half::f16;
use qmesh_net::WireType;

/// Values that share a scale in `Q8`.
const BLOCK: usize = 32;

/// The bytes of `values`, whose count fills whole blocks of the wire type.
pub(super) fn encode(wire: WireType, values: &[f32]) -> Bytes {
    let mut out = BytesMut::with_capacity(values.len() * 4);
    match wire {
        WireType::F32 => values.iter().for_each(|&value| out.put_f32_le(value)),
        WireType::F16 => values.iter().for_each(|&value| out.put_slice(&narrow(value).to_le_bytes())),
        WireType::Q8 => {
            for block in values.chunks(BLOCK) {
                // What is not finite has no place in 8 bits: it goes into the scale, so that the receiver sees it.
                let finite = block.iter().all(|value| value.is_finite());
                let peak = block.iter().fold(0.0, |peak: f32, value| peak.max(value.abs()));
                let scale = if finite { peak / 127.0 } else { f32::NAN };
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                out.put_slice(&narrow(scale).to_le_bytes());
                block.iter().for_each(|value| out.put_i8((value * inverse).round() as i8));
            }
        }
    }
    out.freeze()
}

/// The values of `bytes`, which are whole rows of the wire type.
pub(super) fn decode(wire: WireType, bytes: &[u8]) -> Vec<f32> {
    match wire {
        WireType::F32 => bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect(),
        WireType::F16 => bytes.as_chunks().0.iter().map(|two| f16::from_le_bytes(*two).to_f32()).collect(),
        WireType::Q8 => {
            let blocks = bytes.as_chunks::<{ BLOCK + 2 }>().0.iter();
            blocks
                .flat_map(|[low, high, values @ ..]| {
                    let scale = f16::from_le_bytes([*low, *high]).to_f32();
                    values.iter().map(move |&value| f32::from(value.cast_signed()) * scale)
                })
                .collect()
        }
    }
}

/// The nearest finite f16; what is not finite stays so.
fn narrow(value: f32) -> f16 {
    let most = f16::MAX.to_f32();
    f16::from_f32(if value.is_finite() { value.clamp(-most, most) } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_is_lossless_and_the_others_stay_within_their_step() {
        let values: Vec<f32> = (0..128).map(|i| (i as f32 - 50.0) * 0.37).chain([f32::MIN_POSITIVE; 32]).collect();
        for (wire, bytes, tolerance) in
            [(WireType::F32, 640, 0.0), (WireType::F16, 320, 0.016), (WireType::Q8, 170, 0.13)]
        {
            let encoded = encode(wire, &values);
            assert_eq!(encoded.len(), bytes);
            assert_eq!(encoded.len() as u64, wire.row_bytes(160).unwrap());
            let decoded = decode(wire, &encoded);
            assert_eq!(decoded.len(), values.len());
            let worst = values.iter().zip(&decoded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= tolerance, "{wire:?}: off by {worst}");
        }
        assert_eq!(decode(WireType::F16, &encode(WireType::F16, &[1e9, -1e9])), [65504.0, -65504.0]);
        for wire in [WireType::F32, WireType::F16, WireType::Q8] {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut broken = vec![1.0; 32];
                broken[7] = bad;
                assert!(decode(wire, &encode(wire, &broken)).iter().any(|v| !v.is_finite()), "{wire:?} hides {bad}");
            }
            assert_eq!(decode(wire, &encode(wire, &[0.0; 32])), [0.0; 32]);
        }
    }
}
