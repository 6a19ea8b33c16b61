//! The suite against a real Postgres and a real Kafka. `cargo test --test main -- --list` names its tests.

mod support;

#[path = "main/bench.rs"]
mod bench;
#[path = "main/servers.rs"]
mod servers;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    if let Some(code) = servers::run_as_owner() {
        return code;
    }
    support::migrate_template_with(|_url| Box::pin(async { Ok(()) }));
    support::run(Arguments::from_args(), [servers::trials(), bench::trials()].into_iter().flatten().collect())
}
