//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{SignalKind, signal};

/// Which signal asked the process to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Stop {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM: a service manager.
    Terminate,
}

/// Returns at the next Ctrl-C or SIGTERM from now on.
pub(super) async fn next_stop() -> Stop {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        // Without handlers the signals end the process by themselves.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => Stop::Interrupt,
        _ = terminate.recv() => Stop::Terminate,
    }
}

/// Returns at Ctrl-C or SIGTERM.
pub(super) async fn stop_asked() {
    next_stop().await;
}
