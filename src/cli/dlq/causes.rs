//! Groups dead letters by their cause, for `list` and `redrive`.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::cli::output;
use crate::resend::dlq::redrive_log::State;
use crate::resend::dlq::scan::{Cause, DeadLetters};
use crate::text;

/// The dead letters of one cause.
#[derive(Debug, Serialize)]
pub(super) struct Group<'a> {
    fingerprint: &'a str,
    reason: Option<&'a str>,
    error: Option<&'a str>,
    source_topic: Option<&'a str>,
    group: Option<&'a str>,
    dead_letters: u64,
    /// The number of its dead letters that may have been redriven.
    uncertain: u64,
    redriven: u64,
    entities: usize,
    /// The event types, at most five.
    event_types: Vec<&'a str>,
    oldest: Option<DateTime<Utc>>,
    newest: Option<DateTime<Utc>>,
    first: Place,
    #[serde(skip)]
    key_hashes: HashSet<u64>,
}

/// The place of a dead letter in its topic.
#[derive(Debug, Serialize)]
struct Place {
    partition: i32,
    offset: i64,
}

/// Groups the dead letters by cause, the most frequent cause first.
pub(super) fn groups(dead_letters: &DeadLetters) -> Vec<Group<'_>> {
    let mut groups: BTreeMap<usize, Group<'_>> = BTreeMap::new();
    for dead_letter in &dead_letters.entries {
        let Cause { fingerprint, reason, error, source_topic, group } = &dead_letters.causes[dead_letter.cause];
        let group = groups.entry(dead_letter.cause).or_insert_with(|| Group {
            fingerprint,
            reason: reason.as_deref(),
            error: error.as_deref(),
            source_topic: source_topic.as_deref(),
            group: group.as_deref(),
            dead_letters: 0,
            uncertain: 0,
            redriven: 0,
            entities: 0,
            event_types: Vec::new(),
            oldest: None,
            newest: None,
            first: Place { partition: dead_letter.partition, offset: dead_letter.offset },
            key_hashes: HashSet::new(),
        });
        group.dead_letters += 1;
        group.uncertain += u64::from(dead_letter.state == State::Uncertain);
        group.redriven += u64::from(dead_letter.state == State::Redriven);
        group.key_hashes.insert(dead_letter.key);
        group.oldest = group.oldest.into_iter().chain(dead_letter.at).min();
        group.newest = group.newest.into_iter().chain(dead_letter.at).max();
        if let Some(event_type) = dead_letter.event_type.map(|index| dead_letters.event_types[index].as_str())
            && group.event_types.len() < 5
            && !group.event_types.contains(&event_type)
        {
            group.event_types.push(event_type);
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.iter_mut().for_each(|group| group.entities = group.key_hashes.len());
    groups.sort_by_key(|group| std::cmp::Reverse(group.dead_letters));
    groups
}

impl Group<'_> {
    pub(super) fn shown(&self) -> String {
        let or_unknown = |of: Option<&str>| text::name(of.unwrap_or("unknown")).to_string();
        let state = match (self.uncertain, self.redriven) {
            (0, 0) => String::new(),
            (uncertain, 0) => format!(", {uncertain} of them uncertain"),
            (0, redriven) => format!(", {redriven} of them redriven"),
            (uncertain, redriven) => format!(", {uncertain} of them uncertain, {redriven} redriven"),
        };
        let time = |at: Option<DateTime<Utc>>| at.map_or_else(|| "?".to_owned(), output::time);
        let types: Vec<_> = self.event_types.iter().map(|of| text::name(of).to_string()).collect();
        format!(
            "{}  {} {} of {} entities from {} by {}{state}, failed {} to {}, first at --partition {} --offset {}, {}\n          {}\n",
            self.fingerprint,
            self.dead_letters,
            or_unknown(self.reason),
            self.entities,
            or_unknown(self.source_topic),
            or_unknown(self.group),
            time(self.oldest),
            time(self.newest),
            self.first.partition,
            self.first.offset,
            types.join(" "),
            text::sentence(self.error.unwrap_or("no error is given")),
        )
    }
}

/// Prints the groups.
pub(super) fn show(groups: &[Group<'_>]) {
    let shown: String = groups.iter().map(Group::shown).collect();
    output::text(&shown);
}
