//! Asks for confirmation before a command changes rows.

use std::io::{BufRead, IsTerminal, Write};

use super::exit::Failure;

use crate::observe::print::err;

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
        if !std::io::stdin().is_terminal() {
            return Err(Failure::usage(format!("{question} There is no terminal to ask on"))
                .hint("--dry-run shows what it would change, --yes does it"));
        }
        err!("{question} [y/N] ");
        let mut answer = String::new();
        let read = std::io::stderr().flush().and_then(|()| std::io::stdin().lock().read_line(&mut answer));
        match read {
            Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(()),
            _ => Err(Failure::finding("nothing was changed")),
        }
    }
}
