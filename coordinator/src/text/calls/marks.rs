//! Finds marks in a text of which more may come.

/// The first of the marks in a text, the longest where several begin: where it begins, and which it is.
pub(crate) fn first<'m>(text: &str, marks: impl Iterator<Item = &'m str>) -> Option<(usize, &'m str)> {
    let found = marks.filter_map(|mark| Some((text.find(mark)?, mark)));
    found.min_by_key(|&(at, mark)| (at, std::cmp::Reverse(mark.len())))
}

/// Where the end of a text begins that may be the beginning of a mark; its length if there is none.
pub(crate) fn undecided<'m>(text: &str, marks: impl Iterator<Item = &'m str>) -> usize {
    let begins = |mark: &str| {
        let places = (1..mark.len()).rev().filter(|&length| mark.is_char_boundary(length));
        places.map(|length| &mark[..length]).find(|begin| text.ends_with(begin)).map_or(0, str::len)
    };
    text.len() - marks.map(begins).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_found_and_their_beginnings_held() {
        let marks = || ["<tool>", "<tool>>", "[ARGS]", "<｜x｜>"].into_iter();
        assert_eq!(first("a <tool>> <tool>", marks()), Some((2, "<tool>>")));
        assert_eq!(first("a [ARGS]<tool>", marks()), Some((2, "[ARGS]")));
        assert_eq!(first("a <tool", marks()), None);
        for (text, held) in [("a <tool", "<tool"), ("a <", "<"), ("a >", ""), ("é<｜x", "<｜x"), ("<tool x [A", "[A")]
        {
            assert_eq!(&text[undecided(text, marks())..], held, "{text}");
        }
    }
}
