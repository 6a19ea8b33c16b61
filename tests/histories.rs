//! The history suite: random interleavings of real sessions beside relays with default settings, on quiet, busy and stalled servers,
//! and the orders of events that once went wrong. Black box: SQL into the outbox, records from the topic, the ledger between them.
//!
//! - `script`: what a history is; `generate`: draws one from the seed.
//! - `player`: plays a session; `meddler`: plays an application that touches pending rows.
//! - `truth`: what the sessions know, compared with table, topic and times of append; `pulse`: when nothing could move.
//! - `bed`: a database, a topic and relays; `round`: many histories on one bed.
//! - `random`: a few histories of each regime; `command`: `just histories --minutes N --seed S`.
//! - `quiet`: the newest transaction of a quiet server is open; `sequence`: rows that become pending below ids already published;
//!   `locked`: a row that another session locks.

#[expect(dead_code, unused_imports, reason = "shared with the other suites, which use the rest")]
mod support;

#[path = "histories/bed.rs"]
mod bed;
#[path = "histories/command.rs"]
mod command;
#[path = "histories/generate.rs"]
mod generate;
#[path = "histories/locked.rs"]
mod locked;
#[path = "histories/meddler.rs"]
mod meddler;
#[path = "histories/player.rs"]
mod player;
#[path = "histories/pulse.rs"]
mod pulse;
#[path = "histories/quiet.rs"]
mod quiet;
#[path = "histories/random.rs"]
mod random;
#[path = "histories/round.rs"]
mod round;
#[path = "histories/script.rs"]
mod script;
#[expect(dead_code, reason = "shared with the fault suite, which uses the rest")]
#[path = "faults/seed.rs"]
mod seed;
#[path = "histories/sequence.rs"]
mod sequence;
#[path = "histories/truth.rs"]
mod truth;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = command::run(&arguments) {
        return code;
    }
    let trials = [quiet::trials(), sequence::trials(), locked::trials(), random::trials()];
    let mut arguments = Arguments::from_args();
    // Delays are judged: more trials at a time would only measure each other.
    arguments.test_threads.get_or_insert(2);
    support::run(arguments, trials.into_iter().flatten().collect())
}
