//! Runs `outbox-relay tail`.

use std::time::Duration;

use clap::Args;
use sqlx::PgConnection;

use super::exit::Failure;
use super::status::{connect, failed};
use super::{output, runtime, target};
use crate::config::{Settings, Settle};
use crate::inspect::tail::{self, Filter, TailError};
use crate::observe::print::errln;
use crate::sink::silence::silence;
use crate::store::kinds::{self, Kind};
use crate::text;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::route::TopicTemplate;

/// The longest wait for the brokers before the first line.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub(crate) struct Tail {
    /// Print JSON: one object per line
    #[arg(long)]
    json: bool,
    /// Take only events of this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Take only events of entities of this type
    #[arg(long, value_name = "TYPE")]
    entity_type: Option<String>,
    /// Take only events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Take only events that go to this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// End after N events are published and seen on the topic, or are DEAD
    #[arg(long, value_name = "N")]
    events: Option<u64>,
    /// End by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    within: Option<Duration>,
}

impl Tail {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let runtime = runtime()?;
        let followed = runtime.block_on(async {
            match self.within {
                Some(within) => match tokio::time::timeout(within, self.follow(settings)).await {
                    Ok(followed) => followed,
                    Err(_) => self.ran_out(within),
                },
                None => self.follow(settings).await,
            }
        });
        // The Kafka client's thread ends by itself; the command does not wait for it.
        runtime.shutdown_background();
        followed
    }

    /// Ends without an error if no number of events was asked for.
    fn ran_out(&self, within: Duration) -> Result<(), Failure> {
        match self.events {
            None => Ok(()),
            Some(events) => Err(Failure::finding(format!(
                "fewer than {} published and seen on their topics within {}",
                text::counted(events, "event"),
                humantime::format_duration(within)
            ))
            .hint("`outbox-relay status` shows whether the relay works")),
        }
    }

    async fn follow(&self, settings: &Settings) -> Result<(), Failure> {
        let (names, target) = (target::names(&settings.outbox), settings.database.target());
        let Some(kafka) = &settings.kafka else {
            return Err(Failure::finding("KAFKA_BOOTSTRAP_SERVERS is needed to follow events to their topic"));
        };
        if settings.relay.settle == Settle::Delete {
            errln!(
                "warning: with RELAY_SETTLE=delete a row is gone once it is published, so most events are not shown; read their topics instead"
            );
        }
        let filter = Filter {
            entity_type: self.entity_type.clone(),
            event_type: self.event_type.clone(),
            entity: self.entity.clone(),
            topic: self.topic.clone(),
        };
        let stopped = |error| match error {
            TailError::Database(error) => failed(error, &format!("cannot follow {} in {target}", names.outbox())),
            TailError::Kafka(_) => Failure::finding("librdkafka refuses the combination of the KAFKA_ settings")
                .code(Code::KafkaSettingsConflict),
        };
        let mut conn = connect(settings, "outbox-relay-tail").await?;
        target::warn_of_other_settings(&mut conn, settings).await;
        let begun = tail::Tail::begin(&mut conn, &names, kafka, &settings.relay, filter).await;
        let mut tail = begun.map_err(stopped)?;
        let asked = silence(kafka, ANSWER_WITHIN).await;
        if let Some(silence) = asked.map_err(|error| stopped(TailError::Kafka(error)))? {
            let (reason, fault) = (silence.reason, silence.fault);
            errln!("warning: the brokers at {} do not answer: {reason}", kafka.brokers());
            errln!("  rows are followed, and records are `seen` only once a broker answers; {}", fault.next_step);
            errln!("  code: {} {}", fault.code, fault.code.name());
        }
        self.note_the_unknown(&mut conn, &names, &settings.relay.topic).await;
        errln!("following {} in {target} to {}", names.outbox(), kafka.brokers());
        loop {
            for line in tail.next(&mut conn).await.map_err(stopped)? {
                let read_on = if self.json { output::json_line(&line)? } else { output::text(&format!("{line}\n")) };
                if !read_on {
                    return Ok(());
                }
            }
            if self.events.is_some_and(|events| tail.ended >= events) {
                return Ok(());
            }
        }
    }

    /// Says on stderr which selected values no event of the latest ones has, and which values exist: a value may be a typing mistake. It may
    /// also be right, before the first event.
    async fn note_the_unknown(&self, conn: &mut PgConnection, names: &Names, template: &TopicTemplate) {
        // Without the right to look, or while the table is locked, events are followed all the same.
        let kinds = kinds::kinds(conn, names, template).await.unwrap_or_default();
        let of = |value: fn(&Kind) -> &str| kinds.iter().map(value).collect::<Vec<_>>();
        let entities = match &self.entity {
            Some(_) => kinds::entities(conn, names).await.unwrap_or_default(),
            None => Vec::new(),
        };
        for (wanted, what, known) in [
            (&self.topic, "topic", of(|kind| &kind.topic)),
            (&self.event_type, "event type", of(|kind| &kind.event_type)),
            (&self.entity_type, "entity type", of(|kind| &kind.entity_type)),
            (&self.entity, "entity", entities.iter().map(String::as_str).collect()),
        ] {
            let Some(wanted) = wanted.as_deref().filter(|wanted| !known.contains(wanted)) else { continue };
            if let Some(alike) = text::alike(wanted, known) {
                errln!("note: no event of the latest ones has the {what} {}; they have {alike}", text::name(wanted));
            }
        }
    }
}
