//! Prints to stdout and stderr. The macros of the standard library panic after a reader such as `head` has closed the pipe, so the crate
//! forbids them. Nothing that is printed here can command a terminal, whatever rows and records contain.

use std::fmt::Arguments;
use std::io::{self, Write};

use crate::observe::progress;
use crate::observe::terminal::{Stream, wrapped};
use crate::text::harmless;

/// Writes to stdout, without breaking lines: for JSON, SQL and whatever else a program reads. Returns false if the reader has closed the
/// pipe.
pub(crate) fn stdout(text: Arguments<'_>) -> bool {
    let text = text.to_string();
    progress::hidden(|| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(harmless(&text).as_bytes()).and_then(|()| stdout.flush()).is_ok()
    })
}

/// Writes text for people to stdout, broken to the width of the terminal. Returns false if the reader has closed the pipe.
pub(crate) fn prose(text: &str) -> bool {
    match Stream::Out.columns() {
        Some(columns) => stdout(format_args!("{}", wrapped(text, columns))),
        None => stdout(format_args!("{text}")),
    }
}

/// Writes text for people over the whole screen, from its top. Returns false if the reader has closed the pipe.
pub(crate) fn screen(text: &str) -> bool {
    // Cursor home and clear below: this flickers less than clearing first.
    io::stdout().lock().write_all(b"\x1b[H\x1b[J").is_ok() && prose(text)
}

/// Writes to stderr, broken to the width of the terminal. What cannot be written is lost: nobody reads it.
pub(crate) fn stderr(text: Arguments<'_>) {
    let text = text.to_string();
    let text = Stream::Err.columns().map_or_else(|| text.clone(), |columns| wrapped(&text, columns));
    progress::hidden(|| {
        let _ = io::stderr().lock().write_all(harmless(&text).as_bytes());
    });
}

/// Prints to stdout, as `print!` does.
macro_rules! out {
    ($($text:tt)*) => {{
        let _ = $crate::observe::print::stdout(format_args!($($text)*));
    }};
}

/// Prints a line for people to stdout.
macro_rules! outln {
    ($($text:tt)*) => {{
        let _ = $crate::observe::print::prose(&format!("{}\n", format_args!($($text)*)));
    }};
}

/// Prints a line to stderr, as `eprintln!` does.
macro_rules! errln {
    ($($text:tt)*) => {
        $crate::observe::print::stderr(format_args!("{}\n", format_args!($($text)*)))
    };
}

/// Prints to stderr, as `eprint!` does.
macro_rules! err {
    ($($text:tt)*) => {
        $crate::observe::print::stderr(format_args!($($text)*))
    };
}

pub(crate) use {err, errln, out, outln};

/// Writes log lines to stderr. A reader that goes away costs the lines, and never the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes);
        progress::hidden(|| {
            let _ = io::stderr().lock().write_all(harmless(&text).as_bytes());
        });
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
