//! Provides the seed of a run. It decides what the load writes, and the times, targets and order of the faults. The machine decides how
//! processes interleave, so the same seed repeats the script but not the schedule.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const VARIABLE: &str = "OUTBOX_RELAY_SEED";

static SEED: OnceLock<u64> = OnceLock::new();

/// Sets the seed of the run. Call it before the first use of the seed.
pub fn use_seed(seed: u64) {
    SEED.set(seed).expect("the seed is set once");
}

/// Returns the seed of the run: from the environment, or else a new one. Prints it at the first call.
pub fn seed() -> u64 {
    *SEED.get_or_init(|| {
        let given = std::env::var(VARIABLE).ok().map(|seed| seed.parse().expect("OUTBOX_RELAY_SEED is a number"));
        let seed = given.unwrap_or_else(|| u64::from(rand::rng().random::<u32>()));
        eprintln!("seed {seed}; to replay: {VARIABLE}={seed} cargo test --test <suite> -- <trial>");
        seed
    })
}

/// Returns the random numbers of one trial. For one seed they are the same, whichever other trials run.
pub fn random_of(trial: &str) -> StdRng {
    let mut hasher = DefaultHasher::new();
    (seed(), trial).hash(&mut hasher);
    StdRng::seed_from_u64(hasher.finish())
}

/// Returns a number from the environment, or the default.
pub fn size(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().map_or(default, |value| value.parse().expect("a size is a number"))
}
