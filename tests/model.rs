//! The lane protocol, model checked: every interleaving of two relays, the application, Kafka and a few faults. The model is
//! `docs/model.md`; `cargo test --test model` checks it.
//!
//! - `protocol`: the steps.
//! - `state`, `rows`: what they change.
//! - `frontier`: from which id a claim looks.
//! - `once`: exactly-once, a model of its own.
//! - `properties`: what must hold in every state; `progress`: what must be reached from every state.

#[path = "model/frontier.rs"]
mod frontier;
#[path = "model/once.rs"]
mod once;
#[path = "model/progress.rs"]
mod progress;
#[path = "model/properties.rs"]
mod properties;
#[path = "model/protocol.rs"]
mod protocol;
#[path = "model/rows.rs"]
mod rows;
#[path = "model/state.rs"]
mod state;

use properties::{IN_ORDER, ONLY_ACKNOWLEDGED, ONLY_OWNERS, TERMINAL};
use protocol::{Flaw, Protocol};
use state::Faults;
use stateright::{Checker, HasDiscoveries, Model};

/// Two relays that both want the only lane.
const ONE_LANE: &[(u8, u8)] = &[(0, 0), (0, 0)];

/// One entity, written in turns.
fn one_entity() -> Protocol {
    Protocol {
        rows: &[('a', 0), ('a', 0), ('a', 0)],
        emit: true,
        rollbacks: &[],
        shares: ONE_LANE,
        batch: 2,
        pooler: false,
        faults: Faults::default(),
        flaw: None,
    }
}

/// Two entities whose transactions run side by side, and may roll back.
fn side_by_side() -> Protocol {
    Protocol { rows: &[('a', 0), ('b', 0), ('a', 0)], emit: false, rollbacks: &[1], ..one_entity() }
}

/// Checks every state for the properties; and, with the first two rows alone, that every state leads to the end.
fn holds(protocol: Protocol) {
    let checker = protocol.clone().checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
    let smaller = Protocol { rows: &protocol.rows[..2], ..protocol };
    if let Some(state) = progress::stuck(&smaller) {
        panic!("from here not all is published: {state:#?}");
    }
}

/// The flawed protocol violates the property, and nothing else has to be wrong for it.
fn breaks(flaw: Flaw, property: &'static str, protocol: Protocol) {
    let flawed = Protocol { flaw: Some(flaw), ..protocol };
    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = flawed.checker().finish_when(wanted).spawn_bfs().join();
    let path = checker.discovery(property).unwrap_or_else(|| panic!("{flaw:?} goes unnoticed"));
    println!("{flaw:?}, {property}:");
    path.into_actions().iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn one_of_two_relays_dies_and_the_other_freezes() {
    holds(Protocol { faults: Faults { crashes: 1, sessions: 1, ..Faults::default() }, ..one_entity() });
}

#[test]
fn acks_stay_away_and_a_relay_freezes() {
    holds(Protocol { faults: Faults { timeouts: 1, sessions: 1, ..Faults::default() }, ..one_entity() });
}

#[test]
fn transactions_of_two_entities_run_side_by_side() {
    holds(side_by_side());
}

#[test]
fn transactions_run_side_by_side_while_a_relay_freezes() {
    holds(Protocol {
        rows: &[('a', 0), ('a', 0)],
        faults: Faults { sessions: 1, ..Faults::default() },
        ..side_by_side()
    });
}

#[test]
fn another_session_locks_a_row() {
    holds(Protocol { faults: Faults { locks: 1, ..Faults::default() }, ..one_entity() });
}

#[test]
fn postgres_crashes_and_loses_marks() {
    holds(Protocol { faults: Faults { databases: 1, ..Faults::default() }, ..one_entity() });
}

#[test]
fn marks_lost_behind_a_pooler_are_found_by_the_sweep_alone() {
    let faults = Faults { databases: 1, ..Faults::default() };
    let behind_a_pooler =
        Protocol { pooler: true, rows: &[('a', 0), ('a', 0)], shares: &[(0, 0)], faults, ..one_entity() };
    behind_a_pooler.clone().checker().spawn_bfs().join().assert_properties();
    // The model has no sweep.
    let stuck = progress::stuck(&behind_a_pooler).expect("a relay that does not hear of the crash does not look back");
    assert!(stuck.committed.iter().all(|row| stuck.topic.contains(row)), "lost: {stuck:#?}");
}

#[test]
fn two_lanes_change_hands() {
    holds(Protocol {
        rows: &[('a', 0), ('b', 1), ('a', 0)],
        shares: &[(0, 1), (1, 1)],
        faults: Faults { shares: 1, ..Faults::default() },
        ..one_entity()
    });
}

#[test]
fn a_frontier_that_forgets_running_transactions_breaks_the_order() {
    breaks(Flaw::FrontierTooEarly, IN_ORDER, side_by_side());
}

#[test]
fn a_frontier_that_forgets_running_transactions_loses_their_rows() {
    // A second relay would find them: what one has seen the other does not know.
    let alone = Protocol { rows: &[('a', 0), ('b', 0)], shares: &[(0, 0)], ..side_by_side() };
    assert_eq!(progress::stuck(&alone), None);
    assert!(progress::stuck(&Protocol { flaw: Some(Flaw::FrontierTooEarly), ..alone }).is_some());
}

#[test]
fn a_retry_of_a_middle_event_breaks_the_order() {
    let faults = Faults { timeouts: 1, ..Faults::default() };
    breaks(Flaw::RetryOfAMiddleEvent, IN_ORDER, Protocol { faults, ..one_entity() });
}

#[test]
fn a_mark_without_ownership_is_found() {
    let faults = Faults { sessions: 1, ..Faults::default() };
    breaks(Flaw::MarkWithoutOwnership, ONLY_OWNERS, Protocol { faults, ..one_entity() });
}

#[test]
fn overtaking_a_locked_row_breaks_the_order() {
    let faults = Faults { locks: 1, ..Faults::default() };
    breaks(Flaw::OvertakeLockedRows, IN_ORDER, Protocol { faults, ..one_entity() });
}

#[test]
fn acks_of_an_earlier_producer_mark_what_is_not_there() {
    let faults = Faults { timeouts: 1, ..Faults::default() };
    breaks(Flaw::AcksOfAnEarlierProducer, ONLY_ACKNOWLEDGED, Protocol { faults, ..one_entity() });
}

#[test]
fn giving_back_what_one_does_not_own_reopens_published_rows() {
    let faults = Faults { sessions: 1, ..Faults::default() };
    breaks(Flaw::GiveBackWithoutOwnership, TERMINAL, Protocol { faults, ..one_entity() });
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
