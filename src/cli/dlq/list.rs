//! Runs `outbox-relay dlq list`.

use std::collections::BTreeSet;

use clap::Args;
use serde_json::json;

use super::causes::{Group, groups};
use super::{Which, WithDatabase, failed, look, show_others};
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::cli::target::Target;
use crate::config::KafkaSettings;
use crate::resend::dlq::redrive_log::State;
use crate::store::connect::Purpose;
use crate::store::held_keys::{self, HeldKey};
use crate::text;

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

impl List {
    pub(super) async fn run(self, kafka: &KafkaSettings, database: WithDatabase<'_>) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.filter());
        let looked = look(kafka, &topic, &filter, false);
        let (_, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        let (redriven, discarded) = (dead_letters.count(State::Redriven), dead_letters.count(State::Discarded));
        let groups_of = dead_letters.causes.iter().filter_map(|cause| cause.group.clone()).collect();
        if !self.redriven {
            dead_letters.entries.retain(|dead_letter| dead_letter.state.is_open());
        }
        let (waiting, uncertain) = (dead_letters.count(State::Waiting), dead_letters.count(State::Uncertain));
        let groups = groups(&dead_letters);
        let keys = held_keys(database, &groups_of).await;
        if groups.is_empty() && redriven + discarded == 0 && !self.json {
            show_others(kafka, &topic, &filter);
        }
        if self.json {
            let list = json!({
                "topic": topic, "waiting": waiting, "uncertain": uncertain, "redriven": redriven, "discarded": discarded,
                "causes": groups, "held_keys": keys.as_ref().ok(),
            });
            return output::json(&list).map(drop);
        }
        let mut listed: String = groups.iter().map(Group::shown).collect();
        listed += &format!("{}\n", counted(waiting, uncertain, redriven, discarded, &topic));
        listed += &match keys {
            Ok(keys) => keys.iter().map(shown).collect(),
            Err(why) => format!("held keys: {why}\n"),
        };
        output::text(&listed);
        Ok(())
    }
}

fn counted(waiting: usize, uncertain: usize, redriven: usize, discarded: usize, topic: &str) -> String {
    let noun = if waiting == 1 { "dead letter waits" } else { "dead letters wait" };
    let uncertain = match uncertain {
        0 => String::new(),
        uncertain => format!(", {uncertain} may have been redriven by a redrive that did not end"),
    };
    format!("{waiting} {noun} in {topic}{uncertain}, {redriven} have been redriven, {discarded} discarded")
}

/// Reads the keys that these groups hold. Returns the reason if they are not known.
async fn held_keys(database: WithDatabase<'_>, groups: &BTreeSet<String>) -> Result<Vec<HeldKey>, String> {
    if groups.is_empty() {
        return Ok(Vec::new());
    }
    let Ok(settings) = database() else {
        return Err("unknown; set DATABASE_URL to the consumers' database to list them".to_owned());
    };
    let unknown = |why: String| format!("unknown; {why}");
    let shown = settings.database.target();
    let mut target = Target::open(&settings, "dlq list", Purpose::Read)
        .await
        .map_err(|_| unknown(format!("{shown} has no inbox or does not answer")))?;
    let keys = held_keys::keys(&mut target.conn, &target.names, groups).await;
    keys.map_err(|error| unknown(format!("{shown} refuses: {}", crate::fault::describe(&error))))
}

fn shown(key: &HeldKey) -> String {
    let next = if key.is_ready() { "applied next" } else { &key.reason };
    format!(
        "held entity {} of {} by {}: {} since {}, head {} ({}) {}\n",
        text::name(&key.key),
        text::name(&key.topic),
        text::name(&key.group),
        text::counted(key.length, "event"),
        output::time(key.since),
        key.head,
        text::name(next),
        text::sentence(key.error.as_deref().unwrap_or_default()),
    )
}
