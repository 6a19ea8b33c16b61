//! Watches whether the cluster can be reached. One client of the relay does so; the workers' producers report to it if they suspect an
//! outage.
//!
//! The cluster counts as up if a leader answers at the address that it advertises. A bootstrap address that answers is not enough.
//!
//! The client is a plain producer that sends nothing. An idempotent producer breaks permanently if it lacks the right to be idempotent, and
//! does not connect again. A client that gets no answer for a long time is replaced.
//!
//! States: unknown -> up; up -> suspected (a client lost all brokers, a batch timed out, or 10 s have passed since the last request);
//! suspected -> up or down (no answer); down -> up. Unless the cluster is up, no worker opens a transaction.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataBroker, MetadataPartition, MetadataTopic};
use rdkafka::producer::{BaseProducer, NoCustomPartitioner, Producer, ProducerContext};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::fault::{self, Class, Fault};
use crate::sink::client::ClientSettings;
use crate::sink::client::log_line;
use crate::sink::login::{self, Login};
use crate::sink::topics::{Answer, Topics};
use event_outbox::backoff::Backoff;

/// The time limit for an answer, after which the cluster counts as down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The time for which the client's callbacks are served after each request.
const SERVING_TIME: Duration = Duration::from_millis(20);

/// The interval of requests while the cluster is down. The first event after the cluster's return waits at most this long.
const RETRY_MIN: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// The interval of requests without a suspicion. A client that sends nothing does not notice that its brokers are gone.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// The time without an answer after which the client is replaced.
const CLIENT_KEPT: Duration = Duration::from_secs(10);

/// The number of topics after which the client is replaced. librdkafka keeps every topic it was asked for, and asks for missing ones once a
/// second.
const NAMES_KEPT: usize = 64;

/// The most leaders that are asked whether they answer.
const LEADERS_ASKED: usize = 8;

/// The topic that the watch asks for while it knows no other. Any answer is enough, and most clusters have this topic.
pub(crate) const ANY_TOPIC: &str = "__consumer_offsets";

/// The leader of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leader {
    pub(crate) partition: i32,
    /// The broker's id and its advertised address; `None` if the partition has no leader.
    pub(crate) broker: Option<(i32, String)>,
}

/// The error of a cluster that did not answer, or is known to be down.
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

/// The usefulness of a suspicion as an explanation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Explains {
    /// Explains nothing: "2/2 brokers are down", or a batch that timed out.
    Nothing,
    /// Explains the symptom: "Connection refused", or a name that cannot be resolved.
    Something,
    /// Explains the cause: a login or a certificate was refused. Lost connections follow from it and explain nothing.
    TheCause,
}

impl Suspicion {
    fn from_code(code: RDKafkaErrorCode, reason: &str) -> Self {
        let suspicion = Self::from_fault(reason, fault::classify_kafka(code));
        let is_empty = code == RDKafkaErrorCode::AllBrokersDown;
        if is_empty { Self { explains: Explains::Nothing, ..suspicion } } else { suspicion }
    }

    fn from_fault(reason: &str, fault: Fault) -> Self {
        let explains = if fault.class == Class::ActionRequired { Explains::TheCause } else { Explains::Something };
        Self { reason: reason.to_owned(), fault, explains }
    }

    /// Returns the suspicion of a cluster that did not answer, if no client reported a reason.
    fn silence() -> Self {
        Self::from_code(RDKafkaErrorCode::AllBrokersDown, "no broker answers")
    }

    /// Returns the later suspicion, unless it explains less.
    fn or(self, later: Suspicion) -> Self {
        if self.explains > later.explains { self } else { later }
    }
}

/// Sends suspicions from librdkafka's threads and from workers to the watch.
#[derive(Clone)]
pub(crate) struct SuspicionSender {
    sender: mpsc::UnboundedSender<Suspicion>,
    /// The login of the clients, which knows why they have no token.
    pub(crate) login: Login,
}

impl SuspicionSender {
    /// Reports an error of a whole client.
    pub(crate) fn client_error(&self, error: &KafkaError, reason: &str) {
        let code = login::code_of(error.rdkafka_error_code(), reason);
        tracing::debug!(target: "librdkafka", kafka_code = ?code, "{reason}");
        if !matches!(code, Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::GaplessGuarantee)) {
            let suspicion = match self.login.explain(code) {
                Some((reason, fault)) => Suspicion::from_fault(&reason, fault),
                None => Suspicion::from_code(code.unwrap_or(RDKafkaErrorCode::AllBrokersDown), reason),
            };
            // Fails only if the relay is gone.
            let _ = self.sender.send(suspicion);
        }
    }

    /// Raises a suspicion, for example because a batch was not acknowledged in time.
    pub(crate) fn raise(&self, reason: &str) {
        // Fails only if the relay is gone.
        let _ = self.sender.send(Suspicion::from_code(RDKafkaErrorCode::AllBrokersDown, reason));
    }
}

/// The client that watches the cluster.
pub(crate) struct Broker {
    settings: ClientSettings,
    client: Mutex<Client>,
    state: watch::Sender<bool>,
    /// The time of the last answer.
    answered_at: Mutex<Option<Instant>>,
    /// The id that the cluster gives itself; `None` before the first answer.
    cluster_id: Mutex<Option<String>>,
    suspicions: SuspicionSender,
}

struct Client {
    producer: Arc<BaseProducer<WatchContext>>,
    /// The topics that the client was asked for.
    names: HashSet<String>,
    /// True once the client has told the cluster's id.
    knows_cluster: bool,
    made_at: Instant,
    /// The version of the login that the client was made with.
    version: u64,
}

impl Client {
    fn new(settings: &ClientSettings, suspicions: &SuspicionSender) -> Result<Self, KafkaError> {
        let version = settings.kafka().version();
        let producer = Arc::new(settings.watching().create_with_context(WatchContext(suspicions.clone()))?);
        login::keep_served(&producer, &suspicions.login)?;
        Ok(Self { producer, names: HashSet::new(), knows_cluster: false, made_at: Instant::now(), version })
    }
}

struct WatchContext(SuspicionSender);

impl ClientContext for WatchContext {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.0.login.log(facility, message);
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.0.client_error(&error, reason);
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn Error>> {
        self.0.login.token()
    }
}

impl ProducerContext<NoCustomPartitioner> for WatchContext {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &rdkafka::message::DeliveryResult<'_>, (): ()) {}
}

/// A report of the watch: the cluster is down for this reason, or up again.
#[derive(Debug)]
pub(crate) enum BrokerChange {
    Down { reason: String, fault: Fault },
    Up,
}

impl Broker {
    /// # Errors
    /// The error that librdkafka finds in the settings. Its message may quote a setting.
    pub(crate) fn new(
        settings: &ClientSettings,
    ) -> Result<(Arc<Self>, mpsc::UnboundedReceiver<Suspicion>), KafkaError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let suspicions = SuspicionSender { sender, login: Login::new(settings.kafka()) };
        let client = Mutex::new(Client::new(settings, &suspicions)?);
        let settings = settings.clone();
        let broker = Self {
            settings,
            client,
            state: watch::Sender::new(false),
            answered_at: Mutex::default(),
            cluster_id: Mutex::default(),
            suspicions,
        };
        Ok((Arc::new(broker), receiver))
    }

    /// Returns the sender of suspicions.
    pub(crate) fn suspicions(&self) -> SuspicionSender {
        self.suspicions.clone()
    }

    /// Returns the state of the cluster, which becomes true when the cluster is up.
    pub(crate) fn state(&self) -> watch::Receiver<bool> {
        self.state.subscribe()
    }

    /// Returns true if the cluster has answered a request within this time.
    pub(crate) fn answered_within(&self, time: Duration) -> bool {
        let answered_at = *self.answered_at.lock().unwrap_or_else(PoisonError::into_inner);
        answered_at.is_some_and(|at| at.elapsed() < time)
    }

    /// Returns the id that the cluster gives itself; `None` before its first answer, and if it gives none.
    pub(crate) fn cluster_id(&self) -> Option<String> {
        self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Watches the cluster until nobody receives `changes`. Sends one change when the cluster goes down, and one when it is up again.
    /// Writes the answers about topics to `topics`.
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
            // A single broker that is down raises suspicions all the time. The pause limits the rate of requests.
            tokio::time::sleep(RETRY_MIN).await;
            suspicion = match tokio::time::timeout(ASK_EVERY, suspicions.recv()).await {
                Ok(Some(raised)) => raised,
                Ok(None) => return,
                Err(_) => Suspicion::silence(),
            };
            // Suspicions raised from here on lead to a new request: the cluster may have gone down right after its answer.
            while let Ok(later) = suspicions.try_recv() {
                suspicion = suspicion.or(later);
            }
        }
    }

    /// Asks until the cluster answers. Reports later suspicions as well, because the reason may change: a broker may return with another
    /// password.
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

    /// Returns true if the cluster can take records, as far as one answer tells. Asks for one topic, because a large cluster takes long to
    /// list all of them.
    async fn answers(self: &Arc<Self>, topics: &Topics) -> bool {
        let known = topics.stalest();
        if known.is_some() {
            self.drop_any_topic();
        }
        let name = known.clone().unwrap_or_else(|| ANY_TOPIC.to_owned());
        let asked = self.ask(vec![name.clone()], move |client| {
            let metadata = client.client().fetch_metadata(Some(&name), ANSWER_TIMEOUT)?;
            Ok((!metadata.brokers().is_empty(), answer_in(metadata.topics(), &name), led_partitions(&metadata)))
        });
        let Ok((has_brokers, answer, led)) = asked.await else { return false };
        if let Some(topic) = known {
            topics.update(&topic, answer);
        }
        let is_up = has_brokers && self.is_led(led).await;
        if is_up {
            self.learn_cluster_id();
            *self.answered_at.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        is_up
    }

    /// Reads the id of the cluster that the client is connected to. Every answer about metadata has it, so this call does not wait. Asks each
    /// client until it has answered once, because rdkafka leaks the text of each answer.
    fn learn_cluster_id(&self) {
        let mut client = self.client();
        if client.knows_cluster {
            return;
        }
        if let Some(id) = client.producer.client().fetch_cluster_id(Duration::ZERO) {
            client.knows_cluster = true;
            *self.cluster_id.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        }
    }

    /// Returns true if a leader answers. Metadata comes from the bootstrap addresses too, and records go to the addresses that the brokers
    /// advertise. If no leader of these partitions answers, asks those of all topics.
    async fn is_led(self: &Arc<Self>, led: Vec<(String, i32)>) -> bool {
        if led.is_empty() || self.any_leader_answers(led).await {
            return true;
        }
        let listed =
            self.ask(Vec::new(), |client| Ok(led_partitions(&client.client().fetch_metadata(None, ANSWER_TIMEOUT)?)));
        match listed.await {
            Ok(led) => self.any_leader_answers(led).await,
            Err(_) => false,
        }
    }

    async fn any_leader_answers(self: &Arc<Self>, led: Vec<(String, i32)>) -> bool {
        let mut asked = JoinSet::new();
        for (topic, partition) in led.into_iter().take(LEADERS_ASKED) {
            let broker = Arc::clone(self);
            asked.spawn(async move {
                let offsets = broker.ask(vec![topic.clone()], move |client| {
                    client.client().fetch_watermarks(&topic, partition, ANSWER_TIMEOUT)
                });
                // An error that the broker returns is an answer as well.
                offsets.await.map_or_else(|error| error.rdkafka_error_code().is_some_and(is_answer), |_| true)
            });
        }
        while let Some(answered) = asked.join_next().await {
            if answered.unwrap_or(false) {
                return true;
            }
        }
        false
    }

    /// Asks for topics one by one.
    ///
    /// # Errors
    /// [`BrokerDown`] if the cluster does not answer.
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

    /// Returns the leader of each partition of a topic.
    ///
    /// # Errors
    /// [`BrokerDown`] if the cluster does not answer.
    pub(crate) async fn leaders(self: &Arc<Self>, topic: &str) -> Result<Vec<Leader>, BrokerDown> {
        let name = topic.to_owned();
        let asked = self.ask(vec![name.clone()], move |client| {
            let metadata = client.client().fetch_metadata(Some(&name), ANSWER_TIMEOUT)?;
            let partitions =
                metadata.topics().iter().filter(|topic| topic.name() == name).flat_map(MetadataTopic::partitions);
            Ok(partitions.map(|partition| leader_of(partition, metadata.brokers())).collect())
        });
        self.or_suspect(asked.await)
    }

    /// Asks for all topics that the user may see, in one request.
    ///
    /// # Errors
    /// [`BrokerDown`] if the cluster does not answer.
    pub(crate) async fn describe_all(self: &Arc<Self>) -> Result<HashMap<String, Answer>, BrokerDown> {
        let asked = self.ask(Vec::new(), |client| {
            let metadata = client.client().fetch_metadata(None, ANSWER_TIMEOUT)?;
            Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), answer_of(topic))).collect())
        });
        self.or_suspect(asked.await)
    }

    /// Returns the cluster's error for `topic`, if there is one.
    ///
    /// # Errors
    /// [`BrokerDown`] if the cluster does not answer.
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

    /// Sends a request with a client that has been asked for `names`. librdkafka's metadata calls block.
    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        names: Vec<String>,
        question: impl FnOnce(&BaseProducer<WatchContext>) -> Result<T, KafkaError> + Send + 'static,
    ) -> Result<T, KafkaError> {
        let broker = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let producer = broker.client_for(names);
            let answer = question(&producer);
            // Serves the callbacks, because errors and log lines would queue up otherwise. Once the time is over, one event is served per
            // call.
            producer.poll(SERVING_TIME);
            answer
        })
        .await
        .unwrap_or(Err(KafkaError::Canceled))
    }

    /// Returns the client for topics `names`, and replaces it if it has too many topics or is broken. May block: the last user of a
    /// replaced client waits for its threads to end.
    fn client_for(&self, names: Vec<String>) -> Arc<BaseProducer<WatchContext>> {
        let mut client = self.client();
        let known = client.names.len();
        client.names.extend(names.iter().cloned());
        let is_full = client.names.len() > known && client.names.len() > NAMES_KEPT.max(names.len());
        let is_outdated = client.version != self.settings.kafka().version();
        if is_full || is_outdated || client.producer.client().fatal_error().is_some() {
            self.replace(&mut client);
            client.names.extend(names);
        }
        Arc::clone(&client.producer)
    }

    /// Replaces a client that has received no answer for a long time, because it may have given up.
    fn renew_client(&self, down_at: Instant) {
        let mut client = self.client();
        if client.made_at.max(down_at).elapsed() >= CLIENT_KEPT {
            self.replace(&mut client);
        }
    }

    /// Replaces a client that was asked for [`ANY_TOPIC`]. One of the relay's topics is known now, and librdkafka would keep asking for the
    /// other one, which may be missing.
    fn drop_any_topic(&self) {
        let mut client = self.client();
        if client.names.contains(ANY_TOPIC) {
            self.replace(&mut client);
        }
    }

    fn replace(&self, client: &mut Client) {
        match Client::new(&self.settings, &self.suspicions) {
            Ok(new) => {
                let old = std::mem::replace(client, new);
                // Drops the old client on another thread, because librdkafka joins its threads.
                std::thread::spawn(move || drop(old));
            }
            // The same settings made the first client, so the error is about threads or memory.
            Err(error) => tracing::debug!(%error, "the cluster client cannot be replaced"),
        }
    }

    fn client(&self) -> MutexGuard<'_, Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns one partition of each leader.
fn led_partitions(metadata: &Metadata) -> Vec<(String, i32)> {
    let mut leaders = HashSet::new();
    let partitions = metadata.topics().iter().flat_map(|topic| {
        topic.partitions().iter().map(|partition| (topic.name().to_owned(), partition.id(), partition.leader()))
    });
    let led = partitions.filter(|(_, _, leader)| *leader >= 0 && leaders.insert(*leader));
    led.map(|(topic, partition, _)| (topic, partition)).collect()
}

/// Returns true for an error that a broker has returned. The client's own errors are negative.
fn is_answer(code: RDKafkaErrorCode) -> bool {
    code as i32 > 0
}

fn leader_of(partition: &MetadataPartition, brokers: &[MetadataBroker]) -> Leader {
    let leader = brokers.iter().find(|broker| broker.id() == partition.leader());
    let broker = leader.map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port())));
    Leader { partition: partition.id(), broker }
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
