//! How long published events and applied ones are kept.

use std::str::FromStr;

use super::duration::GivenDuration;
use super::resolved::Resolved;
use super::setting::Kind;

/// What becomes of published events after a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retention {
    /// They stay.
    Keep,
    /// They are deleted.
    Delete,
    /// They are moved to the archive table.
    Archive,
}

impl FromStr for Retention {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "keep" => Ok(Self::Keep),
            "delete" => Ok(Self::Delete),
            "archive" => Ok(Self::Archive),
            _ => Err(()),
        }
    }
}

/// How long published events and applied ones are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// What becomes of published events.
    pub outbox: Retention,
    /// How long after they were published.
    pub after: GivenDuration,
    /// After how long rows of the consumers' table are deleted; never without it.
    pub processed_after: Option<GivenDuration>,
    /// How long a dead letter of a consumer may come back, where its topic does not tell.
    pub dead_letter_horizon: Option<GivenDuration>,
}

impl RetentionSettings {
    pub(super) fn read(from: &mut Resolved) -> Option<Self> {
        let outbox = from.word("retention");
        let after = from.given_duration("retention_after");
        let duration = |kind: &Kind, text: &str| match (kind, super::duration::parse(text)) {
            (Kind::Duration { min, max }, Some(value)) if (min..=max).contains(&&*value) => Ok(value),
            _ => Err(String::new()),
        };
        let processed_after = from.optional("processed_retention", duration);
        let dead_letter_horizon = from.optional("dead_letter_horizon", duration);
        Some(Self {
            outbox: outbox?,
            after: after?,
            processed_after: processed_after?,
            dead_letter_horizon: dead_letter_horizon?,
        })
    }

    /// True when there is anything to prune.
    pub(crate) fn prunes(&self) -> bool {
        self.outbox != Retention::Keep || self.processed_after.is_some()
    }
}
