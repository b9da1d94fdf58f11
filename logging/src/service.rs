//! What a program tells the service manager that started it (systemd, by `NOTIFY_SOCKET`): ready, how it goes, ending.
//!
//! Where none did, nothing happens. A message that cannot be sent is noted once, as the manager may be waiting for it.

use std::sync::Once;

use sd_notify::NotifyState;

/// The program does its work from now on.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// How it goes, in one line: what `systemctl status` shows.
pub fn status(line: &str) {
    let line = line.split_whitespace().collect::<Vec<_>>().join(" ");
    tell(&[NotifyState::Status(&line)]);
}

/// The program ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    static FAILED: Once = Once::new();
    if let Err(error) = sd_notify::notify(state) {
        FAILED.call_once(|| super::note(&format!("the service manager cannot be told: {error}")));
    }
}
