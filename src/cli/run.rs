//! Runs `outbox-relay run`.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::exit::Failure;
use super::reload::Reload;
use super::service::{Reported, Service};
use super::{check, runtime, target};
use crate::config::{AdminSettings, Settings, Sources};
use crate::inspect::check::exposures;
use crate::observe::{admin, log};
use crate::relay::{self, Ended, RelayError, RelayOptions};
use event_outbox::code::Code;
use event_outbox::notice::Notice;

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Run `migrate` first; safe if many relays start at once
    #[arg(long)]
    migrate: bool,
    /// Start without running `check`
    #[arg(long)]
    no_check: bool,
}

impl Run {
    pub(crate) fn run(self, settings: Settings, sources: Sources) -> Result<(), Failure> {
        let json = log::is_json(&settings.log);
        let runtime = runtime()?;
        let ended = runtime.block_on(self.relay(settings, sources));
        // Lets clients of Kafka end, but does not wait for a check that asks a server which does not answer.
        runtime.shutdown_timeout(CLIENTS_END);
        // With JSON logs the failure is a log line with a code as well, so that log collectors find a relay that does not start.
        ended.map_err(|failure| if json { failure.logged() } else { failure })
    }

    async fn relay(self, settings: Settings, sources: Sources) -> Result<(), Failure> {
        let brokers = settings.kafka.as_ref().map_or("", |kafka| kafka.brokers());
        let changed: Vec<_> = settings.non_defaults().iter().map(|(name, value)| format!("{name}={value}")).collect();
        tracing::info!(
            notice = %Notice::Starting,
            version = env!("CARGO_PKG_VERSION"),
            name = settings.relay.name,
            database = settings.database.target(),
            outbox = target::names(&settings.outbox).outbox(),
            brokers,
            settings = changed.join(" "),
            "outbox-relay is starting"
        );
        warn_of_exposures(&settings);
        let stop = stop_on_signals()?;
        let service = Service::connect();
        let reload = Reload::listen(sources, &settings, Arc::clone(&service))
            .map_err(|error| Failure::unexpected("signals cannot be received", error))?;
        let reloading = tokio::spawn(reload.run(stop.clone()));
        let target = settings.database.target();
        let mut options = RelayOptions::new(&settings)
            .ok_or_else(|| Failure::finding("KAFKA_BOOTSTRAP_SERVERS is needed to run a relay"))?;
        options.migrates = self.migrate;
        // The address answers before the relay waits for a server, so that a probe learns the reason of the wait.
        let admin = Admin::bind(&settings.admin, &options).await?;
        let relay =
            Reported { telemetry: options.telemetry(), stop: stop.clone(), drain: options.relay.shutdown_timeout };
        let (running, end) = oneshot::channel();
        let reporting = tokio::spawn(service.run(relay, end));
        let preflight = (!self.no_check).then(|| {
            let mut stop = stop.clone();
            tokio::spawn(async move {
                // The relay's end decides: no check runs, and no finding is logged, while the relay stops.
                tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => {}
                    () = check::preflight(settings) => {}
                }
            })
        });
        let ended = relay::run(options, stop).await;
        if let Some(preflight) = preflight {
            preflight.abort();
        }
        reloading.abort();
        drop(running);
        // Waits for the last message, unless the service manager does not read it.
        drop(tokio::time::timeout(LAST_ANSWERS, reporting).await);
        if let Some(admin) = admin {
            admin.end().await;
        }
        match ended {
            Ok(Ended::Drained) => Ok(()),
            Ok(Ended::TimedOut) => Err(Failure::finding("the relay did not drain within RELAY_SHUTDOWN_TIMEOUT")
                .code(Code::ShutdownTimeout)
                .hint("its events stay pending; the next relay sends them")),
            Err(RelayError::Task(panicked)) => {
                let cause = panicked.map_or_else(|| "it returned".to_owned(), |error| error.to_string());
                Err(Failure::unexpected("a task of the relay has ended by itself", cause)
                    .hint("report this with the log; a restart is safe, nothing is lost"))
            }
            Err(RelayError::Schema(error)) => Err(target::refused(error, &target)),
            // Each property was checked alone before, so the combination is wrong. The client's text may quote a value: do not show it.
            Err(RelayError::Client(_)) => {
                Err(Failure::finding("librdkafka refuses the combination of the KAFKA_ settings")
                    .code(Code::KafkaSettingsConflict)
                    .hint("compare KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_* and KAFKA_SSL_* with each other"))
            }
        }
    }
}

/// Logs once what the configuration exposes. `check` has a finding for each.
fn warn_of_exposures(settings: &Settings) {
    let exposed = exposures(settings);
    if exposed.is_empty() {
        return;
    }
    let ids: Vec<_> = exposed.iter().map(|finding| finding.id).collect();
    let messages: Vec<_> = exposed.iter().map(|finding| finding.message.as_str()).collect();
    tracing::warn!(
        code = %Code::InTheClear,
        findings = ids.join(" "),
        reason = messages.join(" "),
        next_step = "run `outbox-relay check`, which prints the fix of each finding",
        "the configuration exposes events or secrets"
    );
}

/// The longest time that clients of Kafka may take to end after the relay.
const CLIENTS_END: Duration = Duration::from_secs(2);

/// The longest time that a running probe or scrape may still take when the relay ends.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// The listener on the admin address, which answers until the relay has ended.
struct Admin {
    task: JoinHandle<()>,
    ended: oneshot::Sender<()>,
}

impl Admin {
    async fn bind(settings: &AdminSettings, options: &RelayOptions) -> Result<Option<Self>, Failure> {
        let Some(address) = settings.address else { return Ok(None) };
        let server = admin::Server::bind(address, settings, options.telemetry()).await.map_err(|error| {
            Failure::finding(format!("the admin address {address} cannot be listened on"))
                .because(error)
                .hint("give each relay of a host a RELAY_ADMIN_ADDRESS of its own")
        })?;
        tracing::info!(
            notice = %Notice::AdminListening,
            address = %server.address(),
            token = settings.token().is_some(),
            "the admin address answers"
        );
        let (ended, end) = oneshot::channel();
        Ok(Some(Self { task: tokio::spawn(server.serve(end)), ended }))
    }

    async fn end(self) {
        drop(self.ended);
        // A client that reads for longer is cut off when the process ends.
        drop(tokio::time::timeout(LAST_ANSWERS, self.task).await);
    }
}

/// Returns a flag that becomes true at the first SIGTERM or SIGINT. The second signal ends the process at once.
fn stop_on_signals() -> Result<watch::Receiver<bool>, Failure> {
    let failed = |error| Failure::unexpected("signals cannot be received", error);
    let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
    let (sender, receiver) = watch::channel(false);
    tokio::spawn(async move {
        for forced in [false, true] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if forced {
                tracing::warn!(
                    code = %Code::StoppedAtOnce,
                    consequence = "events in flight stay pending and may be sent again",
                    "a second signal stopped the relay"
                );
                std::process::exit(1);
            }
            sender.send_replace(true);
        }
    });
    Ok(receiver)
}
