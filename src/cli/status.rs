//! `outbox-relay status`.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use sqlx::PgConnection;

use super::exit::Failure;
use super::{migrate, runtime};
use crate::config::Settings;
use crate::fault;
use crate::status::{self, Look};
use crate::store::backlog::{self, FlowMark};
use crate::store::session;

/// Between the two looks that the rate is measured by.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// Three heartbeats of the slowest relay that can be configured are 30 s; of the default 3 s. Relays judge each other by their own
/// interval, which the register does not hold.
const HEARTBEATS: u32 = 3;

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print it as one JSON object; with --watch one on each line
    #[arg(long)]
    json: bool,
    /// Look again and again, until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = humantime::parse_duration)]
    watch: Option<Duration>,
}

impl Status {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.show(settings))
    }

    async fn show(self, settings: &Settings) -> Result<(), Failure> {
        let (names, database) = (migrate::names(&settings.outbox), &settings.database);
        let mut conn = connect(settings, "outbox-relay-status").await?;
        let look = Look {
            names: &names,
            topic: &settings.relay.topic,
            alive_for: settings.relay.heartbeat_interval * HEARTBEATS,
        };
        // An outbox that cannot be read is told by the look itself.
        let mut mark: Option<FlowMark> = backlog::mark(&mut conn, &names).await.ok();
        let mut pause = BETWEEN_LOOKS;
        loop {
            tokio::time::sleep(pause).await;
            let status = status::Status::look(&mut conn, &look, &mut mark).await.map_err(|error| {
                failed(error, &format!("cannot look at {} in {}", names.outbox(), database.target()))
            })?;
            let Some(interval) = self.watch else {
                return self.print(&status, &format!("{} in {}", names.outbox(), database.target()));
            };
            if !self.json && std::io::stdout().is_terminal() {
                // Home, then clear below: less flicker than clearing first.
                print!("\u{1b}[H\u{1b}[J");
            }
            self.print(&status, &format!("{} in {}", names.outbox(), database.target()))?;
            pause = interval.max(Duration::from_millis(100));
        }
    }

    fn print(&self, status: &status::Status, title: &str) -> Result<(), Failure> {
        if !self.json {
            println!("{title}\n\n{status}");
            return Ok(());
        }
        let text =
            if self.watch.is_some() { serde_json::to_string(status) } else { serde_json::to_string_pretty(status) };
        println!("{}", text.map_err(|error| Failure::unexpected("the status cannot be written as JSON", error))?);
        Ok(())
    }
}

/// A connection for a command that looks.
pub(super) async fn connect(settings: &Settings, application_name: &str) -> Result<PgConnection, Failure> {
    let database = &settings.database;
    let connected = session::connect(&database.connect_options(), application_name, database.connect_timeout).await;
    connected.map_err(|error| failed(error, &format!("cannot connect to {}", database.target())))
}

pub(super) fn failed(error: sqlx::Error, what: &str) -> Failure {
    let hint = fault::of_database(&error).next_step;
    Failure::finding(what).because(error).hint(hint)
}
