//! Logs in the dead letter topic itself which dead letters were redriven.
//!
//! An entry is a record in the same partition as its dead letters and behind them, so it lives as long as they do, and every reader of the
//! topic sees it. A dead letter is *waiting* at first. One entry states that its redrive was `started`; then the dead letter is sent and
//! acknowledged; a second entry states that it is `done`. A dead letter that is started but not done is *uncertain*: the redrive ended in
//! between, and may have sent it.

use event_outbox::envelope::headers::REDRIVE_LOG;
use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::sink::resend::Record;

/// The stage of the redrive that an entry states for its dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stage {
    Started,
    Done,
    /// Somebody has given the dead letters up.
    Discarded,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LogEntry {
    pub(crate) redrive_id: Uuid,
    pub(crate) stage: Stage,
    /// The first and last offset of each range of dead letters, in the entry's own partition.
    pub(crate) offsets: Vec<(i64, i64)>,
    pub(crate) at: DateTime<Utc>,
    #[serde(default)]
    pub(crate) by: Option<String>,
    #[serde(default)]
    pub(crate) reason: Option<String>,
}

impl LogEntry {
    /// Returns true for a record that is an entry, even one that cannot be read.
    pub(crate) fn is(record: &Record) -> bool {
        record.header(REDRIVE_LOG).is_some()
    }

    pub(crate) fn read(record: &Record) -> Option<Self> {
        serde_json::from_slice(record.value.as_deref()?).ok()
    }

    /// Makes the entry's record. `number` gives each entry of a redrive its own key; a compacted topic would keep only the last entry.
    pub(crate) fn record(&self, number: u64) -> Record {
        let stage = match self.stage {
            Stage::Started => "started",
            Stage::Done => "done",
            Stage::Discarded => "discarded",
        };
        Record {
            key: Some(format!("{REDRIVE_LOG}/{}/{number}", self.redrive_id).into_bytes()),
            // Cannot fail, because an entry consists of strings and numbers.
            value: Some(serde_json::to_vec(self).expect("an entry can be written as JSON")),
            headers: vec![(REDRIVE_LOG.to_owned(), Some(stage.as_bytes().to_vec()))],
            timestamp: None,
        }
    }
}

/// A set of offsets, stored as ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Offsets(BTreeMap<i64, i64>);

impl Offsets {
    pub(crate) fn insert(&mut self, mut first: i64, mut last: i64) {
        if first > last {
            return;
        }
        // Merge all ranges that touch the new one.
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

/// The state of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum State {
    Waiting,
    /// A redrive ended before it logged the dead letter as done. The dead letter may have been sent.
    Uncertain,
    Redriven,
    /// Its event will never be applied.
    Discarded,
}

impl State {
    /// Returns true if somebody has to decide about the dead letter.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Uncertain)
    }
}

/// The log entries of a partition.
#[derive(Debug, Clone, Default)]
pub(crate) struct RedriveLog {
    started: Offsets,
    done: Offsets,
    discarded: Offsets,
}

impl RedriveLog {
    pub(crate) fn take(&mut self, entry: &LogEntry) {
        let offsets = match entry.stage {
            Stage::Started => &mut self.started,
            Stage::Done => &mut self.done,
            Stage::Discarded => &mut self.discarded,
        };
        entry.offsets.iter().for_each(|(first, last)| offsets.insert(*first, *last));
    }

    pub(crate) fn state(&self, offset: i64) -> State {
        if self.discarded.contains(offset) {
            State::Discarded
        } else if self.done.contains(offset) {
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
