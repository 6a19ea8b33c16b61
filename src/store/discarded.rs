//! Tells DEAD events that somebody has discarded from those that wait for a decision.

/// What `last_error` begins with once somebody has decided about the event. Written by the function of migration 0015.
pub(crate) const DISCARDED: &str = "discarded: ";

/// SQL that is true for a DEAD event that somebody has discarded.
pub(crate) fn is_discarded() -> String {
    format!("starts_with(coalesce(last_error, ''), '{DISCARDED}')")
}

/// Returns true for the error of a DEAD event that somebody has discarded.
pub(crate) fn is_discard(error: &str) -> bool {
    error.starts_with(DISCARDED)
}
