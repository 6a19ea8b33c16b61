//! Runs the fault suite: every fault of docs/explanation/reliability.md, against a real Postgres, a real Kafka and relays as processes. A
//! proxy is between each relay and each server, and an application writes during the whole trial. After each trial the ledger checks the
//! result.
//!
//! `OUTBOX_RELAY_TEST_SHARE=2` runs every second one, drawn by the seed.
//! `cargo test --test faults -- <trial>` runs one, `OUTBOX_RELAY_SEED=…` replays a seed, `just soak --minutes N` mixes all of them.

mod broker;
mod database;
mod exactly_once;
mod failover;
mod fault;
mod fencing;
mod hostile_rows;
mod ids_go_back;
mod locks;
mod many_topics;
mod partitions;
mod produce_errors;
mod proxied_relay;
mod proxy;
mod quiet;
mod refused_marks;
mod relays;
mod sampler;
mod soak;
mod stage;
mod table_shapes;
mod takeover;
mod upgrade;
mod volume;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    lab::relay::use_binary(env!("CARGO_BIN_EXE_outbox-relay"));
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = soak::run(&arguments) {
        return code;
    }
    lab::migrate_template_with(|url| Box::pin(lab::outbox::migrate(url)));
    let trials = [
        relays::trials(),
        database::trials(),
        broker::trials(),
        produce_errors::trials(),
        fencing::trials(),
        exactly_once::trials(),
        volume::trials(),
        failover::trials(),
        ids_go_back::trials(),
        quiet::trials(),
        takeover::trials(),
        locks::trials(),
        refused_marks::trials(),
        hostile_rows::trials(),
        many_topics::trials(),
        partitions::trials(),
        table_shapes::trials(),
        upgrade::trials(),
        soak::trials(),
    ];
    let mut arguments = Arguments::from_args();
    // Each trial has relays, proxies, a load and perhaps its own broker. With more trials at once, acks take longer than relays wait.
    arguments.test_threads.get_or_insert(2);
    lab::run(arguments, lab::share(trials.into_iter().flatten().collect()))
}
