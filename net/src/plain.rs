//! Texts from the other side, made harmless before anybody prints or logs them.

use crate::message::{Downstream, Fault, LoadShard, Measured, Message, Route, ShardStatus, Welcome};

/// Whether a text has nothing in it that moves a terminal's cursor, changes its colours or turns what stands beside it.
pub(crate) fn is_plain(text: &str) -> bool {
    !text.chars().any(acts)
}

/// Whether a worker may choose this name: 1 to 64 letters and digits of ASCII, `.`, `_` or `-`, a letter, a digit or `_` first. It
/// can be part of a file's name and of a command.
pub fn is_worker_name(text: &str) -> bool {
    let is_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    (1..=64).contains(&text.len()) && text.chars().all(is_char) && !text.starts_with(['.', '-'])
}

/// The text with such characters spelled out, as `\u{1b}`.
pub(crate) fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// The message with all its texts made plain. A `Hello` is left as it is: one with such texts is refused.
pub(crate) fn with_plain_texts(mut message: Message) -> Message {
    match &mut message {
        Message::Welcome(Welcome { mesh, assigned_name, .. }) => {
            make_plain(mesh);
            make_plain(assigned_name);
        }
        Message::Load(LoadShard { model_name: text, .. })
        | Message::Reject { text, .. }
        | Message::Refused { text, .. }
        | Message::Bye { text }
        | Message::ShardStatus(ShardStatus { text, .. })
        | Message::Fault(Fault { text, .. })
        | Message::Measured(Measured { text, .. }) => make_plain(text),
        Message::Route(Route { downstream: Downstream::Worker { addresses, .. }, .. }) => {
            addresses.iter_mut().for_each(make_plain);
        }
        Message::Hello(_)
        | Message::Route(Route { downstream: Downstream::Coordinator, .. })
        | Message::Linked { .. }
        | Message::Open(_)
        | Message::Opened { .. }
        | Message::Close { .. }
        | Message::Unload { .. }
        | Message::StageReport(_)
        | Message::Drain
        | Message::Keep { .. }
        | Message::Measure(_)
        | Message::Mask(_)
        | Message::Moved { .. }
        | Message::Grant(_)
        | Message::Revoke { .. } => {}
        Message::Sought(seeker) | Message::Introduce(seeker) => make_plain(&mut seeker.address),
    }
    message
}

fn make_plain(text: &mut String) {
    if !is_plain(text) {
        *text = plain(text);
    }
}

/// Controls, and what sets the direction of writing or breaks a line.
fn acts(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::PlanEpoch,
        message::{FaultCode, RejectCode},
    };

    #[test]
    fn only_what_acts_is_spelled_out() {
        for harmless in ["", "worker-1", "Läuft auf 3 Kernen…", "工作 🦀"] {
            assert_eq!((is_plain(harmless), plain(harmless).as_str()), (true, harmless));
        }
        assert_eq!(plain("a\x1b[2J\r\nb\u{202e}c\u{9b}"), "a\\u{1b}[2J\\u{d}\\u{a}b\\u{202e}c\\u{9b}");
    }

    #[test]
    fn every_text_of_a_message_is_made_plain() {
        let (bad, good) = ("a\x07".to_owned(), "a\\u{7}".to_owned());
        let fault = |text| Message::Fault(Fault { epoch: PlanEpoch(1), session: None, code: FaultCode::Link, text });
        for message in [fault, |text| Message::Bye { text }, |text| Message::Reject { code: RejectCode::Full, text }] {
            assert_eq!(with_plain_texts(message(bad.clone())), message(good.clone()));
        }
        let welcome = |text: &String| {
            let (mesh, assigned_name) = (text.clone(), text.clone());
            Message::Welcome(Welcome { mesh, assigned_name, ..Welcome::default() })
        };
        assert_eq!(with_plain_texts(welcome(&bad)), welcome(&good));
    }
}
