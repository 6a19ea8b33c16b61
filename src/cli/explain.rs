//! Runs `outbox-relay explain`.

use clap::Args;

use super::exit::Failure;
use super::status::{connect, failed};
use super::{output, runtime, target};
use crate::config::Settings;
use crate::inspect::explain::{self, Wanted};

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The id of an event or of an entity
    #[arg(value_name = "EVENT_ID|ENTITY")]
    wanted: String,
    /// Take the id as an entity's, even if it looks like an event's
    #[arg(long)]
    entity: bool,
    /// Search the whole table, not only unpublished events and the youngest 500,000; may take minutes
    #[arg(long)]
    full: bool,
    /// Print an array of JSON objects
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.explain(settings))
    }

    async fn explain(self, settings: &Settings) -> Result<(), Failure> {
        let (names, target) = (target::names(&settings.outbox), settings.database.target());
        let wanted = match self.wanted.parse() {
            Ok(id) if !self.entity => Wanted::Event(id),
            _ => Wanted::Entity(self.wanted.clone()),
        };
        let mut conn = connect(settings, "outbox-relay-explain").await?;
        let explained = explain::explain(&mut conn, settings, &names, &wanted, self.full)
            .await
            .map_err(|error| failed(error, &format!("cannot look at {} in {target}", names.outbox())))?;
        if self.json {
            output::json(&explained)?;
        } else {
            let texts: Vec<_> = explained.iter().map(ToString::to_string).collect();
            output::text(&texts.join("\n"));
        }
        if !explained.is_empty() {
            return Ok(());
        }
        let missing =
            Failure::finding(format!("no event or entity {:?} in {} of {target}", self.wanted, names.outbox()));
        Err(if self.full {
            missing
        } else {
            missing.hint("published events beyond the youngest 500,000 are found with --full")
        })
    }
}
