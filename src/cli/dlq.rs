//! Runs `outbox-relay dlq list|show|redrive|discard`.
//!
//! - `list`, `show`, `redrive`, `discard`: one command each
//! - `causes`: groups dead letters by their cause

mod causes;
mod discard;
mod list;
mod redrive;
mod show;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use rdkafka::error::RDKafkaErrorCode;
use tokio::task::block_in_place;

use super::exit::Failure;
use super::runtime;
use super::time_arg::time_arg;
use crate::config::{ConfigError, KafkaSettings, Settings};
use crate::fault;
use crate::observe::print::errln;
use crate::observe::progress::Progress;
use crate::resend::dlq::DlqError;
use crate::resend::dlq::filter::{Filter, Run};
use crate::resend::dlq::scan::{self, DeadLetters};
use crate::sink::admission::DEAD_LETTERS;
use crate::sink::reader::Reader;
use crate::sink::resend::Resend;
use crate::text;
use event_outbox::route::check_topic;

/// Dead letters of consumers, on any topic
#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// Count the dead letters by cause: reason, error, source topic and group; and list the keys that they hold
    ///
    /// The held keys are in the consumers' database: DATABASE_URL.
    List(list::List),
    /// Show the dead letters one by one, without headers and payloads unless --payload is given
    Show(show::Show),
    /// Send the dead letters again, in the order in which they were read first, to the retry topic of their group or to another one
    ///
    /// Key, value, timestamp and headers stay as they are; a header `redrive-id` is added. The dead letter topic itself keeps a log
    /// of the redriven dead letters, so that the next redrive leaves them out. The events that wait behind a held key follow by
    /// themselves, in order.
    Redrive(redrive::Redrive),
    /// Give dead letters up: their events are never applied, and the keys that they hold go on with the next event
    ///
    /// Writes to the consumers' database (DATABASE_URL): it marks the events as processed, and adds an audit entry.
    Discard(discard::Discard),
}

/// Loads the settings of the consumers' database as well.
pub(crate) type WithDatabase<'a> = &'a dyn Fn() -> Result<Settings, ConfigError>;

/// The filter for dead letters. A dead letter has to match every filter that is given.
#[derive(Debug, Clone, Args)]
struct Which {
    /// The topic of the dead letters, for example order-events.billing.dlq
    #[arg(value_parser = topic)]
    topic: String,
    /// Take only events of this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Take only events of the entity with this id; it is the record's key
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Take only dead letters with this text in their error
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Take only events with this cause, as the list shows it
    #[arg(long, value_name = "FINGERPRINT")]
    cause: Option<String>,
    /// Take only dead letters that failed in this way: permanent, exhausted, invalid, held and so on
    #[arg(long, value_name = "REASON")]
    failure: Option<String>,
    /// Take only dead letters that this consumer group could not apply
    #[arg(long)]
    group: Option<String>,
    /// Take only dead letters that come from this topic
    #[arg(long, value_name = "TOPIC")]
    source_topic: Option<String>,
    /// Take only events from this time on: a duration such as 2h (ago), or a time such as 2026-01-31T12:00:00Z; the time of the first
    /// failure counts
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    since: Option<DateTime<Utc>>,
    /// Take only events before this time
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    until: Option<DateTime<Utc>>,
    /// Take only dead letters in this partition of the dead letter topic
    #[arg(long)]
    partition: Option<i32>,
    /// Take only the dead letter at this offset of the partition, or those in a range such as 17-40
    #[arg(long = "offset", value_name = "OFFSETS", requires = "partition")]
    offsets: Option<Run>,
}

pub(super) fn topic(text: &str) -> Result<String, String> {
    check_topic(text).map(|()| text.to_owned()).map_err(|mistake| mistake.to_string())
}

impl Which {
    fn filter(self) -> Filter {
        Filter {
            event_type: self.event_type,
            key: self.entity,
            error: self.error,
            cause: self.cause,
            reason: self.failure,
            group: self.group,
            source_topic: self.source_topic,
            since: self.since,
            until: self.until,
            partition: self.partition,
            offsets: self.offsets,
        }
    }
}

impl Dlq {
    pub(crate) fn run(self, kafka: &KafkaSettings, database: WithDatabase<'_>) -> Result<(), Failure> {
        runtime()?.block_on(async {
            match self {
                Dlq::List(list) => list.run(kafka, database).await,
                Dlq::Show(show) => show.run(kafka),
                Dlq::Redrive(redrive) => redrive.run(kafka).await,
                Dlq::Discard(discard) => discard.run(kafka, database).await,
            }
        })
    }
}

/// Reads the dead letters of a topic that match the filter.
fn look(
    kafka: &KafkaSettings,
    topic: &str,
    filter: &Filter,
    keep_records: bool,
) -> Result<(Reader, DeadLetters), DlqError> {
    block_in_place(|| {
        let reader = Reader::new(kafka).map_err(DlqError::Client)?;
        let parts = scan::parts(&reader, topic, filter)?;
        let bar = Progress::new(topic, parts.iter().map(|part| part.end.abs_diff(part.from)).sum());
        let dead_letters = scan::scan(&reader, topic, &parts, filter, keep_records, || bar.add(1))?;
        Ok((reader, dead_letters))
    })
}

fn failed(error: DlqError, topic: &str, kafka: &KafkaSettings) -> Failure {
    let dead_letter_topics = || {
        let mut topics = Reader::new(kafka).ok()?.topics().ok()?;
        topics.retain(|topic| topic.ends_with(DEAD_LETTERS));
        let alike = text::alike(topic, topics.iter().map(String::as_str))?;
        Some(format!("topics of dead letters are {alike}"))
    };
    let unknown: String;
    let hint = match &error {
        DlqError::Client(_) => {
            let refused = Failure::finding("librdkafka refuses the combination of the KAFKA_ settings");
            return refused.hint("compare KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_* with each other");
        }
        DlqError::Topic {
            code: RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic, ..
        } => {
            const ELSE: &str =
                "a consumer's dead letters are in <topic>.<group>.dlq unless the consumer is configured otherwise";
            unknown = block_in_place(dead_letter_topics).unwrap_or_else(|| ELSE.to_owned());
            &unknown
        }
        DlqError::Topic { code, .. } => fault::classify_kafka(*code).next_step,
        DlqError::Kafka(error) => {
            fault::classify_kafka(error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Unknown)).next_step
        }
        DlqError::Stalled(_) => "see which broker leads these partitions",
        DlqError::Disk(_) => "point TMPDIR at a disk with room for the topic's records",
    };
    Failure::finding(format!("the topic {topic} cannot be read from {}", kafka.brokers())).because(error).hint(hint)
}

/// Fails if the topic cannot be written. Called before the question, so that nothing is asked or sent in vain.
pub(super) async fn writable(resend: &Resend, topic: &str, brokers: &str) -> Result<(), Failure> {
    match resend.topic_error(topic).await {
        Err(down) => Err(Failure::finding(format!("the brokers at {brokers} do not answer"))
            .because(down)
            .hint("check that the brokers run, and KAFKA_BOOTSTRAP_SERVERS")),
        Ok(Some(code)) => Err(Failure::finding(format!("the topic {} cannot be written ({code})", text::name(topic)))
            .hint(crate::sink::topics::closed(code).why)),
        Ok(None) => Ok(()),
    }
}

/// Shows on stderr what a filter could have selected that has selected nothing.
fn show_others(kafka: &KafkaSettings, topic: &str, filter: &Filter) {
    if filter.is_empty() {
        return;
    }
    // The topic was read a moment ago. Should it not be readable again, the answer is still that nothing matches.
    let Ok((_, all)) = look(kafka, topic, &Filter::default(), false) else { return };
    match causes::groups(&all).as_slice() {
        [] => errln!("no dead letter at all is in {topic}"),
        groups => {
            errln!("no dead letter matches; these are there:");
            groups.iter().for_each(|group| errln!("{}", group.shown().trim_end()));
        }
    }
}
