//! The fault suite: every fault of docs/reliability.md, against a real Postgres, a real Kafka and relays as processes, with a proxy
//! between each relay and each server and an application that writes all the while. After each the ledger is drawn up.
//!
//! `cargo test --test faults -- <trial>` runs one, `OUTBOX_RELAY_SEED=…` replays a seed, `just soak --minutes N` mixes all of them.

#[expect(dead_code, unused_imports, reason = "shared with the main suite, which uses the rest")]
mod support;

#[path = "faults/broker.rs"]
mod broker;
#[path = "faults/crew.rs"]
mod crew;
#[path = "faults/database.rs"]
mod database;
#[path = "faults/exactly_once.rs"]
mod exactly_once;
#[path = "faults/failover.rs"]
mod failover;
#[path = "faults/fault.rs"]
mod fault;
#[path = "faults/fencing.rs"]
mod fencing;
#[path = "faults/hostile_rows.rs"]
mod hostile_rows;
#[path = "faults/ids_go_back.rs"]
mod ids_go_back;
#[path = "faults/locks.rs"]
mod locks;
#[path = "faults/many_topics.rs"]
mod many_topics;
#[path = "faults/proxy.rs"]
mod proxy;
#[path = "faults/quiet.rs"]
mod quiet;
#[path = "faults/refused_marks.rs"]
mod refused_marks;
#[path = "faults/relays.rs"]
mod relays;
#[path = "faults/sampler.rs"]
mod sampler;
#[path = "faults/seed.rs"]
mod seed;
#[path = "faults/soak.rs"]
mod soak;
#[path = "faults/stage.rs"]
mod stage;
#[path = "faults/table_shapes.rs"]
mod table_shapes;
#[path = "faults/takeover.rs"]
mod takeover;
#[path = "faults/volume.rs"]
mod volume;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(code) = soak::run(&arguments) {
        return code;
    }
    support::migrate_template_with(|url| Box::pin(support::outbox::migrate(url)));
    let trials = [
        relays::trials(),
        database::trials(),
        broker::trials(),
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
        table_shapes::trials(),
        soak::trials(),
    ];
    let mut arguments = Arguments::from_args();
    // Each has relays, proxies, a load and perhaps a broker of its own: with more at a time acks take longer than relays wait for them.
    arguments.test_threads.get_or_insert(2);
    support::run(arguments, trials.into_iter().flatten().collect())
}
