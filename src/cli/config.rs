//! Runs `outbox-relay config show`.

use clap::{Args, Subcommand};
use serde_json::json;

use super::exit::Failure;
use super::output;
use crate::config::{Effective, Needs, Settings, Source, Sources};
use crate::text;

/// Settings, as they are in force
#[derive(Debug, Subcommand)]
pub(crate) enum Config {
    /// Show the settings in force, each with its source; secrets are hidden
    ///
    /// Needs no server. Exits 64 after the list if a setting is wrong or missing, as every other command would.
    Show(Show),
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// Show also the settings that have their default
    #[arg(long)]
    defaults: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(crate) fn run(self, sources: &Sources) -> Result<(), Failure> {
        let mut settings = sources.effective();
        settings.retain(|setting| self.defaults || setting.source != Source::Default);
        if self.json {
            output::json(&json!({ "settings": settings }))?;
        } else {
            output::text(&shown(&settings));
        }
        Settings::load(sources.clone(), Needs::DatabaseAndKafka)?;
        Ok(())
    }
}

fn shown(settings: &[Effective]) -> String {
    if settings.is_empty() {
        return "every setting has its default; --defaults shows them\n".to_owned();
    }
    let longest = settings.iter().map(|setting| setting.name.len()).max().unwrap_or_default();
    let line = |setting: &Effective| {
        let Effective { name, value, hidden, given_as, .. } = setting;
        let value = match value {
            Some(value) => text::name(value).to_string(),
            None if *hidden => "(hidden)".to_owned(),
            None => "-".to_owned(),
        };
        let source = given_as.as_deref().map_or_else(|| "default".to_owned(), |source| text::name(source).to_string());
        format!("{name:<longest$}  {value}  ({source})\n")
    };
    settings.iter().map(line).collect()
}
