//! Runs `outbox-relay explain-route`.

use clap::Args;
use serde_json::{Value, json};
use uuid::Uuid;

use super::exit::Failure;
use super::status::{connect, failed};
use super::{output, runtime, target};
use crate::config::Settings;
use crate::inspect::route::{self, Routed};
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct ExplainRoute {
    /// The outbox id (a number) or the event id (a UUID) of an event
    #[arg(value_name = "EVENT", required_unless_present = "entity_type", conflicts_with_all = ["entity_type", "entity", "event_type", "to", "header"])]
    event: Option<String>,
    /// The entity type of an event that is only thought of
    #[arg(long, value_name = "TYPE")]
    entity_type: Option<String>,
    /// The entity id of that event; without it the event has no key
    #[arg(long = "entity-id", value_name = "ID")]
    entity: Option<String>,
    /// The event type of that event
    #[arg(long, value_name = "TYPE", default_value = "")]
    event_type: String,
    /// The topic that its row names
    #[arg(long = "row-topic", value_name = "TOPIC")]
    to: Option<String>,
    /// A header of its row; may be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    header: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl ExplainRoute {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let routed = match &self.event {
            Some(event) => runtime()?.block_on(find(settings, event))?,
            None => self.thought_of()?,
        };
        let explained = route::explain(settings, &routed);
        match self.json {
            true => output::json(&explained)?,
            false => output::text(&explained.to_string()),
        };
        match &explained.refused {
            Some(why) => Err(Failure::finding(format!("this event would go DEAD: {}", text::sentence(why)))),
            None => Ok(()),
        }
    }

    fn thought_of(&self) -> Result<Routed, Failure> {
        let mut headers = serde_json::Map::new();
        for (name, value) in super::names_and_values("--header", self.header.clone())? {
            headers.insert(name, json!(value));
        }
        Ok(Routed {
            id: None,
            event_id: Uuid::nil(),
            entity_type: self.entity_type.clone().unwrap_or_default(),
            entity_id: self.entity.clone(),
            event_type: self.event_type.clone(),
            event_version: 1,
            headers: Value::Object(headers).to_string(),
            topic: self.to.clone(),
        })
    }
}

async fn find(settings: &Settings, event: &str) -> Result<Routed, Failure> {
    let (names, target) = (target::names(&settings.outbox), settings.database.target());
    let mut conn = connect(settings, "outbox-relay-explain-route").await?;
    let found = route::find(&mut conn, &names, event).await;
    let found = found.map_err(|error| failed(error, &format!("cannot look at {} in {target}", names.outbox())))?;
    found.ok_or_else(|| {
        Failure::finding(format!("no event {} in {} of {target}", text::name(event), names.outbox()))
            .hint("EVENT is an outbox id (a number) or an event id (a UUID); --entity-type describes an event that is only thought of")
    })
}
