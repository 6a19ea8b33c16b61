//! Asks for confirmation before a command changes rows.

use std::io::{BufRead, IsTerminal, Write};

use super::exit::Failure;

use crate::observe::print::err;
use crate::observe::progress;

/// The flags that answer or replace the question before a change.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct Confirm {
    /// Show the changes, do not make them
    #[arg(long, conflicts_with = "yes")]
    pub(crate) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Asks on the terminal, unless `--yes` is given. Without a terminal the command fails, because nobody could answer.
    pub(crate) fn ask(self, question: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        ask(question, "--dry-run shows what it would change, --yes does it", "nothing was changed")
    }
}

/// The flag that replaces the question before a command uses servers that the environment names.
#[cfg(any(feature = "demo", feature = "bench"))]
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct UseServers {
    /// Use the servers of DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS without a question
    #[arg(long)]
    yes: bool,
}

#[cfg(any(feature = "demo", feature = "bench"))]
impl UseServers {
    /// Asks on the terminal, unless `--yes` is given. The variables may be left over from other work, so nothing runs by them alone.
    pub(crate) fn ask(self, what: &str, settings: &crate::config::Settings) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        let brokers = settings.kafka.as_ref().map_or("", |kafka| kafka.brokers());
        let question = format!("{what} on {} and {brokers}?", settings.database.target());
        ask(
            &question,
            "--yes goes on; without these variables the demo starts servers of its own",
            "nothing was started",
        )
    }
}

fn ask(question: &str, hint: &str, refused: &str) -> Result<(), Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(format!("{question} There is no terminal to ask on")).hint(hint));
    }
    err!("{question} [y/N] ");
    let mut answer = String::new();
    let ask = || std::io::stderr().flush().and_then(|()| std::io::stdin().lock().read_line(&mut answer));
    let read = progress::hidden(ask);
    match read {
        Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::finding(refused)),
    }
}
