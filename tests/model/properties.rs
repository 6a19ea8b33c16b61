//! What must hold in every state.

use stateright::Property;

use crate::protocol::Protocol;
use crate::state::{Row, State};

pub(crate) const ONLY_ACKNOWLEDGED: &str = "a row is marked only when it is on the topic";
pub(crate) const ONLY_COMMITTED: &str = "nothing that rolled back is published";
pub(crate) const IN_ORDER: &str = "first occurrences of an entity are in order";
pub(crate) const ONLY_OWNERS: &str = "only the session that locked a row marks it";
pub(crate) const TERMINAL: &str = "a published row stays published";
pub(crate) const DONE: &str = "all is published";

pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONLY_ACKNOWLEDGED, |_, state: &State| {
            state.all(Row::Published).iter().all(|row| state.topic.contains(&row))
        }),
        Property::always(ONLY_COMMITTED, |_, state: &State| {
            state.topic.iter().all(|row| state.committed.contains(row))
        }),
        Property::always(IN_ORDER, in_order),
        Property::always(ONLY_OWNERS, |_, state: &State| !state.marked_by_a_stranger),
        Property::always(TERMINAL, |_, state: &State| !state.regressed),
        // Without it, the others might hold because nothing happens.
        Property::sometimes(DONE, |_, state: &State| state.is_done() && state.topic.len() == state.rows.len()),
    ]
}

/// Of two events of an entity of which the first to draw its id was also the first to commit, it is the first on the topic. Of
/// transactions that wrote the entity side by side without a lock, and committed the other way round, either may be.
fn in_order(protocol: &Protocol, state: &State) -> bool {
    let place = |row: &u8, list: &[u8]| list.iter().position(|other| other == row);
    state.topic.iter().enumerate().all(|(at, row)| {
        let committed = place(row, &state.committed);
        let before = |other: &&u8| {
            **other < *row
                && protocol.entity(**other) == protocol.entity(*row)
                && place(other, &state.committed) < committed
        };
        state.committed.iter().filter(before).all(|other| place(other, &state.topic).is_some_and(|found| found < at))
    })
}
