//! The relay's protocols, model checked: every interleaving of two relays, the application, Kafka and a few faults, and random histories
//! of more of each. The model is described in `docs/model.md`; `cargo test --test model` checks it.
//!
//! - `database`: Postgres. `claim`: one claim by (c, S). `relays`: the protocol around it.
//! - `properties`: what must hold in every state. `progress`: what must be reached from every state. `histories`: random walks.
//! - `old_frontier`: the rule before, which this model of Postgres refutes.
//! - `once`: exactly-once, a model of its own.

#[path = "model/claim.rs"]
mod claim;
#[path = "model/database.rs"]
mod database;
#[path = "model/once.rs"]
mod once;
#[path = "model/progress.rs"]
mod progress;
#[path = "model/properties.rs"]
mod properties;
#[path = "model/relays.rs"]
mod relays;

use claim::Limits;
use properties::{COVERED, IN_ORDER, ONLY_ACKNOWLEDGED, ONLY_OWNERS, TERMINAL};
use relays::{Faults, Flaw, Protocol, Writer};
use stateright::{Checker, HasDiscoveries, Model};

/// Writes these rows in one transaction, without a lock.
fn writer(rows: &str) -> Writer {
    Writer { rows: rows.chars().collect(), locks: false, may_roll_back: false, may_prepare: false }
}

/// As `outbox_emit` does.
fn emitter(rows: &str) -> Writer {
    Writer { locks: true, ..writer(rows) }
}

/// Two relays contend for the only lane.
fn one_lane(writers: &[Writer]) -> Protocol {
    Protocol {
        writers: writers.to_vec(),
        lanes: &['z'],
        relays: &[&[0], &[0]],
        limits: Limits { rows: 2, window: 8, flaw: None },
        deletes: false,
        poison: &[],
        pooler: false,
        moves_to: &[],
        faults: Faults::default(),
        flaw: None,
    }
}

/// One relay has the only lane.
fn one_relay(writers: &[Writer]) -> Protocol {
    Protocol { relays: &[&[0]], ..one_lane(writers) }
}

/// Checks every state: the properties hold, and steps without a further fault lead to the end.
fn holds(protocol: Protocol) {
    let explored = progress::explore(&protocol);
    println!("{} states", explored.states);
    if let Some((name, state)) = explored.violated {
        panic!("{name}: {state:#?}");
    }
    if let Some(state) = explored.stuck {
        panic!("from here not all is published: {state:#?}");
    }
}

/// The flawed protocol violates the property, and nothing else has to be wrong for it.
fn breaks(flaw: Flaw, property: &'static str, protocol: Protocol) {
    let flawed = Protocol { flaw: Some(flaw), ..protocol };
    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = flawed.checker().finish_when(wanted).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{flaw:?} goes unnoticed in {} states", checker.unique_state_count()));
    println!("{flaw:?}, {property}, {} states:", checker.unique_state_count());
    path.into_actions().iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn rows_of_one_entity_are_sent_in_order() {
    holds(one_relay(&[writer("a"), writer("a"), emitter("a")]));
}

#[test]
fn two_relays_contend_for_a_lane() {
    holds(one_lane(&[writer("a"), writer("a")]));
}

#[test]
fn a_relay_dies_and_its_records_arrive_late() {
    holds(Protocol { faults: Faults { crashes: 1, ..Faults::default() }, ..one_lane(&[writer("a"), writer("a")]) });
}

/// Two rows in batches of one.
fn in_transactions() -> once::Once {
    once::Once { rows: 2, batch: 1, faults: once::Faults::default(), flaw: None }
}

fn publishes_once(faults: once::Faults) {
    let checker = once::Once { faults, ..in_transactions() }.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn every_event_is_published_once_though_a_relay_dies_and_the_other_freezes() {
    publishes_once(once::Faults { crashes: 1, sessions: 1, ..once::Faults::default() });
}

#[test]
fn every_event_is_published_once_though_the_answer_of_a_commit_is_lost_and_a_relay_freezes() {
    publishes_once(once::Faults { answers: 1, sessions: 1, ..once::Faults::default() });
}

#[test]
fn every_event_is_published_once_though_a_transaction_times_out_and_a_relay_dies() {
    publishes_once(once::Faults { timeouts: 1, crashes: 1, ..once::Faults::default() });
}

#[test]
fn progress_that_is_lost_is_made_up_for_from_the_topic() {
    publishes_once(once::Faults { losses: 1, crashes: 1, ..once::Faults::default() });
}

/// Without that part of the protocol an event is on the topic twice.
fn repeats(flaw: once::Flaw, faults: once::Faults) {
    let flawed = once::Once { flaw: Some(flaw), faults, ..in_transactions() };
    let wanted = HasDiscoveries::AnyOf([once::NO_DUPLICATE].into());
    let checker = flawed.checker().finish_when(wanted).spawn_bfs().join();
    let path = checker.discovery(once::NO_DUPLICATE).unwrap_or_else(|| panic!("{flaw:?} goes unnoticed"));
    println!("{flaw:?}:");
    path.into_actions().iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn a_former_owner_that_is_not_fenced_repeats_events() {
    repeats(once::Flaw::NoFence, once::Faults { sessions: 1, ..once::Faults::default() });
}

#[test]
fn a_claim_before_the_progress_is_read_repeats_events() {
    repeats(once::Flaw::ClaimBeforeProgress, once::Faults { crashes: 1, ..once::Faults::default() });
}

#[test]
fn a_transaction_before_the_marks_of_the_last_repeats_events() {
    repeats(once::Flaw::NextTransactionBeforeMarks, once::Faults { crashes: 1, ..once::Faults::default() });
}

#[test]
fn a_new_producer_without_a_new_look_at_the_lane_repeats_events() {
    repeats(once::Flaw::NewProducerWithoutNewLook, once::Faults { sessions: 1, ..once::Faults::default() });
}

#[test]
fn a_worker_that_trusts_its_own_lane_after_a_doubt_repeats_events() {
    repeats(once::Flaw::OwnLaneWithoutProgress, once::Faults { answers: 1, ..once::Faults::default() });
}

#[test]
fn a_lost_progress_that_goes_unnoticed_repeats_events() {
    repeats(once::Flaw::LossUnnoticed, once::Faults { crashes: 1, losses: 1, ..once::Faults::default() });
}
