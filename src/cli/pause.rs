//! Runs `outbox-relay pause` and `outbox-relay resume`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::exit::Failure;
use super::runtime;
use super::target::{By, Target, failed};
use crate::config::{GivenDuration, Settings};
use crate::observe::print::outln;
use crate::store::connect::Purpose;
use crate::store::pauses::{self, Pause as Paused, Scope};
use event_outbox::route;

/// The target of a pause: everything, a topic or an entity.
#[derive(Debug, Args)]
#[group(required = false, multiple = true)]
struct What {
    /// Pause or resume everything
    #[arg(long, conflicts_with_all = ["topic", "entity"])]
    all: bool,
    /// Pause or resume the events of this topic
    #[arg(long, value_name = "TOPIC", conflicts_with = "entity")]
    topic: Option<String>,
    /// Pause or resume the events of the entity with this id
    #[arg(long, value_name = "ID")]
    entity: Option<String>,
    /// Restrict --entity to an entity of this type
    #[arg(long, value_name = "TYPE", requires = "entity")]
    entity_type: Option<String>,
}

impl What {
    fn scope(&self) -> Result<Option<Scope>, Failure> {
        if let Some(topic) = &self.topic {
            route::check_topic(topic).map_err(|mistake| Failure::usage(format!("--topic {topic}: {mistake}")))?;
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
    /// The reason, shown in status and logs
    #[arg(long, required_unless_present = "list")]
    reason: Option<String>,
    /// End the pause by itself after this time, for example 30m [default: only `resume` ends it]
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
    /// The reason, stored in the audit table
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
            outln!("{}", json!({ "pauses": active }));
            return Ok(());
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
        let Target { mut conn, names, shown, .. } = Target::open(settings, "pause", Purpose::Write).await?;
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
            outln!(
                "{}",
                json!({ "paused": scope, "for_s": self.lasts.map(|lasts| lasts.as_secs_f64()), "in_force": in_force })
            );
        } else {
            outln!("paused {scope} of {shown}; `outbox-relay resume` ends it");
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

impl Resume {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.resume(settings))
    }

    async fn resume(self, settings: &Settings) -> Result<(), Failure> {
        let scope = self.what.scope()?;
        if scope.is_none() && !self.every {
            return Err(Failure::usage("nothing is named that is to be resumed")
                .hint("--all, --topic TOPIC or --entity ID as it was paused, --every for all pauses; `pause --list` shows them"));
        }
        let Target { mut conn, names, shown, .. } = Target::open(settings, "resume", Purpose::Write).await?;
        let author = self.by.author(self.reason);
        let ended = pauses::resume(&mut conn, &names, scope.as_ref(), &author)
            .await
            .map_err(|error| failed("resume events of", &shown, error))?;
        if self.json {
            outln!("{}", json!({ "resumed": ended }));
        }
        if let (true, Some(scope)) = (ended.is_empty(), &scope) {
            return Err(Failure::finding(format!("{scope} is not paused in {shown}"))
                .hint("`outbox-relay pause --list` lists the pauses; resume a pause with the flags that made it"));
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

fn line(pause: &Paused) -> String {
    let until = pause.expires_at.map_or_else(|| "until resumed".to_owned(), |at| format!("until {}", at.to_rfc3339()));
    let since = pause.since.to_rfc3339();
    format!("{}  {until}  since {since} by {}: {}", pause.scope, pause.paused_by, pause.reason)
}
