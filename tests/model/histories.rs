//! Runs random histories of the protocol, with more writers, entities, rows and faults than an exhaustive search has room for. A history is
//! a list of numbers; each number picks one of the possible steps. Then all faults end, and the relays must settle the rest.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use stateright::Model;

use crate::claim::Limits;
use crate::properties::violated;
use crate::relays::{Faults, Flaw, Phase, Protocol, Step, World, Writer};

/// The highest number of steps that the end of a history may take.
const END: usize = 600;

/// Runs histories of the protocol with this flaw, if any; `tune` adapts each protocol to the test. Returns the first violation with its
/// shortest history.
pub(crate) fn run(flaw: Option<Flaw>, histories: u32, tune: fn(&mut Protocol)) -> Result<(), String> {
    let config = Config { cases: histories, failure_persistence: None, max_shrink_iters: 300, ..Config::default() };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let choices = prop::collection::vec(any::<u16>(), 20..220);
    let protocol = protocol(flaw).prop_map(move |mut protocol| {
        tune(&mut protocol);
        protocol
    });
    runner.run(&(protocol, choices), |(protocol, choices)| walk(&protocol, &choices)).map_err(|error| match error {
        TestError::Fail(reason, (protocol, choices)) => {
            format!("{reason}\n{protocol:?}\n{:?}", steps(&protocol, &choices))
        }
        TestError::Abort(reason) => reason.to_string(),
    })
}

fn protocol(flaw: Option<Flaw>) -> impl Strategy<Value = Protocol> {
    let entities = prop::collection::vec(prop::sample::select(vec!['a', 'b', 'c', 'd']), 1..4);
    let writer = (entities, any::<bool>(), prop::bool::weighted(0.2), prop::bool::weighted(0.2)).prop_map(
        |(rows, locks, may_roll_back, may_prepare)| {
            // A writer that locks an entity writes no other entity. Otherwise two writers could wait for each other.
            let rows = if locks { vec![rows[0]; rows.len()] } else { rows };
            Writer { rows, locks, may_roll_back, may_prepare }
        },
    );
    let relays: Vec<&'static [&'static [usize]]> =
        vec![&[&[0, 1], &[1, 0]], &[&[0], &[1]], &[&[0, 1]], &[&[1, 0], &[1]]];
    let few = || prop_oneof![3 => Just(0u8), 1 => Just(1), 1 => Just(2)];
    let of_servers = (few(), few(), few(), 0u8..2, few(), few());
    let of_people = (few(), few(), few(), 0u8..2, 0u8..2);
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let limits = (1usize..5, prop_oneof![1u8..4, Just(100)]);
    (prop::collection::vec(writer, 3..9), prop::sample::select(relays), limits, of_servers, of_people, switches)
        .prop_map(move |(writers, relays, (rows, window), of_servers, of_people, (deletes, pooler, coarse, poison))| {
            let (crashes, sessions, timeouts, tails, others, probes) = of_servers;
            let (locks, moves, deleted, pauses, revivals) = of_people;
            Protocol {
                writers,
                lanes: &['b', 'z'],
                relays,
                limits: Limits { rows, window, flaw: None },
                deletes,
                lags: coarse != pooler,
                poison: if poison { &[1, 4] } else { &[] },
                pooler,
                coarse,
                moves_to: &['a', 'd'],
                faults: Faults {
                    crashes,
                    sessions,
                    timeouts,
                    tails,
                    locks: locks + moves + deleted,
                    moves,
                    deletes: deleted,
                    pauses,
                    revivals,
                    others,
                    resets: 0,
                    probes,
                },
                flaw,
            }
        })
}

fn walk(protocol: &Protocol, choices: &[u16]) -> Result<(), TestCaseError> {
    let mut world = protocol.init_states().remove(0);
    for choice in choices {
        let Some((_, next)) = step(protocol, &world, *choice) else { break };
        world = next;
        check(protocol, &world)?;
    }
    for turn in 0..END {
        if world.is_done() {
            return Ok(());
        }
        let Some((_, next)) = last_step(protocol, &world, turn) else { break };
        world = next;
        check(protocol, &world)?;
    }
    prop_assert!(world.is_done(), "not all is published: {world:#?}");
    Ok(())
}

fn check(protocol: &Protocol, world: &World) -> Result<(), TestCaseError> {
    violated(protocol, world).map_or(Ok(()), |name| Err(TestCaseError::fail(name)))
}

/// Returns the step that a choice picks, and the world after the step.
fn step(protocol: &Protocol, world: &World, choice: u16) -> Option<(Step, World)> {
    let mut steps = Vec::new();
    protocol.actions(world, &mut steps);
    // Takes the first step from there on that changes anything.
    let from = usize::from(choice) % steps.len().max(1);
    let (before, after) = steps.split_at(from);
    after.iter().chain(before).find_map(|step| Some((*step, protocol.next_state(world, *step)?)))
}

fn steps(protocol: &Protocol, choices: &[u16]) -> Vec<Step> {
    let mut world = protocol.init_states().remove(0);
    let mut taken = Vec::new();
    for choice in choices {
        if violated(protocol, &world).is_some() {
            break;
        }
        let Some((step, next)) = step(protocol, &world, *choice) else { break };
        taken.push(step);
        world = next;
    }
    for turn in 0..END {
        if violated(protocol, &world).is_some() {
            break;
        }
        let Some((step, next)) = last_step(protocol, &world, turn) else { break };
        taken.push(step);
        world = next;
    }
    taken
}

/// Returns a step without faults: every busy relay or writer finishes, then one relay after the other makes a cycle.
fn last_step(protocol: &Protocol, world: &World, turn: usize) -> Option<(Step, World)> {
    let mut steps = Vec::new();
    protocol.actions(world, &mut steps);
    steps.retain(|step| !step.is_fault());
    let begins = |step: &Step| match step {
        Step::Lock(relay) => world.relays[*relay].phase == Phase::Idle,
        Step::Claim(..) | Step::Snap(_) => true,
        _ => false,
    };
    let (mut cycles, busy): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(begins);
    let at = turn % cycles.len().max(1);
    cycles.rotate_left(at);
    busy.iter().chain(&cycles).find_map(|step| Some((*step, protocol.next_state(world, *step)?)))
}
