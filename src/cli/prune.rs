//! Runs `outbox-relay prune`: retention by hand, at once.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;
use tokio::sync::watch;

use super::confirm::Confirm;
use super::dlq::topic;
use super::exit::Failure;
use super::interrupt::interrupted;
use super::target::{By, Target, failed};
use super::{output, runtime};
use crate::config::{GivenDuration, Needs, Retention, Settings, Sources};
use crate::inspect::dedup_window::{self, Question, Unknown, WindowViolation};
use crate::observe::print::outln;
use crate::store::audit::{self, Entry};
use crate::store::connect::Purpose;
use crate::store::retention::{self, Removal};
use crate::text;

/// The rows, or pages, of one step.
const STEP: i64 = 2_000;
const PAGES: i64 = 128;

/// The pause before the next try while a relay prunes.
const TURN: Duration = Duration::from_millis(20);

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    Delete,
    Archive,
}

#[derive(Debug, Args)]
pub(crate) struct Prune {
    /// The fate of published events [default: RELAY_RETENTION]
    #[arg(long)]
    mode: Option<Mode>,
    /// Time since an event was published, for example 7d [default: RELAY_RETENTION_AFTER]
    #[arg(long, value_name = "DURATION")]
    after: Option<GivenDuration>,
    /// Delete also rows of the inbox that are older than this [default: RELAY_PROCESSED_RETENTION]
    #[arg(long, value_name = "DURATION")]
    processed_after: Option<GivenDuration>,
    /// Topics that the consumer groups of the inbox read, where neither processed_events_source nor Kafka's committed offsets tell;
    /// their dead letters are included
    #[arg(long, value_name = "TOPICS", value_delimiter = ',', value_parser = topic)]
    topics: Vec<String>,
    /// Delete rows of the inbox although topics hold their events still, or may hold them: duplicates may be applied. Needs a
    /// --reason
    #[arg(long, requires = "reason")]
    force: bool,
    #[command(flatten)]
    confirm: Confirm,
    /// The reason for the change, kept with it
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    by: By,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Prune {
    pub(crate) fn run(self, settings: &Settings, sources: Sources) -> Result<(), Failure> {
        runtime()?.block_on(self.prune(settings, sources))
    }

    async fn prune(self, settings: &Settings, sources: Sources) -> Result<(), Failure> {
        let configured = &settings.relay.retention;
        let removal = match (self.mode, configured.outbox) {
            (Some(Mode::Delete), _) | (None, Retention::Delete) => Some(Removal::Delete),
            (Some(Mode::Archive), _) | (None, Retention::Archive) => Some(Removal::Archive),
            (None, Retention::Keep) => None,
        };
        let after = self.after.unwrap_or(configured.after);
        let processed_after = self.processed_after.or(configured.processed_after);
        if removal.is_none() && processed_after.is_none() {
            return Err(Failure::usage("RELAY_RETENTION is keep: nothing is to be pruned")
                .hint("--mode delete or --mode archive, and --after DURATION"));
        }
        let mut target = Target::open(settings, "prune", Purpose::Write).await?;
        let what = self.described(removal, after, processed_after, &target.shown);
        if let (Some(window), false) = (processed_after, self.force || self.confirm.dry_run) {
            wide_enough(&mut target, settings, sources, window, &self.topics).await?;
        }
        if !self.confirm.dry_run {
            self.confirm.ask(&format!("{what}?"))?;
            may_be_audited(&mut target).await?;
        }
        let counting = |removal| if self.confirm.dry_run { Removal::Count } else { removal };
        // What was removed gets its audit entry, even if Ctrl-C ends the command.
        let stop = interrupted()?;
        let mut removed = 0;
        if let Some(removal) = removal {
            removed = outbox(&mut target, counting(removal), *after, &stop).await?;
        }
        let mut processed = 0;
        if let Some(after) = processed_after {
            processed = inbox(&mut target, counting(Removal::Delete), *after, &stop).await?;
        }
        if !self.confirm.dry_run {
            let filter = json!({
                "mode": removal.map(|removal| if removal == Removal::Archive { "archive" } else { "delete" }),
                "after_s": after.as_secs_f64(),
                "processed_after_s": processed_after.map(|after| after.as_secs_f64()),
                "processed": processed,
                "force": self.force,
            });
            let entry = Entry { command: "prune", filter, affected: removed.unsigned_abs() };
            let author = self.by.author(self.reason);
            let noted = audit::note(&mut target.conn, &target.names, &author, &entry).await;
            noted.map_err(|error| target.failed("write the audit entry of", error))?;
        }
        if self.json {
            output::json(&json!({ "dry_run": self.confirm.dry_run, "events": removed, "processed": processed }))?;
        } else {
            let would = if self.confirm.dry_run { "would have " } else { "" };
            let [events, rows] =
                [(removed, "event"), (processed, "row")].map(|(count, noun)| text::counted(count, noun));
            outln!("{what}: {would}removed {events} and {rows} of the consumers' table");
        }
        if *stop.borrow() {
            return Err(Failure::interrupted("the command was interrupted").hint("run it again to remove the rest"));
        }
        Ok(())
    }

    fn described(
        &self,
        removal: Option<Removal>,
        after: GivenDuration,
        processed_after: Option<GivenDuration>,
        shown: &str,
    ) -> String {
        let events = removal.map(|removal| {
            let verb = if removal == Removal::Archive { "Archive" } else { "Delete" };
            format!("{verb} events published more than {after} ago from {shown}")
        });
        let processed = processed_after.map(|after| format!("delete rows of the inbox that are older than {after}"));
        events.into_iter().chain(processed).collect::<Vec<_>>().join(", ")
    }
}

/// Fails if a topic may still deliver an event to consumers after the inbox has forgotten it.
async fn wide_enough(
    target: &mut Target,
    settings: &Settings,
    sources: Sources,
    window: GivenDuration,
    topics: &[String],
) -> Result<(), Failure> {
    const REFUSED: &str = "rows of the consumers' table are not deleted";
    let force = "--force --reason … deletes them all the same";
    let unknown = |why: &str| {
        Failure::finding(format!("{REFUSED}: it is unknown whether consumers would apply duplicates"))
            .because(why.to_owned())
    };
    // The brokers are needed only here.
    let kafka = Settings::load(sources, Needs::DatabaseAndKafka).ok().and_then(|settings| settings.kafka);
    let Some(kafka) = kafka else {
        return Err(
            unknown("the topics cannot be asked without KAFKA_BOOTSTRAP_SERVERS").hint(format!("set it, or {force}"))
        );
    };
    let question = Question {
        names: &target.names,
        template: &settings.relay.topic,
        window,
        dead_letter_horizon: settings.relay.retention.dead_letter_horizon,
        topics,
    };
    match question.violations(&mut target.conn, &kafka).await {
        Ok(violations) if violations.is_empty() => Ok(()),
        Ok(violations) => {
            let violations: Vec<_> = violations.iter().map(WindowViolation::to_string).collect();
            Err(Failure::finding(format!(
                "{REFUSED}, because consumers would apply duplicates:\n  {}",
                violations.join("\n  ")
            ))
            .hint(format!("{}; {force}", dedup_window::FIX)))
        }
        Err(Unknown::Database(error)) => Err(target.failed("look at the routes of", error)),
        // The client's own error text may quote a setting, so it is not shown.
        Err(Unknown::Kafka(_)) => Err(unknown(&format!("{} does not answer", kafka.brokers())).hint(force)),
        Err(other) => Err(unknown(&other.to_string()).hint(format!("{}; {force}", other.next_step()))),
    }
}

/// Fails if the audit table cannot be written. Called before anything is removed, because each removal must be audited.
pub(super) async fn may_be_audited(target: &mut Target) -> Result<(), Failure> {
    let allowed = audit::may_note(&mut target.conn, &target.names).await;
    if allowed.map_err(|error| target.failed("look at the rights on", error))? {
        return Ok(());
    }
    Err(Failure::finding(format!("this user may not write the audit table of {}", target.shown))
        .hint("run it as the owner, or as a member of both the operator's and the relay's role"))
}

async fn outbox(
    target: &mut Target,
    removal: Removal,
    after: Duration,
    stop: &watch::Receiver<bool>,
) -> Result<i64, Failure> {
    let Target { conn, names, shown, .. } = target;
    let (mut from, mut removed) = (0, 0);
    loop {
        let step = retention::step(conn, names, removal, after, from, STEP).await;
        let Some(step) = step.map_err(|error| failed("prune", shown, error))? else {
            tokio::time::sleep(TURN).await;
            continue;
        };
        removed += step.removed;
        from = step.last;
        if step.walked < STEP || step.young && step.removed == 0 || *stop.borrow() {
            return Ok(removed);
        }
    }
}

async fn inbox(
    target: &mut Target,
    removal: Removal,
    after: Duration,
    stop: &watch::Receiver<bool>,
) -> Result<i64, Failure> {
    let Target { conn, names, shown, .. } = target;
    let (mut from, mut removed) = (Some(0), 0);
    // A count takes all rows of the pages at once.
    let limit = if removal == Removal::Count { i64::MAX } else { 20_000 };
    while let Some(page) = from.filter(|_| !*stop.borrow()) {
        let step = retention::processed_step(conn, names, removal, after, page, PAGES, limit).await;
        let Some(step) = step.map_err(|error| failed("prune", shown, error))? else {
            tokio::time::sleep(TURN).await;
            continue;
        };
        removed += step.removed;
        from = step.next;
    }
    Ok(removed)
}
