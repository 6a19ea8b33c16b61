//! Prints the demo's messages while it runs: lines on stderr with the seconds since its start.

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

/// The output of one demo.
#[derive(Debug, Clone, Copy)]
pub(super) struct DemoOutput {
    started: Instant,
}

impl DemoOutput {
    /// Creates the output and starts its clock.
    pub(super) fn new() -> Self {
        Self { started: Instant::now() }
    }

    /// Returns the time since the start.
    pub(super) fn elapsed(self) -> Duration {
        self.started.elapsed()
    }

    /// Prints a line of the demo itself.
    pub(super) fn say(self, line: impl fmt::Display) {
        write_line(format_args!("{:5.1} s | {line}", self.elapsed().as_secs_f64()));
    }

    /// Prints a line of the relay's log, unchanged.
    pub(super) fn relay_says(self, line: &str) {
        write_line(format_args!("  relay | {line}"));
    }
}

/// Writes a line to stderr. `eprintln!` would panic if nobody reads stderr any more, but the demo has to end in order.
fn write_line(line: fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr(), "{line}"));
}
