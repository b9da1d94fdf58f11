//! Server-sent events, as a coordinator streams them.

use std::io::{self, BufRead, Read};

/// Reads server-sent events.
pub(super) struct ServerEvents<R>(pub(super) R);

impl<R: BufRead> ServerEvents<R> {
    /// The next event's name, empty for one without, and its data; `None` at the end. Blocks.
    ///
    /// # Errors
    /// The stream is cut off, or a line is longer than any that a coordinator writes.
    pub(super) fn next_event(&mut self) -> io::Result<Option<(String, String)>> {
        let (mut name, mut text) = (String::new(), String::new());
        loop {
            let mut line = String::new();
            if self.0.by_ref().take(LONGEST_LINE).read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.strip_suffix('\n').ok_or_else(|| io::Error::other("an event is cut off, or too long"))?;
            let line = line.strip_suffix('\r').unwrap_or(line);
            match line.split_once(':').unwrap_or((line, "")) {
                // A blank line ends an event; one without data is only a sign of life.
                ("", "") if !text.is_empty() => return Ok(Some((name, text))),
                ("event", value) => value.trim_start().clone_into(&mut name),
                ("data", value) => text += value.trim_start(),
                _ => {}
            }
        }
    }
}

/// A status of a thousand workers is shorter.
const LONGEST_LINE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_servers_write_them() {
        let stream = ":\n\nevent: fault_seen\ndata: {\"a\":1}\n\ndata: {}\r\n\r\n: alive\n\nevent: x\n";
        let mut events = ServerEvents(stream.as_bytes());
        let mut next = || events.next_event().unwrap();
        assert_eq!(next(), Some(("fault_seen".to_owned(), "{\"a\":1}".to_owned())));
        assert_eq!(next(), Some((String::new(), "{}".to_owned())));
        assert_eq!(next(), None);
        assert!(ServerEvents(&b"data: {"[..]).next_event().is_err());
    }
}
