//! Runs `outbox-relay explain`.

use clap::Args;
use serde_json::json;

use super::exit::Failure;
use super::status::{connect, failed};
use super::{output, runtime, target};
use crate::config::{Settings, Settle};
use crate::inspect::explain::{self, Wanted};
use crate::observe::print::errln;
use crate::store::kinds;
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The outbox id (a number) or the event id (a UUID) of an event, else the id of an entity
    #[arg(value_name = "EVENT", required_unless_present = "entity", conflicts_with = "entity")]
    wanted: Option<String>,
    /// Take only events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Search the whole table, not only unpublished events and the youngest 500,000; may take minutes
    #[arg(long)]
    full: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.explain(settings))
    }

    async fn explain(self, settings: &Settings) -> Result<(), Failure> {
        let (names, target) = (target::names(&settings.outbox), settings.database.target());
        let wanted = match (self.wanted, self.entity) {
            (Some(wanted), _) => Wanted::from(wanted),
            (None, entity) => Wanted::Entity(entity.unwrap_or_default()),
        };
        let mut conn = connect(settings, "outbox-relay-explain").await?;
        target::warn_of_other_settings(&mut conn, settings).await;
        let explained = explain::explain(&mut conn, settings, &names, &wanted, self.full)
            .await
            .map_err(|error| failed(error, &format!("cannot look at {} in {target}", names.outbox())))?;
        if self.json {
            output::json(&json!({ "events": explained }))?;
        } else {
            let texts: Vec<_> = explained.iter().map(ToString::to_string).collect();
            output::text(&texts.join("\n"));
        }
        if let (Wanted::Number(id), [only]) = (&wanted, explained.as_slice())
            && only.is_number(*id)
        {
            errln!(
                "note: {id} was taken for an outbox id; outbox-relay explain --entity {id} takes it for an entity's"
            );
        }
        if !explained.is_empty() {
            return Ok(());
        }
        let missing = Failure::finding(format!("no event or entity {wanted} in {} of {target}", names.outbox()));
        let entity = match &wanted {
            Wanted::Number(id) => id.to_string(),
            Wanted::Event(id) => id.to_string(),
            Wanted::Entity(entity) => entity.clone(),
        };
        // Without the right to look there is no such hint.
        let entities = kinds::entities(&mut conn, &names).await.unwrap_or_default();
        let alike = text::alike(&entity, entities.iter().map(String::as_str));
        let mut hints: Vec<_> =
            alike.map(|alike| format!("the latest events are of the entities {alike}")).into_iter().collect();
        if settings.relay.settle == Settle::Delete {
            hints.push(
                "RELAY_SETTLE is delete: events that were published are gone from the table; look on the topic"
                    .to_owned(),
            );
        } else if !self.full {
            let again = match &wanted {
                Wanted::Entity(entity) => text::flag("--entity", entity),
                event => text::shell(&event.to_string()),
            };
            hints.push(format!(
                "published events beyond the youngest 500,000 are found with: outbox-relay explain --full {again}"
            ));
        }
        Err(if hints.is_empty() { missing } else { missing.hint(hints.join("; ")) })
    }
}
