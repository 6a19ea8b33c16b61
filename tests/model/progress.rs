//! Checks that every committed row is published in the end. From every reachable state, whatever has gone wrong before, steps without a
//! further fault must lead to a state in which every row is marked. Relays that go round in circles do not count as progress.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use stateright::Model;

use crate::properties::violated;
use crate::relays::{Protocol, World};

/// The result of an exploration of every state.
pub(crate) struct Explored {
    pub(crate) states: usize,
    /// A violated property, and a state that violates it.
    pub(crate) violated: Option<(&'static str, World)>,
    /// A state from which no fault-free steps lead to the end.
    pub(crate) stuck: Option<World>,
}

/// Visits every reachable state; stops at the first state that violates a property.
pub(crate) fn explore(protocol: &Protocol) -> Explored {
    // The map stores hashes, as the checker does: whole states would take twice the memory.
    let (mut places, hasher) = (HashMap::<u64, usize>::new(), RandomState::new());
    let mut states: Vec<World> = Vec::new();
    let mut earlier: Vec<Vec<usize>> = Vec::new();
    let mut add = |state: World, states: &mut Vec<World>, earlier: &mut Vec<Vec<usize>>| {
        *places.entry(hasher.hash_one(&state)).or_insert_with(|| {
            states.push(state);
            earlier.push(Vec::new());
            states.len() - 1
        })
    };
    for state in protocol.init_states() {
        add(state, &mut states, &mut earlier);
    }
    let (mut at, mut steps) = (0, Vec::new());
    while at < states.len() {
        let state = states[at].clone();
        if let Some(name) = violated(protocol, &state) {
            return Explored { states: states.len(), violated: Some((name, state)), stuck: None };
        }
        protocol.actions(&state, &mut steps);
        for step in steps.drain(..) {
            let Some(next) = protocol.next_state(&state, step) else { continue };
            let next = add(next, &mut states, &mut earlier);
            if !step.is_fault() {
                earlier[next].push(at);
            }
        }
        at += 1;
    }
    let mut good: Vec<bool> = states.iter().map(World::is_done).collect();
    let mut open: Vec<usize> = (0..states.len()).filter(|at| good[*at]).collect();
    while let Some(at) = open.pop() {
        for before in &earlier[at] {
            if !std::mem::replace(&mut good[*before], true) {
                open.push(*before);
            }
        }
    }
    let count = states.len();
    let stuck = states.into_iter().zip(good).find(|(_, good)| !good).map(|(state, _)| state);
    Explored { states: count, violated: None, stuck }
}
