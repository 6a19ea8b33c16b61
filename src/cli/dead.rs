//! Runs `outbox-relay dead list|show|retry|discard`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};
use serde_json::json;

use super::confirm::Confirm;
use super::exit::Failure;
use super::target::{By, Target, failed};
use super::time_arg::time_arg;
use super::{output, runtime};
use crate::config::Settings;
use crate::observe::print::{errln, outln};
use crate::store::connect::Purpose;
use crate::store::dead::{self, Cause, Decision, Event, Filter, Id};
use crate::text;
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
    /// Take only events that go to this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Take only events with this cause, as the list shows it
    #[arg(long = "cause", value_name = "FINGERPRINT")]
    fingerprint: Option<String>,
    /// Take only events from this time on: a duration such as 2h (ago), or a time such as 2026-01-31T12:00:00Z; the time at which the
    /// event was created counts
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    since: Option<DateTime<Utc>>,
    /// Take only events before this time
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    until: Option<DateTime<Utc>>,
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
    /// Take at most N, the first ones
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Decide {
    #[command(flatten)]
    which: Which,
    /// Take everything; replaces a filter
    #[arg(long)]
    all: bool,
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
            since: self.since,
            until: self.until,
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
        if causes.is_empty() && !self.json {
            show_others(&mut target, &filter, &settings.relay.topic).await?;
        }
        if self.json {
            return output::json(&json!({ "events": events(&causes), "causes": causes })).map(drop);
        }
        if causes.is_empty() {
            outln!("no event {} in {}", matching(&filter), target.shown);
            return Ok(());
        }
        causes.iter().for_each(|cause| outln!("{}", cause_line(cause)));
        outln!("{} in {}", counted(&causes), target.shown);
        Ok(())
    }
}

/// Shows on stderr what a filter could have selected that has selected nothing.
async fn show_others(target: &mut Target, filter: &Filter, topic: &TopicTemplate) -> Result<(), Failure> {
    if filter.is_empty() {
        return Ok(());
    }
    let all = Filter { discarded: filter.discarded, ..Filter::default() };
    let others = causes(target, &all, topic).await?;
    match others.as_slice() {
        [] => errln!("no event at all {}", matching(&all)),
        others => {
            errln!("no event matches; these are there:");
            others.iter().for_each(|cause| errln!("{}", cause_line(cause)));
        }
    }
    Ok(())
}

fn matching(filter: &Filter) -> &'static str {
    match (filter.is_empty(), filter.discarded) {
        (false, _) => "matches",
        (true, true) => "is discarded",
        (true, false) => "needs a decision",
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
            return output::json(&json!({ "events": shown })).map(drop);
        }
        if shown.is_empty() {
            show_others(&mut target, &filter, topic).await?;
            outln!("no event {} in {}", matching(&filter), target.shown);
        }
        shown.iter().for_each(show_event);
        if shown.len() == self.limit as usize {
            outln!("shows no more than {}; raise --limit", text::counted(self.limit, "event"));
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
                .hint("`dead list` shows the causes; --cause FINGERPRINT takes one of them"));
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
            if !json {
                show_others(&mut target, &filter, &settings.relay.topic).await?;
            }
        }
        if confirm.dry_run || causes.is_empty() {
            return report(json, confirm.dry_run, decision, &causes, None, &target.shown);
        }
        if !json {
            causes.iter().for_each(|cause| outln!("{}", cause_line(cause)));
        }
        confirm.ask(&format!("{} {} of {}?", word(decision, true), counted(&causes), target.shown))?;
        let Target { mut conn, names, shown, .. } = target;
        let longest = settings.relay.publish_timeout + Duration::from_secs(5);
        let author = by.author(reason);
        let changed = dead::decide(&mut conn, &names, &filter, &settings.relay.topic, decision, &author, longest)
            .await
            .map_err(|error| failed("change events of", &shown, error))?;
        report(json, false, decision, &causes, Some(changed), &shown)
    }
}

fn report(
    json: bool,
    dry_run: bool,
    decision: Decision,
    causes: &[Cause],
    changed: Option<dead::Changed>,
    shown: &str,
) -> Result<(), Failure> {
    if json {
        let document = json!({ "dry_run": dry_run, "matching": events(causes), "changed": changed, "causes": causes });
        return output::json(&document).map(drop);
    }
    match changed {
        Some(changed) if changed.events == 0 => outln!("no event matches {shown}: nothing was changed"),
        Some(changed) => {
            let behind = match changed.released {
                0 => String::new(),
                released => format!(", {released} that waited behind them go on"),
            };
            outln!("{} {} of {shown}{behind}", word(decision, false), text::counted(changed.events, "event"));
        }
        None => {
            causes.iter().for_each(|cause| outln!("{}", cause_line(cause)));
            outln!("would have {} {} of {shown}", word(decision, false), counted(causes));
        }
    }
    Ok(())
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
        Some(standing) => format!("is {}", text::sentence(&standing.to_string())),
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

fn cause_line(cause: &Cause) -> String {
    let behind = match cause.waiting_behind {
        0 => String::new(),
        behind => format!(", {behind} waiting behind"),
    };
    let types: Vec<_> = cause.event_types.iter().map(|of| text::name(of).to_string()).collect();
    format!(
        "{}  {} {} of {} entities{behind}, ids {} to {}, created {} to {}, {}\n          {}",
        cause.fingerprint,
        cause.events,
        cause.state,
        cause.entities,
        cause.first_id,
        cause.last_id,
        output::time(cause.oldest),
        output::time(cause.newest),
        types.join(" "),
        text::sentence(&cause.error)
    )
}

fn show_event(event: &Event) {
    outln!(
        "{} {}  {}  {} of {}/{} to {}, attempts {}, created {}\n    {} {}",
        event.id,
        event.event_id,
        event.state,
        text::name(&event.event_type),
        text::name(&event.entity_type),
        text::name(event.entity_id.as_deref().unwrap_or("-")),
        text::name(&event.topic),
        event.attempts,
        output::time(event.created_at),
        event.fingerprint,
        text::sentence(event.error.as_deref().unwrap_or_default())
    );
    if let Some(content) = &event.content {
        let payload = content.payload.as_ref().map(|payload| payload.get());
        let bytes = || content.payload_base64.as_ref().map(|text| format!("base64 {text}"));
        let payload = payload.map(str::to_owned).or_else(bytes).unwrap_or_else(|| "none".to_owned());
        outln!("    headers {}", text::sentence(content.headers.get()));
        outln!("    payload {}", text::sentence(&payload));
    }
}
