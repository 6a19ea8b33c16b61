//! Prints the demo's messages while it runs: lines on stderr with the seconds since its start, or a picture on a terminal.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::picture::{Counters, Picture, RelayState};

/// The output of one demo. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct DemoOutput {
    started: Instant,
    picture: Option<Arc<Picture>>,
}

impl DemoOutput {
    /// Creates an output of lines and starts its clock.
    pub(super) fn lines() -> Self {
        Self { started: Instant::now(), picture: None }
    }

    /// Does the same, with a picture instead of lines if stderr is a terminal.
    pub(super) fn picture() -> Self {
        let picture = std::io::stderr().is_terminal().then(|| Picture::open().ok()).flatten();
        Self { picture: picture.map(Arc::new), ..Self::lines() }
    }

    /// Returns the time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Prints a line of the demo itself.
    pub(super) fn say(&self, line: impl fmt::Display) {
        let line = format!("{:5.1} s | {line}", self.elapsed().as_secs_f64());
        match self.open_picture() {
            Some(picture) => picture.say(&line, self.elapsed()),
            None => write_line(format_args!("{line}")),
        }
    }

    /// Prints a line of the relay's log, unchanged. A picture has no room for it, so it goes to the file.
    pub(super) fn relay_says(&self, line: &str) {
        let line = format!("  relay | {line}");
        match &self.picture {
            Some(picture) => picture.log(&line),
            None => write_line(format_args!("{line}")),
        }
    }

    /// Shows other numbers in the picture.
    pub(super) fn count(&self, counters: Counters) {
        if let Some(picture) = self.open_picture() {
            picture.count(counters, self.elapsed());
        }
    }

    /// Shows another state of the relay in the picture.
    pub(super) fn relay(&self, relay: RelayState) {
        if let Some(picture) = self.open_picture() {
            picture.relay(relay, self.elapsed());
        }
    }

    /// Leaves the picture as it is. Later lines are printed below it.
    pub(super) fn close(&self) {
        if let Some(picture) = self.open_picture() {
            picture.close(self.elapsed());
        }
    }

    fn open_picture(&self) -> Option<&Picture> {
        self.picture.as_deref().filter(|picture| !picture.is_closed())
    }
}

/// Writes a line to stderr. `eprintln!` would panic if nobody reads stderr any more, but the demo has to end in order.
fn write_line(line: fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
