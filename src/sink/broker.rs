//! Whether the cluster can be reached. One client of the relay watches; the workers' producers tell it when they doubt.
//!
//! States: unknown -> up; up -> suspected (a client lost all brokers, a batch timed out, or it was not asked for a while) -> up or
//! down (it did not answer);
//! down -> up. While it is not up, no worker opens a transaction.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use tokio::sync::{mpsc, watch};

use crate::fault::{self, Class, Fault};
use crate::sink::client::ClientSettings;
use crate::sink::delivery::log_line;

/// How long the cluster may take to answer before it counts as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the client's callbacks are served after each question.
const SERVING_TIME: Duration = Duration::from_millis(20);

/// How often it is asked while it is down: the first event after its return waits this long at the most.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often it is asked when nobody doubts: a client with nothing to send does not notice that its brokers are gone.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// The cluster did not answer, or is known to be down.
#[derive(Debug, thiserror::Error)]
#[error("the Kafka cluster does not answer")]
pub(crate) struct BrokerDown;

/// A reason to doubt that the cluster can be reached.
#[derive(Debug, Clone)]
pub(crate) struct Doubt {
    reason: String,
    fault: Fault,
    tells: Tells,
}

/// How much a doubt explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tells {
    /// "2/2 brokers are down", a batch that timed out.
    Nothing,
    /// "Connection refused", a name that cannot be resolved.
    Something,
    /// A login or a certificate that was refused: lost connections follow from it and explain nothing.
    TheCause,
}

impl Doubt {
    fn of(code: RDKafkaErrorCode, reason: &str) -> Self {
        let fault = fault::of_kafka(code);
        let tells = match code {
            RDKafkaErrorCode::AllBrokersDown => Tells::Nothing,
            _ if fault.class == Class::Operator => Tells::TheCause,
            _ => Tells::Something,
        };
        Self { reason: reason.to_owned(), fault, tells }
    }

    /// That it does not answer is all that is known.
    fn silence() -> Self {
        Self::of(RDKafkaErrorCode::AllBrokersDown, "no broker answers")
    }

    /// The later one, unless it says less.
    fn or(self, later: Doubt) -> Self {
        if self.tells > later.tells { self } else { later }
    }
}

/// Reasons to doubt that the cluster can be reached, from librdkafka's threads and from workers.
#[derive(Debug, Clone)]
pub(crate) struct Suspicions(mpsc::UnboundedSender<Doubt>);

impl Suspicions {
    /// An error of a client as a whole.
    pub(crate) fn client_error(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(target: "librdkafka", code = ?code, "{reason}");
        if !matches!(code, Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::GaplessGuarantee)) {
            // Fails only when the relay is gone.
            let _ = self.0.send(Doubt::of(code.unwrap_or(RDKafkaErrorCode::AllBrokersDown), reason));
        }
    }

    /// A batch was not acknowledged in time, or the like.
    pub(crate) fn raise(&self, reason: &str) {
        // Fails only when the relay is gone.
        let _ = self.0.send(Doubt::of(RDKafkaErrorCode::AllBrokersDown, reason));
    }
}

/// The watching client.
pub(crate) struct Broker {
    client: BaseProducer<WatchContext>,
    state: watch::Sender<bool>,
    suspicions: Suspicions,
}

struct WatchContext(Suspicions);

impl ClientContext for WatchContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.client_error(&error, reason);
    }
}

impl ProducerContext<NoCustomPartitioner> for WatchContext {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

/// What the watch tells: the cluster went away, stays away for this reason, or came back.
#[derive(Debug)]
pub(crate) enum BrokerChange {
    Down { reason: String, fault: Fault },
    Up,
}

impl Broker {
    /// # Errors
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn new(settings: &ClientSettings) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Doubt>), KafkaError> {
        let (sender, doubts) = mpsc::unbounded_channel();
        let suspicions = Suspicions(sender);
        let client = settings.config().create_with_context(WatchContext(suspicions.clone()))?;
        let broker = Self { client, state: watch::Sender::new(false), suspicions };
        Ok((Arc::new(broker), doubts))
    }

    /// Where to raise doubts.
    pub(crate) fn suspicions(&self) -> Suspicions {
        self.suspicions.clone()
    }

    /// Becomes true when the cluster is up.
    pub(crate) fn state(&self) -> watch::Receiver<bool> {
        self.state.subscribe()
    }

    /// Watches until nobody listens to `changes`: one when the cluster goes away, one when it is back.
    pub(crate) async fn watch(
        self: Arc<Self>,
        mut doubts: mpsc::UnboundedReceiver<Doubt>,
        changes: mpsc::UnboundedSender<BrokerChange>,
    ) {
        let mut doubt = Doubt::silence();
        loop {
            if !self.answers().await {
                while let Ok(later) = doubts.try_recv() {
                    doubt = doubt.or(later);
                }
                self.state.send_replace(false);
                let tell = |doubt: &Doubt| {
                    changes.send(BrokerChange::Down { reason: doubt.reason.clone(), fault: doubt.fault })
                };
                let told = tell(&doubt);
                self.until_it_answers(&mut doubts, |doubt| drop(tell(&doubt))).await;
                if told.and_then(|()| changes.send(BrokerChange::Up)).is_err() {
                    return;
                }
            }
            self.state.send_replace(true);
            // One broker of several that is away raises doubts all the time: a pause keeps the cluster from being asked as often.
            tokio::time::sleep(RETRY_MIN).await;
            doubt = match tokio::time::timeout(ASK_EVERY, doubts.recv()).await {
                Ok(Some(raised)) => raised,
                Ok(None) => return,
                Err(_) => Doubt::silence(),
            };
            // What is doubted from here on is asked about again: it may have gone right after it answered.
            while let Ok(later) = doubts.try_recv() {
                doubt = doubt.or(later);
            }
        }
    }

    /// What keeps it away may change meanwhile: a broker comes back, and with another password.
    async fn until_it_answers(
        self: &Arc<Self>,
        doubts: &mut mpsc::UnboundedReceiver<Doubt>,
        mut tell: impl FnMut(Doubt),
    ) {
        let mut pause = RETRY_MIN;
        loop {
            let jitter = rand::rng().random_range(0.75..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            if self.answers().await {
                return;
            }
            let raised = std::iter::from_fn(|| doubts.try_recv().ok()).reduce(Doubt::or);
            if let Some(doubt) = raised.filter(|doubt| doubt.tells > Tells::Nothing) {
                tell(doubt);
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn answers(self: &Arc<Self>) -> bool {
        self.ask(|broker| {
            broker.client.client().fetch_metadata(None, ANSWER_TIMEOUT).map(|all| !all.brokers().is_empty())
        })
        .await
        .unwrap_or(false)
    }

    /// What the cluster says against writing `topic`, if anything.
    ///
    /// # Errors
    /// [`BrokerDown`] when it does not answer.
    pub(crate) async fn topic_error(self: &Arc<Self>, topic: &str) -> Result<Option<RDKafkaErrorCode>, BrokerDown> {
        let topic = topic.to_owned();
        let answer = self
            .ask(move |broker| {
                let metadata = broker.client.client().fetch_metadata(Some(&topic), ANSWER_TIMEOUT)?;
                let found = metadata.topics().iter().find(|found| found.name() == topic);
                Ok(match found {
                    Some(found) => found.error().map(RDKafkaErrorCode::from),
                    None => Some(RDKafkaErrorCode::UnknownTopicOrPartition),
                })
            })
            .await;
        answer.map_err(|error| {
            self.suspicions.raise(&error.to_string());
            BrokerDown
        })
    }

    /// librdkafka's metadata calls block.
    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        question: impl FnOnce(&Self) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let broker = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let answer = question(&broker);
            // Serves the callbacks: errors and log lines queue up otherwise. One event is served per call once the time is over.
            broker.client.poll(SERVING_TIME);
            answer
        })
        .await
        .unwrap_or(Err(KafkaError::Canceled))
    }
}
