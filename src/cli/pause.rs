//! Runs `outbox-relay pause` and `outbox-relay resume`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::exit::Failure;
use super::target::{By, Target, failed};
use super::{output, runtime};
use crate::config::{GivenDuration, Settings};
use crate::observe::print::{errln, outln};
use crate::store::connect::Purpose;
use crate::store::kinds;
use crate::store::pauses::{self, Pause as Paused, Scope};
use crate::text;
use event_outbox::route::{self, TopicTemplate};

/// The target of a pause: everything, a topic or an entity.
#[derive(Debug, Args)]
#[group(required = false, multiple = true)]
struct What {
    /// Take everything
    #[arg(long, conflicts_with_all = ["topic", "entity"])]
    all: bool,
    /// Take only events that go to this topic
    #[arg(long, value_name = "TOPIC", conflicts_with = "entity")]
    topic: Option<String>,
    /// Take only events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Take only events of entities of this type
    #[arg(long, value_name = "TYPE", requires = "entity")]
    entity_type: Option<String>,
}

impl What {
    fn scope(&self) -> Result<Option<Scope>, Failure> {
        if let Some(topic) = &self.topic {
            route::check_topic(topic)
                .map_err(|mistake| Failure::usage(format!("--topic {}: {mistake}", text::name(topic))))?;
            return Ok(Some(Scope::Topic { topic: topic.clone() }));
        }
        if let Some(entity_id) = &self.entity {
            return Ok(Some(Scope::Entity { entity_type: self.entity_type.clone(), entity_id: entity_id.clone() }));
        }
        Ok(self.all.then_some(Scope::All))
    }
}

#[derive(Debug, Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    what: What,
    /// The reason for the change, kept with it
    #[arg(long, required_unless_present = "list")]
    reason: Option<String>,
    /// End by itself after this time; for example 30m [default: only `resume` ends it]
    #[arg(long = "for", value_name = "DURATION", value_parser = lasting)]
    lasts: Option<Duration>,
    #[command(flatten)]
    by: By,
    /// Show the pauses and change nothing
    #[arg(long, conflicts_with_all = ["all", "topic", "entity", "entity_type", "reason", "lasts", "by"])]
    list: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    what: What,
    /// End every pause
    #[arg(long, conflicts_with_all = ["all", "topic", "entity"])]
    every: bool,
    /// The reason for the change, kept with it
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    by: By,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The longest pause with an end. A much longer one would overflow Postgres' timestamps.
const LONGEST: Duration = Duration::from_secs(10 * 366 * 86_400);

fn lasting(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(lasts) if lasts > Duration::ZERO && lasts <= LONGEST => Ok(lasts),
        Ok(_) => Err("expected more than 0s and at most 10 years".to_owned()),
        Err(_) => Err("expected a duration with its unit, such as 30m or 2h".to_owned()),
    }
}

impl Pause {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(async { if self.list { self.list(settings).await } else { self.pause(settings).await } })
    }

    async fn list(&self, settings: &Settings) -> Result<(), Failure> {
        let mut target = Target::open(settings, "pause", Purpose::Read).await?;
        let active = pauses::active(&mut target.conn, &target.names).await;
        let active = active.map_err(|error| target.failed("read the pauses of", error))?;
        if self.json {
            return output::json(&json!({ "pauses": active })).map(drop);
        }
        if active.is_empty() {
            outln!("nothing is paused in {}", target.shown);
        }
        active.iter().for_each(|pause| outln!("{}", line(pause)));
        Ok(())
    }

    async fn pause(&self, settings: &Settings) -> Result<(), Failure> {
        let scope = self.what.scope()?.ok_or_else(|| {
            Failure::usage("nothing is named that is to be paused").hint("--all, --topic TOPIC or --entity ID")
        })?;
        let mut target = Target::open(settings, "pause", Purpose::Write).await?;
        warn_of_no_events(&mut target, &scope, &settings.relay.topic).await;
        let Target { mut conn, names, shown, .. } = target;
        let author = self.by.author(self.reason.clone());
        pauses::pause(&mut conn, &names, &scope, self.lasts, &author)
            .await
            .map_err(|error| failed("pause events of", &shown, error))?;
        // The longest time of a batch, plus the statements around it.
        let longest = settings.relay.publish_timeout + Duration::from_secs(5);
        let in_force = pauses::until_in_force(&mut conn, &names, longest)
            .await
            .map_err(|error| failed("wait for the batches in flight of", &shown, error))?;
        if self.json {
            let active = pauses::active(&mut conn, &names).await;
            let active = active.map_err(|error| failed("read the pauses of", &shown, error))?;
            let paused: Vec<_> = active.into_iter().filter(|pause| pause.scope == scope).collect();
            output::json(&json!({ "pauses": paused, "in_force": in_force }))?;
        } else {
            outln!("paused {scope} of {shown}\n  next: outbox-relay resume {}", scope.arguments());
        }
        if in_force {
            return Ok(());
        }
        Err(Failure::finding(format!(
            "a batch that began before the pause is still in flight after {}",
            GivenDuration::from(longest)
        ))
        .hint("the pause is in force for everything else; see pg_locks for who holds the lane"))
    }
}

/// Warns on stderr if the pause names a topic or an entity that no event is of: it may be a typing mistake. The pause may also be
/// right, before the first event.
async fn warn_of_no_events(target: &mut Target, scope: &Scope, template: &TopicTemplate) {
    let Target { conn, names, .. } = target;
    match scope {
        Scope::All => {}
        Scope::Entity { entity_type, entity_id } => {
            // Without the right to look, the pause is made all the same.
            if kinds::is_pending(conn, names, entity_type.as_deref(), entity_id).await.is_ok_and(|pending| !pending) {
                errln!("note: no event of {scope} is pending");
            }
        }
        Scope::Topic { topic } => {
            let Ok(kinds) = kinds::kinds(conn, names, template).await else { return };
            if kinds.iter().any(|kind| kind.topic == *topic) {
                return;
            }
            if let Some(alike) = text::alike(topic, kinds.iter().map(|kind| kind.topic.as_str())) {
                errln!("warning: no event of the latest ones goes to {scope}; events go to {alike}");
            }
        }
    }
}

impl Resume {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.resume(settings))
    }

    async fn resume(self, settings: &Settings) -> Result<(), Failure> {
        let mut scope = self.what.scope()?;
        let mut target = Target::open(settings, "resume", Purpose::Write).await?;
        if scope.is_none() && !self.every {
            scope = only_pause(&mut target).await?;
            if scope.is_none() {
                if self.json {
                    return output::json(&json!({ "pauses": [] })).map(drop);
                }
                outln!("nothing is paused in {}", target.shown);
                return Ok(());
            }
        }
        let Target { mut conn, names, shown, .. } = target;
        let author = self.by.author(self.reason);
        let ended = pauses::resume(&mut conn, &names, scope.as_ref(), &author)
            .await
            .map_err(|error| failed("resume events of", &shown, error))?;
        if self.json {
            output::json(&json!({ "pauses": ended }))?;
        }
        if let (true, Some(scope)) = (ended.is_empty(), &scope) {
            let active = pauses::active(&mut conn, &names).await.unwrap_or_default();
            let are: Vec<_> =
                active.iter().map(|pause| format!("outbox-relay resume {}", pause.scope.arguments())).collect();
            let hint = if are.is_empty() { "nothing is paused".to_owned() } else { are.join("\n      ") };
            return Err(Failure::finding(format!("{scope} is not paused in {shown}")).hint(hint));
        }
        if !self.json {
            ended.iter().for_each(|pause| outln!("resumed {} of {shown}", pause.scope));
            if ended.is_empty() {
                outln!("nothing is paused in {shown}");
            }
        }
        Ok(())
    }
}

/// Returns the scope of the only pause; `None` if nothing is paused. Fails if there are several.
async fn only_pause(target: &mut Target) -> Result<Option<Scope>, Failure> {
    let active = pauses::active(&mut target.conn, &target.names).await;
    let active = active.map_err(|error| target.failed("read the pauses of", error))?;
    match active.as_slice() {
        [] => Ok(None),
        [only] => Ok(Some(only.scope.clone())),
        several => {
            let lines: Vec<_> =
                several.iter().map(|pause| format!("outbox-relay resume {}", pause.scope.arguments())).collect();
            Err(Failure::usage(format!("there are {} pauses", several.len()))
                .hint(format!("one of\n      {}\n      outbox-relay resume --every", lines.join("\n      "))))
        }
    }
}

fn line(pause: &Paused) -> String {
    let until = pause.expires_at.map_or_else(|| "until resumed".to_owned(), |at| format!("until {}", output::time(at)));
    let (since, by) = (output::time(pause.since), text::name(&pause.paused_by));
    format!("{}  {until}  since {since} by {by}: {}", pause.scope, text::sentence(&pause.reason))
}
