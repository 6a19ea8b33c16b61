//! Runs `outbox-relay dead list|show|retry|discard`.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::confirm::Confirm;
use super::exit::Failure;
use super::runtime;
use super::target::{By, Target, failed};
use crate::config::Settings;
use crate::observe::print::outln;
use crate::store::connect::Purpose;
use crate::store::dead::{self, Cause, Decision, Event, Filter, Id};
use event_outbox::route::TopicTemplate;

/// Events that need a decision: DEAD ones and, if RELAY_ON_POISON is hold_entity, those that hold their entity
#[derive(Debug, Subcommand)]
pub(crate) enum Dead {
    /// Count the events by cause
    List(List),
    /// Show the events one by one, without payloads unless --payload is given
    Show(Show),
    /// Send the events again, in order; events that wait behind a held one are released with it
    Retry(Decide),
    /// Give the events up: they stay in the table as DEAD, but lists and counts no longer include them
    Discard(Discard),
}

/// The filter for events. An event has to match every filter that is given.
#[derive(Debug, Args)]
struct Which {
    /// Take only the event with this id: the outbox id (a number) or the event id; may be repeated
    #[arg(long = "id", value_name = "ID")]
    ids: Vec<Id>,
    /// Take only events of this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Take only events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Take only events of entities of this type
    #[arg(long, value_name = "TYPE")]
    entity_type: Option<String>,
    /// Take only events that go to this topic, by their own topic or by RELAY_TOPIC
    #[arg(long)]
    topic: Option<String>,
    /// Take only events with this cause, as `dead list` shows it
    #[arg(long = "error", value_name = "FINGERPRINT")]
    fingerprint: Option<String>,
    /// Take only events created longer ago than this, for example 2h
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Take only events created within this time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Take only discarded events; without this flag they are left out
    #[arg(long)]
    discarded: bool,
}

#[derive(Debug, Args)]
pub(crate) struct List {
    #[command(flatten)]
    which: Which,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
    /// Show headers and payload as well; they may be confidential
    #[arg(long)]
    payload: bool,
    /// Show at most N events
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Decide {
    #[command(flatten)]
    which: Which,
    /// Take all events; replaces a filter
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    confirm: Confirm,
    /// The reason, stored in the audit table
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    by: By,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Discard {
    #[command(flatten)]
    decide: Decide,
}

impl Which {
    fn filter(self) -> Filter {
        Filter {
            ids: self.ids,
            event_type: self.event_type,
            entity_type: self.entity_type,
            entity_id: self.entity,
            topic: self.topic,
            fingerprint: self.fingerprint,
            older_than: self.older_than,
            newer_than: self.newer_than,
            discarded: self.discarded,
        }
    }
}

impl Dead {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(async {
            match self {
                Dead::List(list) => list.run(settings).await,
                Dead::Show(show) => show.run(settings).await,
                Dead::Retry(decide) => decide.run(settings, Decision::Retry).await,
                Dead::Discard(Discard { decide }) => decide.run(settings, Decision::Discard).await,
            }
        })
    }
}

impl List {
    async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let mut target = Target::open(settings, "dead list", Purpose::Read).await?;
        let filter = self.which.filter();
        let causes = causes(&mut target, &filter, &settings.relay.topic).await?;
        if self.json {
            outln!("{}", json!({ "events": events(&causes), "causes": causes }));
            return Ok(());
        }
        if causes.is_empty() {
            outln!("no event needs a decision in {}", target.shown);
            return Ok(());
        }
        causes.iter().for_each(show_cause);
        outln!("{} in {}", counted(&causes), target.shown);
        Ok(())
    }
}

impl Show {
    async fn run(self, settings: &Settings) -> Result<(), Failure> {
        let mut target = Target::open(settings, "dead show", Purpose::Read).await?;
        let filter = self.which.filter();
        let (names, topic) = (target.names.clone(), &settings.relay.topic);
        let shown = dead::events(&mut target.conn, &names, &filter, topic, self.limit, self.payload).await;
        let shown = shown.map_err(|error| {
            let missing = error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "42501");
            let failure = target.failed("read the events of", error);
            if missing && self.payload {
                return failure.hint("the operator's role sees no payloads: grant select (payload, payload_bytes, headers) on the outbox");
            }
            failure
        })?;
        if shown.is_empty() {
            explain_missing(&mut target, &filter).await?;
        }
        if self.json {
            outln!("{}", json!({ "events": shown }));
            return Ok(());
        }
        shown.iter().for_each(show_event);
        if shown.len() == self.limit as usize {
            outln!("only {} events are shown; raise --limit", self.limit);
        }
        Ok(())
    }
}

impl Decide {
    async fn run(self, settings: &Settings, decision: Decision) -> Result<(), Failure> {
        let Self { which, all, confirm, reason, by, json } = self;
        let filter = which.filter();
        if filter.is_empty() && !all {
            return Err(Failure::usage(format!("{} needs a filter, or --all", decision.command()))
                .hint("`dead list` shows the causes; --error FINGERPRINT takes one of them"));
        }
        if decision == Decision::Discard && (reason.is_none() || filter.discarded) {
            let what = if reason.is_none() {
                "needs a --reason"
            } else {
                "takes no --discarded: these events are discarded already"
            };
            return Err(Failure::usage(format!("dead discard {what}")).hint("it is kept in the audit table"));
        }
        let mut target = Target::open(settings, decision.command(), Purpose::Write).await?;
        let causes = causes(&mut target, &filter, &settings.relay.topic).await?;
        if causes.is_empty() {
            explain_missing(&mut target, &filter).await?;
        }
        if confirm.dry_run || causes.is_empty() {
            report(json, true, decision, &causes, None, &target.shown);
            return Ok(());
        }
        if !json {
            causes.iter().for_each(show_cause);
        }
        confirm.ask(&format!("{} {} of {}?", word(decision, true), counted(&causes), target.shown))?;
        let Target { mut conn, names, shown, .. } = target;
        let longest = settings.relay.publish_timeout + Duration::from_secs(5);
        let author = by.author(reason);
        let changed = dead::decide(&mut conn, &names, &filter, &settings.relay.topic, decision, &author, longest)
            .await
            .map_err(|error| failed("change events of", &shown, error))?;
        report(json, false, decision, &causes, Some(changed), &shown);
        Ok(())
    }
}

fn report(
    json: bool,
    dry_run: bool,
    decision: Decision,
    causes: &[Cause],
    changed: Option<dead::Changed>,
    shown: &str,
) {
    if json {
        outln!("{}", json!({ "dry_run": dry_run, "matching": events(causes), "changed": changed, "causes": causes }));
        return;
    }
    match changed {
        Some(changed) => {
            let behind = match changed.released {
                0 => String::new(),
                released => format!(", {released} that waited behind them go on"),
            };
            outln!("{} {} events of {shown}{behind}", word(decision, false), changed.events);
        }
        None => {
            causes.iter().for_each(show_cause);
            outln!("would have {} {} of {shown}", word(decision, false), counted(causes));
        }
    }
}

fn word(decision: Decision, imperative: bool) -> &'static str {
    match (decision, imperative) {
        (Decision::Retry, true) => "Retry",
        (Decision::Retry, false) => "retried",
        (Decision::Discard, true) => "Discard",
        (Decision::Discard, false) => "discarded",
    }
}

async fn causes(target: &mut Target, filter: &Filter, topic: &TopicTemplate) -> Result<Vec<Cause>, Failure> {
    let found = dead::causes(&mut target.conn, &target.names, filter, topic).await;
    found.map_err(|error| target.failed("read the events of", error))
}

/// Fails with the reason why an event that was given by id was not found: its status is another one, or it does not exist.
async fn explain_missing(target: &mut Target, filter: &Filter) -> Result<(), Failure> {
    let Some(id) = filter.ids.first() else { return Ok(()) };
    let standing = dead::standing(&mut target.conn, &target.names, *id).await;
    let standing = standing.map_err(|error| target.failed("read the events of", error))?;
    let is = match &standing {
        None => "is not in the table".to_owned(),
        Some(standing) => format!("is {standing}"),
    };
    let failure = Failure::finding(format!("event {id} {is}"));
    Err(match standing {
        Some(standing) if standing.is_pending() => {
            failure.hint("`outbox-relay explain` says what it waits for; behind a refused event, decide about that one")
        }
        Some(standing) if standing.is_discarded() => failure.hint("--discarded looks at those"),
        _ => failure,
    })
}

fn events(causes: &[Cause]) -> i64 {
    causes.iter().map(|cause| cause.events).sum()
}

fn counted(causes: &[Cause]) -> String {
    let behind: i64 = causes.iter().map(|cause| cause.waiting_behind).sum();
    let behind = if behind == 0 { String::new() } else { format!(", {behind} waiting behind them,") };
    let count = events(causes);
    format!("{count} event{}{behind}", if count == 1 { "" } else { "s" })
}

fn show_cause(cause: &Cause) {
    let behind = match cause.waiting_behind {
        0 => String::new(),
        behind => format!(", {behind} waiting behind"),
    };
    outln!(
        "{}  {} {} of {} entities{behind}, ids {} to {}, created {} to {}, {}\n          {}",
        cause.fingerprint,
        cause.events,
        cause.state,
        cause.entities,
        cause.first_id,
        cause.last_id,
        cause.oldest.format("%F %T"),
        cause.newest.format("%F %T UTC"),
        cause.event_types.join(" "),
        cause.error
    );
}

fn show_event(event: &Event) {
    outln!(
        "{} {}  {}  {} of {}/{} to {}, attempts {}, created {}\n    {} {}",
        event.id,
        event.event_id,
        event.state,
        event.event_type,
        event.entity_type,
        event.entity_id.as_deref().unwrap_or("-"),
        event.topic,
        event.attempts,
        event.created_at.format("%F %T UTC"),
        event.fingerprint,
        event.error.as_deref().unwrap_or_default()
    );
    if let Some(content) = &event.content {
        let payload = content.payload.as_ref().map(|payload| payload.get());
        let bytes = || content.payload_base64.as_ref().map(|text| format!("base64 {text}"));
        outln!("    headers {}", content.headers.get());
        outln!("    payload {}", payload.map(str::to_owned).or_else(bytes).unwrap_or_else(|| "none".to_owned()));
    }
}
