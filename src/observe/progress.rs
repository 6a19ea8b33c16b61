//! Shows on a terminal that a command works. All bars are drawn by one hand, so that no line of output is drawn over.

use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::text;

/// A command that takes longer than this shows that it works.
pub(crate) const SHOWN_AFTER: Duration = Duration::from_secs(2);

/// The interval at which the time that a command takes is drawn again.
const TICK: Duration = Duration::from_millis(200);

/// Draws on stderr, if it is a terminal.
static ALL: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The bar that shows for how long the command has been working.
static ELAPSED: OnceLock<ProgressBar> = OnceLock::new();

/// A bar that goes away with its owner.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Shows a bar for work of known size.
    pub(crate) fn new(what: &str, of: u64) -> Self {
        let bar = ProgressBar::new(of).with_message(text::name(what).to_string());
        let template = "{msg:<30!} {wide_bar} {percent:>3} % {per_sec} ETA {eta}";
        Self(ALL.add(styled(bar, template)))
    }

    /// Counts this much more work as done.
    pub(crate) fn add(&self, count: u64) {
        self.0.inc(count);
    }

    /// Sets how much work is done.
    pub(crate) fn set(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        ALL.remove(&self.0);
    }
}

fn styled(bar: ProgressBar, template: &str) -> ProgressBar {
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Shows from now on for how long the command has been working.
pub(crate) fn show_elapsed(command: &str) {
    let bar = ProgressBar::new_spinner().with_message(command.to_owned()).with_elapsed(SHOWN_AFTER);
    let bar = ALL.add(styled(bar, "{spinner} outbox-relay {msg} works, {elapsed}"));
    bar.enable_steady_tick(TICK);
    // The bar would go away with its last owner.
    ELAPSED.get_or_init(|| bar);
}

/// Hides the bars while something else is written or asked.
pub(crate) fn hidden<T>(during: impl FnOnce() -> T) -> T {
    ALL.suspend(during)
}

/// Removes all bars.
pub(crate) fn end() {
    // Fails only if the terminal is gone.
    let _ = ALL.clear();
    ALL.set_draw_target(indicatif::ProgressDrawTarget::hidden());
}
