//! Shows the progress of a run: one changing line on stderr, or nothing if stderr is no terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The shortest interval between two updates of the line. A shorter one would flicker.
const INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
    what: Mutex<String>,
    last: Mutex<Option<Instant>>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), what: Mutex::default(), last: Mutex::default() }
    }

    /// Begins a new measurement.
    pub(crate) fn begin(&self, what: impl Into<String>) {
        if let (Ok(mut current), Ok(mut last)) = (self.what.lock(), self.last.lock()) {
            *current = what.into();
            *last = None;
        }
        self.show("starting");
    }

    /// Shows a count of a total.
    pub(crate) fn count(&self, step: &str, done: u64, of: u64) {
        self.show(&format!("{step} {done} of {of}"));
    }

    /// Shows a free text.
    pub(crate) fn show(&self, text: &str) {
        let (Ok(what), Ok(mut last)) = (self.what.lock(), self.last.lock()) else { return };
        if !self.terminal || last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        // Ignore errors: a run must not stop because its progress cannot be shown.
        let _ = write!(std::io::stderr(), "\r\x1b[2K{what}: {text}");
    }

    /// Removes the line.
    pub(crate) fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
