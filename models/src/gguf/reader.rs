//! Reads numbers, texts and arrays, and never more than the file can hold.

use std::io::Read;

use super::{
    error::GgufFault,
    limits::{HEADER_BYTES_MAX, NESTING_MAX},
    value::{ARRAY_CODE, Array, NumberType, Numbers, Strings, TEXT_CODE, Value},
};

/// Longest key or tensor name, from the GGUF specification.
const NAME_BYTES_MAX: u64 = 65_535;
/// Longest text; real chat templates are under 64 KiB.
const TEXT_BYTES_MAX: u64 = 16 << 20;
/// `Strings` keeps its offsets in 32 bits.
const _: () = assert!(HEADER_BYTES_MAX <= u32::MAX as u64);

/// A position in the header of a file.
pub(super) struct Reader<R> {
    input: R,
    offset: u64,
    readable: u64,
    file_bytes: u64,
    subject: String,
}

impl<R: Read> Reader<R> {
    /// Reads a file of `file_bytes`, of which `input` yields the first `readable`.
    pub(super) fn new(input: R, readable: u64, file_bytes: u64) -> Self {
        Self { input, offset: 0, readable: readable.min(file_bytes), file_bytes, subject: "header".to_owned() }
    }

    /// Bytes read so far.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Bytes of the file that are not yet read, whether `input` yields them or not.
    pub(super) fn remaining(&self) -> u64 {
        self.file_bytes - self.offset
    }

    /// What is being read from here on, for error texts.
    pub(super) fn set_subject(&mut self, subject: String) {
        self.subject = subject;
    }

    pub(super) fn take<const N: usize>(&mut self) -> Result<[u8; N], GgufFault> {
        self.require(N as u64)?;
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufFault> {
        self.take().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufFault> {
        self.take().map(u64::from_le_bytes)
    }

    /// The name of a key or tensor.
    pub(super) fn name(&mut self) -> Result<String, GgufFault> {
        let at = self.offset;
        let name = self.bytes(NAME_BYTES_MAX)?;
        if name.is_empty() {
            return Err(GgufFault::EmptyName { subject: self.subject.clone(), at });
        }
        String::from_utf8(name).map_err(|_| GgufFault::NotUtf8 { subject: self.subject.clone(), at })
    }

    /// A metadata value with its type before it.
    pub(super) fn value(&mut self) -> Result<Value, GgufFault> {
        match self.u32()? {
            TEXT_CODE => {
                let text = String::from_utf8(self.bytes(TEXT_BYTES_MAX)?);
                Ok(text.map_or_else(|error| Value::Bytes(error.into_bytes()), Value::Text))
            }
            ARRAY_CODE => Ok(Value::Array(self.array(1)?)),
            code => {
                let kind = self.number_type(code)?;
                let bytes = self.numbers(kind, 1)?;
                Ok(kind.decode(&bytes))
            }
        }
    }

    fn array(&mut self, depth: usize) -> Result<Array, GgufFault> {
        let at = self.offset;
        if depth > NESTING_MAX {
            return Err(GgufFault::NestedTooDeep { subject: self.subject.clone(), at });
        }
        let code = self.u32()?;
        let count = self.u64()?;
        match code {
            TEXT_CODE => self.strings(count),
            ARRAY_CODE => {
                // An empty array is 12 bytes. No capacity ahead: in memory one is larger than that.
                self.require(count.saturating_mul(12))?;
                (0..count).map(|_| self.array(depth + 1)).collect::<Result<_, _>>().map(Array::Arrays)
            }
            code => {
                let kind = self.number_type(code)?;
                Ok(Array::Numbers(Numbers::new(kind, self.numbers(kind, count)?)))
            }
        }
    }

    fn strings(&mut self, count: u64) -> Result<Array, GgufFault> {
        self.require(count.saturating_mul(8))?;
        let mut ends = Vec::with_capacity(usize::try_from(count).unwrap_or(0));
        let mut bytes = Vec::new();
        for _ in 0..count {
            self.append(TEXT_BYTES_MAX, &mut bytes)?;
            ends.push(u32::try_from(bytes.len()).expect("the header limit is under 4 GiB"));
        }
        Ok(Strings::new(bytes, ends).map_or_else(Array::ByteStrings, Array::Strings))
    }

    fn numbers(&mut self, kind: NumberType, count: u64) -> Result<Vec<u8>, GgufFault> {
        let at = self.offset;
        let length = count.saturating_mul(kind.bytes() as u64);
        self.require(length)?;
        let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
        self.fill(&mut bytes)?;
        match bytes.iter().find(|&&byte| kind == NumberType::Boolean && byte > 1) {
            Some(&found) => Err(GgufFault::NotBoolean { subject: self.subject.clone(), at, found }),
            None => Ok(bytes),
        }
    }

    fn number_type(&self, code: u32) -> Result<NumberType, GgufFault> {
        let subject = || self.subject.clone();
        NumberType::from_code(code).ok_or_else(|| GgufFault::UnknownValueType {
            subject: subject(),
            at: self.offset,
            found: code,
        })
    }

    /// What should be a text, with its length before it.
    fn bytes(&mut self, limit: u64) -> Result<Vec<u8>, GgufFault> {
        let mut bytes = Vec::new();
        self.append(limit, &mut bytes)?;
        Ok(bytes)
    }

    /// Appends a text with its length before it, of at most `limit` bytes.
    fn append(&mut self, limit: u64, into: &mut Vec<u8>) -> Result<(), GgufFault> {
        let at = self.offset;
        let length = self.u64()?;
        if length > limit {
            return Err(GgufFault::TextTooLong { subject: self.subject.clone(), at, found: length, limit });
        }
        self.require(length)?;
        let start = into.len();
        into.resize(start + usize::try_from(length).unwrap_or(0), 0);
        self.fill(&mut into[start..])
    }

    /// Refuses before anything is allocated what the file cannot hold, and what is not here of it.
    fn require(&self, need: u64) -> Result<(), GgufFault> {
        let have = self.remaining();
        if need > have {
            return Err(GgufFault::Truncated { subject: self.subject.clone(), at: self.offset, need, have });
        }
        if self.offset + need > HEADER_BYTES_MAX {
            return Err(GgufFault::HeaderTooLong { subject: self.subject.clone() });
        }
        if self.offset + need > self.readable {
            return Err(GgufFault::MoreNeeded { bytes: self.offset + need, have: self.readable });
        }
        Ok(())
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), GgufFault> {
        self.input.read_exact(bytes)?;
        self.offset += bytes.len() as u64;
        Ok(())
    }
}
