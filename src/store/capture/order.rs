//! Finds the triggers of the application that would run before the events of a statement are made.
//!
//! What such a trigger changes is a statement of its own, with its own events. If it changes a row whose first event is still to come, the
//! events of that row are in the wrong order. Cascades of foreign keys do no harm: Postgres runs their triggers after all of the statement.

use super::Change;
use super::script::bulk_trigger;
use crate::store::app_table::{AppTable, Trigger};
use event_outbox::Names;

/// Returns the names of these triggers: those that run after each row, and with `bulk` also those for each statement that come first by
/// their names.
pub(crate) fn before_the_events<'t>(names: &Names, table: &'t AppTable, on: &[Change], bulk: bool) -> Vec<&'t str> {
    let ours: Vec<_> = on.iter().map(|change| bulk_trigger(names, *change)).collect();
    // Postgres runs triggers of one kind in the order of the bytes of their names.
    let is_earlier = |trigger: &&Trigger| {
        trigger.for_each_row || bulk && ours.iter().any(|ours| trigger.name.as_bytes() < ours.as_bytes())
    };
    table.triggers.iter().filter(is_earlier).map(|trigger| trigger.name.as_str()).collect()
}
