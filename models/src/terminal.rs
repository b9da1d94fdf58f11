//! Text from elsewhere made fit for a terminal: what a terminal would obey is spelled out.
//!
//! Names in model files, generated text and peers' messages may hold control sequences, which set titles, write to the
//! clipboard or paint over what was printed. Everything that is printed passes through here.

use std::borrow::Cow;

/// `text` with every character that steers a terminal written as Rust writes it (`\u{1b}`): control characters but line
/// ends and tabs, and those that reorder the text around them.
pub fn escaped(text: &str) -> Cow<'_, str> {
    spelled(text, |c, after| steers(c) && !(c == '\r' && after.starts_with('\n')), |c| c.escape_default().collect())
}

/// The same for what belongs on one line, a name or a cell of a table: line ends and tabs are spelled out as well.
pub fn escaped_line(text: &str) -> Cow<'_, str> {
    spelled(text, |c, _| steers(c) || matches!(c, '\n' | '\t'), |c| c.escape_default().collect())
}

/// The same for JSON, which stays the same JSON: its writers spell out only what JSON demands.
pub fn escaped_json(json: &str) -> Cow<'_, str> {
    // None of them is beyond U+FFFF, so that four digits do, and a writer of JSON leaves none outside of strings.
    spelled(json, |c, _| steers(c), |c| format!("\\u{:04x}", u32::from(c)))
}

/// Whether a terminal obeys the character: C0 (but line feed and tab), DEL, C1, and the marks of bidirectional text that
/// embed, override or isolate.
fn steers(c: char) -> bool {
    let reorders = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    reorders || (c.is_control() && !matches!(c, '\n' | '\t'))
}

/// `text` with `spell` for each character that `is_spelled`, given what comes after it.
fn spelled(text: &str, is_spelled: impl Fn(char, &str) -> bool, spell: impl Fn(char) -> String) -> Cow<'_, str> {
    let mut shown = String::new();
    let mut rest = 0;
    for (at, c) in text.char_indices() {
        let after = at + c.len_utf8();
        if is_spelled(c, &text[after..]) {
            shown.push_str(&text[rest..at]);
            shown.push_str(&spell(c));
            rest = after;
        }
    }
    if rest == 0 {
        return Cow::Borrowed(text);
    }
    shown.push_str(&text[rest..]);
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_spelled_out() {
        for (text, shown) in [
            ("a\x1b]0;owned\x07b", "a\\u{1b}]0;owned\\u{7}b"),
            ("\0\x08\x7f", "\\u{0}\\u{8}\\u{7f}"),
            ("C1 \u{9b}31m \u{85}", "C1 \\u{9b}31m \\u{85}"),
            ("\u{202e}gpj.exe\u{2066}", "\\u{202e}gpj.exe\\u{2066}"),
            ("over\rwritten", "over\\rwritten"),
            ("lines\nend\r\nas\tthey do", "lines\nend\r\nas\tthey do"),
            ("é 日本 👩‍👩‍👧 שלום \\u{1b}", "é 日本 👩‍👩‍👧 שלום \\u{1b}"),
            ("", ""),
        ] {
            assert_eq!(escaped(text), shown);
            assert_eq!(escaped(shown), shown, "twice is once");
        }
        assert_eq!(escaped_line("a\r\nb\tc\x1b"), "a\\r\\nb\\tc\\u{1b}");
    }

    #[test]
    fn a_sequence_in_pieces_is_spelled_out_as_well() {
        let pieces = ["\x1b", "]0;ow", "ned\x07"].map(|piece| escaped(piece).into_owned());
        assert_eq!(pieces.concat(), escaped("\x1b]0;owned\x07"));
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"\u{9b}": "\x1b \u{202e} \u{7f} é\n", "b": [1]});
        let json = serde_json::to_string_pretty(&value).unwrap();
        let shown = escaped_json(&json);
        assert!(shown.contains("\"\\u009b\"") && shown.contains("\\u202e \\u007f é"), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
