//! Finds live relays of one outbox that do not go together: their settings make different records, or they have the same name.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::store::activity::span;
use event_outbox::code::Code;

/// The age in seconds from which a conflict is an error. A rolling change makes relays differ for a minute or two on purpose.
const LASTING_S: f64 = 600.0;

/// The most relays that a message names for each value.
const NAMED: usize = 3;

/// The name of the id that a Kafka cluster gives itself. It tells clusters apart; bootstrap addresses of one cluster may differ.
pub(crate) const CLUSTER_ID: &str = "cluster.id";

/// The settings of a relay that shape its records, by name, and the [`CLUSTER_ID`] of the cluster that takes them.
pub(crate) type RecordSettings = BTreeMap<String, String>;

/// What a live relay says of itself in the registry.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct RelayFacts {
    pub(crate) name: String,
    /// Seconds since the relay registered itself.
    pub(crate) up_s: f64,
    /// `None` while a binary that does not report its settings keeps the heartbeat.
    pub(crate) settings: Option<RecordSettings>,
}

impl RelayFacts {
    /// Reads the settings as the registry stores them.
    ///
    /// # Errors
    /// [`sqlx::Error::Decode`] for anything but an object of texts.
    pub(crate) fn settings_of(json: Option<&str>) -> Result<Option<RecordSettings>, sqlx::Error> {
        json.map(serde_json::from_str).transpose().map_err(|error| sqlx::Error::Decode(Box::new(error)))
    }
}

/// Live relays that do not go together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Conflict {
    /// [`Code::RelaysDiffer`] or [`Code::RelayNameShared`].
    pub(crate) code: Code,
    /// The age of the conflict: how long the relay that brought it about has been up.
    pub(crate) since_s: f64,
    /// True when the conflict is too old for a rolling change.
    pub(crate) is_lasting: bool,
    pub(crate) message: String,
    pub(crate) next_step: &'static str,
}

impl Conflict {
    fn new(code: Code, since_s: f64, message: String, next_step: &'static str) -> Self {
        Self { code, since_s, is_lasting: since_s >= LASTING_S, message, next_step }
    }
}

/// Returns the conflicts between `relays`, which are alive.
pub(crate) fn conflicts(relays: &[RelayFacts]) -> Vec<Conflict> {
    settings(relays).into_iter().chain(names(relays)).collect()
}

fn settings(relays: &[RelayFacts]) -> Option<Conflict> {
    let names: BTreeSet<&String> =
        relays.iter().filter_map(|relay| Some(relay.settings.as_ref()?.keys())).flatten().collect();
    let (since_s, differing): (Vec<f64>, Vec<String>) =
        names.into_iter().filter_map(|name| difference(relays, name)).unzip();
    let since_s = since_s.into_iter().max_by(f64::total_cmp)?;
    Some(Conflict::new(
        Code::RelaysDiffer,
        since_s,
        format!("live relays have different settings for {}: {}", span(since_s), differing.join("; ")),
        "give all relays of this outbox the same settings and restart those that differ; see OR-5007 of the runbook for the events that went \
         out meanwhile",
    ))
}

/// Returns the values of the setting `name` with the relays that have them, and the age of the difference; `None` if all relays have the same.
fn difference(relays: &[RelayFacts], name: &str) -> Option<(f64, String)> {
    let mut having: BTreeMap<Option<&String>, (f64, Vec<&str>)> = BTreeMap::new();
    for relay in relays {
        let Some(settings) = &relay.settings else { continue };
        let value = settings.get(name);
        if value.is_none() && name == CLUSTER_ID {
            // An older binary does not report it, and an old broker has none.
            continue;
        }
        let (oldest, relays) = having.entry(value).or_default();
        *oldest = oldest.max(relay.up_s);
        relays.push(&relay.name);
    }
    let since_s = second_oldest(having.values().map(|(oldest, _)| *oldest))?;
    let values = having.iter().map(|(value, (_, relays))| {
        let value = value.map_or_else(|| "not set".to_owned(), |value| format!("{value:?}"));
        format!("{value} in {}", listed(relays))
    });
    Some((since_s, format!("{name} is {}", values.collect::<Vec<_>>().join(", "))))
}

fn listed(relays: &[&str]) -> String {
    let mut named: Vec<_> = relays.iter().take(NAMED).map(|name| format!("{name:?}")).collect();
    if relays.len() > NAMED {
        named.push(format!("{} more", relays.len() - NAMED));
    }
    named.join(" and ")
}

fn names(relays: &[RelayFacts]) -> Option<Conflict> {
    let mut by_name: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for relay in relays {
        by_name.entry(&relay.name).or_default().push(relay.up_s);
    }
    let shared =
        by_name.iter().filter_map(|(name, up_s)| Some((second_oldest(up_s.iter().copied())?, *name, up_s.len())));
    let shared: Vec<_> = shared.collect();
    let since_s = shared.iter().map(|(since_s, ..)| *since_s).max_by(f64::total_cmp)?;
    let all: Vec<_> = shared.iter().map(|(_, name, relays)| format!("{name:?} ({relays} relays)")).collect();
    Some(Conflict::new(
        Code::RelayNameShared,
        since_s,
        format!("live relays have the same name for {}: {}", span(since_s), all.join(", ")),
        "give each relay its own RELAY_NAME; sessions, locks and this list name relays by it",
    ))
}

/// Returns the age of the second oldest: since then there have been two.
fn second_oldest(up_s: impl Iterator<Item = f64>) -> Option<f64> {
    let mut up_s: Vec<_> = up_s.collect();
    up_s.sort_unstable_by(|one, other| other.total_cmp(one));
    up_s.get(1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relay(name: &str, up_s: f64, topic: &str) -> RelayFacts {
        let settings = [("RELAY_ENVELOPE", "event"), ("RELAY_TOPIC", topic)];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        RelayFacts { name: name.to_owned(), up_s, settings: Some(settings) }
    }

    #[test]
    fn relays_with_equal_settings_and_names_of_their_own_go_together() {
        assert_eq!(conflicts(&[]), []);
        assert_eq!(conflicts(&[relay("a", 1.0, "t"), relay("b", 1e6, "t")]), []);
        let silent = RelayFacts { settings: None, ..relay("old", 1e6, "t") };
        assert_eq!(conflicts(&[relay("a", 1.0, "t"), silent]), [], "an older binary reports nothing");
    }

    #[test]
    fn a_setting_that_differs_is_named_with_its_values_and_relays() {
        let relays = [relay("a", 9000.0, "t"), relay("b", 50.0, "u"), relay("c", 40.0, "u")];
        let found = conflicts(&relays);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].code, found[0].since_s, found[0].is_lasting), (Code::RelaysDiffer, 50.0, false));
        assert!(found[0].message.ends_with(r#"RELAY_TOPIC is "t" in "a", "u" in "b" and "c""#), "{}", found[0].message);
        assert!(!found[0].message.contains("RELAY_ENVELOPE"), "{}", found[0].message);
    }

    #[test]
    fn a_difference_is_as_old_as_the_relay_that_brought_it_about() {
        let found = conflicts(&[relay("a", 9000.0, "t"), relay("b", 600.0, "u"), relay("c", 5.0, "t")]);
        assert!(found[0].is_lasting && found[0].since_s == 600.0, "{found:?}");
    }

    #[test]
    fn relays_of_two_clusters_differ_and_one_that_reports_none_does_not() {
        let at = |name: &str, up_s, cluster: &str| {
            let mut relay = relay(name, up_s, "t");
            relay.settings.as_mut().expect("settings").insert(CLUSTER_ID.to_owned(), cluster.to_owned());
            relay
        };
        let silent = || relay("older", 9000.0, "t");
        assert_eq!(conflicts(&[at("a", 30.0, "x"), at("b", 20.0, "x"), silent()]), []);
        let found = conflicts(&[at("a", 30.0, "x"), at("b", 20.0, "y"), silent()]);
        assert_eq!((found.len(), found[0].code, found[0].since_s), (1, Code::RelaysDiffer, 20.0));
        assert!(found[0].message.ends_with(r#"cluster.id is "x" in "a", "y" in "b""#), "{}", found[0].message);
    }

    #[test]
    fn a_name_that_two_relays_have_is_found_and_its_text_is_escaped() {
        let found = conflicts(&[relay("a\u{1b}", 700.0, "t"), relay("a\u{1b}", 650.0, "t"), relay("b", 1.0, "t")]);
        assert_eq!(found.len(), 1);
        assert!(found[0].code == Code::RelayNameShared && found[0].is_lasting, "{found:?}");
        assert!(found[0].message.contains(r#""a\u{1b}" (2 relays)"#), "{}", found[0].message);
    }
}
