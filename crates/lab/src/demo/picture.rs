//! Draws the shop's demo on a terminal: table, relay, topic and consumer as counters that move. The lines of the log go to a file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use indicatif::{HumanCount, ProgressBar, ProgressStyle};

/// The width of the picture, which every terminal has.
const WIDTH: usize = 80;

/// The width of each of the four columns.
const COLUMN: usize = 20;

/// The number of messages below the picture.
const MESSAGES: usize = 5;

/// The width of the bar.
const BAR: usize = 40;

const RED: &str = "\u{1b}[1;31m";
const GREEN: &str = "\u{1b}[32m";
const PLAIN: &str = "\u{1b}[0m";

/// The state of the relay's process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum RelayState {
    #[default]
    Starting,
    Up(u32),
    Killed,
    Stopped,
}

/// The numbers of the picture.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counters {
    pub(super) committed: u64,
    pub(super) waiting: u64,
    pub(super) records: u64,
    pub(super) applied: u64,
    pub(super) repeated: u64,
    /// The number of events that the shop will commit.
    pub(super) expected: u64,
}

#[derive(Debug, Default)]
struct State {
    counters: Counters,
    relay: RelayState,
    messages: VecDeque<String>,
}

/// The picture. It stays on the screen when it is closed.
#[derive(Debug)]
pub(super) struct Picture {
    bar: ProgressBar,
    state: Mutex<State>,
    log: Mutex<File>,
    path: PathBuf,
    has_colours: bool,
}

impl Picture {
    /// Opens the picture on stderr, and its log in the directory for temporary files.
    pub(super) fn open() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("outbox-relay-demo-{}.log", std::process::id()));
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::new_spinner().with_style(style);
        let has_colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { bar, state: Mutex::default(), log: Mutex::new(File::create(&path)?), path, has_colours })
    }

    /// Writes a line to the log only.
    pub(super) fn log(&self, line: &str) {
        // A log that cannot be written must not end the demo.
        drop(writeln!(self.log.lock().unwrap_or_else(PoisonError::into_inner), "{line}"));
    }

    /// Writes a line to the log and below the picture.
    pub(super) fn say(&self, line: &str, elapsed: Duration) {
        self.log(line);
        let mut state = self.state();
        state.messages.push_back(line.chars().take(WIDTH - 3).collect());
        if state.messages.len() > MESSAGES {
            state.messages.pop_front();
        }
        self.draw(&state, elapsed);
    }

    /// Shows other numbers.
    pub(super) fn count(&self, counters: Counters, elapsed: Duration) {
        let mut state = self.state();
        state.counters = counters;
        self.draw(&state, elapsed);
    }

    /// Shows another state of the relay.
    pub(super) fn relay(&self, relay: RelayState, elapsed: Duration) {
        let mut state = self.state();
        state.relay = relay;
        self.draw(&state, elapsed);
    }

    /// Leaves the numbers on the screen, without the messages, so that the ledger fits below them.
    pub(super) fn close(&self, elapsed: Duration) {
        let mut state = self.state();
        state.messages.clear();
        self.draw(&state, elapsed);
        self.bar.abandon();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.bar.is_finished()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn draw(&self, state: &State, elapsed: Duration) {
        if !self.is_closed() {
            let mut lines = render(state, elapsed, self.has_colours);
            lines.push(format!("  log: {}", self.path.display()));
            self.bar.set_message(lines.join("\n"));
        }
    }
}

/// Returns the lines of the picture, without the line that names the log.
fn render(state: &State, elapsed: Duration, has_colours: bool) -> Vec<String> {
    let State { counters, relay, messages } = state;
    let paint = |colour: &'static str, text: String| {
        if has_colours { format!("{colour}{text}{PLAIN}") } else { text }
    };
    let relay = match relay {
        RelayState::Starting => pad("starting"),
        RelayState::Up(pid) => paint(GREEN, pad(&format!("UP, process {pid}"))),
        RelayState::Killed => paint(RED, pad("KILLED (kill -9)")),
        RelayState::Stopped => pad("stopped"),
    };
    let number = |count: u64, what: &str| format!("{} {what}", HumanCount(count));
    let waiting = number(counters.waiting, "waiting");
    let waiting = if counters.waiting > 0 { paint(RED, pad(&waiting)) } else { pad(&waiting) };
    let title = "outbox-relay demo: no event is lost, none is applied twice";
    let mut lines = vec![
        format!("  {title:<65} {:>6.1} s", elapsed.as_secs_f64()),
        String::new(),
        format!("  {}{}{}the topic", pad("the shop"), pad("the table"), pad("the relay")),
        format!("  {}{}{}order-events", pad("4 connections ->"), pad("event_outbox ->"), pad("outbox-relay run ->")),
        format!(
            "  {}{waiting}{relay}{}",
            pad(&number(counters.committed, "committed")),
            number(counters.records, "records")
        ),
    ];
    let below = " ".repeat(2 + 3 * COLUMN);
    lines.push(format!("{below}    |"));
    lines.push(format!("{below}the consumer"));
    lines.push(format!("{below}{}", number(counters.applied, "applied")));
    lines.push(format!("{below}{}", number(counters.repeated, "again, skipped")));
    let filled = (BAR as u64 * counters.applied).checked_div(counters.expected).unwrap_or(0);
    let filled = usize::try_from(filled).unwrap_or(BAR).min(BAR);
    let bar = format!("{}{}", "#".repeat(filled), "-".repeat(BAR - filled));
    lines.push(String::new());
    lines.push(format!(
        "  [{bar}] {} of {} events applied",
        HumanCount(counters.applied),
        HumanCount(counters.expected)
    ));
    lines.push(String::new());
    for message in messages {
        let is_kill = message.contains("kill -9");
        lines.push(format!("  {}", if is_kill { paint(RED, message.clone()) } else { message.clone() }));
    }
    lines
}

fn pad(text: &str) -> String {
    format!("{text:<COLUMN$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        let counters =
            Counters { committed: 2_216, waiting: 416, records: 1_800, applied: 1_793, repeated: 13, expected: 3_600 };
        let messages = (0..MESSAGES).map(|_| "  3.8 s | 1,800 events are committed: kill -9 for the relay".to_owned());
        State { counters, relay: RelayState::Killed, messages: messages.collect() }
    }

    #[test]
    fn the_picture_and_the_ledger_fit_on_a_small_terminal() {
        let lines = render(&state(), Duration::from_millis(4_400), false);
        assert!(lines.len() < 24, "{} lines", lines.len());
        let at_the_end = render(&State { messages: VecDeque::new(), ..state() }, Duration::ZERO, false);
        // The log's line; then an empty line, six promises, an empty line, the verdict, and the shell's prompt.
        assert!(at_the_end.len() + 1 + 10 <= 24, "{} lines", at_the_end.len());
        for line in &lines {
            assert!(line.chars().count() <= WIDTH, "{} columns: {line}", line.chars().count());
        }
    }

    #[test]
    fn the_kill_is_red_and_the_numbers_are_there() {
        let lines = render(&state(), Duration::from_millis(4_400), true).join("\n");
        for part in ["2,216 committed", "416 waiting", "1,800 records", "1,793 applied", "13 again", "order-events"] {
            assert!(lines.contains(part), "no {part} in\n{lines}");
        }
        assert!(lines.contains(&format!("{RED}KILLED (kill -9)")), "{lines}");
        assert!(!render(&state(), Duration::ZERO, false).join("\n").contains('\u{1b}'));
    }
}
