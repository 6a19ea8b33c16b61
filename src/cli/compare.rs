//! Runs `outbox-relay compare`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, ValueEnum};

use super::dlq::topic;
use super::exit::Failure;
use super::time_arg::time_arg;
use super::{no_topic, output, runtime};
use crate::config::KafkaSettings;
use crate::fault;
use crate::inspect::compare::{self, CompareError, IdFrom, Kind, LeftOut, Plan, Reading, Rules, Side, Source};
use crate::observe::print::outln;
use crate::text;
use event_outbox::code::Code;

/// A part of a record that may be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Order,
    Key,
    Partition,
    Headers,
    Value,
}

impl Part {
    fn kind(self) -> Kind {
        match self {
            Self::Order => Kind::Order,
            Self::Key => Kind::Key,
            Self::Partition => Kind::Partition,
            Self::Headers => Kind::Headers,
            Self::Value => Kind::Value,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The topic that is right, for example the one that a connector writes
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    left: String,
    /// The topic that is compared with it
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    right: String,
    /// The header with the event id; `id` for Debezium, and json:/POINTER for a member of the value
    #[arg(long, value_name = "NAME", default_value = "event-id")]
    id_header: String,
    /// The header with the event id in the left topic [default: --id-header]
    #[arg(long, value_name = "NAME")]
    left_id_header: Option<String>,
    /// The header with the event id in the right topic [default: --id-header]
    #[arg(long, value_name = "NAME")]
    right_id_header: Option<String>,
    /// The brokers of the left topic, with the same login [default: KAFKA_BOOTSTRAP_SERVERS]
    #[arg(long, value_name = "SERVERS")]
    left_bootstrap: Option<String>,
    /// The brokers of the right topic, with the same login [default: KAFKA_BOOTSTRAP_SERVERS]
    #[arg(long, value_name = "SERVERS")]
    right_bootstrap: Option<String>,
    /// Take only events from this time on: a duration such as 2h (ago), or a time such as 2026-01-31T12:00:00Z; the time of the record
    /// counts
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    since: Option<DateTime<Utc>>,
    /// Take only events of the entity with this id; it is the record's key, as it is or in JSON quotes
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Leave out what comes before the first and after the last event that both topics have, by partition; with --until or --for only what
    /// comes before
    #[arg(long)]
    overlap: bool,
    /// Follow the topics until N events are on both, and compare then [default: compare up to the present ends]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    until: Option<u64>,
    /// End by itself after this time; the topics are followed until then
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    lasts: Option<Duration>,
    /// Wait this long for the missing record of an event that only one topic has
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    wait: Duration,
    /// Parts that are not compared, separated by commas
    #[arg(long, value_name = "PARTS", value_enum, value_delimiter = ',')]
    ignore: Vec<Part>,
    /// A header that is not compared; may be repeated
    #[arg(long, value_name = "NAME")]
    ignore_header: Vec<String>,
    /// Compare the timestamps, which may be this far apart [default: timestamps are not compared]
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timestamp_within: Option<Duration>,
    /// Treat a duplicate as a violation; by default duplicates are only counted, because delivery is at least once
    #[arg(long)]
    exactly_once: bool,
    /// Show headers and payload as well; they may be confidential
    #[arg(long)]
    payload: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Compare {
    pub(crate) fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        let json = self.json;
        let plan = self.plan(kafka)?;
        let ran = runtime()?.block_on(compare::run(&plan));
        let report = ran.map_err(|error| failed(error, &plan, kafka.brokers()))?;
        if json {
            output::json(&report)?;
        } else {
            outln!("{report}");
        }
        match report.differences().as_slice() {
            [] => Ok(()),
            found => Err(Failure::finding(format!("the topics differ: {}", found.join(", ").replace('_', " ")))
                .hint("docs/reference/compare.md explains each of them and what to do")),
        }
    }

    fn plan(self, kafka: &KafkaSettings) -> Result<Plan, Failure> {
        if self.left == self.right && self.left_bootstrap == self.right_bootstrap {
            return Err(Failure::usage("--left and --right name the same topic").hint("name two topics"));
        }
        let id = |of_side: Option<String>| IdFrom::parse(of_side.as_ref().unwrap_or(&self.id_header));
        let (left_id, right_id) = (id(self.left_id_header), id(self.right_id_header));
        let mut ignored_headers = self.ignore_header;
        if left_id != right_id {
            // The ids have been compared, and each topic has them where its writer puts them.
            ignored_headers.extend([&left_id, &right_id].into_iter().filter_map(|id| match id {
                IdFrom::Header(name) => Some(name.clone()),
                IdFrom::Json(_) => None,
            }));
        }
        let source = |side, topic, id, servers: Option<&String>| {
            let kafka = match servers {
                None => kafka.clone(),
                Some(servers) => kafka
                    .with_brokers(servers)
                    .map_err(|mistake| Failure::usage(format!("--{}-bootstrap: {mistake}", Side::name(side))))?,
            };
            let (ignored_headers, key) = (ignored_headers.clone(), self.entity.clone());
            Ok::<_, Failure>(Source { topic, kafka, reading: Reading { side, id, ignored_headers, key } })
        };
        let mut ignored: Vec<Kind> = self.ignore.iter().map(|part| part.kind()).collect();
        if !self.exactly_once {
            ignored.push(Kind::Repeated);
        }
        let left_out = match (self.overlap, self.until.is_some() || self.lasts.is_some()) {
            (false, _) => LeftOut::Nothing,
            (true, true) => LeftOut::Before,
            (true, false) => LeftOut::BeforeAndAfter,
        };
        let within_ms = |within: Duration| u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        Ok(Plan {
            left: source(Side::Left, self.left, left_id, self.left_bootstrap.as_ref())?,
            right: source(Side::Right, self.right, right_id, self.right_bootstrap.as_ref())?,
            rules: Rules { ignored, timestamp_ms: self.timestamp_within.map(within_ms), left_out },
            since: self.since,
            until: self.until,
            lasts: self.lasts,
            wait: self.wait,
            payload: self.payload,
        })
    }
}

/// Turns an error into a failure. Exit code 1 means that the topics differ, so a failed comparison must not exit with 1.
fn failed(error: CompareError, plan: &Plan, brokers: &str) -> Failure {
    let (message, code, hint) = match &error {
        CompareError::Topic { side, topic, code } if no_topic::is_meant(*code) => {
            return no_topic::named(&format!("--{}", side.name()), topic, &plan.source(*side).kafka);
        }
        CompareError::Silent { brokers, silence } => {
            (format!("the brokers at {brokers} do not answer"), silence.fault.code, silence.fault.next_step)
        }
        CompareError::Kafka(cause) => {
            let code = cause.rdkafka_error_code().unwrap_or(rdkafka::error::RDKafkaErrorCode::Unknown);
            let fault = fault::classify_kafka(code);
            (format!("a topic cannot be read from {brokers}"), fault.code, fault.next_step)
        }
        CompareError::Topic { code, .. } => {
            let fault = fault::classify_kafka(*code);
            ("a topic cannot be read".to_owned(), fault.code, fault.next_step)
        }
        CompareError::Client => (
            "no Kafka client can be made".to_owned(),
            Code::KafkaSettingsConflict,
            "compare KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_* with each other",
        ),
        CompareError::Stalled { .. } => {
            ("a topic cannot be read".to_owned(), Code::TopicLeaderless, "see which broker leads these partitions")
        }
        CompareError::NoId { side, topic, .. } => {
            let hint = format!("name the header of {} with --{}-id-header", text::name(topic), side.name());
            return Failure::usage("the records cannot be told apart").because(error).hint(hint);
        }
        CompareError::Disk(_) => (
            "there is no room to sort".to_owned(),
            Code::ClientResources,
            "point TMPDIR at a disk with about 150 bytes per record",
        ),
    };
    Failure::unexpected(message, error).code(code).hint(hint)
}
