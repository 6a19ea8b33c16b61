//! Runs `outbox-relay replay`.

use std::sync::Arc;

use chrono::{DateTime, Utc};
use clap::Args;
use serde_json::json;
use uuid::Uuid;

use super::confirm::Confirm;
use super::dlq::{topic, writable};
use super::exit::Failure;
use super::interrupt::interrupted;
use super::prune::may_be_audited;
use super::target::{By, Target, failed};
use super::time_arg::time_arg;
use super::{output, runtime, target};
use crate::config::{Settings, Settle};
use crate::fault;
use crate::observe::print::{errln, outln};
use crate::observe::progress::Progress as Bar;
use crate::resend::replay::{Counted, Plan, Progress, Why};
use crate::sink::resend::Resend;
use crate::store::audit::{self, Entry};
use crate::store::connect::Purpose;
use crate::store::kinds;
use crate::store::replay::{Filter, Walk};
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Take only events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Take only events of entities of this type
    #[arg(long, value_name = "TYPE")]
    entity_type: Option<String>,
    /// Take only events of this event type
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Take only events that go to this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// Take only events from this time on: a duration such as 2h (ago), or a time such as 2026-01-31T12:00:00Z; the time at which the
    /// event was created counts
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    since: Option<DateTime<Utc>>,
    /// Take only events before this time
    #[arg(long, value_name = "TIME", value_parser = time_arg)]
    until: Option<DateTime<Utc>>,
    /// Take DEAD events instead of published ones; they stay DEAD
    #[arg(long)]
    dead: bool,
    /// Take everything; replaces a filter
    #[arg(long)]
    all: bool,
    /// Take only events with this outbox id or a higher one, to continue an earlier replay
    #[arg(long, value_name = "ID", default_value_t = 1)]
    from_id: i64,
    /// Take only events with this outbox id or a lower one [default: the highest at present]
    #[arg(long, value_name = "ID")]
    upto_id: Option<i64>,
    /// Send to this topic [default: each event to the topic that it is routed to]
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    to: Option<String>,
    /// Handle at most N per second
    #[arg(long, value_name = "PER_SECOND", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// The value of the header `replay-id` [default: a new one]
    #[arg(long, value_name = "UUID")]
    replay_id: Option<Uuid>,
    /// Leave out events that retention has moved to the archive table
    #[arg(long)]
    no_archive: bool,
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

impl Replay {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.replay(settings))
    }

    async fn replay(self, settings: &Settings) -> Result<(), Failure> {
        let kafka = settings
            .kafka
            .as_ref()
            .ok_or_else(|| Failure::finding("KAFKA_BOOTSTRAP_SERVERS is needed to publish events"))?;
        let filter = self.filter();
        if filter.is_empty() && !self.all {
            return Err(Failure::usage("replay needs a filter, or --all")
                .hint("--entity, --entity-type, --type, --topic, --since, --until or --dead"));
        }
        let mut target = Target::open(settings, "replay", Purpose::Write).await?;
        target::warn_of_other_settings(&mut target.conn, settings).await;
        let plan = self.plan(settings, &mut target, &filter).await?;
        let bar = Bar::new("looking", plan.upto.abs_diff(plan.from));
        let from = plan.from;
        let counted = plan.count(&mut target.conn, |at| bar.set(at.abs_diff(from))).await;
        drop(bar);
        let counted = counted.map_err(|error| target.failed("read the events of", error))?;
        if counted.events == 0 && !self.json {
            show_kinds(&mut target, settings).await;
        }
        if self.confirm.dry_run || counted.events == 0 {
            return self.report(&plan, &counted, None);
        }
        let no_client = |_| {
            Failure::finding("librdkafka refuses the combination of the KAFKA_ settings")
                .hint("compare KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_* with each other")
        };
        let mut resend = Resend::new(kafka).map_err(no_client)?;
        check_topics(&resend, &counted, kafka.brokers()).await?;
        may_be_audited(&mut target).await?;
        if self.to.is_none() {
            errln!(
                "warning: these events go behind newer ones of their entities: consumers without an inbox, and those that take the last \
                 event for the latest state, are misled. --to TOPIC keeps them apart."
            );
        }
        self.confirm.ask(&question(&plan, &counted, &target.shown))?;
        self.audit(&mut target, &filter, &plan, "replay started", 0).await?;
        let stop = interrupted()?;
        let bar = Bar::new("replayed", counted.events);
        let (progress, why) = plan.replay(&mut target.conn, &mut resend, stop, |count| bar.add(count)).await;
        drop(bar);
        self.report(&plan, &counted, Some(&progress))?;
        // If the connection broke during the replay, connect again: the events that were sent must get their audit entry.
        if matches!(why, Why::Database(_)) {
            target = Target::open(settings, "replay", Purpose::Write).await?;
        }
        self.audit(&mut target, &filter, &plan, "replay", progress.replayed).await?;
        outcome(why, &progress, &plan, &target)
    }

    fn filter(&self) -> Filter {
        Filter {
            entity: self.entity.clone(),
            entity_type: self.entity_type.clone(),
            event_type: self.event_type.clone(),
            topic: self.topic.clone(),
            since: self.since,
            until: self.until,
            dead: self.dead,
        }
    }

    async fn plan(&self, settings: &Settings, target: &mut Target, filter: &Filter) -> Result<Plan, Failure> {
        let relay = &settings.relay;
        if !self.no_archive {
            let readable = Walk::may_read_archive(&mut target.conn, &target.names).await;
            if !readable.map_err(|error| target.failed("look at the rights on the archive of", error))? {
                return Err(Failure::finding(format!("this user may not read the archive of {}", target.shown))
                    .hint("run it as the owner, or leave the archive out with --no-archive"));
            }
        }
        let walk = Walk::new(&target.names, filter, &relay.topic, !self.no_archive);
        let highest = walk.highest(&mut target.conn).await;
        let highest = highest.map_err(|error| failed("read the events of", &target.shown, error))?;
        Ok(Plan {
            walk,
            from: self.from_id,
            upto: self.upto_id.map_or(highest, |upto| upto.min(highest)),
            id: self.replay_id.unwrap_or_else(Uuid::new_v4),
            to: self.to.as_deref().map(Arc::from),
            template: relay.topic.clone(),
            envelope: relay.envelope,
            source: relay.source.clone(),
            rate: self.rate,
        })
    }

    async fn audit(
        &self,
        target: &mut Target,
        filter: &Filter,
        plan: &Plan,
        command: &str,
        replayed: u64,
    ) -> Result<(), Failure> {
        let filter = json!({
            "filter": filter, "replay_id": plan.id, "from_id": plan.from, "upto_id": plan.upto, "to": self.to,
        });
        let entry = Entry { command, filter, affected: replayed };
        let author = self.by.author(self.reason.clone());
        let noted = audit::note(&mut target.conn, &target.names, &author, &entry).await;
        noted.map_err(|error| target.failed("write the audit entry of", error))
    }

    fn report(&self, plan: &Plan, counted: &Counted, progress: Option<&Progress>) -> Result<(), Failure> {
        if self.json {
            let topic = |(topic, events): (&String, &u64)| json!({ "topic": topic, "events": events, "highest_named_partition": counted.named.get(topic) });
            let document = json!({
                "dry_run": self.confirm.dry_run, "replay_id": plan.id, "from_id": plan.from, "upto_id": plan.upto,
                "matching": counted.events, "archived": counted.archived, "unroutable": counted.unroutable,
                "first_id": counted.first_id, "last_id": counted.last_id,
                "topics": counted.topics.iter().map(topic).collect::<Vec<_>>(),
                "behind_newer_events": self.to.is_none(),
                "replayed": progress.map(|progress| progress.replayed),
                "skipped": progress.map(|progress| progress.skipped),
                "next_id": progress.map(|progress| progress.next),
            });
            return output::json(&document).map(drop);
        }
        match progress {
            Some(progress) => {
                let matching = text::counted(counted.events, "event");
                outln!("replayed {} of {matching}, replay-id {}", progress.replayed, plan.id);
            }
            None => {
                outln!("would have replayed {}", shown(counted));
                for (topic, highest) in &counted.named {
                    outln!("events to {} name their partition, {highest} at the highest", text::name(topic));
                }
            }
        }
        if counted.unroutable > 0 {
            outln!("left out {} without a valid topic", text::counted(counted.unroutable, "event"));
        }
        Ok(())
    }
}

/// The most kinds of events that are shown.
const MOST_KINDS: usize = 10;

/// Shows on stderr what a filter could have selected that has selected nothing.
async fn show_kinds(target: &mut Target, settings: &Settings) {
    if settings.relay.settle == Settle::Delete {
        errln!("note: RELAY_SETTLE is delete: events that were published are gone from the table");
    }
    let kinds = kinds::kinds(&mut target.conn, &target.names, &settings.relay.topic).await.unwrap_or_default();
    if kinds.is_empty() {
        errln!("no event matches");
        return;
    }
    errln!("no event matches; the latest events of {} are", target.shown);
    for kinds::Kind { entity_type, event_type, topic, events } in kinds.iter().take(MOST_KINDS) {
        let [entity_type, event_type, topic] = [entity_type, event_type, topic].map(|of| text::name(of));
        errln!("  {events} {event_type} of {entity_type} to {topic}");
    }
}

/// Fails if a topic cannot be written. Warns of a topic that has fewer partitions than its events name: those events are left out.
async fn check_topics(resend: &Resend, counted: &Counted, brokers: &str) -> Result<(), Failure> {
    for topic in counted.topics.keys() {
        writable(resend, topic, brokers).await?;
    }
    for (topic, highest) in &counted.named {
        let Some(partitions) = resend.partitions(topic).await.filter(|partitions| highest >= partitions) else {
            continue;
        };
        errln!(
            "warning: the topic {} has {}, and events name partitions up to {highest}: events without their partition are left out. \
             Add partitions to the topic first to send them.",
            text::name(topic),
            text::counted(partitions, "partition")
        );
    }
    Ok(())
}

fn shown(counted: &Counted) -> String {
    let topics: Vec<_> =
        counted.topics.iter().map(|(topic, events)| format!("{events} to {}", text::name(topic))).collect();
    let ids = match (counted.first_id, counted.last_id) {
        (Some(first), Some(last)) => format!(", ids {first} to {last}: {}", topics.join(", ")),
        _ => String::new(),
    };
    let archived = match counted.archived {
        0 => String::new(),
        archived => format!(" ({archived} of them from the archive)"),
    };
    format!("{}{archived}{ids}", text::counted(counted.events, "event"))
}

fn question(plan: &Plan, counted: &Counted, target: &str) -> String {
    let rate = plan.rate.map_or_else(String::new, |rate| format!(", {rate} a second at most"));
    format!("Publish {} of {target} again{rate}?", shown(counted))
}

fn outcome(why: Why, progress: &Progress, plan: &Plan, target: &Target) -> Result<(), Failure> {
    let (next, replayed) = (progress.next, progress.replayed);
    let go_on = format!(
        "{} replayed; the same command continues with --from-id {next} --upto-id {} --replay-id {}",
        text::counted(replayed, "event"),
        plan.upto,
        plan.id
    );
    match why {
        Why::Done => match &progress.first_skipped {
            None => Ok(()),
            Some((id, why)) => Err(Failure::finding(format!(
                "{} left out; event {id}: {}",
                text::counted(progress.skipped, "event"),
                text::sentence(why)
            ))
            .hint("the others were replayed; fix the rows, or add partitions to the topic, then replay them by --from-id and --upto-id")),
        },
        Why::Interrupted => Err(Failure::interrupted("the replay was interrupted").hint(go_on)),
        Why::Database(error) => Err(target.failed("read the events of", error).hint(go_on)),
        Why::Refused { topic, id, code } => {
            let reason = match code {
                Some(code) => format!("{code}: {}", fault::classify_kafka(code).next_step),
                None => "no answer within 30 s".to_owned(),
            };
            Err(Failure::finding(format!("the topic {} rejects event {id}", text::name(&topic)))
                .because(reason)
                .hint(go_on))
        }
    }
}
