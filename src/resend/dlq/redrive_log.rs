//! What has been redriven, logged where the dead letters are.
//!
//! An entry is a record of the dead letter topic, in the partition of the dead letters it is about and behind them, so it is there for as long as
//! they are, for whoever looks. A dead letter is *waiting*; then an entry says that its redrive was `started`, it is sent and acknowledged, and
//! an entry says that it is `done`. Started and not done means that a redrive ended in between: it may have been sent, and is *uncertain*.

use event_outbox::envelope::headers::REDRIVE_LOG;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sink::resend::Record;

/// What an entry says of its dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    Started,
    Done,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogEntry {
    pub(crate) redrive_id: Uuid,
    pub(crate) stage: Stage,
    /// First and last offset of each run of dead letters, in the entry's own partition.
    pub(crate) offsets: Vec<(i64, i64)>,
    pub(crate) at: DateTime<Utc>,
    #[serde(default)]
    pub(crate) by: Option<String>,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

impl LogEntry {
    /// True for a record that is an entry, be it one that cannot be read.
    pub(crate) fn is(record: &Record) -> bool {
        record.header(REDRIVE_LOG).is_some()
    }

    pub(crate) fn read(record: &Record) -> Option<Self> {
        serde_json::from_slice(record.value.as_deref()?).ok()
    }

    /// `number` keeps the entries of a redrive apart: a compacted topic would keep the last one only.
    pub(crate) fn record(&self, number: u64) -> Record {
        let stage = if self.stage == Stage::Started { "started" } else { "done" };
        Record {
            key: Some(format!("{REDRIVE_LOG}/{}/{number}", self.redrive_id).into_bytes()),
            // It consists of strings and numbers.
            value: Some(serde_json::to_vec(self).expect("an entry can be written as JSON")),
            headers: vec![(REDRIVE_LOG.to_owned(), Some(stage.as_bytes().to_vec()))],
            timestamp: None,
        }
    }
}

/// Offsets, as runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Offsets(BTreeMap<i64, i64>);

impl Offsets {
    pub(crate) fn insert(&mut self, mut first: i64, mut last: i64) {
        if first > last {
            return;
        }
        // All runs that touch it become one.
        while let Some((&from, &to)) = self.0.range(..=last.saturating_add(1)).next_back() {
            if to.saturating_add(1) < first {
                break;
            }
            self.0.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        self.0.insert(first, last);
    }

    pub(crate) fn contains(&self, offset: i64) -> bool {
        self.0.range(..=offset).next_back().is_some_and(|(_, last)| offset <= *last)
    }

    pub(crate) fn runs(&self) -> Vec<(i64, i64)> {
        self.0.iter().map(|(first, last)| (*first, *last)).collect()
    }
}

/// Where a dead letter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Waiting,
    /// A redrive ended before it knew: it may have been sent.
    Uncertain,
    Redriven,
}

/// The entries of a partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedriveLog {
    started: Offsets,
    done: Offsets,
}

impl RedriveLog {
    pub(crate) fn take(&mut self, entry: &LogEntry) {
        let offsets = if entry.stage == Stage::Done { &mut self.done } else { &mut self.started };
        entry.offsets.iter().for_each(|(first, last)| offsets.insert(*first, *last));
    }

    pub(crate) fn state(&self, offset: i64) -> State {
        if self.done.contains(offset) {
            State::Redriven
        } else if self.started.contains(offset) {
            State::Uncertain
        } else {
            State::Waiting
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_that_touch_become_one_run() {
        let mut offsets = Offsets::default();
        for (first, last) in [(10, 12), (3, 3), (14, 20), (4, 4), (13, 13), (30, 29)] {
            offsets.insert(first, last);
        }
        assert_eq!(offsets.runs(), [(3, 4), (10, 20)]);
        offsets.insert(0, 100);
        assert_eq!(offsets.runs(), [(0, 100)]);
        assert!(offsets.contains(0) && offsets.contains(100) && !offsets.contains(101) && !offsets.contains(-1));
    }

    #[test]
    fn a_dead_letter_whose_redrive_has_only_begun_is_uncertain() {
        let entry = |stage, offsets: &[(i64, i64)]| LogEntry {
            redrive_id: Uuid::nil(),
            stage,
            offsets: offsets.to_vec(),
            at: DateTime::UNIX_EPOCH,
            by: None,
            reason: None,
        };
        let mut log = RedriveLog::default();
        for entry in [entry(Stage::Started, &[(1, 3), (5, 5)]), entry(Stage::Done, &[(1, 2)])] {
            let record = entry.record(7);
            assert!(LogEntry::is(&record) && LogEntry::read(&record).as_ref() == Some(&entry));
            log.take(&entry);
        }
        let states = [1, 2, 3, 4, 5].map(|offset| log.state(offset));
        use State::{Redriven, Uncertain, Waiting};
        assert_eq!(states, [Redriven, Redriven, Uncertain, Waiting, Uncertain]);
        assert!(!LogEntry::is(&Record::default()));
    }
}
