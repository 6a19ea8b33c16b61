//! The facts of an outbox that do not change while a relay runs.

use crate::store::session::Sequence;

/// What is fixed of an outbox.
pub(crate) struct Fixed {
    pub(crate) lanes: u16,
    /// Where its ids come from.
    pub(crate) sequence: Sequence,
    /// What tells it from others on the same cluster.
    pub(crate) identity: i64,
    /// Its registry has a column for the lanes that relays own.
    pub(crate) has_lanes: bool,
}
