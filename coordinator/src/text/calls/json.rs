//! JSON as it comes, byte by byte: where a value ends, and whether it is one so far.

/// Knows after every byte whether what came is the beginning of a JSON value.
#[derive(Clone, Debug)]
pub(super) struct Scanner {
    open: Vec<Open>,
    place: Place,
}

/// What a byte did to a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// It is part of the value, which goes on.
    More,
    /// It is the value's last one.
    Done,
    /// The value had ended before it.
    DoneBefore,
    /// With it this is no JSON.
    Wrong,
}

/// What is open around a place.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Open {
    Object,
    Array,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Place {
    /// A value must come; in an array that has just opened, its end may.
    Value,
    FirstValue,
    /// A key must come; in an object that has just opened, its end may.
    Key,
    FirstKey,
    Colon,
    /// A value has come: a comma or the end of what is open follows.
    After,
    String(Text, Escape),
    Number,
    /// The rest of a word.
    Word(&'static [u8]),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Text {
    Key,
    Value,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Escape {
    No,
    Begun,
    /// Hexadecimal digits that must come.
    Digits(u8),
}

/// Deepest nesting; serde_json reads no deeper either.
const DEPTH: usize = 127;

impl Scanner {
    /// At the beginning of a value.
    pub(super) fn value() -> Self {
        Self { open: Vec::new(), place: Place::Value }
    }

    /// Behind a value in the innermost of `depth` objects.
    pub(super) fn inside_objects(depth: usize) -> Self {
        Self { open: vec![Open::Object; depth], place: Place::After }
    }

    /// Whether it stands inside a string.
    pub(super) fn is_in_string(&self) -> bool {
        matches!(self.place, Place::String(..))
    }

    /// Takes the next byte. White space before a value is part of it.
    pub(super) fn take(&mut self, byte: u8) -> Step {
        match self.place {
            Place::String(text, escape) => self.in_string(text, escape, byte),
            Place::Number if is_numeric(byte) => Step::More,
            Place::Number => self.after_number(byte),
            Place::Word([next, rest @ ..]) if *next == byte => self.in_word(rest),
            Place::Word(_) => Step::Wrong,
            _ if byte.is_ascii_whitespace() => Step::More,
            Place::Value | Place::FirstValue if byte != b']' => self.begin(byte),
            Place::FirstValue => self.close(Open::Array),
            Place::Key | Place::FirstKey if byte == b'"' => self.go(Place::String(Text::Key, Escape::No)),
            Place::FirstKey if byte == b'}' => self.close(Open::Object),
            Place::Colon if byte == b':' => self.go(Place::Value),
            Place::After => self.after(byte),
            Place::Value | Place::Key | Place::FirstKey | Place::Colon => Step::Wrong,
        }
    }

    fn go(&mut self, place: Place) -> Step {
        self.place = place;
        Step::More
    }

    fn begin(&mut self, byte: u8) -> Step {
        match byte {
            b'{' => self.nest(Open::Object, Place::FirstKey),
            b'[' => self.nest(Open::Array, Place::FirstValue),
            b'"' => self.go(Place::String(Text::Value, Escape::No)),
            b't' => self.go(Place::Word(b"rue")),
            b'f' => self.go(Place::Word(b"alse")),
            b'n' => self.go(Place::Word(b"ull")),
            b'-' | b'0'..=b'9' => self.go(Place::Number),
            _ => Step::Wrong,
        }
    }

    fn nest(&mut self, open: Open, place: Place) -> Step {
        if self.open.len() == DEPTH {
            return Step::Wrong;
        }
        self.open.push(open);
        self.go(place)
    }

    /// Behind a value, inside of something.
    fn after(&mut self, byte: u8) -> Step {
        match (byte, self.open.last()) {
            (b',', Some(Open::Object)) => self.go(Place::Key),
            (b',', Some(Open::Array)) => self.go(Place::Value),
            (b'}', Some(_)) => self.close(Open::Object),
            (b']', Some(_)) => self.close(Open::Array),
            _ => Step::Wrong,
        }
    }

    fn after_number(&mut self, byte: u8) -> Step {
        if self.ended() == Step::Done { Step::DoneBefore } else { self.take(byte) }
    }

    fn close(&mut self, what: Open) -> Step {
        if self.open.pop() == Some(what) { self.ended() } else { Step::Wrong }
    }

    /// A value has ended.
    fn ended(&mut self) -> Step {
        self.place = Place::After;
        if self.open.is_empty() { Step::Done } else { Step::More }
    }

    fn in_word(&mut self, rest: &'static [u8]) -> Step {
        if rest.is_empty() { self.ended() } else { self.go(Place::Word(rest)) }
    }

    fn in_string(&mut self, text: Text, escape: Escape, byte: u8) -> Step {
        let next = match (escape, byte) {
            (Escape::No, b'"') => {
                return if text == Text::Key { self.go(Place::Colon) } else { self.ended() };
            }
            (Escape::No, b'\\') => Escape::Begun,
            (Escape::No, _) | (Escape::Begun, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Escape::No,
            (Escape::Begun, b'u') => Escape::Digits(4),
            (Escape::Digits(left), byte) if byte.is_ascii_hexdigit() => {
                if left == 1 {
                    Escape::No
                } else {
                    Escape::Digits(left - 1)
                }
            }
            (Escape::Begun | Escape::Digits(_), _) => return Step::Wrong,
        };
        self.go(Place::String(text, next))
    }
}

fn is_numeric(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes of the value that `text` begins with, if it does.
    fn length(text: &str) -> Option<usize> {
        let mut scanner = Scanner::value();
        for (place, byte) in text.bytes().enumerate() {
            match scanner.take(byte) {
                Step::More => {}
                Step::Done => return Some(place + 1),
                Step::DoneBefore => return Some(place),
                Step::Wrong => return None,
            }
        }
        None
    }

    #[test]
    fn a_value_ends_where_json_says() {
        for (value, rest) in [
            (r#"{"a": [1, -2.5e3, {"b": null}], "c": "}\"]\u00e9é"}"#, "}"),
            ("[]", "]"),
            ("{}", " x"),
            ("[[], {}, [true]]", ""),
            ("  {\n\"a\"\t:{}}", "\n"),
            ("12.5", ","),
            ("\"\\\\\"", "\""),
            ("false", "s"),
        ] {
            assert_eq!(length(&format!("{value}{rest}")), Some(value.len()), "{value}{rest}");
        }
    }

    #[test]
    fn what_is_no_json_is_found_out() {
        for wrong in
            ["}", "x", "{a", "{\"a\" 1", "{\"a\":}", "[1 2", "[1}", "{\"a\":1]", "{,", "\"\\x", "\"\\u12G", "nul!"]
        {
            assert_eq!(length(wrong), None, "{wrong}");
        }
        assert_eq!(length(&"[".repeat(1000)), None);
        let mut outer = Scanner::inside_objects(2);
        let steps: Vec<_> = r#", "a": 1}}"#.bytes().map(|byte| outer.take(byte)).collect();
        assert!(steps.iter().rev().skip(1).all(|step| *step == Step::More) && steps.last() == Some(&Step::Done));
    }
}
