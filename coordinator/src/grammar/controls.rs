//! Control tokens where a grammar spells them.

use super::quoted;

/// Tokens that are no text, by their spelling; the longest spelling first.
#[derive(Debug)]
pub(super) struct Controls(Vec<(String, u32)>);

/// A text around the first control token that it spells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Split<'t> {
    pub(super) before: &'t str,
    pub(super) token: &'t str,
    pub(super) behind: &'t str,
}

impl Controls {
    /// Of some tokens and their spellings.
    pub(super) fn new(mut controls: Vec<(String, u32)>) -> Self {
        controls.retain(|(spelling, _)| !spelling.is_empty());
        controls.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        Self(controls)
    }

    /// The token that is spelled so.
    pub(super) fn id(&self, spelling: &str) -> Option<u32> {
        self.0.iter().find(|(known, _)| known == spelling).map(|(_, id)| *id)
    }

    /// A text around the first token that it spells; `None` where it spells none.
    pub(super) fn split<'t>(&self, text: &'t str) -> Option<Split<'t>> {
        text.char_indices().find_map(|(at, _)| {
            let (spelling, _) = self.0.iter().find(|(spelling, _)| text[at..].starts_with(spelling))?;
            let (token, behind) = text[at..].split_at(spelling.len());
            Some(Split { before: &text[..at], token, behind })
        })
    }

    /// A text in Lark, where each token that it spells may be that token.
    pub(super) fn spelled(&self, mut text: &str) -> String {
        let mut parts = Vec::new();
        while let Some(Split { before, token, behind }) = self.split(text) {
            parts.extend(Some(before).filter(|plain| !plain.is_empty()).map(quoted));
            parts.extend(self.id(token).map(|id| format!("(<[{id}]> | {})", quoted(token))));
            text = behind;
        }
        parts.extend(Some(text).filter(|plain| !plain.is_empty()).map(quoted));
        parts.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_spelled_with_its_tokens() {
        let controls = Controls::new(vec![("<a>".to_owned(), 7), (String::new(), 1), ("<a><b>".to_owned(), 8)]);
        assert_eq!(controls.spelled("é<a>\n<a><b>"), "\"é\" (<[7]> | \"<a>\") \"\\n\" (<[8]> | \"<a><b>\")");
        assert_eq!(controls.spelled(""), "");
        assert_eq!(controls.split("x<b>"), None);
        assert_eq!(controls.split("x<a>y"), Some(Split { before: "x", token: "<a>", behind: "y" }));
    }
}
