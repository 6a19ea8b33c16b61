//! The suite against a real Postgres and a real Kafka. `cargo test --test main -- --list` names its tests.

#[expect(dead_code, unused_imports, reason = "shared with the fault suite, which uses the rest")]
mod support;

#[path = "main/bench.rs"]
mod bench;
#[path = "main/check.rs"]
mod check;
#[path = "main/cli.rs"]
mod cli;
#[path = "main/consumers.rs"]
mod consumers;
#[path = "main/crashes.rs"]
mod crashes;
#[path = "main/dead.rs"]
mod dead;
#[path = "main/demo.rs"]
mod demo;
#[path = "main/dlq.rs"]
mod dlq;
#[path = "main/guarantees.rs"]
mod guarantees;
#[path = "main/health.rs"]
mod health;
#[path = "main/held_snapshot.rs"]
mod held_snapshot;
#[path = "main/inbox.rs"]
mod inbox;
#[path = "main/metrics.rs"]
mod metrics;
#[path = "main/migrations.rs"]
mod migrations;
#[path = "main/order.rs"]
mod order;
#[path = "main/order_flow.rs"]
mod order_flow;
#[path = "main/outages.rs"]
mod outages;
#[path = "main/pause.rs"]
mod pause;
#[path = "main/plans.rs"]
mod plans;
#[path = "main/poison.rs"]
mod poison;
#[path = "main/registry.rs"]
mod registry;
#[path = "main/replay.rs"]
mod replay;
#[path = "main/retention.rs"]
mod retention;
#[path = "main/roles.rs"]
mod roles;
#[path = "main/secrets.rs"]
mod secrets;
#[path = "main/servers.rs"]
mod servers;
#[path = "main/snippets.rs"]
mod snippets;
#[path = "main/status.rs"]
mod status;
#[path = "main/tail.rs"]
mod tail;
#[path = "main/topics.rs"]
mod topics;
#[path = "main/verify.rs"]
mod verify;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    if let Some(code) = servers::run_as_owner().or_else(consumers::run_as_member) {
        return code;
    }
    support::migrate_template_with(|url| Box::pin(support::outbox::migrate(url)));
    let trials = [
        servers::trials(),
        cli::trials(),
        secrets::trials(),
        check::trials(),
        bench::trials(),
        migrations::trials(),
        inbox::trials(),
        consumers::trials(),
        snippets::trials(),
        plans::trials(),
        guarantees::trials(),
        order::trials(),
        poison::trials(),
        topics::trials(),
        registry::trials(),
        dead::trials(),
        dlq::trials(),
        replay::trials(),
        pause::trials(),
        retention::trials(),
        roles::trials(),
        crashes::trials(),
        outages::trials(),
        verify::trials(),
        demo::trials(),
        order_flow::trials(),
        status::trials(),
        health::trials(),
        held_snapshot::trials(),
        metrics::trials(),
        tail::trials(),
    ];
    support::run(Arguments::from_args(), trials.into_iter().flatten().collect())
}
