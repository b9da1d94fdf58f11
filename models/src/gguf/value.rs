//! Metadata values, stored no larger than they are in the file.

use std::borrow::Cow;

/// One metadata value. Integers and floats are widened; arrays keep their bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// u8, u16, u32 or u64.
    Unsigned(u64),
    /// i8, i16, i32 or i64.
    Signed(i64),
    /// f32 or f64.
    Float(f64),
    /// A boolean.
    Boolean(bool),
    /// Text.
    Text(String),
    /// Text that is not UTF-8: of no use, but no harm where nobody needs it.
    Bytes(Vec<u8>),
    /// Values of one type.
    Array(Array),
}

/// Values of one type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    /// Integers, floats or booleans.
    Numbers(Numbers),
    /// Text.
    Strings(Strings),
    /// Text of which some is not UTF-8.
    ByteStrings(ByteStrings),
    /// Arrays.
    Arrays(Vec<Self>),
}

/// An array of integers, floats or booleans, as its bytes in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Numbers {
    kind: NumberType,
    bytes: Vec<u8>,
}

/// An array of strings: one text and where each string ends in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Strings {
    text: String,
    ends: Vec<u32>,
}

/// An array of strings of which some are not UTF-8: their bytes, and where each string ends in them.
#[derive(Clone, Debug, PartialEq)]
pub struct ByteStrings {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Value {
    /// As an unsigned integer, where it is one or a signed one that is not negative.
    pub fn unsigned(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            Self::Float(_) | Self::Boolean(_) | Self::Text(_) | Self::Bytes(_) | Self::Array(_) => None,
        }
    }

    /// As a signed integer, where it fits.
    pub fn signed(&self) -> Option<i64> {
        match *self {
            Self::Unsigned(value) => i64::try_from(value).ok(),
            Self::Signed(value) => Some(value),
            Self::Float(_) | Self::Boolean(_) | Self::Text(_) | Self::Bytes(_) | Self::Array(_) => None,
        }
    }

    /// As a float; integers are not converted.
    pub fn float(&self) -> Option<f64> {
        if let Self::Float(value) = *self { Some(value) } else { None }
    }

    /// As a boolean.
    pub fn boolean(&self) -> Option<bool> {
        if let Self::Boolean(value) = *self { Some(value) } else { None }
    }

    /// As text.
    pub fn text(&self) -> Option<&str> {
        if let Self::Text(value) = self { Some(value) } else { None }
    }

    /// As text, with U+FFFD for what is not UTF-8: for what is only looked at.
    pub fn text_lossy(&self) -> Option<Cow<'_, str>> {
        match self {
            Self::Text(value) => Some(value.into()),
            Self::Bytes(value) => Some(String::from_utf8_lossy(value)),
            Self::Unsigned(_) | Self::Signed(_) | Self::Float(_) | Self::Boolean(_) | Self::Array(_) => None,
        }
    }

    /// As an array of strings.
    pub fn strings(&self) -> Option<&Strings> {
        if let Self::Array(Array::Strings(strings)) = self { Some(strings) } else { None }
    }

    /// As an array of integers, floats or booleans.
    pub fn numbers(&self) -> Option<&Numbers> {
        if let Self::Array(Array::Numbers(numbers)) = self { Some(numbers) } else { None }
    }

    /// In a few words, for error texts and listings.
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(value) => format!("the integer {value}"),
            Self::Signed(value) => format!("the integer {value}"),
            Self::Float(value) => format!("the float {value:?}"),
            Self::Boolean(value) => format!("the boolean {value}"),
            Self::Text(value) => format!("a text of {} bytes", value.len()),
            Self::Bytes(value) => format!("a text of {} bytes that is not UTF-8", value.len()),
            Self::Array(Array::Numbers(n)) => format!("an array of {} {}", n.len(), n.kind.name()),
            Self::Array(Array::Strings(s)) => format!("an array of {} strings", s.len()),
            Self::Array(Array::ByteStrings(s)) => {
                format!("an array of {} strings of which number {} is not UTF-8", s.len(), s.first_fault())
            }
            Self::Array(Array::Arrays(a)) => format!("an array of {} arrays", a.len()),
        }
    }
}

impl Numbers {
    pub(super) fn new(kind: NumberType, bytes: Vec<u8>) -> Self {
        debug_assert_eq!(bytes.len() % kind.bytes(), 0);
        Self { kind, bytes }
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.kind.bytes()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// One after the other, widened.
    pub fn iter(&self) -> impl Iterator<Item = Value> {
        self.bytes.chunks_exact(self.kind.bytes()).map(|chunk| self.kind.decode(chunk))
    }

    pub(super) fn kind(&self) -> NumberType {
        self.kind
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Strings {
    /// What they are instead where the text is not UTF-8 or an end is inside a character.
    pub(super) fn new(bytes: Vec<u8>, ends: Vec<u32>) -> Result<Self, ByteStrings> {
        match String::from_utf8(bytes) {
            Ok(text) if ends.iter().all(|&end| text.is_char_boundary(end as usize)) => Ok(Self { text, ends }),
            Ok(text) => Err(ByteStrings { bytes: text.into_bytes(), ends }),
            Err(error) => Err(ByteStrings { bytes: error.into_bytes(), ends }),
        }
    }

    /// How many strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)? as usize;
        let start = if index == 0 { 0 } else { self.ends[index - 1] as usize };
        Some(&self.text[start..end])
    }

    /// One after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.text[std::mem::replace(&mut start, end as usize)..end as usize])
    }
}

impl ByteStrings {
    /// How many strings.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// One after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.bytes[std::mem::replace(&mut start, end as usize)..end as usize])
    }

    /// Index of the first string that is not UTF-8.
    fn first_fault(&self) -> usize {
        self.iter().take_while(|string| std::str::from_utf8(string).is_ok()).count()
    }
}

/// The number types of GGUF metadata.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum NumberType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Boolean,
    U64,
    I64,
    F64,
}

/// GGUF's number of the type text.
pub(super) const TEXT_CODE: u32 = 8;
/// GGUF's number of the type array.
pub(super) const ARRAY_CODE: u32 = 9;

impl NumberType {
    const ALL: [(u32, Self, usize, &'static str); 11] = [
        (0, Self::U8, 1, "u8"),
        (1, Self::I8, 1, "i8"),
        (2, Self::U16, 2, "u16"),
        (3, Self::I16, 2, "i16"),
        (4, Self::U32, 4, "u32"),
        (5, Self::I32, 4, "i32"),
        (6, Self::F32, 4, "f32"),
        (7, Self::Boolean, 1, "booleans"),
        (10, Self::U64, 8, "u64"),
        (11, Self::I64, 8, "i64"),
        (12, Self::F64, 8, "f64"),
    ];

    pub(super) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.iter().find(|row| row.0 == code).map(|row| row.1)
    }

    pub(super) fn code(self) -> u32 {
        self.row().0
    }

    pub(super) fn bytes(self) -> usize {
        self.row().2
    }

    fn name(self) -> &'static str {
        self.row().3
    }

    fn row(self) -> &'static (u32, Self, usize, &'static str) {
        &Self::ALL[self as usize]
    }

    /// The number in `bytes`, which are `self.bytes()` long.
    pub(super) fn decode(self, bytes: &[u8]) -> Value {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        let raw = u64::from_le_bytes(wide);
        // Shifting up and back down repeats the sign.
        let shift = 64 - 8 * self.bytes();
        match self {
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => Value::Unsigned(raw),
            Self::I8 | Self::I16 | Self::I32 | Self::I64 => Value::Signed(((raw << shift) as i64) >> shift),
            Self::F32 => Value::Float(f64::from(f32::from_bits(raw as u32))),
            Self::F64 => Value::Float(f64::from_bits(raw)),
            Self::Boolean => Value::Boolean(raw != 0),
        }
    }
}

/// Conversions for writing files: from a Rust value to the GGUF type of the same name.
macro_rules! values_from {
    ($($from:ty => |$value:ident| $into:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $into
            }
        })*
    };
}

/// Arrays of numbers, as their bytes.
macro_rules! arrays_from {
    ($($element:ty: $kind:ident,)*) => {
        $(impl From<&[$element]> for Value {
            fn from(values: &[$element]) -> Self {
                let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
                Self::Array(Array::Numbers(Numbers::new(NumberType::$kind, bytes)))
            }
        })*
    };
}

values_from! {
    u32 => |value| Self::Unsigned(value.into());
    u64 => |value| Self::Unsigned(value);
    i32 => |value| Self::Signed(value.into());
    i64 => |value| Self::Signed(value);
    f32 => |value| Self::Float(value.into());
    f64 => |value| Self::Float(value);
    bool => |value| Self::Boolean(value);
    &str => |value| Self::Text(value.to_owned());
    String => |value| Self::Text(value);
    Strings => |value| Self::Array(Array::Strings(value));
}

arrays_from! { u8: U8, u32: U32, i32: I32, f32: F32, }

impl From<&[bool]> for Value {
    fn from(values: &[bool]) -> Self {
        Self::Array(Array::Numbers(Numbers::new(NumberType::Boolean, values.iter().map(|&b| u8::from(b)).collect())))
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    /// # Panics
    /// Where the strings are 4 GiB or more, which no header can hold.
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut list = Self::default();
        for string in strings {
            list.text.push_str(string.as_ref());
            list.ends.push(u32::try_from(list.text.len()).expect("under 4 GiB, see above"));
        }
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_widen_with_their_sign() {
        assert_eq!(NumberType::I8.decode(&[0xff]), Value::Signed(-1));
        assert_eq!(NumberType::I16.decode(&[0, 0x80]), Value::Signed(-32768));
        assert_eq!(NumberType::U8.decode(&[0xff]), Value::Unsigned(255));
        assert_eq!(NumberType::I64.decode(&[0xff; 8]), Value::Signed(-1));
        assert_eq!(NumberType::F32.decode(&1e-5f32.to_le_bytes()), Value::Float(f64::from(1e-5f32)));
        assert!(NumberType::ALL.iter().enumerate().all(|(i, row)| row.1 as usize == i));
    }

    #[test]
    fn strings_are_the_ones_put_in() {
        let list: Strings = ["", "Ġt", "", "日本", "x"].into_iter().collect();
        assert_eq!(list.iter().collect::<Vec<_>>(), ["", "Ġt", "", "日本", "x"]);
        assert_eq!((list.get(1), list.get(4), list.get(5)), (Some("Ġt"), Some("x"), None));
        let halves = Strings::new("aé".into(), vec![1, 2, 3]).expect_err("a string may not end inside a character");
        assert_eq!(halves.iter().collect::<Vec<_>>(), [&b"a"[..], b"\xc3", b"\xa9"]);
        let described = Value::Array(Array::ByteStrings(halves)).describe();
        assert_eq!(described, "an array of 3 strings of which number 1 is not UTF-8");
    }
}
