//! Runs `outbox-relay dlq list|show|redrive`.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use rdkafka::error::RDKafkaErrorCode;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::task::block_in_place;
use uuid::Uuid;

use super::confirm::Confirm;
use super::exit::Failure;
use super::interrupt::interrupted;
use super::time_arg::time_arg;
use super::{output, runtime};
use crate::config::KafkaSettings;
use crate::fault;
use crate::observe::print::{errln, outln};
use crate::observe::progress::Progress;
use crate::resend::dlq::DlqError;
use crate::resend::dlq::filter::{Filter, Run};
use crate::resend::dlq::info::DeadLetterInfo;
use crate::resend::dlq::redrive::{self, Ended, Plan, Why};
use crate::resend::dlq::redrive_log::State;
use crate::resend::dlq::scan::{self, Cause, DeadLetter, DeadLetters};
use crate::sink::reader::Reader;
use crate::sink::resend::{Record, Resend};
use crate::text;
use event_outbox::route::check_topic;

/// Dead letters of consumers, on any topic
#[derive(Debug, Subcommand)]
pub(crate) enum Dlq {
    /// Count the dead letters by cause: reason, error, source topic and group
    List(List),
    /// Show the dead letters one by one, without headers and payloads unless --payload is given
    Show(Show),
    /// Send the dead letters again, in the order in which they were read first, to their source topic or to another one
    ///
    /// Key, value, timestamp and headers stay as they are; a header `redrive-id` is added. The dead letter topic itself keeps a log
    /// of the redriven dead letters, so that the next redrive leaves them out.
    Redrive(Redrive),
}

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

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    which: Which,
    /// Include dead letters that were redriven
    #[arg(long)]
    redriven: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
    /// Include dead letters that were redriven
    #[arg(long)]
    redriven: bool,
    /// Show headers and payload as well; they may be confidential
    #[arg(long)]
    payload: bool,
    /// Take at most N, the first ones
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Redrive {
    #[command(flatten)]
    which: Which,
    /// Take everything; replaces a filter
    #[arg(long)]
    all: bool,
    /// Send to this topic; such as a retry topic that only one group reads [default: each to its source topic]
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    to: Option<String>,
    /// Handle at most N per second
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Take at most N, the first ones
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Send dead letters that were redriven before as well
    #[arg(long)]
    again: bool,
    #[command(flatten)]
    confirm: Confirm,
    /// The reason for the change, kept with it
    #[arg(long)]
    reason: Option<String>,
    /// The person who acts, kept with the change
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn topic(text: &str) -> Result<String, String> {
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
    pub(crate) fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        runtime()?.block_on(async {
            match self {
                Dlq::List(list) => list.run(kafka),
                Dlq::Show(show) => show.run(kafka),
                Dlq::Redrive(redrive) => redrive.run(kafka).await,
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

/// The most topics that a hint names.
const MOST_TOPICS: usize = 10;

fn failed(error: DlqError, topic: &str, kafka: &KafkaSettings) -> Failure {
    let dead_letter_topics = || {
        let mut topics = Reader::new(kafka).ok()?.topics().ok()?;
        topics.retain(|topic| topic.ends_with(".dlq"));
        topics.truncate(MOST_TOPICS);
        (!topics.is_empty()).then(|| format!("topics of dead letters are {}", topics.join(", ")))
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

/// The dead letters of one cause.
#[derive(Debug, Serialize)]
struct Group<'a> {
    fingerprint: &'a str,
    reason: Option<&'a str>,
    error: Option<&'a str>,
    source_topic: Option<&'a str>,
    group: Option<&'a str>,
    dead_letters: u64,
    /// The number of its dead letters that may have been redriven.
    uncertain: u64,
    redriven: u64,
    entities: usize,
    /// The event types, at most five.
    event_types: Vec<&'a str>,
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
    first: Place,
    #[serde(skip)]
    key_hashes: HashSet<u64>,
}

/// The place of a dead letter in its topic.
#[derive(Debug, Serialize)]
struct Place {
    partition: i32,
    offset: i64,
}

/// Groups the dead letters by cause, the most frequent cause first.
fn groups(dead_letters: &DeadLetters) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<usize, Group<'_>> = BTreeMap::new();
    for dead_letter in &dead_letters.entries {
        let Cause { fingerprint, reason, error, source_topic, group } = &dead_letters.causes[dead_letter.cause];
        let group = groups.entry(dead_letter.cause).or_insert_with(|| Group {
            fingerprint,
            reason: reason.as_deref(),
            error: error.as_deref(),
            source_topic: source_topic.as_deref(),
            group: group.as_deref(),
            dead_letters: 0,
            uncertain: 0,
            redriven: 0,
            entities: 0,
            event_types: Vec::new(),
            oldest: None,
            newest: None,
            first: Place { partition: dead_letter.partition, offset: dead_letter.offset },
            key_hashes: HashSet::new(),
        });
        group.dead_letters += 1;
        group.uncertain += u64::from(dead_letter.state == State::Uncertain);
        group.redriven += u64::from(dead_letter.state == State::Redriven);
        group.key_hashes.insert(dead_letter.key);
        group.oldest = group.oldest.into_iter().chain(dead_letter.at).min();
        group.newest = group.newest.into_iter().chain(dead_letter.at).max();
        if let Some(event_type) = dead_letter.event_type.map(|index| dead_letters.event_types[index].as_str())
            && group.event_types.len() < 5
            && !group.event_types.contains(&event_type)
        {
            group.event_types.push(event_type);
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.iter_mut().for_each(|group| group.entities = group.key_hashes.len());
    groups.sort_by_key(|group| std::cmp::Reverse(group.dead_letters));
    groups
}

impl Group<'_> {
    fn shown(&self) -> String {
        let or_unknown = |of: Option<&str>| text::name(of.unwrap_or("unknown")).to_string();
        let state = match (self.uncertain, self.redriven) {
            (0, 0) => String::new(),
            (uncertain, 0) => format!(", {uncertain} of them uncertain"),
            (0, redriven) => format!(", {redriven} of them redriven"),
            (uncertain, redriven) => format!(", {uncertain} of them uncertain, {redriven} redriven"),
        };
        let time = |at: Option<DateTime<Utc>>| at.map_or_else(|| "?".to_owned(), output::time);
        let types: Vec<_> = self.event_types.iter().map(|of| text::name(of).to_string()).collect();
        format!(
            "{}  {} {} of {} entities from {} by {}{state}, failed {} to {}, first at --partition {} --offset {}, {}\n          {}\n",
            self.fingerprint,
            self.dead_letters,
            or_unknown(self.reason),
            self.entities,
            or_unknown(self.source_topic),
            or_unknown(self.group),
            time(self.oldest),
            time(self.newest),
            self.first.partition,
            self.first.offset,
            types.join(" "),
            text::sentence(self.error.unwrap_or("no error is given")),
        )
    }
}

fn show(groups: &[Group<'_>]) {
    let shown: String = groups.iter().map(Group::shown).collect();
    output::text(&shown);
}

/// Shows on stderr what a filter could have selected that has selected nothing.
fn show_others(kafka: &KafkaSettings, topic: &str, filter: &Filter) {
    if filter.is_empty() {
        return;
    }
    // The topic was read a moment ago. Should it not be readable again, the answer is still that nothing matches.
    let Ok((_, all)) = look(kafka, topic, &Filter::default(), false) else { return };
    match groups(&all).as_slice() {
        [] => errln!("no dead letter at all is in {topic}"),
        groups => {
            errln!("no dead letter matches; these are there:");
            groups.iter().for_each(|group| errln!("{}", group.shown().trim_end()));
        }
    }
}

impl List {
    fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.filter());
        let looked = look(kafka, &topic, &filter, false);
        let (_, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        let redriven = dead_letters.count(State::Redriven);
        if !self.redriven {
            dead_letters.entries.retain(|dead_letter| dead_letter.state != State::Redriven);
        }
        let (waiting, uncertain) = (dead_letters.count(State::Waiting), dead_letters.count(State::Uncertain));
        let groups = groups(&dead_letters);
        if groups.is_empty() && redriven == 0 && !self.json {
            show_others(kafka, &topic, &filter);
        }
        if self.json {
            let list = json!({
                "topic": topic, "waiting": waiting, "uncertain": uncertain, "redriven": redriven, "causes": groups,
            });
            return output::json(&list).map(drop);
        }
        let mut shown: String = groups.iter().map(Group::shown).collect();
        shown += &format!("{}\n", counted(waiting, uncertain, redriven, &topic));
        output::text(&shown);
        Ok(())
    }
}

fn counted(waiting: usize, uncertain: usize, redriven: usize, topic: &str) -> String {
    let noun = if waiting == 1 { "dead letter waits" } else { "dead letters wait" };
    let uncertain = match uncertain {
        0 => String::new(),
        uncertain => format!(", {uncertain} may have been redriven by a redrive that did not end"),
    };
    format!("{waiting} {noun} in {topic}{uncertain}, {redriven} have been redriven")
}

impl Show {
    fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.filter());
        let looked = look(kafka, &topic, &filter, true);
        let (_, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        dead_letters.entries.retain(|dead_letter| self.redriven || dead_letter.state != State::Redriven);
        let all = dead_letters.entries.len();
        dead_letters.entries.truncate(self.limit as usize);
        let mut shown = Vec::new();
        for dead_letter in std::mem::take(&mut dead_letters.entries) {
            let record = dead_letters.spool.as_mut().zip(dead_letter.place).map(|(spool, place)| spool.read(place));
            let Some(record) = record else { continue };
            let record = record.map_err(|error| failed(error.into(), &topic, kafka))?;
            shown.push(document(&dead_letter, &dead_letters.causes[dead_letter.cause], &record, self.payload));
        }
        if all == 0 && !self.json {
            show_others(kafka, &topic, &filter);
        }
        if self.json {
            return output::json(&json!({ "topic": topic, "matching": all, "dead_letters": shown })).map(drop);
        }
        let mut text: String = shown.iter().map(render).collect();
        if all > shown.len() {
            text += &format!("{} of {all} are shown; raise --limit\n", shown.len());
        }
        if all == 0 {
            text += &format!("no dead letter of {topic} matches the filter\n");
        }
        output::text(&text);
        Ok(())
    }
}

/// Returns the bytes as text if they are UTF-8, else in base16.
fn readable(bytes: Option<&[u8]>) -> Value {
    match bytes.map(|bytes| (std::str::from_utf8(bytes), bytes)) {
        None => Value::Null,
        Some((Ok(text), _)) => text.into(),
        Some((Err(_), bytes)) => {
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("\\x{digits}").into()
        }
    }
}

fn document(dead_letter: &DeadLetter, cause: &Cause, record: &Record, payload: bool) -> Value {
    let info = DeadLetterInfo::from_record(record);
    let source = info.source.as_ref().map(|source| {
        let (partition, offset) = source.place.unzip();
        json!({ "topic": source.topic, "partition": partition, "offset": offset })
    });
    let mut document = json!({
        "partition": dead_letter.partition, "offset": dead_letter.offset, "state": dead_letter.state,
        "fingerprint": cause.fingerprint, "entity_id": readable(record.key.as_deref()), "event_id": info.event_id,
        "event_type": info.event_type, "reason": info.reason, "error": info.error, "attempts": info.attempts,
        "group": info.group, "source": source, "failed_at": dead_letter.at, "bytes": record.len(),
    });
    if payload {
        let pair = |(name, value): &(String, Option<Vec<u8>>)| json!([name, readable(value.as_deref())]);
        document["headers"] = record.headers.iter().map(pair).collect();
        document["payload"] = readable(record.value.as_deref());
    }
    document
}

fn render(dead_letter: &Value) -> String {
    let whole = |pointer: &str| match dead_letter.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let name = |pointer: &str| text::name(&whole(pointer)).to_string();
    let mut lines = format!(
        "{}/{}  {}  {} {} of entity {} from {}/{} offset {} by {}, {}, attempts {}, failed {}\n    {} {}\n",
        name("/partition"),
        name("/offset"),
        name("/state"),
        name("/event_type"),
        name("/event_id"),
        name("/entity_id"),
        name("/source/topic"),
        name("/source/partition"),
        name("/source/offset"),
        name("/group"),
        name("/reason"),
        name("/attempts"),
        name("/failed_at"),
        name("/fingerprint"),
        text::sentence(&whole("/error")),
    );
    if let Some(headers) = dead_letter["headers"].as_array() {
        let headers: Vec<String> = headers.iter().map(|pair| pair.to_string()).collect();
        let (headers, payload) = (headers.join(" "), whole("/payload"));
        lines += &format!("    headers {}\n    payload {}\n", text::sentence(&headers), text::sentence(&payload));
    }
    lines
}

impl Redrive {
    async fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.clone().filter());
        if filter.is_empty() && !self.all {
            return Err(Failure::usage("dlq redrive needs a filter, or --all")
                .hint("`dlq list` shows the causes; --cause FINGERPRINT takes one of them"));
        }
        let looked = look(kafka, &topic, &filter, true);
        let (reader, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        let redriven = dead_letters.count(State::Redriven);
        dead_letters.entries.retain(|dead_letter| self.again || dead_letter.state != State::Redriven);
        let ordered = scan::in_source_order(std::mem::take(&mut dead_letters.entries), &dead_letters.causes);
        dead_letters.entries = ordered;
        dead_letters.entries.truncate(self.limit.map_or(usize::MAX, |limit| limit as usize));
        let targets = self.targets(&dead_letters)?;
        let uncertain = dead_letters.count(State::Uncertain);
        let found = Found { targets, matching: dead_letters.entries.len(), uncertain, redriven };
        if found.matching == 0 && redriven == 0 && !self.json {
            show_others(kafka, &topic, &filter);
        }
        if self.confirm.dry_run || found.matching == 0 {
            return self.report(&found, &dead_letters, None);
        }
        let mut resend = Resend::new(kafka).map_err(|error| failed(DlqError::Client(error), &topic, kafka))?;
        for target in found.targets.keys().map(String::as_str).chain([topic.as_str()]) {
            writable(&resend, target, kafka.brokers()).await?;
        }
        if !self.json {
            show(&groups(&dead_letters));
        }
        self.confirm.ask(&self.question(&found))?;
        let plan = Plan {
            topic: Arc::from(topic.as_str()),
            to: self.to.as_deref().map(Arc::from),
            id: Uuid::new_v4(),
            rate: self.rate,
            by: self.by.clone(),
            reason: self.reason.clone(),
            partitions: partitions(&reader, &found.targets),
        };
        let stop = interrupted()?;
        let bar = Progress::new("redriven", found.matching as u64);
        // The report at the end needs the causes; the redrive consumes the dead letters.
        let shown = DeadLetters { causes: dead_letters.causes.clone(), ..DeadLetters::default() };
        let ended = redrive::redrive(&mut resend, dead_letters, &plan, stop, |count| bar.add(count as u64)).await;
        drop(bar);
        self.report(&found, &shown, Some((&plan, &ended)))?;
        outcome(ended, &found, &topic)
    }

    /// Counts the dead letters by target topic. Fails if one has no target, or an illegal one.
    fn targets(&self, dead_letters: &DeadLetters) -> Result<BTreeMap<String, usize>, Failure> {
        let (mut targets, mut homeless) = (BTreeMap::new(), 0);
        for dead_letter in &dead_letters.entries {
            let source = dead_letters.causes[dead_letter.cause].source_topic.as_ref();
            match self.to.as_ref().or(source) {
                Some(target) => *targets.entry(target.clone()).or_default() += 1,
                None => homeless += 1,
            }
        }
        if homeless > 0 {
            return Err(Failure::usage(format!("{homeless} dead letters lack the name of their source topic"))
                .hint("--to TOPIC sends them to that topic, --source-topic TOPIC leaves them out"));
        }
        match targets.keys().find(|target| **target == self.which.topic || check_topic(target).is_err()) {
            None => Ok(targets),
            Some(target) => Err(Failure::usage(format!(
                "dead letters of {} cannot be sent to {}",
                self.which.topic,
                text::name(target)
            ))
            .hint("--to TOPIC sends them to another topic")),
        }
    }

    fn question(&self, found: &Found) -> String {
        let who = match self.to {
            Some(_) => "",
            None => " Every group that reads it gets them again: --to sends them to one group's retry topic.",
        };
        let uncertain = match found.uncertain {
            0 => String::new(),
            uncertain => format!(" {uncertain} of them may have been redriven by a redrive that did not end."),
        };
        let left_out = match (found.redriven, self.again) {
            (0, _) => String::new(),
            (redriven, false) => format!(" {redriven} dead letters that were redriven before are left out."),
            (redriven, true) => format!(" {redriven} of them were redriven before."),
        };
        format!(
            "{} dead letters of {}: {}.{uncertain}{left_out}{who} Redrive them?",
            found.matching,
            self.which.topic,
            found.shown_targets()
        )
    }

    fn report(&self, found: &Found, dead_letters: &DeadLetters, ran: Option<(&Plan, &Ended)>) -> Result<(), Failure> {
        let ended = ran.map(|(_, ended)| ended);
        if self.json {
            let topic = |(topic, count): (&String, &usize)| json!({ "topic": topic, "dead_letters": count });
            let document = json!({
                "topic": self.which.topic, "dry_run": self.confirm.dry_run, "matching": found.matching,
                "uncertain_before": found.uncertain, "redriven_before": found.redriven,
                "topics": found.targets.iter().map(topic).collect::<Vec<_>>(),
                "redrive_id": ran.map(|(plan, _)| plan.id), "redriven": ended.map(|ended| ended.redriven),
                "uncertain": ended.map(|ended| ended.uncertain),
                "left": ended.map(|ended| found.matching - ended.redriven - ended.uncertain),
                "causes": groups(dead_letters),
            });
            return output::json(&document).map(drop);
        }
        match ran {
            Some((plan, ended)) => {
                outln!("{} of {} dead letters were redriven, redrive-id {}", ended.redriven, found.matching, plan.id);
            }
            None if found.matching == 0 => {
                let hint = if found.redriven > 0 { "; --again includes them" } else { "" };
                outln!("no dead letter waits; {} were redriven before{hint}", found.redriven);
            }
            None => {
                show(&groups(dead_letters));
                outln!("would have redriven {} dead letters: {}", found.matching, found.shown_targets());
            }
        }
        Ok(())
    }
}

struct Found {
    targets: BTreeMap<String, usize>,
    matching: usize,
    uncertain: usize,
    redriven: usize,
}

impl Found {
    /// Returns how many dead letters go to which topic.
    fn shown_targets(&self) -> String {
        let targets = self.targets.iter().map(|(topic, count)| format!("{count} to {}", text::name(topic)));
        targets.collect::<Vec<_>>().join(", ")
    }
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

/// Returns the number of partitions by target topic; a topic that cannot be read is missing from the map.
fn partitions(reader: &Reader, targets: &BTreeMap<String, usize>) -> BTreeMap<String, i32> {
    let count = |topic: &str| block_in_place(|| reader.partitions(topic)).ok()?.ok();
    let known = |topic: &String| Some((topic.clone(), i32::try_from(count(topic)?.len()).ok()?));
    targets.keys().filter_map(known).collect()
}

fn outcome(ended: Ended, found: &Found, topic: &str) -> Result<(), Failure> {
    let Ended { redriven, uncertain, why } = ended;
    let left = found.matching - redriven - uncertain;
    let go_on = format!(
        "{redriven} were redriven, {uncertain} may have been, {left} wait: run the same command again, it continues where this one ended"
    );
    let reason = |code: Option<RDKafkaErrorCode>| match code {
        Some(code) => format!("{code}: {}", fault::classify_kafka(code).next_step),
        None => "no answer within 30 s".to_owned(),
    };
    let failure = match why {
        Why::Done => return Ok(()),
        Why::Interrupted => Failure::interrupted("the redrive was interrupted"),
        Why::Unlogged(code) => {
            Failure::finding(format!("the topic {topic} rejects the log of the redrive")).because(reason(code))
        }
        Why::Refused { topic: target, code, partition, offset } => Failure::finding(format!(
            "{} rejects the dead letter at {partition}/{offset} of {topic}",
            text::name(&target)
        ))
        .because(reason(code)),
        Why::Disk(error) => Failure::finding("a temporary file cannot be read").because(error),
    };
    Err(failure.hint(go_on))
}
