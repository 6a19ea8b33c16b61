//! Shows the log of a process as it grows.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;

use super::output::DemoOutput;

/// The interval in which the log is read.
const LOG_INTERVAL: Duration = Duration::from_millis(50);

/// A log that is shown until the value is dropped.
#[derive(Debug)]
pub(super) struct ShownLog {
    log: Arc<Mutex<Log>>,
    _showing: JoinSet<()>,
}

/// The log, and the position up to which it was shown.
#[derive(Debug)]
struct Log {
    file: File,
    path: PathBuf,
    incomplete: Vec<u8>,
    output: DemoOutput,
}

impl ShownLog {
    /// Shows this log, which must exist.
    pub(super) fn start(path: &Path, output: DemoOutput) -> io::Result<Self> {
        let log = Log { file: File::open(path)?, path: path.to_owned(), incomplete: Vec::new(), output };
        let log = Arc::new(Mutex::new(log));
        let mut showing = JoinSet::new();
        let shown = Arc::clone(&log);
        showing.spawn(async move {
            loop {
                tokio::time::sleep(LOG_INTERVAL).await;
                show(&shown);
            }
        });
        Ok(Self { log, _showing: showing })
    }

    /// Shows the lines that were written since the last interval.
    pub(super) fn catch_up(&self) {
        show(&self.log);
    }
}

fn show(log: &Mutex<Log>) {
    log.lock().unwrap_or_else(PoisonError::into_inner).show_new_lines();
}

impl Log {
    fn show_new_lines(&mut self) {
        if let Err(error) = self.file.read_to_end(&mut self.incomplete) {
            self.output.say(format_args!("cannot read {}: {error}", self.path.display()));
        }
        while let Some(end) = self.incomplete.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.incomplete.drain(..=end).collect();
            self.output.relay_says(String::from_utf8_lossy(&line).trim_end());
        }
    }
}
