//! Reads the settings of retention, for published events and for the inbox.

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

/// The retention of published events and of the inbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetentionSettings {
    /// The treatment of published events.
    pub outbox: Retention,
    /// The age, since it was published, at which an event is removed.
    pub after: GivenDuration,
    /// The age at which rows of the inbox are deleted; `None`: never.
    pub processed_after: Option<GivenDuration>,
    /// The time in which a dead letter may be redriven, if the retention of its topic is unknown.
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

    /// Returns true if the settings ask for any pruning.
    pub(crate) fn prunes(&self) -> bool {
        self.outbox != Retention::Keep || self.processed_after.is_some()
    }
}
