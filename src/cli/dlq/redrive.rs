//! Runs `outbox-relay dlq redrive`.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Args;
use rdkafka::error::RDKafkaErrorCode;
use serde_json::json;
use tokio::task::block_in_place;
use uuid::Uuid;

use super::causes::{groups, show};
use super::{Which, failed, look, show_others, topic, writable};
use crate::cli::confirm::Confirm;
use crate::cli::exit::Failure;
use crate::cli::interrupt::interrupted;
use crate::cli::output;
use crate::config::KafkaSettings;
use crate::fault;
use crate::observe::print::{errln, outln};
use crate::observe::progress::Progress;
use crate::resend::dlq::DlqError;
use crate::resend::dlq::redrive::{self, Destination, Ended, Plan, Why};
use crate::resend::dlq::redrive_log::State;
use crate::resend::dlq::scan::{self, Cause, DeadLetters};
use crate::sink::admission::DEAD_LETTERS;
use crate::sink::reader::Reader;
use crate::sink::resend::Resend;
use crate::text;
use event_outbox::consumer::DeadLetter;
use event_outbox::route::check_topic;

#[derive(Debug, Args)]
pub(crate) struct Redrive {
    #[command(flatten)]
    which: Which,
    /// Take everything; replaces a filter
    #[arg(long)]
    all: bool,
    /// Send to this topic; such as a retry topic that only one group reads [default: each to TOPIC.GROUP.retry, which its group alone reads]
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    to: Option<String>,
    /// Send each to its source topic, where every group reads it again
    #[arg(long, conflicts_with = "to")]
    to_source: bool,
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

/// The consumers' database, which knows the held keys, may not be the one that is configured here. So this is said of all dead letters.
const OLD_OVER_NEW: &str = "warning: unless a dead letter holds its key, later events of its entity have been applied already. \
    A handler that sets a state then puts an older one over a newer one.";

impl Redrive {
    pub(super) async fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.clone().filter());
        if filter.is_empty() && !self.all {
            return Err(Failure::usage("dlq redrive needs a filter, or --all")
                .hint("`dlq list` shows the causes; --cause FINGERPRINT takes one of them"));
        }
        let looked = look(kafka, &topic, &filter, true);
        let (reader, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        let redriven = dead_letters.count(State::Redriven);
        dead_letters.entries.retain(|dead_letter| self.again || dead_letter.state.is_open());
        let ordered = scan::in_source_order(std::mem::take(&mut dead_letters.entries), &dead_letters.causes);
        dead_letters.entries = ordered;
        dead_letters.entries.truncate(self.limit.map_or(usize::MAX, |limit| limit as usize));
        let targets = self.targets(&dead_letters)?;
        let uncertain = dead_letters.count(State::Uncertain);
        let found = Found { targets, matching: dead_letters.entries.len(), uncertain, redriven };
        if found.matching == 0 && redriven == 0 && !self.json {
            show_others(kafka, &topic, &filter);
        }
        if found.matching > 0 && !self.json {
            errln!("{OLD_OVER_NEW}");
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
            destination: self.destination(),
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

    fn destination(&self) -> Destination {
        match &self.to {
            Some(topic) => Destination::Topic(Arc::from(topic.as_str())),
            None if self.to_source => Destination::Source,
            None => Destination::Retry,
        }
    }

    /// Counts the dead letters by target topic. Fails if one has no target, or an illegal one.
    fn targets(&self, dead_letters: &DeadLetters) -> Result<BTreeMap<String, usize>, Failure> {
        let (mut targets, mut homeless, mut strange) = (BTreeMap::new(), 0, 0);
        for dead_letter in &dead_letters.entries {
            let cause = &dead_letters.causes[dead_letter.cause];
            match self.destination().of(cause) {
                Some(_) if self.to.is_none() && !is_of(cause, &self.which.topic) => strange += 1,
                Some(target) => *targets.entry(target.to_string()).or_default() += 1,
                None => homeless += 1,
            }
        }
        if homeless > 0 {
            return Err(Failure::usage(format!(
                "{homeless} dead letters lack the name of their source topic or of their group"
            ))
            .hint("--to TOPIC sends them to that topic, --source-topic TOPIC and --group GROUP leave them out"));
        }
        if strange > 0 {
            return Err(Failure::usage(format!(
                "{strange} dead letters name another source topic or group than the topic {} is for",
                self.which.topic
            ))
            .hint("anybody who may write to the topic can write such headers; --to TOPIC sends them to that topic all the same"));
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
        let who = if self.to_source { " Every group that reads it gets them again." } else { "" };
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

/// Returns true if the name of the dead letter topic says the same as the dead letter's headers.
fn is_of(cause: &Cause, topic: &str) -> bool {
    let Some(source) = cause.source_topic.as_deref() else { return false };
    match &cause.group {
        Some(group) => DeadLetter::default_topic(source, group) == topic,
        // Other tools do not name it.
        None => topic.strip_prefix(source).is_some_and(|rest| rest.starts_with('.') && rest.ends_with(DEAD_LETTERS)),
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
