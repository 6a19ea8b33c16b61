//! Runs the history suite: random interleavings of real sessions beside relays with default settings, on quiet, busy and stalled servers.
//! It also repeats the orders of events that once went wrong. The tests are black box: SQL into the outbox, records from the topic, and the
//! ledger compares them.
//!
//! - `script`: the definition of a history; `generate`: draws one from the seed.
//! - `player`: plays a session; `meddler`: plays an application that touches pending rows.
//! - `truth`: the sessions' knowledge, compared with table, topic and times of append; `pulse`: the times when nothing could move.
//! - `bed`: a database, a topic and relays; `round`: many histories on one bed.
//! - `random`: a few histories of each regime; `command`: `just histories --minutes N --seed S`.
//! - `quiet`: the newest transaction of a quiet server is open; `sequence`: rows that become pending below ids already published;
//!   `locked`: a row that another session locks.

mod bed;
mod command;
mod generate;
mod locked;
mod meddler;
mod player;
mod pulse;
mod quiet;
mod random;
mod round;
mod script;
mod sequence;
mod truth;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    lab::relay::use_binary(env!("CARGO_BIN_EXE_outbox-relay"));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = command::run(&arguments) {
        return code;
    }
    let trials = [quiet::trials(), sequence::trials(), locked::trials(), random::trials()];
    let mut arguments = Arguments::from_args();
    // Delays are checked, and more trials at a time would only slow each other down.
    arguments.test_threads.get_or_insert(2);
    lab::run(arguments, trials.into_iter().flatten().collect())
}
