//! Prints to stdout and stderr. The macros of the standard library panic after a reader such as `head` has closed the pipe, so the crate
//! forbids them.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes to stdout. Returns false if the reader has closed the pipe.
pub(crate) fn stdout(text: Arguments<'_>) -> bool {
    let mut stdout = io::stdout().lock();
    stdout.write_fmt(text).and_then(|()| stdout.flush()).is_ok()
}

/// Writes to stderr. What cannot be written is lost: nobody reads it.
pub(crate) fn stderr(text: Arguments<'_>) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Prints to stdout, as `print!` does.
macro_rules! out {
    ($($text:tt)*) => {{
        let _ = $crate::observe::print::stdout(format_args!($($text)*));
    }};
}

/// Prints a line to stdout, as `println!` does.
macro_rules! outln {
    ($($text:tt)*) => {{
        let _ = $crate::observe::print::stdout(format_args!("{}\n", format_args!($($text)*)));
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
        let _ = io::stderr().lock().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
