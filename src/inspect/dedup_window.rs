//! Compares how far back a topic can be read with how far back consumers remember events. An event that consumers have forgotten but can
//! still receive is applied twice: when a group reads the topic again, or when a dead letter is redriven.
//!
//! The topics are those that this outbox's events are routed to, and those that the groups of the inbox read: as they are recorded in
//! `processed_events_source`, as Kafka's committed offsets show, or as an operator names them. A group whose topics are not known may read
//! any, so nothing can be said then.
//!
//! A topic can be read back for its `retention.ms`, or for ever if records never expire or the topic is only compacted. Dead letters count
//! by the retention of the topics that the consumer runtime names `<topic>.<group>.dlq`. Dead letters that have other names or wait
//! elsewhere count by `RELAY_DEAD_LETTER_HORIZON`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, ConfigEntry, ResourceSpecifier};
use rdkafka::error::KafkaError;
use sqlx::PgConnection;

use crate::config::{GivenDuration, KafkaSettings};
use crate::sink::admission::DEAD_LETTERS;
use crate::sink::reader::{ANSWER_WITHIN, Reader};
use crate::sink::{groups, login};
use crate::store::routes;
use crate::store::sources::{self, Source};
use event_outbox::Names;
use event_outbox::route::TopicTemplate;

/// The time for which a topic keeps its records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TopicRetention {
    For(GivenDuration),
    Forever,
}

impl TopicRetention {
    /// Reads the retention from a topic's configuration; `None` if the configuration has no readable value.
    pub(crate) fn from_config(config: &[ConfigEntry]) -> Option<Self> {
        let value = |name: &str| config.iter().find(|entry| entry.name == name)?.value.as_deref();
        Self::from_values(value("cleanup.policy")?, value("retention.ms")?)
    }

    fn from_values(cleanup_policy: &str, retention_ms: &str) -> Option<Self> {
        if !cleanup_policy.split(',').any(|policy| policy.trim() == "delete") {
            return Some(Self::Forever);
        }
        let ms: i64 = retention_ms.parse().ok()?;
        Some(u64::try_from(ms).map_or(Self::Forever, |ms| Self::For(Duration::from_millis(ms).into())))
    }

    /// Returns true when the topic keeps records for longer than consumers remember their events.
    pub(crate) fn outlasts(self, window: GivenDuration) -> bool {
        match self {
            Self::For(retention) => *retention > *window,
            Self::Forever => true,
        }
    }
}

impl fmt::Display for TopicRetention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::For(retention) => retention.fmt(f),
            Self::Forever => f.write_str("ever"),
        }
    }
}

/// A retention that is longer than the window, so that an event may be applied twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WindowViolation {
    /// The topic; `None` stands for the configured horizon of dead letters.
    pub(crate) topic: Option<String>,
    pub(crate) dead_letters: bool,
    pub(crate) retention: TopicRetention,
    pub(crate) window: GivenDuration,
}

impl fmt::Display for WindowViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { topic, dead_letters, retention, window } = self;
        match (topic, dead_letters) {
            (Some(topic), false) => {
                write!(
                    f,
                    "the topic {topic} keeps events for {retention} (retention.ms), but consumers remember them only for {window}"
                )
            }
            (Some(topic), true) => write!(
                f,
                "the topic {topic} keeps dead letters for {retention} (retention.ms), but consumers remember events only for {window}"
            ),
            (None, _) => write!(
                f,
                "dead letters may be redriven for {retention} (RELAY_DEAD_LETTER_HORIZON), but consumers remember events only for {window}"
            ),
        }
    }
}

/// The fix of a violation.
pub(crate) const FIX: &str =
    "set RELAY_PROCESSED_RETENTION longer than each of these times, or retention.ms of the topic shorter";

/// The reason why the window cannot be judged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unknown {
    #[error("a database error")]
    Database(#[from] sqlx::Error),
    #[error("Kafka does not answer")]
    Kafka(#[from] KafkaError),
    /// Neither the database nor Kafka knows which topics these groups read.
    #[error("it is not known which topics these consumer groups of the inbox read: {}", .0.join(", "))]
    Sources(Vec<String>),
    /// The user lacks the right to see the configuration of this topic.
    #[error("no right to see the configuration of the topic {0}: grant DESCRIBE_CONFIGS on it")]
    Hidden(String),
    /// The clients of this login cannot ask for configurations.
    #[error("the configuration of topics cannot be read with a login by AWS_MSK_IAM: use SCRAM, or prune by hand")]
    Unreadable,
}

impl Unknown {
    /// Returns what an operator can do about it.
    pub(crate) fn next_step(&self) -> &'static str {
        match self {
            Self::Database(_) | Self::Kafka(_) => "wait until the server answers",
            Self::Sources(_) => {
                "insert their topics into processed_events_source (consumer_group, topic), or grant DESCRIBE on the groups; `prune` \
                 also takes --topics"
            }
            Self::Hidden(_) => "grant the relay's user DESCRIBE_CONFIGS on its topics",
            Self::Unreadable => "let a relay with another login prune, or prune with `outbox-relay prune --force`",
        }
    }
}

/// The settings to compare with the topics.
#[derive(Debug, Clone)]
pub(crate) struct Question<'a> {
    pub(crate) names: &'a Names,
    pub(crate) template: &'a TopicTemplate,
    pub(crate) window: GivenDuration,
    pub(crate) dead_letter_horizon: Option<GivenDuration>,
    /// Topics that an operator names for the groups of which they are not known.
    pub(crate) topics: &'a [String],
}

impl Question<'_> {
    /// Returns the violations of the window by the topics that events are routed to, and by those that the groups of the inbox read.
    ///
    /// # Errors
    /// Returns [`Unknown`] when a topic cannot be judged. Then no row of `processed_events` may be pruned.
    pub(crate) async fn violations(
        &self,
        conn: &mut PgConnection,
        kafka: &KafkaSettings,
    ) -> Result<Vec<WindowViolation>, Unknown> {
        let (routed, _) = routes::routes(conn, self.names, self.template).await?;
        let groups = sources::sources(conn, self.names).await?;
        let mut relevant = self.of_groups(kafka, groups).await?;
        let all = topics(kafka).await?;
        relevant.extend(routed.keys().map(|topic| (topic.clone(), false)));
        let mut violations: Vec<WindowViolation> = self.horizon().into_iter().collect();
        violations.extend(self.compare(kafka, existing(&relevant, &all)).await?);
        Ok(violations)
    }

    /// Returns the violations of the window by the topics that these groups read, and by their dead letters.
    ///
    /// # Errors
    /// The same as [`Question::violations`].
    pub(crate) async fn violations_of_groups(
        &self,
        kafka: &KafkaSettings,
        groups: BTreeMap<String, Vec<Source>>,
    ) -> Result<Vec<WindowViolation>, Unknown> {
        let relevant = self.of_groups(kafka, groups).await?;
        let all = topics(kafka).await?;
        self.compare(kafka, existing(&relevant, &all)).await
    }

    /// Returns the topics that these groups read; those of dead letters are marked true.
    async fn of_groups(
        &self,
        kafka: &KafkaSettings,
        groups: BTreeMap<String, Vec<Source>>,
    ) -> Result<BTreeSet<Source>, Unknown> {
        let asked = kafka.clone();
        let found = tokio::task::spawn_blocking(move || {
            let (mut topics, mut unknown) = (BTreeSet::new(), Vec::new());
            for (group, recorded) in groups {
                let committed = groups::committed_topics(&asked, &group)?;
                if recorded.is_empty() && committed.is_empty() {
                    unknown.push(group);
                }
                topics.extend(recorded);
                topics.extend(committed.into_iter().map(|topic| (topic, false)));
            }
            Ok::<_, KafkaError>((topics, unknown))
        });
        let (mut topics, unknown) = found.await.map_err(|_| KafkaError::Canceled)??;
        topics.extend(self.topics.iter().map(|topic| (topic.clone(), false)));
        if unknown.is_empty() || !self.topics.is_empty() { Ok(topics) } else { Err(Unknown::Sources(unknown)) }
    }

    /// Compares the retention of these topics with the window.
    async fn compare(
        &self,
        kafka: &KafkaSettings,
        topics: BTreeSet<(&str, bool)>,
    ) -> Result<Vec<WindowViolation>, Unknown> {
        let admin = login::admin(&kafka.consumer_config(&[("client.id", "outbox-relay")]), kafka)?;
        let admin = admin.ok_or(Unknown::Unreadable)?;
        let mut violations = Vec::new();
        for (topic, dead_letters) in topics {
            let options = AdminOptions::new().request_timeout(Some(ANSWER_WITHIN));
            let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &options).await?;
            let config = described.into_iter().next().and_then(Result::ok);
            let retention = config.and_then(|config| TopicRetention::from_config(&config.entries));
            let retention = retention.ok_or_else(|| Unknown::Hidden(topic.to_owned()))?;
            violations.extend(self.violation(Some(topic), dead_letters, retention));
        }
        Ok(violations)
    }

    /// Returns the configured horizon of dead letters as a violation if it is too long.
    pub(crate) fn horizon(&self) -> Option<WindowViolation> {
        self.violation(None, true, TopicRetention::For(self.dead_letter_horizon?))
    }

    pub(crate) fn violation(
        &self,
        topic: Option<&str>,
        dead_letters: bool,
        retention: TopicRetention,
    ) -> Option<WindowViolation> {
        let window = self.window;
        let topic = topic.map(str::to_owned);
        retention.outlasts(window).then_some(WindowViolation { topic, dead_letters, retention, window })
    }
}

/// Returns the names of all topics of the cluster.
async fn topics(kafka: &KafkaSettings) -> Result<BTreeSet<String>, KafkaError> {
    let asked = kafka.clone();
    let all = tokio::task::spawn_blocking(move || Reader::new(&asked)?.topics()).await;
    Ok(all.map_err(|_| KafkaError::Canceled)??.into_iter().collect())
}

/// Returns those of the topics that exist, and their dead letter topics (marked true).
fn existing<'t>(relevant: &'t BTreeSet<Source>, all: &'t BTreeSet<String>) -> BTreeSet<(&'t str, bool)> {
    let mut existing = BTreeSet::new();
    for (topic, dead_letters) in relevant {
        if all.contains(topic) {
            existing.insert((topic.as_str(), *dead_letters));
        }
        existing.extend(dead_letter_topics(topic, all.iter()).map(|dead_letters| (dead_letters.as_str(), true)));
    }
    // A dead letter topic may be known both by its name and by an entry, or be read by a group.
    let twice: Vec<_> =
        existing.iter().filter(|(topic, dead)| *dead && existing.contains(&(topic, false))).copied().collect();
    twice.into_iter().for_each(|(topic, _)| {
        existing.remove(&(topic, false));
    });
    existing
}

/// Returns the topics that are named like dead letter topics of `topic`.
pub(crate) fn dead_letter_topics<'t>(
    topic: &str,
    all: impl Iterator<Item = &'t String>,
) -> impl Iterator<Item = &'t String> {
    all.filter(move |name| is_dead_letter_topic(name, topic))
}

/// Returns true if `name` is `<topic>.<group>.dlq`, the name that the consumer runtime gives to the dead letter topic of `topic`.
pub(crate) fn is_dead_letter_topic(name: &str, topic: &str) -> bool {
    let group = name.strip_prefix(topic).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(DEAD_LETTERS));
    group.is_some_and(|group| !group.is_empty())
}

#[cfg(test)]
mod tests {
    use event_outbox::consumer::DeadLetter;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn what_is_never_deleted_outlasts_every_window() {
        let week = TopicRetention::from_values("delete", "604800000").expect("a time");
        assert_eq!(week, TopicRetention::For((DAY * 7).into()));
        assert!(week.outlasts((DAY * 6).into()) && !week.outlasts((DAY * 7).into()));
        for forever in
            [TopicRetention::from_values("delete", "-1"), TopicRetention::from_values("compact", "604800000")]
        {
            assert!(forever.expect("a time").outlasts((DAY * 10_000).into()));
        }
        assert_eq!(TopicRetention::from_values("compact, delete", "604800000"), Some(week));
        assert_eq!(TopicRetention::from_values("delete", "soon"), None);
    }

    #[test]
    fn dead_letter_topics_are_known_by_their_name() {
        let all = ["a.g.dlq", "a..dlq", "a.dlq", "b.g.dlq", "ab.g.dlq", "a.x.y.dlq", "a"].map(str::to_owned);
        let found: Vec<_> = dead_letter_topics("a", all.iter()).collect();
        assert_eq!(found, ["a.g.dlq", "a.x.y.dlq"]);
        assert!(is_dead_letter_topic(&DeadLetter::default_topic("a", "g"), "a"));
    }

    #[test]
    fn a_violation_is_reported_with_its_numbers() {
        let (retention, window) = (TopicRetention::For((DAY * 90).into()), "48h".parse().expect("a duration"));
        let violation = WindowViolation { topic: Some("t".to_owned()), dead_letters: false, retention, window };
        let text = violation.to_string();
        assert!(text.contains("topic t keeps events for 90d ") && text.ends_with(" for 48h"), "{text}");
    }
}
