//! Which dead letters.

use std::str::FromStr;

use chrono::{DateTime, Utc};

use super::info::DeadLetterInfo;

/// A run of offsets: `17`, or `17-40`.
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
            _ => Err("expected an offset or a run of them, such as 17 or 17-40".to_owned()),
        }
    }
}

/// All that is given has to be true of a dead letter; an empty filter is all of them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub(crate) event_type: Option<String>,
    pub(crate) key: Option<String>,
    /// A part of the error.
    pub(crate) error: Option<String>,
    /// As the list shows it.
    pub(crate) cause: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) group: Option<String>,
    pub(crate) source_topic: Option<String>,
    /// By when it failed first, else by the record's timestamp.
    pub(crate) since: Option<DateTime<Utc>>,
    pub(crate) until: Option<DateTime<Utc>>,
    pub(crate) partition: Option<i32>,
    pub(crate) offsets: Option<Run>,
}

/// A dead letter as the filter sees it.
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

    /// Of a dead letter in a partition that is looked at.
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
