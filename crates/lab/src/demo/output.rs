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

/// Formats 3600 as `3,600`.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let shown: Vec<_> = [0, 999, 1000, 3_600, 1_234_567].into_iter().map(grouped).collect();
        assert_eq!(shown, ["0", "999", "1,000", "3,600", "1,234,567"]);
    }
}
