//! Runs `outbox-relay demo`, `demo order-flow`, and the hidden commands that are the mock Kafka and the services of the order flow.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::{Args, Subcommand};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use lab::demo::{
    self, DemoError, DemoOptions, OrderFlowOptions, OwnServers, PostgresError, Reconciliation, ServerChoice,
    ServersError, Service, ServiceLocation, is_relay_variable, names_own_servers,
};
use rdkafka::ClientConfig;

use super::confirm::UseServers;
use super::exit::Failure;
use super::{output, runtime, target};
use crate::config::{KafkaSettings, Needs, Settings, Sources};
use crate::fault;
use crate::observe::print::{out, outln};
use event_outbox::Names;

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Demo {
    #[command(subcommand)]
    act: Option<Act>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Keep the servers up until Ctrl-C and print their addresses
    #[arg(long)]
    serve: bool,
    #[command(flatten)]
    own: UseServers,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Run four services (orders, inventory, payment, mail) by events alone: compensation, deadlines, two versions of an event, a kill
    ///
    /// Shows a line per order and ends with a reconciliation of stock, payments and mails with the orders; exit 1 if they do not agree.
    OrderFlow(OrderFlow),
}

#[derive(Debug, Args)]
struct OrderFlow {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    own: UseServers,
}

impl Demo {
    /// Runs the demo. `env` is the process's environment.
    pub(crate) fn run(&self, env: BTreeMap<String, String>) -> Result<(), Failure> {
        let own = self.act.as_ref().map_or(self.own, |Act::OrderFlow(flow)| flow.own);
        let servers = server_choice(&env, own)?;
        let program = std::env::current_exe()
            .map_err(|error| Failure::unexpected("the demo cannot find its own program", error))?;
        let options = DemoOptions { servers, env, program };
        let reconciliation = runtime()?.block_on(async {
            let interrupts = interrupts()?;
            let result = match &self.act {
                Some(Act::OrderFlow(_)) => demo::run_order_flow(OrderFlowOptions::short(options), interrupts).await,
                None => {
                    let serving = self.serve.then_some(|addresses: &_| self.show_addresses(addresses));
                    demo::run(options, interrupts, serving).await
                }
            };
            result.map_err(failed)
        })?;
        let json = self.act.as_ref().map_or(self.json, |Act::OrderFlow(flow)| flow.json);
        match json {
            true => drop(output::json_line(&reconciliation.to_json())?),
            false => out!("\n{reconciliation}"),
        }
        check(&reconciliation)
    }

    /// Prints the addresses as lines for a shell, or as one line of JSON.
    fn show_addresses(&self, addresses: &[(&'static str, String)]) {
        if self.json {
            let object: BTreeMap<_, _> = addresses.iter().map(|(name, value)| (name.to_lowercase(), value)).collect();
            let _ = output::json_line(&object);
            return;
        }
        for (name, value) in addresses {
            outln!("export {name}='{value}'");
        }
    }
}

/// The hidden command that is the mock Kafka.
#[derive(Debug, Args)]
pub(crate) struct DemoBroker {
    partitions: i32,
    topics: Vec<String>,
}

impl DemoBroker {
    pub(crate) fn run(&self) -> Result<(), Failure> {
        demo::serve_mock_broker(&self.topics, self.partitions)
            .map_err(|error| Failure::unexpected("the mock cluster does not run", error))
    }
}

/// The hidden command that is one service of the order flow. It reads the settings of its relay.
#[derive(Debug, Args)]
pub(crate) struct DemoService {
    #[arg(value_parser = clap::value_parser!(Service))]
    service: Service,
    session_timeout_ms: u64,
}

impl DemoService {
    pub(crate) fn run(&self, settings: &Settings) -> Result<(), Failure> {
        let session_timeout = Duration::from_millis(self.session_timeout_ms);
        runtime()?.block_on(async {
            let mut interrupts = interrupts()?;
            let stop = async move {
                let _ = interrupts.recv().await;
            };
            demo::serve_service(self.service, service_location(settings), session_timeout, stop)
                .await
                .map_err(|error| Failure::unexpected(format!("the service {} cannot go on", self.service), error))
        })
    }
}

/// Returns the servers that the environment names, or private ones.
fn server_choice(env: &BTreeMap<String, String>, own: UseServers) -> Result<ServerChoice, Failure> {
    let are_own = names_own_servers(env).map_err(|error| {
        Failure::bad_configuration(error.to_string()).hint(format!("set {}, or unset {}", error.missing, error.given))
    })?;
    if !are_own {
        return Ok(ServerChoice::Private);
    }
    // The user's settings of Postgres and Kafka apply to the demo, those of the user's relay do not.
    let env = env.iter().filter(|(name, _)| !is_relay_variable(name));
    let env = env.map(|(name, value)| (name.clone(), value.clone())).collect();
    let settings = Settings::load(Sources { file: None, env, overrides: Vec::new() }, Needs::DatabaseAndKafka)?;
    own.ask("Run the demo, which creates schemas and topics of its own and removes them at the end,", &settings)?;
    let database = &settings.database;
    Ok(ServerChoice::Own(Box::new(OwnServers {
        database: database.connect_options(),
        connect_timeout: database.connect_timeout,
        target: database.target(),
        kafka: settings.kafka.as_ref().map(consumer_config).unwrap_or_default(),
    })))
}

/// Returns the location that a service of the order flow shares with its relay: database, table and brokers.
fn service_location(settings: &Settings) -> ServiceLocation {
    let outbox = &settings.outbox;
    ServiceLocation {
        names: Names::new(&outbox.schema, &outbox.table, &outbox.processed_table),
        database: settings.database.connect_options(),
        kafka: settings.kafka.as_ref().map(consumer_config).unwrap_or_default(),
        topics: settings.relay.topic.to_string(),
    }
}

/// Returns the client configuration of a consumer, with the brokers under librdkafka's own property name.
fn consumer_config(kafka: &KafkaSettings) -> ClientConfig {
    let mut config = kafka.consumer_config(&[]);
    config.remove("metadata.broker.list");
    config.set("bootstrap.servers", kafka.brokers());
    config
}

/// Fails with exit code 1 if a promise was broken.
fn check(reconciliation: &Reconciliation) -> Result<(), Failure> {
    if reconciliation.is_kept() {
        return Ok(());
    }
    Err(Failure::finding(format!("a promise was broken: {}", reconciliation.broken().join(", ")))
        .hint("this is a bug of outbox-relay; please report it with everything printed above"))
}

/// Returns a channel with one message per SIGINT or SIGTERM.
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

/// Turns an error of the demo into a failure with a hint for a new user.
fn failed(error: DemoError) -> Failure {
    match error {
        DemoError::Interrupted => Failure::interrupted(error.to_string()),
        DemoError::Servers(ServersError::Schema(error)) => target::refused(error, "the demo's database"),
        error => {
            let hint = hint(&error);
            Failure::unexpected("the demo did not come to its end", error).hint(hint)
        }
    }
}

fn hint(error: &DemoError) -> &'static str {
    let database = |error: &sqlx::Error| fault::classify_database(error).next_step;
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
        DemoError::Tables(error) => database(error),
        _ => "see the lines above; if they do not help, report them",
    }
}

#[cfg(test)]
mod tests {
    use std::process::ExitCode;

    use lab::demo::Promise;

    use super::*;

    #[test]
    fn a_broken_promise_exits_1() {
        let result = |kept| {
            let promise = Promise { name: "published", kept, count: 1, words: String::new() };
            Reconciliation { promises: vec![promise], ..Reconciliation::default() }
        };
        assert!(check(&result(true)).is_ok());
        assert_eq!(check(&result(false)).unwrap_err().report(), ExitCode::from(1));
    }
}
