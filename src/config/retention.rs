//! How long published events and applied ones are kept.

use super::duration::GivenDuration;
use super::resolved::Resolved;
use super::setting;
use super::value::words;

words! {
    /// What becomes of published events after a time.
    Retention {
        /// They stay.
        Keep = "keep",
        /// They are deleted.
        Delete = "delete",
        /// They are moved to the archive table.
        Archive = "archive",
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
    pub(super) fn read(from: &mut Resolved) -> Self {
        Self {
            outbox: from.get(&setting::RETENTION),
            after: from.get(&setting::RETENTION_AFTER),
            processed_after: from.optional(&setting::PROCESSED_RETENTION),
            dead_letter_horizon: from.optional(&setting::DEAD_LETTER_HORIZON),
        }
    }

    /// True when there is anything to prune.
    pub(crate) fn prunes(&self) -> bool {
        self.outbox != Retention::Keep || self.processed_after.is_some()
    }
}
