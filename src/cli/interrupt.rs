//! Listens for Ctrl-C and SIGTERM, for commands that can end between two steps.

use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::exit::{Failure, INTERRUPTED};

use crate::observe::print::errln;

/// The time in which a second signal counts as the first. `timeout` signals a process and its group, so the process gets two.
const ONE_AND_THE_SAME: Duration = Duration::from_millis(500);

/// Returns a flag that becomes true at the first signal. The second signal ends the process at once.
pub(super) fn interrupted() -> Result<watch::Receiver<bool>, Failure> {
    let first = listen().map_err(|error| Failure::unexpected("signals cannot be received", error))?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        any(first).await;
        errln!("stopping after the events in flight");
        sender.send_replace(true);
        tokio::time::sleep(ONE_AND_THE_SAME).await;
        // A new listener receives only signals that arrive from now on.
        if let Ok(second) = listen() {
            any(second).await;
            std::process::exit(i32::from(INTERRUPTED));
        }
    });
    Ok(receiver)
}

fn listen() -> std::io::Result<[Signal; 2]> {
    Ok([signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?])
}

async fn any([mut terminate, mut interrupt]: [Signal; 2]) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
