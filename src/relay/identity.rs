//! The facts of an outbox that do not change while a relay runs.

use crate::store::session::Sequence;

/// The facts of an outbox that do not change while a relay runs.
pub(crate) struct Fixed {
    pub(crate) lanes: u16,
    /// The sequence that event ids are drawn from.
    pub(crate) sequence: Sequence,
    /// The number that tells the outbox from others on the same cluster.
    pub(crate) identity: i64,
}
