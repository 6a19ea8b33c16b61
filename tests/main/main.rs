//! Runs the suite against a real Postgres and a real Kafka. `cargo test --test main -- --list` names its tests.

mod adopt;
mod bench;
mod capture;
mod check;
mod cli;
mod compare;
mod connections;
mod consumers;
mod containers;
mod crashes;
mod dead;
mod demo;
mod dlq;
mod documents;
mod emit;
mod guarantees;
mod health;
mod held_snapshot;
mod hostile;
mod import;
mod inbox;
mod logins;
mod mallory;
mod managed;
mod metrics;
mod migrations;
mod odd_databases;
mod order;
mod order_flow;
mod outages;
mod parity;
mod pause;
mod plans;
mod poison;
mod registry;
mod reload;
mod replay;
mod retention;
mod roles;
mod route;
mod secrets;
mod servers;
mod settle;
mod shadow;
mod snippets;
mod status;
mod surface;
mod switch;
mod systemd;
mod tail;
mod terminal;
mod tls;
mod topics;
mod trust;
mod verify;
mod wake_up;

use std::process::ExitCode;

use libtest_mimic::Arguments;

/// Trials that take a minute or more. CI runs a part of them: see [`lab::share`].
const SLOWEST: &[&str] = &[
    "switch::the_page_about",
    "logins::tokens_of",
    "logins::passwords_and_certificates",
    "consumers::programs::the_programs_of_the_pages",
    "settle::killed_relays_that_delete_in_transactions",
    "registry::the_row_of_a_killed_relay_is_removed",
];

fn main() -> ExitCode {
    lab::relay::use_binary(env!("CARGO_BIN_EXE_outbox-relay"));
    if let Some(code) = servers::run_as_owner().or_else(consumers::run_as_member) {
        return code;
    }
    lab::migrate_template_with(|url| Box::pin(lab::outbox::migrate(url)));
    let trials = [
        servers::trials(),
        cli::trials(),
        compare::trials(),
        compare::stopped::trials(),
        secrets::trials(),
        shadow::trials(),
        check::trials(),
        bench::trials(),
        migrations::trials(),
        surface::trials(),
        import::trials(),
        import::names::trials(),
        import::secrets::trials(),
        import::wakes::trials(),
        inbox::trials(),
        connections::trials(),
        consumers::trials(),
        tls::trials(),
        logins::trials(),
        snippets::trials(),
        documents::trials(),
        plans::trials(),
        guarantees::trials(),
        odd_databases::trials(),
        order::trials(),
        poison::trials(),
        topics::trials(),
        registry::trials(),
        reload::trials(),
        dead::trials(),
        emit::trials(),
        dlq::trials(),
        replay::trials(),
        parity::trials(),
        pause::trials(),
        retention::trials(),
        roles::trials(),
        route::trials(),
        crashes::trials(),
        settle::trials(),
        outages::trials(),
        trust::trials(),
        verify::trials(),
        wake_up::trials(),
        demo::trials(),
        containers::trials(),
        managed::trials(),
        order_flow::trials(),
        status::trials(),
        switch::trials(),
        health::trials(),
        systemd::trials(),
        held_snapshot::trials(),
        hostile::trials(),
        terminal::trials(),
        metrics::trials(),
        tail::trials(),
        adopt::trials(),
        capture::trials(),
    ];
    let trials = lab::share_of(SLOWEST, trials.into_iter().flatten().collect());
    lab::run(Arguments::from_args(), trials)
}
