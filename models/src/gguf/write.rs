//! Writes GGUF files: random models for tests and benchmarks, and files that hold only a vocabulary.

use std::io::{self, Write};

use super::{
    header::ALIGNMENT_DEFAULT,
    value::{ARRAY_CODE, Array, NumberType, TEXT_CODE, Value},
};
use crate::tensor::TensorType;

/// Collects metadata and tensors, then writes a version 3 file.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    metadata: Vec<(String, Value)>,
    tensors: Vec<Declared>,
}

/// A tensor of the file to be written.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Declared {
    /// Its name.
    pub name: String,
    /// Elements along each dimension, the innermost first.
    pub ne: Vec<u64>,
    /// How its elements are stored.
    pub dtype: TensorType,
    /// Length in bytes.
    pub bytes: u64,
}

impl GgufWriter {
    /// A file with nothing in it but its architecture.
    pub fn new(architecture: &str) -> Self {
        Self::default().set("general.architecture", architecture)
    }

    /// Sets `key`, or replaces it. Integers are written as u32 or i32 and floats as f32 where nothing is lost by it.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.push((key.to_owned(), value.into()));
        self
    }

    /// Adds a tensor of `ne` elements, the innermost dimension first; its bytes are asked for when the file is written.
    ///
    /// # Panics
    /// Where `ne[0]` is no multiple of the block, or the tensor is larger than the address space.
    #[must_use]
    pub fn tensor(mut self, name: &str, ne: &[u64], dtype: TensorType) -> Self {
        let cols = usize::try_from(ne[0]).expect("rows fit the address space");
        let row_bytes = dtype.row_bytes(cols).expect("rows are whole blocks") as u64;
        let bytes = ne[1..].iter().product::<u64>() * row_bytes;
        self.tensors.push(Declared { name: name.to_owned(), ne: ne.to_vec(), dtype, bytes });
        self
    }

    /// The bytes before the first tensor.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            put_text(&mut out, key.as_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_text(&mut out, tensor.name.as_bytes());
            out.extend((tensor.ne.len() as u32).to_le_bytes());
            tensor.ne.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.dtype.ggml_id().to_le_bytes());
            out.extend(offset.to_le_bytes());
            offset += tensor.bytes.next_multiple_of(self.alignment());
        }
        self.pad(&mut out);
        out
    }

    /// Length of the whole file in bytes.
    pub fn file_bytes(&self) -> u64 {
        let body: u64 = self.tensors.iter().map(|t| t.bytes.next_multiple_of(self.alignment())).sum();
        self.header().len() as u64 + body
    }

    /// Writes the file; `fill` makes the bytes of each tensor, in order.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut impl Write, mut fill: impl FnMut(&Declared, &mut [u8])) -> io::Result<()> {
        out.write_all(&self.header())?;
        for tensor in &self.tensors {
            let length = usize::try_from(tensor.bytes).map_err(io::Error::other)?;
            let mut bytes = vec![0; length];
            fill(tensor, &mut bytes);
            self.pad(&mut bytes);
            out.write_all(&bytes)?;
        }
        Ok(())
    }

    /// Writes the file without ever holding a whole tensor: `fill` makes pieces of at most `piece_bytes` bytes, tensor after
    /// tensor and in order within each. A piece is whole blocks; one block where that is more than `piece_bytes`.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_in_pieces(
        &self,
        out: &mut impl Write,
        piece_bytes: usize,
        mut fill: impl FnMut(&Declared, &mut [u8]),
    ) -> io::Result<()> {
        out.write_all(&self.header())?;
        for tensor in &self.tensors {
            let block = tensor.dtype.block_bytes();
            let mut piece = vec![0; block * (piece_bytes / block).max(1)];
            let mut left = tensor.bytes;
            while left > 0 {
                let length = usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()));
                piece[..length].fill(0);
                fill(tensor, &mut piece[..length]);
                out.write_all(&piece[..length])?;
                left -= length as u64;
            }
            let padding = tensor.bytes.next_multiple_of(self.alignment()) - tensor.bytes;
            out.write_all(&vec![0; usize::try_from(padding).map_err(io::Error::other)?])?;
        }
        Ok(())
    }

    /// The tensors in the order of the file.
    pub fn tensors(&self) -> &[Declared] {
        &self.tensors
    }

    /// The whole file, as `write` makes it.
    pub fn to_bytes(&self, fill: impl FnMut(&Declared, &mut [u8])) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, fill).expect("a vector takes all that is written to it");
        out
    }

    fn alignment(&self) -> u64 {
        let set = self.metadata.iter().find(|(key, _)| key == "general.alignment");
        set.and_then(|(_, value)| value.unsigned()).unwrap_or(ALIGNMENT_DEFAULT)
    }

    fn pad(&self, bytes: &mut Vec<u8>) {
        let length = (bytes.len() as u64).next_multiple_of(self.alignment());
        bytes.resize(usize::try_from(length).expect("an alignment is small"), 0);
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |kind: NumberType, bytes: &[u8]| {
        out.extend(kind.code().to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::Unsigned(wide) => match u32::try_from(*wide) {
            Ok(narrow) => put(NumberType::U32, &narrow.to_le_bytes()),
            Err(_) => put(NumberType::U64, &wide.to_le_bytes()),
        },
        Value::Signed(wide) => match i32::try_from(*wide) {
            Ok(narrow) => put(NumberType::I32, &narrow.to_le_bytes()),
            Err(_) => put(NumberType::I64, &wide.to_le_bytes()),
        },
        Value::Float(wide) if f64::from(*wide as f32).to_bits() == wide.to_bits() => {
            put(NumberType::F32, &(*wide as f32).to_le_bytes());
        }
        Value::Float(wide) => put(NumberType::F64, &wide.to_le_bytes()),
        Value::Boolean(boolean) => put(NumberType::Boolean, &[u8::from(*boolean)]),
        Value::Text(text) => {
            out.extend(TEXT_CODE.to_le_bytes());
            put_text(out, text.as_bytes());
        }
        Value::Bytes(bytes) => {
            out.extend(TEXT_CODE.to_le_bytes());
            put_text(out, bytes);
        }
        Value::Array(array) => {
            out.extend(ARRAY_CODE.to_le_bytes());
            put_array(out, array);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let (code, count) = match array {
        Array::Numbers(numbers) => (numbers.kind().code(), numbers.len()),
        Array::Strings(strings) => (TEXT_CODE, strings.len()),
        Array::ByteStrings(strings) => (TEXT_CODE, strings.len()),
        Array::Arrays(arrays) => (ARRAY_CODE, arrays.len()),
    };
    out.extend(code.to_le_bytes());
    out.extend((count as u64).to_le_bytes());
    match array {
        Array::Numbers(numbers) => out.extend(numbers.as_bytes()),
        Array::Strings(strings) => strings.iter().for_each(|text| put_text(out, text.as_bytes())),
        Array::ByteStrings(strings) => strings.iter().for_each(|bytes| put_text(out, bytes)),
        Array::Arrays(arrays) => arrays.iter().for_each(|inner| put_array(out, inner)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_same_file() {
        let writer =
            GgufWriter::new("llama").tensor("a", &[256, 3], TensorType::Q4K).tensor("b", &[5], TensorType::F32);
        let whole = writer.to_bytes(|tensor, bytes| bytes.fill(tensor.name.as_bytes()[0]));
        for (piece_bytes, pieces) in [(1, 3 + 5), (300, 2 + 1), (1 << 20, 2)] {
            let (mut out, mut seen) = (Vec::new(), Vec::new());
            let written = writer.write_in_pieces(&mut out, piece_bytes, |tensor, bytes| {
                assert!(bytes.iter().all(|byte| *byte == 0), "a piece is empty before it is filled");
                bytes.fill(tensor.name.as_bytes()[0]);
                seen.push(bytes.len());
            });
            written.unwrap();
            assert_eq!((out.len() as u64, seen.len()), (writer.file_bytes(), pieces));
            assert!(out == whole, "pieces of {piece_bytes} bytes");
        }
    }
}
