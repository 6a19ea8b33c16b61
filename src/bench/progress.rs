//! What a person sees while it runs: one line on stderr that changes; nothing where stderr is no terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// More often only flickers.
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

    /// A new measurement begins.
    pub(crate) fn begin(&self, what: impl Into<String>) {
        if let (Ok(mut current), Ok(mut last)) = (self.what.lock(), self.last.lock()) {
            *current = what.into();
            *last = None;
        }
        self.show("starting");
    }

    /// How far it is.
    pub(crate) fn count(&self, step: &str, done: u64, of: u64) {
        self.show(&format!("{step} {done} of {of}"));
    }

    /// A line of its own choosing.
    pub(crate) fn show(&self, text: &str) {
        let (Ok(what), Ok(mut last)) = (self.what.lock(), self.last.lock()) else { return };
        if !self.terminal || last.is_some_and(|last| last.elapsed() < INTERVAL) {
            return;
        }
        *last = Some(Instant::now());
        // Progress that cannot be shown is no reason to stop.
        let _ = write!(std::io::stderr(), "\r\x1b[2K{what}: {text}");
    }

    /// Removes the line.
    pub(crate) fn end(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}
