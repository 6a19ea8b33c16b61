//! Reads the configuration of a running relay again: every 30 s, and on SIGHUP.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::service::Service;
use crate::config::{Needs, Settings, Sources};
use crate::observe::log;
use event_outbox::code::Code;
use event_outbox::notice::Notice;

/// The interval of reading without a signal. A secret that was rotated in its file counts after this time at the latest.
const INTERVAL: Duration = Duration::from_secs(30);

/// The settings of a running relay, and where they come from.
pub(super) struct Reload {
    sources: Sources,
    running: Settings,
    hangup: Signal,
    service: Arc<Service>,
    /// The mistakes that were logged, until they are gone.
    refused: Option<String>,
}

impl Reload {
    /// Listens for SIGHUP from now on, so that it does not end the process.
    pub(super) fn listen(sources: Sources, running: &Settings, service: Arc<Service>) -> std::io::Result<Self> {
        let hangup = signal(SignalKind::hangup())?;
        Ok(Self { sources, running: running.clone(), hangup, service, refused: None })
    }

    /// Reads the configuration again until `stop` becomes true.
    pub(super) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        loop {
            let is_asked = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                _ = self.hangup.recv() => true,
                () = tokio::time::sleep(INTERVAL) => false,
            };
            if is_asked {
                self.service.reloading().await;
            }
            self.read(is_asked);
            if is_asked {
                self.service.reloaded().await;
            }
        }
    }

    fn read(&mut self, is_asked: bool) {
        let fresh = match Settings::load(self.sources.clone(), Needs::DatabaseAndKafka) {
            Ok(fresh) => fresh,
            Err(error) => return self.refuse(error.to_string()),
        };
        if self.refused.take().is_some() {
            tracing::info!(notice = %Notice::Resolved, code = %Code::ReloadRefused, "the configuration has no mistakes any more");
        }
        let adopted = self.running.adopt(&fresh);
        if let Some(level) = &adopted.log_level {
            log::set_level(level);
            self.running.log = fresh.log;
        }
        if is_asked || !adopted.changed.is_empty() {
            let changed = if adopted.changed.is_empty() { "nothing".to_owned() } else { adopted.changed.join(", ") };
            tracing::info!(
                notice = %Notice::Reloaded,
                changed,
                needs_restart = adopted.needs_restart.join(" "),
                "the configuration was read again"
            );
        }
    }

    /// Logs mistakes once, for as long as they are the same.
    fn refuse(&mut self, mistakes: String) {
        if self.refused.as_ref() != Some(&mistakes) {
            tracing::warn!(
                code = %Code::ReloadRefused,
                reason = mistakes,
                consequence = "the relay keeps its settings",
                next_step = "correct the files; they are read again every 30 s, and on SIGHUP",
                "the configuration cannot be read again"
            );
            self.refused = Some(mistakes);
        }
    }
}
