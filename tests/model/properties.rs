//! Lists the properties that must hold in every state.

use stateright::Property;

use crate::database::Status;
use crate::relays::{Protocol, World};

pub(crate) const COVERED: &str = "I2: what a lane's progress covers is settled or held";
pub(crate) const IN_ORDER: &str = "I3: an event is on the topic after those that were over before its writer began";
pub(crate) const ONLY_ACKNOWLEDGED: &str = "a row is marked only when it is on the topic";
pub(crate) const ONLY_OWNERS: &str = "only the session that locked a row marks it";
pub(crate) const TERMINAL: &str = "a published row stays published";
pub(crate) const PAUSES: &str = "nothing of a paused entity is sent";
pub(crate) const DONE: &str = "all is published";

pub(crate) fn all() -> Vec<Property<Protocol>> {
    vec![
        Property::always(COVERED, |protocol: &Protocol, world: &World| world.overlooked(protocol).is_none()),
        Property::always(IN_ORDER, |_, world: &World| world.inverted.is_none()),
        Property::always(ONLY_ACKNOWLEDGED, |_, world: &World| {
            let mut published = world.database.data.rows.values().filter(|row| row.status == Status::Published);
            published.all(|row| world.topic.contains(row.event))
        }),
        Property::always(ONLY_OWNERS, |_, world: &World| !world.marked_by_a_stranger),
        Property::always(TERMINAL, |_, world: &World| !world.regressed),
        Property::always(PAUSES, |_, world: &World| !world.sent_in_a_pause),
        // Without this property, the others might hold only because nothing happens.
        Property::sometimes(DONE, |_, world: &World| world.is_done() && world.topic.iter().count() > 0),
    ]
}

/// Returns the first property that does not hold.
pub(crate) fn violated(protocol: &Protocol, world: &World) -> Option<&'static str> {
    let always = |property: &Property<Protocol>| property.expectation == stateright::Expectation::Always;
    let all = all();
    all.iter()
        .filter(|property| always(property))
        .find(|p| !(p.condition)(protocol, world))
        .map(|property| property.name)
}
