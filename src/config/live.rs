//! Holds the settings of a relay that may change while it runs.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::retention::RetentionSettings;

/// The settings of a relay that may change while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunable {
    /// The retention of published events and of the inbox.
    pub retention: RetentionSettings,
    /// The longest pause between polls while there is nothing to do.
    pub poll_interval: Duration,
    /// The interval of the status line in the log.
    pub status_interval: Duration,
}

/// The current [`Tunable`], shared by all clones.
#[derive(Debug, Clone)]
pub struct Live(Arc<RwLock<Tunable>>);

impl Live {
    pub(super) fn new(tunable: Tunable) -> Self {
        Self(Arc::new(RwLock::new(tunable)))
    }

    /// Returns the current values.
    pub fn get(&self) -> Tunable {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the values. Returns true if they are others.
    pub(super) fn set(&self, tunable: Tunable) -> bool {
        let mut current = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = *current != tunable;
        *current = tunable;
        is_new
    }
}
