//! Runs the flow's processes: each service, and the relay of its outbox. Any of them can be killed and started again.

use std::io;
use std::time::{Duration, Instant};

use super::OrderFlowOptions;
use super::service::Service;
use crate::demo::consumer::SHORTEST_SESSION;
use crate::demo::directory::TemporaryDirectory;
use crate::demo::program::Program;
use crate::demo::servers::{OutboxLocation, Servers};
use crate::demo::stage::DemoError;

/// The hidden subcommand that runs a service.
pub const SUBCOMMAND: &str = "demo-service";

/// The longest start of a process. Most of it is the first rebalance of a consumer group, which brokers delay by three seconds.
const READY_WITHIN: Duration = Duration::from_secs(60);

const LOOK_EVERY: Duration = Duration::from_millis(50);

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
    program: Program,
}

impl Processes {
    /// Starts every process.
    pub(super) fn start(servers: &Servers, options: &OrderFlowOptions) -> io::Result<Self> {
        let directory = TemporaryDirectory::create(None)?;
        let session = if servers.are_private() { SESSION_ON_STAND_IN } else { SHORTEST_SESSION };
        let locations = Service::ALL.into_iter().zip(servers.locations());
        let slots = FlowProcess::ALL.into_iter().filter_map(|which| {
            let (_, location) = locations.clone().find(|(service, _)| *service == which.service())?;
            Some(slot(which, &directory, options, location, session))
        });
        let slots = slots.collect::<io::Result<_>>()?;
        let mut processes = Self { slots, directory };
        for which in FlowProcess::ALL {
            processes.start_again(which)?;
        }
        Ok(processes)
    }

    /// Starts a process that does not run.
    pub(super) fn start_again(&mut self, which: FlowProcess) -> io::Result<()> {
        let slot = self.slots.iter_mut().find(|slot| slot.which == which);
        slot.map_or(Ok(()), |slot| slot.program.start(&mut self.directory))
    }

    /// Kills a process with SIGKILL and waits until it has ended. Returns its process id.
    pub(super) fn kill(&mut self, which: FlowProcess) -> Option<u32> {
        self.slots.iter_mut().find(|slot| slot.which == which)?.program.kill()
    }

    /// Waits until the log of every process shows that it is ready.
    pub(super) async fn until_ready(&mut self) -> Result<(), DemoError> {
        let deadline = Instant::now() + READY_WITHIN;
        loop {
            self.must_run()?;
            let silent = self.slots.iter().find(|slot| !slot.program.log().contains(slot.which.readiness()));
            match silent {
                None => return Ok(()),
                Some(Slot { which, program }) if Instant::now() > deadline => {
                    return Err(DemoError::NotReady { process: which.to_string(), log: program.last_words() });
                }
                Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Fails if a process has ended although nobody killed it.
    pub(super) fn must_run(&mut self) -> Result<(), DemoError> {
        match self.slots.iter_mut().find_map(|slot| slot.program.has_ended().then_some(slot)) {
            None => Ok(()),
            Some(Slot { which, program }) => {
                Err(DemoError::Ended { process: which.to_string(), log: program.last_words() })
            }
        }
    }

    /// Stops all processes with SIGTERM and waits until they have ended. Returns the last line of each.
    pub(super) fn stop(&mut self) -> Vec<(FlowProcess, String)> {
        // In this order, so that relays can still send what handlers have emitted at the very end.
        self.slots.iter_mut().for_each(|slot| slot.program.stop());
        self.slots.iter().map(|slot| (slot.which, slot.last_line())).collect()
    }
}

impl Slot {
    fn last_line(&self) -> String {
        let log = self.program.log();
        log.lines().rfind(|line| line.contains("notice=stopped")).unwrap_or_default().to_owned()
    }
}

fn slot(
    which: FlowProcess,
    directory: &TemporaryDirectory,
    options: &OrderFlowOptions,
    location: &OutboxLocation,
    session: Duration,
) -> io::Result<Slot> {
    let service = which.service().name();
    let mut settings = toml::Table::new();
    settings.insert("name".to_owned(), service.into());
    // An order has only a few events, so one worker is enough.
    settings.insert("workers".to_owned(), 1.into());
    let program =
        |name: &str, arguments: &[&str]| Program::new(&options.demo, location, &settings, directory, name, arguments);
    let program = match which {
        FlowProcess::Handlers(_) => program(service, &[SUBCOMMAND, service, &session.as_millis().to_string()]),
        FlowProcess::Relay(_) => program(&format!("{service}-relay"), &["run"]),
    };
    Ok(Slot { which, program: program? })
}
