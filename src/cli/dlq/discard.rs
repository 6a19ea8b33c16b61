//! Runs `outbox-relay dlq discard`.

use std::sync::Arc;

use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::causes::{groups, show};
use super::{Which, WithDatabase, failed, look, writable};
use crate::cli::confirm::Confirm;
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::cli::prune::may_be_audited;
use crate::cli::target::{By, Target};
use crate::config::KafkaSettings;
use crate::observe::print::outln;
use crate::resend::dlq::DlqError;
use crate::resend::dlq::info::DeadLetterInfo;
use crate::resend::dlq::redrive::{self, Destination, Plan};
use crate::resend::dlq::redrive_log::Stage;
use crate::resend::dlq::scan::DeadLetters;
use crate::sink::resend::Resend;
use crate::store::audit::Entry;
use crate::store::connect::Purpose;
use crate::store::held_keys::{self, Discarded};

#[derive(Debug, Args)]
pub(crate) struct Discard {
    #[command(flatten)]
    which: Which,
    /// Take everything; replaces a filter
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    confirm: Confirm,
    /// The reason for the change, kept with it
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    by: By,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Discard {
    pub(super) async fn run(self, kafka: &KafkaSettings, database: WithDatabase<'_>) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.clone().filter());
        if filter.is_empty() && !self.all {
            return Err(Failure::usage("dlq discard needs a filter, or --all")
                .hint("`dlq list` shows the causes; --cause FINGERPRINT takes one of them"));
        }
        let settings = database()?;
        let looked = look(kafka, &topic, &filter, true);
        let (_, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        dead_letters.entries.retain(|dead_letter| dead_letter.state.is_open());
        let events = events(&mut dead_letters).map_err(|error| failed(error.into(), &topic, kafka))?;
        let matching = dead_letters.entries.len();
        if self.confirm.dry_run || matching == 0 {
            return self.report(matching, &dead_letters, None);
        }
        let mut target = Target::open(&settings, "dlq discard", Purpose::Write).await?;
        may_be_audited(&mut target).await?;
        let mut resend = Resend::new(kafka).map_err(|error| failed(DlqError::Client(error), &topic, kafka))?;
        writable(&resend, &topic, kafka.brokers()).await?;
        if !self.json {
            show(&groups(&dead_letters));
        }
        self.confirm.ask(&format!(
            "{matching} dead letters of {topic}, inbox {}: their events will never be applied. Discard them?",
            target.shown
        ))?;
        let entry = Entry { command: "dlq discard", filter: json!({ "topic": topic }), affected: matching as u64 };
        let author = self.by.author(Some(self.reason.clone()));
        let discarded = held_keys::discard(&mut target.conn, &target.names, &author, &entry, &events).await;
        let discarded = discarded.map_err(|error| target.failed("write the inbox and the audit table of", error))?;
        let plan = Plan {
            topic: Arc::from(topic.as_str()),
            destination: Destination::Source,
            id: Uuid::new_v4(),
            rate: None,
            by: self.by.by.clone(),
            reason: Some(self.reason.clone()),
            partitions: Default::default(),
        };
        let logged = redrive::log_stage(&mut resend, &plan, Stage::Discarded, dead_letters.entries.iter(), 0).await;
        if logged.is_err() {
            return Err(Failure::finding(format!("the topic {topic} rejects the log of the discard"))
                .hint("the events are discarded; run the same command again, so that `dlq list` leaves them out"));
        }
        self.report(matching, &dead_letters, Some(discarded))
    }

    fn report(&self, matching: usize, dead_letters: &DeadLetters, discarded: Option<Discarded>) -> Result<(), Failure> {
        let topic = &self.which.topic;
        if self.json {
            let document = json!({
                "topic": topic, "dry_run": self.confirm.dry_run, "matching": matching,
                "discarded": discarded.map(|_| matching), "heads": discarded.map(|discarded| discarded.rows),
                "marked": discarded.map(|discarded| discarded.marked), "causes": groups(dead_letters),
            });
            return output::json(&document).map(drop);
        }
        match discarded {
            Some(Discarded { rows, .. }) => {
                outln!(
                    "{matching} dead letters of {topic} were discarded; {rows} of them held a key or waited behind one"
                );
            }
            None if matching == 0 => outln!("no dead letter of {topic} matches the filter"),
            None => {
                show(&groups(dead_letters));
                outln!("would have discarded {matching} dead letters of {topic}");
            }
        }
        Ok(())
    }
}

/// Returns the group and the event of each dead letter that names both.
fn events(dead_letters: &mut DeadLetters) -> std::io::Result<Vec<(String, Uuid)>> {
    let mut events = Vec::new();
    let places: Vec<_> = dead_letters.entries.iter().filter_map(|dead_letter| dead_letter.place).collect();
    let Some(spool) = &mut dead_letters.spool else { return Ok(events) };
    for place in places {
        let info = DeadLetterInfo::from_record(&spool.read(place)?);
        let event = info.event_id.and_then(|event| event.parse().ok());
        events.extend(info.group.zip(event));
    }
    Ok(events)
}
