//! `outbox-relay demo`, and the hidden command that is its stand-in for Kafka.

use std::collections::BTreeMap;
use std::io::Write;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::exit::Failure;
use super::{migrate, runtime};
use crate::demo::{self, Balance, DemoError, DemoOptions, PostgresError, ServersError, Wanted};
use crate::fault;

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Stay up until Ctrl-C and print where to connect
    #[arg(long)]
    serve: bool,
}

impl Demo {
    /// `env` is the process's environment.
    pub(crate) fn run(&self, env: BTreeMap<String, String>) -> Result<(), Failure> {
        let wanted = Wanted::from_environment(&env).map_err(|error| {
            Failure::bad_configuration(error.to_string())
                .hint(format!("set {}, or unset {}", error.missing, error.given))
        })?;
        let options = DemoOptions { wanted, env, serve: self.serve };
        let balance = runtime()?.block_on(async {
            let interrupts = interrupts()?;
            demo::run(options, interrupts, |addresses| self.tell_addresses(addresses)).await.map_err(failed)
        })?;
        if self.json {
            print(&format!("{}\n", balance.to_json()));
        } else {
            print(&balance.to_string());
        }
        judge(&balance)
    }

    /// Lines for a shell, or one line of JSON.
    fn tell_addresses(&self, addresses: &[(&'static str, String)]) {
        if self.json {
            let object: BTreeMap<_, _> = addresses.iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
            print(&format!("{}\n", serde_json::json!(object)));
            return;
        }
        for (name, value) in addresses {
            print(&format!("export {name}='{value}'\n"));
        }
    }
}

/// The hidden command.
#[derive(Debug, Args)]
pub(crate) struct DemoBroker {
    topic: String,
    partitions: i32,
}

impl DemoBroker {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        demo::serve_mock_broker(&self.topic, self.partitions)
            .map_err(|error| Failure::unexpected("the mock cluster does not run", error))
    }
}

/// Exit code 1 is for a promise that was broken.
fn judge(balance: &Balance) -> Result<(), Failure> {
    if balance.is_kept() {
        return Ok(());
    }
    let broken: Vec<_> =
        balance.promises().into_iter().filter(|promise| !promise.kept).map(|promise| promise.name).collect();
    Err(Failure::finding(format!("a promise was broken: {}", broken.join(", ")))
        .hint("this is a bug of outbox-relay; please report it with everything printed above"))
}

/// One message per SIGINT or SIGTERM.
fn interrupts() -> Result<mpsc::Receiver<()>, Failure> {
    let failed = |error| Failure::unexpected("signals cannot be received", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if sender.send(()).await.is_err() {
                return;
            }
        }
    });
    Ok(receiver)
}

/// What an error of the demo means for a new user.
fn failed(error: DemoError) -> Failure {
    match error {
        DemoError::Interrupted => Failure::interrupted(error.to_string()),
        DemoError::Servers(ServersError::Config(error)) => error.into(),
        DemoError::Servers(ServersError::Schema(error)) => migrate::refused(error, "the demo's database"),
        error => {
            let hint = hint(&error);
            Failure::unexpected("the demo did not come to its end", error).hint(hint)
        }
    }
}

fn hint(error: &DemoError) -> &'static str {
    let database = |error: &sqlx::Error| fault::of_database(error).next_step;
    match error {
        DemoError::Servers(ServersError::Postgres(error)) => match **error {
            PostgresError::Binaries(_) => {
                "install PostgreSQL (its server, version 14 or newer) or allow access to Maven Central, \
                 or set DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS to servers of yours"
            }
            _ => {
                "see the server's words above; DATABASE_URL and KAFKA_BOOTSTRAP_SERVERS make the demo use servers of yours"
            }
        },
        DemoError::Servers(ServersError::MockBroker(_)) => {
            "it listens on free ports of 127.0.0.1: see that processes may do so here"
        }
        DemoError::Servers(ServersError::Connect { source, .. }) => database(source),
        DemoError::Servers(ServersError::Topic(_)) => {
            "check that the brokers run, and that your user may create and delete topics"
        }
        DemoError::Shop(error) | DemoError::Evidence(error) => database(error),
        _ => "see the lines above; if they do not help, report them",
    }
}

/// `println!` panics when nobody reads stdout any more.
fn print(text: &str) {
    let mut stdout = std::io::stdout().lock();
    drop(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use super::*;

    #[test]
    fn a_broken_promise_exits_1() {
        let kept = Balance::default();
        assert!(judge(&kept).is_ok());
        let broken = Balance { not_applied: 1, ..Balance::default() };
        assert_eq!(judge(&broken).unwrap_err().report(), ExitCode::from(1));
    }
}
