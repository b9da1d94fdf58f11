//! Workers as `workers ls` shows them.

use super::table::{Align, table};
use crate::mesh::{
    owner::{WorkerEntry, WorkerList, WorkerRight},
    status::AskingStatus,
};

/// Who asks to join, then who is here and whose keys are remembered.
pub fn list(list: &WorkerList, now_unix: u64) -> String {
    let asking = (!list.asking.is_empty()).then(|| asking(&list.asking));
    let known = if list.workers.is_empty() {
        "no worker is here, and none was admitted".to_owned()
    } else {
        let columns = ["worker", "key", "comes in by", "since", "last seen"].map(|heading| (heading, Align::Left));
        table(&columns, list.workers.iter().map(|worker| row(worker, now_unix)))
    };
    asking.into_iter().chain([known]).collect::<Vec<_>>().join("\n\n")
}

/// Who asks to join.
pub fn asking(asking: &[AskingStatus]) -> String {
    let columns = ["asks to join", "code", "address", ""].map(|heading| (heading, Align::Left));
    let namesake = |is: bool| if is { "another worker has this name" } else { "" }.to_owned();
    let row =
        |one: &AskingStatus| vec![one.name.clone(), one.code.clone(), one.address.clone(), namesake(one.namesake)];
    table(&columns, asking.iter().map(row))
}

fn row(worker: &WorkerEntry, now_unix: u64) -> Vec<String> {
    let ago = |then: Option<u64>| then.map(|then| ago(now_unix.saturating_sub(then))).unwrap_or_default();
    let by = match worker.by {
        WorkerRight::Ticket => "ticket",
        WorkerRight::Key => "key",
        WorkerRight::Revoked => "nothing: revoked",
    };
    let seen = if worker.here { "here now".to_owned() } else { ago(worker.seen_unix) };
    let key = worker.key.get(..8).unwrap_or(&worker.key).to_owned();
    vec![worker.name.clone(), key, by.to_owned(), ago(worker.since_unix), seen]
}

/// A time that has passed, in its largest unit.
fn ago(seconds: u64) -> String {
    let (number, unit) = match seconds {
        0..60 => return "just now".to_owned(),
        60..3600 => (seconds / 60, "min"),
        3600..86_400 => (seconds / 3600, "h"),
        _ => (seconds / 86_400, "d"),
    };
    format!("{number} {unit} ago")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_says_who_asks_who_is_here_and_who_must_not_come() {
        let entry = |name: &str, by, since_unix, seen_unix, here| WorkerEntry {
            name: name.into(),
            key: "abcdefgh".repeat(6) + "abcd",
            by,
            since_unix,
            seen_unix,
            here,
        };
        let now = 1_000_000;
        let workers = vec![
            entry("attic", WorkerRight::Key, Some(now - 90_000), Some(now - 300), true),
            entry("cellar", WorkerRight::Revoked, Some(now - 30), Some(now - 7300), false),
            entry("guest", WorkerRight::Ticket, None, None, true),
        ];
        let one = AskingStatus {
            name: "attic".into(),
            code: "k7m2-qx4f-a3bc".into(),
            address: "10.0.0.1:7".into(),
            namesake: true,
        };
        let shown = list(&WorkerList { asking: vec![one], workers }, now);
        let expected = " asks to join  code            address
 attic         k7m2-qx4f-a3bc  10.0.0.1:7  another worker has this name

 worker  key       comes in by       since     last seen
 attic   abcdefgh  key               1 d ago   here now
 cellar  abcdefgh  nothing: revoked  just now  2 h ago
 guest   abcdefgh  ticket                      here now";
        assert_eq!(shown, expected);
        assert_eq!(list(&WorkerList::default(), now), "no worker is here, and none was admitted");
    }
}
