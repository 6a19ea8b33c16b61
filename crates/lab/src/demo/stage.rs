//! Sets the stage for a demo: opens its servers, and removes at its end what it has created there, however it ends.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::path::PathBuf;

use event_outbox::consumer::ConsumerError;
use tokio::sync::mpsc;

use super::output::DemoOutput;
use super::servers::{DemoSchemas, ServerChoice, Servers, ServersError};
use super::watch::WatchError;

/// The options of every demo.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// The servers to run on.
    pub servers: ServerChoice,
    /// The process's environment.
    pub env: BTreeMap<String, String>,
    /// The binary that runs the relays and services.
    pub program: PathBuf,
}

/// The reason why there is no reconciliation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The user interrupted the demo.
    #[error("the demo was interrupted; what it had started is stopped and removed")]
    Interrupted,
    /// The servers cannot be used.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// A process could not be started.
    #[error("a process of the demo cannot be started")]
    Process(#[source] io::Error),
    /// A process did not become ready.
    #[error("{process} did not become ready; its log ends with:\n{log}")]
    NotReady {
        /// The process.
        process: String,
        /// The end of its log.
        log: String,
    },
    /// A process ended although nobody had killed it.
    #[error("{process} has ended by itself; its log ends with:\n{log}")]
    Ended {
        /// The process.
        process: String,
        /// The end of its log.
        log: String,
    },
    /// An order could not be placed.
    #[error("an order cannot be placed")]
    Place(#[source] Box<dyn Error + Send + Sync>),
    /// The topics cannot be read.
    #[error(transparent)]
    Watch(#[from] WatchError),
    /// The consumer failed.
    #[error("the demo's consumer cannot go on")]
    Consumer(#[from] ConsumerError),
    /// The tables cannot be created, written or read.
    #[error("the demo's tables cannot be created, written or read")]
    Tables(#[from] sqlx::Error),
}

/// Receives a message per Ctrl-C.
pub(super) type Interrupts = mpsc::Receiver<()>;

/// Runs `play` on the servers of the demo. Needs a multi-threaded runtime, because stopping processes blocks.
pub(super) async fn on_stage<T>(
    options: &DemoOptions,
    schemas: DemoSchemas,
    interrupts: &mut Interrupts,
    output: &DemoOutput,
    play: impl AsyncFnOnce(&Servers, &mut Interrupts) -> Result<T, DemoError>,
) -> Result<T, DemoError> {
    let opening = async { Ok(Servers::open(&options.servers, options.env.clone(), schemas, output).await?) };
    let mut servers = unless_interrupted(interrupts, opening).await?;
    let prepared = unless_interrupted(interrupts, async { Ok(servers.prepare(output).await?) }).await;
    let outcome = match prepared {
        Ok(()) => play(&servers, interrupts).await,
        Err(error) => Err(error),
    };
    servers.clear_away(output).await;
    outcome
}

/// Returns [`DemoError::Interrupted`] at the first interrupt.
pub(super) async fn unless_interrupted<T>(
    interrupts: &mut Interrupts,
    work: impl Future<Output = Result<T, DemoError>>,
) -> Result<T, DemoError> {
    tokio::select! {
        biased;
        Some(()) = interrupts.recv() => Err(DemoError::Interrupted),
        done = work => done,
    }
}
