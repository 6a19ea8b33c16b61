//! Selects dead letters by the options of a command.

use std::str::FromStr;

use chrono::{DateTime, Utc};

use super::info::DeadLetterInfo;

/// A range of offsets, written as `17` or `17-40`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: i64,
    pub(crate) last: i64,
}

impl FromStr for Run {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if 0 <= first && first <= last => Ok(Self { first, last }),
            _ => Err("expected an offset or a range of offsets, such as 17 or 17-40".to_owned()),
        }
    }
}

/// The conditions on dead letters. A dead letter must meet all of them; an empty filter selects every dead letter.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) event_type: Option<String>,
    pub(crate) key: Option<String>,
    /// A text that the error contains.
    pub(crate) error: Option<String>,
    /// The fingerprint of the cause, as `dlq list` shows it.
    pub(crate) cause: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) source_topic: Option<String>,
    /// The earliest time of the first failure. A dead letter without this time counts by the record's timestamp.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) until: Option<DateTime<Utc>>,
    pub(crate) partition: Option<i32>,
    pub(crate) offsets: Option<Run>,
}

/// The parts of a dead letter that the filter compares.
#[derive(Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) key: Option<&'a [u8]>,
    pub(crate) info: &'a DeadLetterInfo,
    pub(crate) cause: &'a str,
    pub(crate) at: Option<DateTime<Utc>>,
    pub(crate) offset: i64,
}

impl Filter {
    pub(crate) fn is_empty(&self) -> bool {
        let texts = [&self.event_type, &self.key, &self.error, &self.cause, &self.reason, &self.group];
        texts.iter().all(|text| text.is_none())
            && self.source_topic.is_none()
            && self.since.is_none()
            && self.until.is_none()
            && self.partition.is_none()
            && self.offsets.is_none()
    }

    /// Returns true if the dead letter meets all conditions, except the partition: other partitions are not read.
    pub(crate) fn takes(&self, seen: &Seen<'_>) -> bool {
        let is = |wanted: &Option<String>, is: Option<&str>| wanted.is_none() || wanted.as_deref() == is;
        let info = seen.info;
        let source = info.source.as_ref().map(|source| source.topic.as_str());
        is(&self.event_type, info.event_type.as_deref())
            && is(&self.reason, info.reason.as_deref())
            && is(&self.group, info.group.as_deref())
            && is(&self.source_topic, source)
            && is(&self.cause, Some(seen.cause))
            && self.key.as_ref().is_none_or(|key| seen.key == Some(key.as_bytes()))
            && self.error.as_ref().is_none_or(|part| info.error.as_ref().is_some_and(|error| error.contains(part)))
            && self.since.is_none_or(|since| seen.at.is_some_and(|at| at >= since))
            && self.until.is_none_or(|until| seen.at.is_some_and(|at| at < until))
            && self.offsets.is_none_or(|run| (run.first..=run.last).contains(&seen.offset))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_of_offsets_is_one_number_or_two() {
        assert_eq!("17".parse(), Ok(Run { first: 17, last: 17 }));
        assert_eq!("17-40".parse(), Ok(Run { first: 17, last: 40 }));
        for wrong in ["", "-1", "40-17", "a", "1-2-3"] {
            assert!(wrong.parse::<Run>().is_err(), "{wrong}");
        }
    }
}
