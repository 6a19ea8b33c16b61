//! Checks the relay's protocols with a model checker. It tries every interleaving of two relays, the application, Kafka and a few faults,
//! and random histories with more of each. `docs/explanation/model.md` describes the model; `cargo test --test model` checks it.
//!
//! - `database`: Postgres. `claim`: one claim by (c, S). `relays`: the protocol around it.
//! - `properties`: what must hold in every state. `progress`: what must be reached from every state. `histories`: random walks.
//! - `old_frontier`: the rule that the relay used earlier; this model of Postgres refutes it.
//! - `once`: exactly-once, a model of its own.

mod claim;
mod database;
mod histories;
mod old_frontier;
mod once;
mod progress;
mod properties;
mod relays;

use claim::Limits;
use properties::{COVERED, IN_ORDER, ONLY_OWNERS, PAUSES};
use relays::{Faults, Flaw, Protocol, Writer};
use stateright::{Checker, HasDiscoveries, Model};

/// Returns a writer of these rows in one transaction, without a lock.
fn writer(rows: &str) -> Writer {
    Writer { rows: rows.chars().collect(), locks: false, may_roll_back: false, may_prepare: false }
}

/// Returns a writer that locks the entity first, as `outbox_emit` does.
fn emitter(rows: &str) -> Writer {
    Writer { locks: true, ..writer(rows) }
}

/// Builds a protocol of two relays that contend for the only lane.
fn one_lane(writers: &[Writer]) -> Protocol {
    Protocol {
        writers: writers.to_vec(),
        lanes: &['z'],
        relays: &[&[0], &[0]],
        limits: Limits { rows: 2, window: 8, flaw: None },
        deletes: false,
        lags: false,
        poison: &[],
        pooler: false,
        coarse: true,
        moves_to: &[],
        faults: Faults::default(),
        flaw: None,
    }
}

/// Builds a protocol of one relay with the only lane.
fn one_relay(writers: &[Writer]) -> Protocol {
    Protocol { relays: &[&[0]], ..one_lane(writers) }
}

/// Checks every state: all properties hold, and steps without a further fault lead to the end.
fn holds(protocol: Protocol) {
    let explored = progress::explore(&protocol);
    println!("{} states", explored.states);
    if let Some((name, state)) = explored.violated {
        println!("{:#?}", path(&protocol, name));
        panic!("{name}: {state:#?}");
    }
    if let Some(state) = explored.stuck {
        panic!("from this state not every event gets published: {state:#?}");
    }
}

/// Returns the shortest way to a state that violates the property.
fn path(protocol: &Protocol, property: &'static str) -> Option<Vec<relays::Step>> {
    let wanted = HasDiscoveries::AnyOf([property].into());
    let checker = protocol.clone().checker().finish_when(wanted).spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.discovery(property).map(stateright::Path::into_actions)
}

/// Checks that the flawed protocol violates the property; nothing else has to be wrong.
fn breaks(flaw: Flaw, property: &'static str, protocol: Protocol) {
    let flawed = Protocol { flaw: Some(flaw), ..protocol };
    println!("{flaw:?}, {property}:");
    let path = path(&flawed, property).unwrap_or_else(|| panic!("{flaw:?} goes unnoticed"));
    path.iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn transactions_of_one_entity_run_side_by_side() {
    holds(one_relay(&[writer("a"), writer("a"), emitter("a")]));
}

#[test]
fn every_message_of_a_cycle_is_a_step_of_its_own() {
    let faults = Faults { probes: 1, ..Faults::default() };
    holds(Protocol { coarse: false, faults, ..one_relay(&[writer("a"), writer("a")]) });
}

#[test]
fn two_relays_contend_for_a_lane() {
    holds(Protocol { coarse: false, ..one_lane(&[writer("a"), writer("a")]) });
}

#[test]
fn a_relay_dies_and_its_records_arrive_late() {
    holds(Protocol { faults: Faults { crashes: 1, ..Faults::default() }, ..one_lane(&[writer("a"), writer("a")]) });
}

#[test]
fn a_relay_freezes_and_its_records_arrive_late() {
    holds(Protocol { faults: Faults { sessions: 1, ..Faults::default() }, ..one_lane(&[writer("a"), writer("aa")]) });
}

#[test]
fn acknowledgements_stay_away() {
    holds(Protocol { faults: Faults { timeouts: 1, ..Faults::default() }, ..one_relay(&[writer("ab"), writer("a")]) });
}

#[test]
fn the_application_locks_a_pending_row() {
    let faults = Faults { locks: 1, deletes: 1, ..Faults::default() };
    holds(Protocol { faults, ..one_relay(&[writer("a"), writer("aa")]) });
}

#[test]
fn the_application_moves_a_pending_row_to_another_lane() {
    let faults = Faults { locks: 1, moves: 1, ..Faults::default() };
    let two = Protocol {
        lanes: &['a', 'z'],
        relays: &[&[0], &[1]],
        moves_to: &['b'],
        ..one_relay(&[writer("a"), writer("b")])
    };
    holds(Protocol { faults, ..two });
}

#[test]
fn a_limit_cuts_inside_late_rows() {
    let limits = Limits { rows: 1, window: 8, flaw: None };
    holds(Protocol { limits, ..one_relay(&[writer("aaa"), writer("a")]) });
}

#[test]
fn lanes_of_unequal_progress_are_claimed_together() {
    let limits = Limits { rows: 1, window: 8, flaw: None };
    let both: &[&[usize]] = &[&[0, 1], &[1, 0]];
    holds(Protocol { limits, lanes: &['a', 'z'], relays: both, ..one_lane(&[writer("a"), writer("b"), writer("a")]) });
}

/// Builds a protocol of two lanes, of which a batch writes only those with events.
fn lagging(writers: &[Writer]) -> Protocol {
    Protocol { lags: true, lanes: &['a', 'z'], relays: &[&[0, 1]], ..one_relay(writers) }
}

#[test]
fn lanes_without_events_lag_and_two_relays_take_them_from_each_other() {
    let both: &[&[usize]] = &[&[0, 1], &[1, 0]];
    holds(Protocol { relays: both, ..lagging(&[writer("a"), writer("b"), writer("a")]) });
    let limits = Limits { rows: 1, window: 8, flaw: None };
    holds(Protocol { limits, relays: &[&[0, 1], &[1]], ..lagging(&[writer("a"), writer("ba")]) });
}

#[test]
fn lanes_without_events_lag_and_the_relay_dies() {
    let faults = Faults { crashes: 1, sessions: 1, ..Faults::default() };
    holds(Protocol { faults, ..lagging(&[writer("a"), writer("ab")]) });
}

#[test]
fn lanes_without_events_lag_and_postgres_loses_its_last_commits() {
    let faults = Faults { tails: 1, ..Faults::default() };
    holds(Protocol { faults, ..lagging(&[writer("a"), writer("b")]) });
    holds(Protocol { faults, pooler: true, ..lagging(&[writer("a"), writer("b")]) });
}

#[test]
fn lanes_without_events_lag_and_rows_are_locked_moved_and_held() {
    let faults = Faults { locks: 1, moves: 1, ..Faults::default() };
    holds(Protocol { faults, moves_to: &['b'], ..lagging(&[writer("a"), writer("b")]) });
    let faults = Faults { pauses: 1, resets: 1, ..Faults::default() };
    holds(Protocol { faults, ..lagging(&[writer("a"), writer("b")]) });
}

/// A settle that Postgres has lost is missing in the nonce of the lane that had its events. So a relay that compares the nonces of all its
/// lanes may trust those that lag, whatever backend answers.
#[test]
fn lanes_without_events_lag_and_another_backend_answers() {
    let faults = Faults { tails: 1, ..Faults::default() };
    let flaw = Some(Flaw::ComparesPostmasterOnly);
    holds(Protocol { pooler: true, faults, flaw, ..lagging(&[writer("a"), writer("b")]) });
}

#[test]
fn an_operator_pauses_an_entity_and_releases_it() {
    let faults = Faults { pauses: 1, ..Faults::default() };
    holds(Protocol { faults, ..one_relay(&[writer("a"), writer("aa")]) });
}

#[test]
fn a_dead_row_is_made_pending_by_hand() {
    let faults = Faults { revivals: 1, ..Faults::default() };
    holds(Protocol { faults, poison: &[0], ..one_relay(&[writer("a"), writer("aa")]) });
}

#[test]
fn settled_rows_are_deleted() {
    holds(Protocol {
        deletes: true,
        faults: Faults { crashes: 1, ..Faults::default() },
        ..one_relay(&[writer("a"), writer("aa")])
    });
}

#[test]
fn postgres_loses_its_last_commits() {
    let faults = Faults { tails: 1, ..Faults::default() };
    holds(Protocol { faults, ..one_relay(&[writer("a"), writer("aa")]) });
}

#[test]
fn a_small_window_walks_over_gaps() {
    let limits = Limits { rows: 2, window: 1, flaw: None };
    let back = Writer { may_roll_back: true, ..writer("aa") };
    holds(Protocol { limits, ..one_relay(&[back, writer("a")]) });
}

/// Builds a protocol of claims of one row.
fn one_by_one(writers: &[Writer]) -> Protocol {
    Protocol { limits: Limits { rows: 1, window: 8, flaw: None }, ..one_relay(writers) }
}

#[test]
fn b1_a_cut_inside_late_rows_that_moves_the_snapshot_on_loses_rows() {
    breaks(Flaw::Claim(claim::Flaw::CutMovesSnapshot), COVERED, one_by_one(&[writer("aaa"), writer("a")]));
}

/// Builds a protocol of two lanes with a relay each, and an application that moves rows to the second lane.
fn moving(writers: &[Writer]) -> Protocol {
    let faults = Faults { locks: 1, moves: 1, ..Faults::default() };
    Protocol { lanes: &['a', 'z'], relays: &[&[0], &[1]], moves_to: &['b'], faults, ..one_relay(writers) }
}

#[test]
fn b3_a_moved_row_that_keeps_its_xid_is_lost() {
    breaks(Flaw::MovedRowKeepsXid, COVERED, moving(&[writer("a"), writer("b")]));
}

#[test]
fn b4_a_row_with_a_foreign_xid_is_lost() {
    breaks(Flaw::ForeignXid, COVERED, one_relay(&[writer("a"), writer("a")]));
}

#[test]
fn b5_a_release_by_new_xids_loses_rows() {
    let faults = Faults { pauses: 1, ..Faults::default() };
    breaks(Flaw::ReleaseByXid, COVERED, Protocol { faults, ..one_relay(&[writer("a"), writer("a")]) });
}

#[test]
fn n4_a_look_at_a_hold_that_is_cut_short_and_ends_it_loses_rows() {
    let faults = Faults { locks: 1, ..Faults::default() };
    breaks(Flaw::Claim(claim::Flaw::CutLookDeletesHold), COVERED, Protocol { faults, ..one_by_one(&[writer("aaa")]) });
}

#[test]
fn n5_and_n6_a_new_state_with_records_in_flight_loses_rows() {
    let faults = Faults { timeouts: 1, ..Faults::default() };
    breaks(Flaw::NewStateInFlight, COVERED, Protocol { faults, ..one_relay(&[writer("a")]) });
}

#[test]
fn skipped_rows_without_a_hold_are_overtaken() {
    let faults = Faults { locks: 1, ..Faults::default() };
    let protocol = Protocol { faults, ..one_relay(&[writer("aa")]) };
    breaks(Flaw::Claim(claim::Flaw::NoHoldForSkipped), IN_ORDER, protocol.clone());
    breaks(Flaw::Claim(claim::Flaw::NoHoldForSkipped), COVERED, protocol);
}

#[test]
fn a_released_hold_that_forgets_rows_above_c_loses_them() {
    let faults = Faults { pauses: 1, ..Faults::default() };
    breaks(
        Flaw::Claim(claim::Flaw::ReleaseForgetsNewRows),
        COVERED,
        Protocol { faults, ..one_relay(&[writer("a"), writer("a")]) },
    );
}

/// Checks that the flawed protocol reaches a state from which nothing leads to the end, and that the sound protocol does not.
fn gets_stuck(flaw: Flaw, protocol: Protocol) {
    let explored = progress::explore(&Protocol { flaw: Some(flaw), ..protocol.clone() });
    assert!(explored.stuck.is_some(), "{flaw:?} goes unnoticed in {} states, {:?}", explored.states, explored.violated);
    holds(protocol);
}

#[test]
fn b2_running_transactions_judged_by_an_earlier_look_lose_rows() {
    let protocol = Protocol { coarse: false, ..one_relay(&[writer("a"), writer("a")]) };
    gets_stuck(Flaw::Claim(claim::Flaw::RunningByEarlierLook), protocol);
}

#[test]
fn a_memory_behind_a_pooler_that_compares_only_the_postmaster_loses_rows() {
    let faults = Faults { tails: 1, revivals: 1, probes: 1, others: 1, ..Faults::default() };
    let protocol = Protocol { pooler: true, poison: &[0], faults, ..one_relay(&[writer("a")]) };
    gets_stuck(Flaw::ComparesPostmasterOnly, protocol);
}

#[test]
fn an_operator_who_leaves_the_nonce_as_it_is_is_not_heard() {
    let faults = Faults { pauses: 1, ..Faults::default() };
    breaks(Flaw::OperatorKeepsNonce, PAUSES, Protocol { faults, ..one_relay(&[writer("a"), writer("a")]) });
}

#[test]
fn an_empty_window_that_stores_nothing_gets_stuck() {
    let back = Writer { may_roll_back: true, ..writer("aa") };
    let limits = Limits { rows: 2, window: 1, flaw: None };
    gets_stuck(
        Flaw::Claim(claim::Flaw::EmptyWindowStoresNothing),
        Protocol { limits, ..one_relay(&[back, writer("a")]) },
    );
}

#[test]
fn a_c_that_only_the_sequence_bounds_gets_stuck() {
    let faults = Faults { resets: 1, ..Faults::default() };
    let limits = Limits { rows: 2, window: 1, flaw: None };
    gets_stuck(
        Flaw::Claim(claim::Flaw::OnlySequenceBoundsC),
        Protocol { limits, faults, ..one_relay(&[writer("aaa")]) },
    );
}

#[test]
fn a_retry_of_a_middle_event_breaks_the_order() {
    let faults = Faults { timeouts: 1, ..Faults::default() };
    breaks(Flaw::RetryOfAMiddleEvent, IN_ORDER, Protocol { faults, ..one_relay(&[writer("aa")]) });
}

#[test]
fn a_mark_without_ownership_is_found() {
    let faults = Faults { sessions: 1, ..Faults::default() };
    breaks(Flaw::MarkWithoutOwnership, ONLY_OWNERS, Protocol { faults, ..one_lane(&[writer("a")]) });
}

/// Checks the model itself: if Postgres released locks in this order, `outbox_emit` would not keep the order.
#[test]
fn locks_that_are_released_before_the_commit_is_visible_break_the_order() {
    breaks(Flaw::LocksReleasedFirst, IN_ORDER, one_relay(&[emitter("a"), emitter("a")]));
}

/// Checks that random histories of the flawed protocol violate a property.
fn histories_catch(flaw: Flaw, tune: fn(&mut Protocol)) {
    let caught = histories::run(Some(flaw), 3000, tune).expect_err("goes unnoticed");
    println!("{flaw:?}: {caught}");
}

/// Removes every fault, so that only the flaw can be the cause.
fn undisturbed(protocol: &mut Protocol) {
    protocol.faults = Faults { others: 2, ..Faults::default() };
    protocol.poison = &[];
}

/// Lets two relays take lanes from each other.
fn contended(protocol: &mut Protocol) {
    undisturbed(protocol);
    protocol.relays = &[&[1, 0], &[1]];
    protocol.lags = false;
    protocol.limits.rows = 1;
    protocol.coarse = false;
}

#[test]
fn random_histories_hold() {
    if let Err(history) = histories::run(None, 600, |_| {}) {
        panic!("{history}");
    }
}

#[test]
fn b6_a_memory_that_outlives_a_lost_tail_loses_rows() {
    histories_catch(Flaw::MemoryOutlivesConnection, |protocol| protocol.faults.tails = 1);
}

#[test]
fn a_row_sent_as_it_is_after_the_snapshot_breaks_the_order() {
    histories_catch(Flaw::Claim(claim::Flaw::TakesChangedVersion), |protocol| {
        undisturbed(protocol);
        (protocol.coarse, protocol.faults.locks, protocol.faults.moves) = (false, 3, 3);
    });
}

#[test]
fn lanes_merged_at_one_of_two_snapshots_lose_rows() {
    histories_catch(Flaw::Claim(claim::Flaw::MergeTakesOneSnapshot), contended);
}

#[test]
fn a_sweep_that_takes_new_rows_breaks_the_order() {
    histories_catch(Flaw::Claim(claim::Flaw::SweepTakesNewRows), |protocol| {
        undisturbed(protocol);
        protocol.limits.rows = 1;
    });
}

#[test]
fn n1_a_claim_older_than_its_lock_goes_wrong() {
    histories_catch(Flaw::LockAndClaimTogether, |protocol| {
        undisturbed(protocol);
        (protocol.coarse, protocol.faults.locks) = (false, 3);
    });
}

#[test]
fn lanes_merged_at_the_highest_c_lose_rows() {
    histories_catch(Flaw::Claim(claim::Flaw::MergeTakesHighestC), contended);
}

#[test]
#[ignore = "takes minutes: for a release build, after a change of the protocol"]
fn many_random_histories_hold() {
    if let Err(history) = histories::run(None, 200_000, |_| {}) {
        panic!("{history}");
    }
}

/// Builds the old rule with two writers of one entity, each of which locks the entity.
fn old_frontier(lists_all: bool, xid_first: bool) -> old_frontier::OldFrontier {
    let protocol = Protocol { relays: &[], ..one_relay(&[emitter("a"), emitter("a")]) };
    old_frontier::OldFrontier { protocol, lists_all, xid_first }
}

fn old_frontier_breaks(model: old_frontier::OldFrontier) {
    let wanted = HasDiscoveries::AnyOf([IN_ORDER].into());
    let checker = model.checker().finish_when(wanted).spawn_bfs().join();
    let path = checker.discovery(IN_ORDER).expect("the old rule goes unnoticed");
    println!("the old rule, {} states:", checker.unique_state_count());
    path.into_actions().iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn the_old_rule_breaks_the_order_where_the_newest_transaction_is_open() {
    old_frontier_breaks(old_frontier(false, true));
}

#[test]
fn the_old_rule_breaks_the_order_where_ids_are_drawn_first() {
    old_frontier_breaks(old_frontier(true, false));
}

/// Shows that the missing snapshots are the only reason why this model refutes the rule.
#[test]
fn the_old_rule_holds_in_the_postgres_it_was_made_for() {
    let checker = old_frontier(true, true).checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn lanes_merged_without_their_sweeps_starve() {
    histories_catch(Flaw::Claim(claim::Flaw::MergeDropsSweep), |protocol| {
        contended(protocol);
        protocol.coarse = true;
    });
}

#[test]
fn successors_of_a_row_that_goes_dead_break_the_order() {
    let faults = Faults { sessions: 1, locks: 1, ..Faults::default() };
    let protocol = Protocol { poison: &[0], faults, ..one_relay(&[writer("aa")]) };
    breaks(Flaw::Claim(claim::Flaw::SuccessorsOfDead), IN_ORDER, protocol.clone());
    holds(protocol);
}

#[test]
fn a_look_at_a_hold_that_takes_late_rows_breaks_the_order() {
    let faults = Faults { locks: 1, ..Faults::default() };
    let protocol = Protocol { faults, ..one_relay(&[writer("aaaa"), writer("a")]) };
    breaks(Flaw::Claim(claim::Flaw::LookTakesLateRows), IN_ORDER, protocol);
}

/// Builds exactly-once delivery of two rows in batches of one.
fn in_transactions() -> once::Once {
    once::Once { rows: 2, batch: 1, epochs: 3, faults: once::Faults::default(), flaw: None }
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

/// Checks that the flawed protocol publishes an event twice.
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

const ONE_TAIL: once::Faults = once::Faults { crashes: 0, sessions: 0, answers: 0, timeouts: 0, losses: 0, tails: 1 };

#[test]
fn every_event_is_published_once_though_postgres_loses_its_last_commits() {
    let checker = once::Once { faults: ONE_TAIL, epochs: 2, ..in_transactions() }.checker().spawn_bfs().join();
    println!("{} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
#[ignore = "six million states: for a release build, after a change of the protocol"]
fn every_event_is_published_once_though_postgres_loses_its_last_commits_and_the_lane_goes_to_and_fro() {
    publishes_once(ONE_TAIL);
}

/// Checks that the flawed protocol marks a row whose event is not on the topic.
fn loses_events(flaw: once::Flaw) {
    let flawed = once::Once { flaw: Some(flaw), faults: ONE_TAIL, ..in_transactions() };
    let wanted = HasDiscoveries::AnyOf([once::ONLY_PUBLISHED].into());
    let checker = flawed.checker().finish_when(wanted).spawn_bfs().join();
    let path = checker.discovery(once::ONLY_PUBLISHED).unwrap_or_else(|| panic!("{flaw:?} goes unnoticed"));
    println!("{flaw:?}:");
    path.into_actions().iter().for_each(|step| println!("  {step:?}"));
}

#[test]
fn a_progress_that_names_ids_alone_loses_events_after_a_lost_tail() {
    loses_events(once::Flaw::IdsAlone);
}

#[test]
fn nonces_without_a_digest_lose_events_after_a_lost_tail() {
    loses_events(once::Flaw::NoDigest);
}

#[test]
fn an_owner_that_postgres_has_forgotten_is_fenced_or_repeats_events() {
    repeats(once::Flaw::FenceByRowAlone, ONE_TAIL);
}
