//! Runs the flow's processes: each service, and the relay of its outbox. Any of them can be killed and started again.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio::task::block_in_place;

use super::service::Service;
use super::{OrderFlowError, OrderFlowOptions};
use crate::demo::child_server::{ChildServer, ServerCommand};
use crate::demo::directory::TemporaryDirectory;
use crate::demo::relay_process::write_private;
use crate::demo::servers::{OutboxLocation, Servers};

/// The hidden subcommand that runs a service.
pub const SUBCOMMAND: &str = "demo-service";

/// The longest start of a process. Most of it is the first rebalance of a consumer group, which brokers delay by three seconds.
const READY_WITHIN: Duration = Duration::from_secs(60);

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The grace period of a process, which ends at once if it has nothing left to do.
const DRAIN_WITHIN: Duration = Duration::from_secs(10);

/// The shortest session timeout that brokers allow by default.
pub(super) const SESSION: Duration = Duration::from_secs(6);

/// The session timeout on the mock of Kafka, which allows any value. The mock expels a which that is silent for this long even during a
/// group's first rebalance, which takes three seconds. It does not support static members, so a process that starts again waits for the end
/// of its session.
const SESSION_ON_STAND_IN: Duration = Duration::from_secs(4);

/// A process of the flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlowProcess {
    /// The service itself, which runs its handlers.
    Handlers(Service),
    /// The relay of the service's outbox.
    Relay(Service),
}

impl FlowProcess {
    /// Every process.
    pub const ALL: [Self; 8] = [
        Self::Handlers(Service::Order),
        Self::Relay(Service::Order),
        Self::Handlers(Service::Inventory),
        Self::Relay(Service::Inventory),
        Self::Handlers(Service::Payment),
        Self::Relay(Service::Payment),
        Self::Handlers(Service::Mail),
        Self::Relay(Service::Mail),
    ];

    const fn service(self) -> Service {
        match self {
            Self::Handlers(service) | Self::Relay(service) => service,
        }
    }

    /// Returns the text in its log that shows that the process is ready.
    const fn readiness(self) -> &'static str {
        match self {
            Self::Handlers(_) => "notice=partitions_assigned",
            Self::Relay(_) => "notice=ready",
        }
    }
}

impl std::fmt::Display for FlowProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Handlers(service) => write!(f, "the service `{service}`"),
            Self::Relay(service) => write!(f, "the relay of `{service}`"),
        }
    }
}

/// The processes of the flow. The order of the fields is the order of dropping: the processes before their directory.
#[derive(Debug)]
pub(super) struct Processes {
    slots: Vec<Slot>,
    directory: TemporaryDirectory,
}

#[derive(Debug)]
struct Slot {
    which: FlowProcess,
    command: ServerCommand,
    log: PathBuf,
    process: Option<ChildServer>,
}

impl Processes {
    /// Starts every process.
    pub(super) fn start(servers: &Servers, options: &OrderFlowOptions) -> io::Result<Self> {
        let directory = TemporaryDirectory::create(None)?;
        let session = if servers.are_private() { SESSION_ON_STAND_IN } else { SESSION };
        let pairs = Service::ALL.into_iter().zip(servers.locations()).map(|(service, location)| {
            let config = write_config(directory.path(), service, location)?;
            let slot = |which: FlowProcess| slot(which, directory.path(), options, &config, location, session);
            Ok([slot(FlowProcess::Handlers(service))?, slot(FlowProcess::Relay(service))?])
        });
        let slots = pairs.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect();
        let mut processes = Self { slots, directory };
        for which in FlowProcess::ALL {
            processes.start_again(which)?;
        }
        Ok(processes)
    }

    /// Starts a process that does not run.
    pub(super) fn start_again(&mut self, which: FlowProcess) -> io::Result<()> {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.which == which) else { return Ok(()) };
        let process = ChildServer::start(&slot.command)?;
        self.directory.outlives(&process)?;
        slot.process = Some(process);
        Ok(())
    }

    /// Kills a process with SIGKILL and waits until it has ended. Returns its process id.
    pub(super) fn kill(&mut self, which: FlowProcess) -> Option<u32> {
        let slot = self.slots.iter_mut().find(|slot| slot.which == which)?;
        let mut process = slot.process.take()?;
        let pid = process.pid();
        block_in_place(|| process.kill());
        Some(pid)
    }

    /// Waits until the log of every process shows that it is ready.
    pub(super) async fn until_ready(&mut self) -> Result<(), OrderFlowError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.must_run()?;
            let silent = self.slots.iter().find(|slot| !slot.says(slot.which.readiness()));
            match silent {
                None => return Ok(()),
                Some(slot) if Instant::now() > deadline => {
                    return Err(OrderFlowError::NotReady { process: slot.which, log: slot.last_words() });
                }
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Fails if a process has ended although nobody killed it.
    pub(super) fn must_run(&mut self) -> Result<(), OrderFlowError> {
        for slot in &mut self.slots {
            if slot.process.as_mut().is_some_and(|process| !process.is_running()) {
                return Err(OrderFlowError::Ended { process: slot.which, log: slot.last_words() });
            }
        }
        Ok(())
    }

    /// Stops all processes with SIGTERM and waits until they have ended. Returns the end of their logs.
    pub(super) fn stop(&mut self) -> Vec<(FlowProcess, String)> {
        block_in_place(|| {
            // In this order, so that relays can still send what handlers have emitted at the very end.
            for slot in &mut self.slots {
                slot.process = None;
            }
        });
        self.slots.iter().map(|slot| (slot.which, slot.last_line())).collect()
    }
}

impl Slot {
    fn says(&self, words: &str) -> bool {
        fs::read_to_string(&self.log).is_ok_and(|log| log.contains(words))
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn last_line(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().rfind(|line| line.contains("notice=stopped")).unwrap_or_default().to_owned()
    }
}

fn write_config(directory: &Path, service: Service, location: &OutboxLocation) -> io::Result<PathBuf> {
    let mut settings = location.setup.settings.clone();
    settings.insert("name".to_owned(), service.name().into());
    // An order has only a few events, so one worker is enough.
    settings.insert("workers".to_owned(), 1.into());
    let path = directory.join(format!("{service}.toml"));
    write_private(&path, &settings.to_string())?;
    Ok(path)
}

fn slot(
    which: FlowProcess,
    directory: &Path,
    options: &OrderFlowOptions,
    config: &Path,
    location: &OutboxLocation,
    session: Duration,
) -> io::Result<Slot> {
    let service = which.service().name();
    let (log, arguments) = match which {
        FlowProcess::Handlers(_) => {
            let session = session.as_millis().to_string();
            (format!("{service}.log"), vec![SUBCOMMAND.to_owned(), service.to_owned(), session])
        }
        FlowProcess::Relay(_) => (format!("{service}-relay.log"), vec!["run".to_owned()]),
    };
    let log = directory.join(log);
    File::create(&log)?;
    // `env` becomes the program, so the process id is the program's own.
    let command = ServerCommand::new("/usr/bin/env", directory, &log)
        .envs(&options.env)
        .args(location.setup.hidden_variables.iter().flat_map(|name| ["-u", name]))
        .args([&options.program])
        .args(arguments)
        .args(["--config".as_ref(), config.as_os_str()])
        .stops_on(Signal::SIGTERM, DRAIN_WITHIN);
    Ok(Slot { which, command, log, process: None })
}
