//! Runs `outbox-relay completions SHELL` and `outbox-relay man [COMMAND]`.

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man as Page;

use super::exit::Failure;
use crate::observe::print::out;
use crate::text;

/// The name of the program.
const NAME: &str = "outbox-relay";

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell that reads the script
    shell: Shell,
}

impl Completions {
    pub(crate) fn run(&self) {
        let all = super::command();
        let visible = all.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
        let mut shown = clap::Command::new(NAME).args(all.get_arguments().cloned()).subcommands(visible);
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut shown, NAME, &mut script);
        out!("{}", String::from_utf8_lossy(&script));
    }
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The command, such as `dead retry` [default: the page of the program]
    command: Vec<String>,
}

impl Man {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        let mut root = super::command();
        root.build();
        let mut command = &root;
        for word in &self.command {
            let known = command.find_subcommand(word);
            command = known.ok_or_else(|| {
                let of = command.get_bin_name().unwrap_or(NAME);
                Failure::usage(format!("{of} has no command {}", text::name(word))).hint(format!("{of} --help"))
            })?;
        }
        let mut page = Vec::new();
        Page::new(command.clone())
            .render(&mut page)
            .map_err(|error| Failure::unexpected("the page cannot be written", error))?;
        out!("{}", String::from_utf8_lossy(&page));
        Ok(())
    }
}
