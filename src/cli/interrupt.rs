//! Ctrl-C and SIGTERM, for commands that can end between two steps.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::exit::{Failure, INTERRUPTED};

/// Becomes true at the first signal; the second ends the process at once.
pub(super) fn interrupted() -> Result<watch::Receiver<bool>, Failure> {
    let failed = |error| Failure::unexpected("signals cannot be received", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        for again in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if again {
                std::process::exit(i32::from(INTERRUPTED));
            }
            eprintln!("stopping after what is in flight");
            sender.send_replace(true);
        }
    });
    Ok(receiver)
}
