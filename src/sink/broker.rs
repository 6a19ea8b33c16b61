//! Whether the cluster can be reached. One client of the relay watches; the workers' producers report to it when they suspect an outage.
//!
//! The client is a plain producer that sends nothing. An idempotent one is broken for good when the right to be one is missing, and
//! then does not connect again. A client that gets no answer for long is made anew.
//!
//! States: unknown -> up; up -> suspected (a client lost all brokers, a batch timed out, or it was not asked for a while) -> up or
//! down (it did not answer);
//! down -> up. While it is not up, no worker opens a transaction.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use tokio::sync::{mpsc, watch};

use crate::fault::{self, Class, Fault};
use crate::sink::client::ClientSettings;
use crate::sink::client::log_line;
use crate::sink::topics::{Answer, Topics};
use event_outbox::backoff::Backoff;

/// How long the cluster may take to answer before it counts as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the client's callbacks are served after each question.
const SERVING_TIME: Duration = Duration::from_millis(20);

/// How often it is asked while it is down: the first event after its return waits this long at the most.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// How often it is asked when nobody suspects it: a client with nothing to send does not notice that its brokers are gone.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// A client without an answer for this long is made anew.
const CLIENT_KEPT: Duration = Duration::from_secs(10);

/// librdkafka keeps every topic it was asked for, and asks for those that are missing once a second: a client that has asked for more
/// is made anew.
const NAMES_KEPT: usize = 64;

/// What the watch asks for while no topic is known: any answer will do, and this topic is on most clusters.
const ANY_TOPIC: &str = "__consumer_offsets";

/// The cluster did not answer, or is known to be down.
#[derive(Debug, thiserror::Error)]
#[error("the Kafka cluster does not answer")]
pub(crate) struct BrokerDown;

/// A reason to suspect that the cluster cannot be reached.
#[derive(Debug, Clone)]
pub(crate) struct Suspicion {
    reason: String,
    fault: Fault,
    explains: Explains,
}

/// How much a suspicion explains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Explains {
    /// "2/2 brokers are down", a batch that timed out.
    Nothing,
    /// "Connection refused", a name that cannot be resolved.
    Something,
    /// A login or a certificate that was refused: lost connections follow from it and explain nothing.
    TheCause,
}

impl Suspicion {
    fn from_code(code: RDKafkaErrorCode, reason: &str) -> Self {
        let fault = fault::classify_kafka(code);
        let explains = match code {
            RDKafkaErrorCode::AllBrokersDown => Explains::Nothing,
            _ if fault.class == Class::ActionRequired => Explains::TheCause,
            _ => Explains::Something,
        };
        Self { reason: reason.to_owned(), fault, explains }
    }

    /// That it does not answer is all that is known.
    fn silence() -> Self {
        Self::from_code(RDKafkaErrorCode::AllBrokersDown, "no broker answers")
    }

    /// The later one, unless it says less.
    fn or(self, later: Suspicion) -> Self {
        if self.explains > later.explains { self } else { later }
    }
}

/// Takes suspicions from librdkafka's threads and from workers.
#[derive(Debug, Clone)]
pub(crate) struct SuspicionSender(mpsc::UnboundedSender<Suspicion>);

impl SuspicionSender {
    /// An error of a client as a whole.
    pub(crate) fn client_error(&self, error: &KafkaError, reason: &str) {
        let code = error.rdkafka_error_code();
        tracing::debug!(target: "librdkafka", kafka_code = ?code, "{reason}");
        if !matches!(code, Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::GaplessGuarantee)) {
            // Fails only when the relay is gone.
            let _ = self.0.send(Suspicion::from_code(code.unwrap_or(RDKafkaErrorCode::AllBrokersDown), reason));
        }
    }

    /// A batch was not acknowledged in time, or the like.
    pub(crate) fn raise(&self, reason: &str) {
        // Fails only when the relay is gone.
        let _ = self.0.send(Suspicion::from_code(RDKafkaErrorCode::AllBrokersDown, reason));
    }
}

/// The watching client.
pub(crate) struct Broker {
    config: ClientConfig,
    client: Mutex<Client>,
    state: watch::Sender<bool>,
    suspicions: SuspicionSender,
}

struct Client {
    producer: Arc<BaseProducer<WatchContext>>,
    /// The topics it was asked for.
    names: HashSet<String>,
    made_at: Instant,
}

impl Client {
    fn new(config: &ClientConfig, suspicions: &SuspicionSender) -> Result<Self, KafkaError> {
        let producer = config.create_with_context(WatchContext(suspicions.clone()))?;
        Ok(Self { producer: Arc::new(producer), names: HashSet::new(), made_at: Instant::now() })
    }
}

struct WatchContext(SuspicionSender);

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

/// What the watch reports: the cluster went away, stays away for this reason, or came back.
#[derive(Debug)]
pub(crate) enum BrokerChange {
    Down { reason: String, fault: Fault },
    Up,
}

impl Broker {
    /// # Errors
    /// What librdkafka finds wrong with the settings; the message may quote one.
    pub(crate) fn new(
        settings: &ClientSettings,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Suspicion>), KafkaError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let suspicions = SuspicionSender(sender);
        let config = settings.watching();
        let client = Mutex::new(Client::new(&config, &suspicions)?);
        let broker = Self { config, client, state: watch::Sender::new(false), suspicions };
        Ok((Arc::new(broker), receiver))
    }

    /// Returns where to raise suspicions.
    pub(crate) fn suspicions(&self) -> SuspicionSender {
        self.suspicions.clone()
    }

    /// Becomes true when the cluster is up.
    pub(crate) fn state(&self) -> watch::Receiver<bool> {
        self.state.subscribe()
    }

    /// Watches until nobody listens to `changes`: one when the cluster goes away, one when it is back. What it hears of `topics` is
    /// theirs to know.
    pub(crate) async fn watch(
        self: Arc<Self>,
        topics: Arc<Topics>,
        mut suspicions: mpsc::UnboundedReceiver<Suspicion>,
        changes: mpsc::UnboundedSender<BrokerChange>,
    ) {
        let mut suspicion = Suspicion::silence();
        loop {
            if !self.answers(&topics).await {
                while let Ok(later) = suspicions.try_recv() {
                    suspicion = suspicion.or(later);
                }
                self.state.send_replace(false);
                let report = |suspicion: &Suspicion| {
                    changes.send(BrokerChange::Down { reason: suspicion.reason.clone(), fault: suspicion.fault })
                };
                let reported = report(&suspicion);
                self.until_it_answers(&topics, &mut suspicions, |suspicion| drop(report(&suspicion))).await;
                if reported.and_then(|()| changes.send(BrokerChange::Up)).is_err() {
                    return;
                }
            }
            self.state.send_replace(true);
            // One broker of several that is away raises suspicions all the time: a pause keeps the cluster from being asked as often.
            tokio::time::sleep(RETRY_MIN).await;
            suspicion = match tokio::time::timeout(ASK_EVERY, suspicions.recv()).await {
                Ok(Some(raised)) => raised,
                Ok(None) => return,
                Err(_) => Suspicion::silence(),
            };
            // What is suspected from here on is asked about again: it may have gone right after it answered.
            while let Ok(later) = suspicions.try_recv() {
                suspicion = suspicion.or(later);
            }
        }
    }

    /// What keeps it away may change meanwhile: a broker comes back, and with another password.
    async fn until_it_answers(
        self: &Arc<Self>,
        topics: &Topics,
        suspicions: &mut mpsc::UnboundedReceiver<Suspicion>,
        mut report: impl FnMut(Suspicion),
    ) {
        let (down_at, mut backoff) = (Instant::now(), Backoff::new(RETRY_MIN, RETRY_MAX));
        loop {
            tokio::time::sleep(backoff.pause()).await;
            self.renew_client(down_at);
            if self.answers(topics).await {
                return;
            }
            let raised = std::iter::from_fn(|| suspicions.try_recv().ok()).reduce(Suspicion::or);
            if let Some(suspicion) = raised.filter(|suspicion| suspicion.explains > Explains::Nothing) {
                report(suspicion);
            }
        }
    }

    /// Asks for one topic: a large cluster takes long to list them all.
    async fn answers(self: &Arc<Self>, topics: &Topics) -> bool {
        let known = topics.stalest();
        if known.is_some() {
            self.drop_any_topic();
        }
        let name = known.clone().unwrap_or_else(|| ANY_TOPIC.to_owned());
        let asked = self.ask(vec![name.clone()], move |client| {
            let metadata = client.client().fetch_metadata(Some(&name), ANSWER_TIMEOUT)?;
            Ok((!metadata.brokers().is_empty(), answer_in(metadata.topics(), &name)))
        });
        let Ok((is_up, answer)) = asked.await else { return false };
        if let Some(topic) = known {
            topics.update(&topic, answer);
        }
        is_up
    }

    /// Asks for topics one by one.
    ///
    /// # Errors
    /// [`BrokerDown`] when the cluster does not answer.
    pub(crate) async fn describe(self: &Arc<Self>, topics: Vec<String>) -> Result<Vec<(String, Answer)>, BrokerDown> {
        let asked = self.ask(topics.clone(), move |client| {
            let mut answers = Vec::with_capacity(topics.len());
            for topic in topics {
                let metadata = client.client().fetch_metadata(Some(&topic), ANSWER_TIMEOUT)?;
                let answer = answer_in(metadata.topics(), &topic);
                answers.push((topic, answer));
            }
            Ok(answers)
        });
        self.or_suspect(asked.await)
    }

    /// Asks for all topics that may be seen, in one request.
    ///
    /// # Errors
    /// [`BrokerDown`] when the cluster does not answer.
    pub(crate) async fn describe_all(self: &Arc<Self>) -> Result<HashMap<String, Answer>, BrokerDown> {
        let asked = self.ask(Vec::new(), |client| {
            let metadata = client.client().fetch_metadata(None, ANSWER_TIMEOUT)?;
            Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), answer_of(topic))).collect())
        });
        self.or_suspect(asked.await)
    }

    /// What the cluster says against writing `topic`, if anything.
    ///
    /// # Errors
    /// [`BrokerDown`] when it does not answer.
    pub(crate) async fn topic_error(self: &Arc<Self>, topic: &str) -> Result<Option<RDKafkaErrorCode>, BrokerDown> {
        let answers = self.describe(vec![topic.to_owned()]).await?;
        Ok(answers.into_iter().find_map(|(_, answer)| match answer {
            Answer::Exists { .. } => None,
            Answer::Error(code) => Some(code),
        }))
    }

    fn or_suspect<T>(&self, answer: Result<T, KafkaError>) -> Result<T, BrokerDown> {
        answer.map_err(|error| {
            self.suspicions.raise(&error.to_string());
            BrokerDown
        })
    }

    /// Asks by a client that has been asked for `names`. librdkafka's metadata calls block.
    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        names: Vec<String>,
        question: impl FnOnce(&BaseProducer<WatchContext>) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let broker = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let producer = broker.client_for(names);
            let answer = question(&producer);
            // Serves the callbacks: errors and log lines queue up otherwise. One event is served per call once the time is over.
            producer.poll(SERVING_TIME);
            answer
        })
        .await
        .unwrap_or(Err(KafkaError::Canceled))
    }

    /// Blocks: the last user of a client that was replaced waits for its end.
    fn client_for(&self, names: Vec<String>) -> Arc<BaseProducer<WatchContext>> {
        let mut client = self.client();
        let known = client.names.len();
        client.names.extend(names.iter().cloned());
        let is_full = client.names.len() > known && client.names.len() > NAMES_KEPT.max(names.len());
        if is_full || client.producer.client().fatal_error().is_some() {
            self.replace(&mut client);
            client.names.extend(names);
        }
        Arc::clone(&client.producer)
    }

    /// A client that has got no answer for long may have given up.
    fn renew_client(&self, down_at: Instant) {
        let mut client = self.client();
        if client.made_at.max(down_at).elapsed() >= CLIENT_KEPT {
            self.replace(&mut client);
        }
    }

    /// A topic of the relay's own is known: librdkafka need not ask for the other one any more, which may be missing.
    fn drop_any_topic(&self) {
        let mut client = self.client();
        if client.names.contains(ANY_TOPIC) {
            self.replace(&mut client);
        }
    }

    fn replace(&self, client: &mut Client) {
        match Client::new(&self.config, &self.suspicions) {
            Ok(new) => {
                let old = std::mem::replace(client, new);
                // librdkafka joins its threads.
                std::thread::spawn(move || drop(old));
            }
            // The same settings made the first one, so this is about threads or memory.
            Err(error) => tracing::debug!(%error, "the cluster client cannot be replaced"),
        }
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer_in(topics: &[MetadataTopic], name: &str) -> Answer {
    let found = topics.iter().find(|found| found.name() == name);
    found.map_or(Answer::Error(RDKafkaErrorCode::UnknownTopicOrPartition), answer_of)
}

fn answer_of(topic: &MetadataTopic) -> Answer {
    match topic.error() {
        None => Answer::Exists { partitions: topic.partitions().len() as i32 },
        Some(error) => Answer::Error(error.into()),
    }
}
