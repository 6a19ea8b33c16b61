//! Listens for Ctrl-C and SIGTERM. A command ends at once with exit code 130, or between two steps if it has begun what must not be cut.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::exit::{Failure, INTERRUPTED};
use crate::observe::print::errln;
use crate::observe::progress;

/// The time in which a second signal counts as the first. `timeout` signals a process and its group, so the process gets two.
const ONE_AND_THE_SAME: Duration = Duration::from_millis(500);

/// True once the command ends between two steps by itself.
static ENDS_BETWEEN_STEPS: AtomicBool = AtomicBool::new(false);

/// Watches over a command in a thread of its own: Ctrl-C ends the process, even while the command blocks, and a terminal shows that a long
/// command works.
pub(super) fn watch_over(command: String) {
    let watching = std::thread::Builder::new().name("interrupt".to_owned()).spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let Ok(mut interrupt) = signal(SignalKind::interrupt()) else { return };
            if tokio::time::timeout(progress::SHOWN_AFTER, until_end(&mut interrupt)).await.is_err() {
                progress::show_elapsed(&command);
                until_end(&mut interrupt).await;
            }
        });
    });
    // Without the thread, Ctrl-C ends the process as the system does it.
    drop(watching);
}

/// Ends the process at Ctrl-C. Returns only if no more signals can arrive.
async fn until_end(interrupt: &mut Signal) {
    while interrupt.recv().await.is_some() {
        if !ENDS_BETWEEN_STEPS.load(Ordering::Relaxed) {
            progress::end();
            errln!("interrupted");
            std::process::exit(i32::from(INTERRUPTED));
        }
    }
}

/// Returns a flag that becomes true at the first signal. The second signal ends the process at once.
pub(super) fn interrupted() -> Result<watch::Receiver<bool>, Failure> {
    let first = listen().map_err(|error| Failure::unexpected("signals cannot be received", error))?;
    ENDS_BETWEEN_STEPS.store(true, Ordering::Relaxed);
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        any(first).await;
        errln!("stopping after the events in flight");
        sender.send_replace(true);
        tokio::time::sleep(ONE_AND_THE_SAME).await;
        // A new listener receives only signals that arrive from now on.
        if let Ok(second) = listen() {
            any(second).await;
            progress::end();
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
