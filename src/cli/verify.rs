//! Runs `outbox-relay verify`.

use chrono::{DateTime, Utc};
use clap::Args;

use super::dlq::topic;
use super::exit::Failure;
use super::time_arg::time_arg;
use super::{no_topic, output, runtime, target};
use crate::config::{KafkaSettings, Settings};
use crate::fault;
use crate::inspect::verify::{self, KeyFrom, Partitioner, Payload, Plan, Reading, Verdict, VerifyError};
use crate::observe::print::outln;
use crate::store::connect::{self, Purpose};
use event_outbox::code::Code;
use event_outbox::schema::SchemaError;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Take only events that go to this topic [default: every topic that a row is routed to]
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Take only events from this time on: a duration such as 2h (ago), or a time such as 2026-01-31T12:00:00Z; the time at which the
    /// event was created counts
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    since: Option<DateTime<Utc>>,
    /// Take only events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Handle at most N per second: first rows, then records
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Treat a duplicate as a violation; by default duplicates are only counted, because delivery is at least once
    #[arg(long)]
    exactly_once: bool,
    /// Expect PENDING and DEAD rows on the topic as well, for a system that does not mark the rows
    #[arg(long)]
    expect_pending: bool,
    /// Report every record without a row as unknown, however old; for a table whose rows are never deleted
    #[arg(long)]
    all_retained: bool,
    /// The partitioner of the topic's writer
    #[arg(long, value_enum, default_value_t = Partitioner::Murmur2)]
    partitioner: Partitioner,
    /// The header with the event id; `id` for Debezium
    #[arg(long, value_name = "NAME", default_value = "event-id")]
    id_header: String,
    /// The place of the entity id in a record: key, header:NAME or json:/POINTER into the value
    #[arg(long, value_name = "WHERE", default_value = "key")]
    key_from: KeyFrom,
    /// The envelope of the record's value: raw, event, debezium (tolerates additions of its converters), cloudevents-binary,
    /// cloudevents-structured, or none to compare no values [default: RELAY_ENVELOPE]
    #[arg(long)]
    envelope: Option<Payload>,
}

impl Verify {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        let json = self.json;
        if let Some(Err(mistake)) = self.topic.as_deref().map(topic) {
            return Err(Failure::usage(format!("--topic: {mistake}")));
        }
        let plan = self.plan(settings);
        let kafka = settings
            .kafka
            .as_ref()
            .ok_or_else(|| Failure::finding("KAFKA_BOOTSTRAP_SERVERS is needed to read a topic"))?;
        let ran = runtime()?.block_on(async {
            if let Ok(mut conn) = connect::connect(&settings.database, "outbox-relay verify", Purpose::Read).await {
                target::warn_of_other_settings(&mut conn, settings).await;
            }
            verify::run(&plan, &settings.database, kafka).await
        });
        let verdict = ran.map_err(|error| failed(error, &settings.database.target(), kafka))?;
        print(&verdict, json)?;
        match verdict.violations().as_slice() {
            [] => Ok(()),
            violations => Err(Failure::finding(format!("table and topic differ: {}", violations.join(", ")))
                .code(Code::TopicDiffers)
                .hint("docs/reference/verify.md explains each of them and what to do")),
        }
    }

    fn plan(self, settings: &Settings) -> Plan {
        Plan {
            names: target::names(&settings.outbox),
            template: settings.relay.topic.clone(),
            topic: self.topic,
            since: self.since,
            key: self.entity,
            rate: self.rate,
            exactly_once: self.exactly_once,
            expect_pending: self.expect_pending,
            all_retained: self.all_retained,
            settle: settings.relay.settle,
            partitioner: self.partitioner,
            reading: Reading {
                id_header: self.id_header,
                key_from: self.key_from,
                payload: self.envelope.unwrap_or(Payload::Of(settings.relay.envelope)),
            },
        }
    }
}

fn print(verdict: &Verdict, json: bool) -> Result<(), Failure> {
    if json {
        return output::json(verdict).map(drop);
    }
    outln!("{verdict}");
    Ok(())
}

/// Turns an error into a failure. Exit code 1 means that `verify` found a violation, so a failed comparison must not exit with 1.
fn failed(error: VerifyError, target: &str, kafka: &KafkaSettings) -> Failure {
    let brokers = kafka.brokers();
    let missing;
    let (message, code, hint) = match &error {
        // Without --topic, a topic that rows are routed to and that does not exist is a part of the verdict.
        VerifyError::Topic { topic, code } if no_topic::is_meant(*code) => {
            return no_topic::named("--topic", topic, kafka);
        }
        VerifyError::Schema(SchemaError::Missing { others, .. }) => {
            missing = fault::missing_outbox(others);
            (format!("the outbox in {target} cannot be used"), Code::SchemaMissing, missing.as_str())
        }
        VerifyError::Schema(SchemaError::OldServer { .. }) => (
            format!("the outbox in {target} cannot be used"),
            Code::ServerOld,
            "upgrade the server, for example with pg_upgrade; nothing was changed",
        ),
        VerifyError::Schema(_) => {
            (format!("the outbox in {target} cannot be used"), Code::DatabaseRefused, "outbox-relay check")
        }
        VerifyError::Database(cause) => {
            let fault = fault::classify_database(cause);
            (format!("the outbox in {target} cannot be read"), fault.code, fault.next_step)
        }
        VerifyError::Silent(silence) => {
            (format!("the brokers at {brokers} do not answer"), silence.fault.code, silence.fault.next_step)
        }
        VerifyError::Kafka(cause) => {
            let code = cause.rdkafka_error_code().unwrap_or(rdkafka::error::RDKafkaErrorCode::Unknown);
            let fault = fault::classify_kafka(code);
            (format!("the topic cannot be read from {brokers}"), fault.code, fault.next_step)
        }
        VerifyError::Topic { code, .. } => {
            let fault = fault::classify_kafka(*code);
            ("the topic cannot be read".to_owned(), fault.code, fault.next_step)
        }
        VerifyError::Client => (
            "no Kafka client can be made".to_owned(),
            Code::KafkaSettingsConflict,
            "compare KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_* with each other",
        ),
        VerifyError::Stalled { .. } => {
            ("the topic cannot be read".to_owned(), Code::TopicLeaderless, "see which broker leads these partitions")
        }
        VerifyError::TooManyTopics => {
            ("there are too many topics".to_owned(), Code::TopicsNotAll, "name one with --topic")
        }
        VerifyError::Disk(_) => (
            "there is no room to sort".to_owned(),
            Code::ClientResources,
            "point TMPDIR at a disk with about 230 bytes per event",
        ),
    };
    Failure::unexpected(message, error).code(code).hint(hint)
}
