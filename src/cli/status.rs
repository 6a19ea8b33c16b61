//! Runs `outbox-relay status`.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use sqlx::PgConnection;

use super::exit::Failure;
use super::{output, runtime, target};
use crate::config::Settings;
use crate::fault;
use crate::inspect::status::{self, Brokers, Look};
use crate::observe::print::screen;
use crate::store::backlog::{self, FlowMark};
use crate::store::connect::{self, Purpose};

/// The time between the two reads from which the rate is computed.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Print JSON; with --watch one object per line
    #[arg(long)]
    json: bool,
    /// Repeat at this interval, until interrupted
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, default_missing_value = "2s", value_parser = humantime::parse_duration)]
    watch: Option<Duration>,
}

impl Status {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(self.show(settings))
    }

    async fn show(self, settings: &Settings) -> Result<(), Failure> {
        let (names, database) = (target::names(&settings.outbox), &settings.database);
        let mut conn = connect(settings, "outbox-relay-status").await?;
        let look = Look { names: &names, topic: &settings.relay.topic, alive_for: settings.relay.alive_for() };
        // An error here is dropped: the read of the status below reports an outbox that cannot be read.
        let mut mark: Option<FlowMark> = backlog::mark(&mut conn, &names).await.ok();
        let mut pause = BETWEEN_LOOKS;
        loop {
            // Both take about as long, so the brokers cost no time.
            let ((), brokers) = tokio::join!(tokio::time::sleep(pause), Brokers::ask(settings.kafka.as_ref()));
            let mut status = status::Status::look(&mut conn, &look, &mut mark).await.map_err(|error| {
                failed(error, &format!("cannot look at {} in {}", names.outbox(), database.target()))
            })?;
            let is_answered = brokers.answer;
            status.take_brokers(brokers);
            if is_answered {
                status.read_progress(&mut conn, settings, &names).await;
            }
            let read_on = self.print(&status, &format!("{} in {}", names.outbox(), database.target()))?;
            let Some(interval) = self.watch.filter(|_| read_on) else { return Ok(()) };
            pause = interval.max(Duration::from_millis(100));
        }
    }

    /// Prints the status. Returns false if the reader has closed the pipe.
    fn print(&self, status: &status::Status, title: &str) -> Result<bool, Failure> {
        match (self.json, self.watch) {
            (true, None) => output::json(status),
            (true, Some(_)) => output::json_line(status),
            (false, Some(_)) if std::io::stdout().is_terminal() => Ok(screen(&format!("{title}\n\n{status}"))),
            (false, _) => Ok(output::text(&format!("{title}\n\n{status}"))),
        }
    }
}

/// Connects a command that only reads, among others which relays there are.
pub(super) async fn connect(settings: &Settings, application_name: &str) -> Result<PgConnection, Failure> {
    let database = &settings.database;
    let connected = connect::connect(database, application_name, Purpose::ReadRelays).await;
    let mut conn = connected.map_err(|error| failed(error, &format!("cannot connect to {}", database.target())))?;
    target::present(&mut conn, settings).await?;
    Ok(conn)
}

pub(super) fn failed(error: sqlx::Error, what: &str) -> Failure {
    let fault = fault::classify_database(&error);
    Failure::finding(what).because(error).fault(fault)
}
