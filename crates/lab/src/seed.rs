//! The seed of a run: decides what the load writes, and the moments, victims and order of faults. How processes interleave is up to
//! the machine, so a seed replays a script and not a schedule.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const VARIABLE: &str = "OUTBOX_RELAY_SEED";

static SEED: OnceLock<u64> = OnceLock::new();

/// The run's seed is this one. Before anybody has asked for it.
pub fn use_seed(seed: u64) {
    SEED.set(seed).expect("the seed is set once");
}

/// The run's seed: from the environment, else a new one. Printed when it is first asked for.
pub fn seed() -> u64 {
    *SEED.get_or_init(|| {
        let given = std::env::var(VARIABLE).ok().map(|seed| seed.parse().expect("OUTBOX_RELAY_SEED is a number"));
        let seed = given.unwrap_or_else(|| u64::from(rand::rng().random::<u32>()));
        eprintln!("seed {seed}; to replay: {VARIABLE}={seed} cargo test --test <suite> -- <trial>");
        seed
    })
}

/// The random numbers of one trial: the same for a seed whichever trials run besides.
pub fn random_of(trial: &str) -> StdRng {
    let mut hasher = DefaultHasher::new();
    (seed(), trial).hash(&mut hasher);
    StdRng::seed_from_u64(hasher.finish())
}

/// A number from the environment, or the default.
pub fn size(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |value| value.parse().expect("a size is a number"))
}
