//! Checks the database and the brokers before traffic meets a fault. It only reads.
//!
//! - [`finding`]: a finding with its severity and its fix
//! - [`exposure`]: says what the configuration exposes
//! - [`schema`]: checks the version, the indexes, and the claim's plan
//! - [`relays`]: checks whether the live relays go together
//! - [`rights`]: checks for missing and excessive rights
//! - [`objects`]: checks for objects of other users
//! - [`pooler`]: detects a connection pooler
//! - [`sessions`]: checks the clock, open transactions, and replication slots
//! - [`table`]: checks vacuum, sequence, triggers, and payloads
//! - [`routes`]: finds the topics that events go to
//! - [`kafka`], [`topics`]: check the brokers and one topic
//! - [`transactions`]: checks what exactly-once needs in addition
//! - [`dedup_window`]: checks how far back consumers remember events

mod advertised;
mod dedup_window;
pub(crate) mod expiring;
mod exposure;
mod finding;
mod kafka;
mod objects;
pub(crate) mod pooler;
mod relays;
pub(crate) mod rights;
mod schema;
mod sessions;
mod table;
mod topics;
mod transactions;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use sqlx::PgConnection;

pub(crate) use exposure::exposures;
pub(crate) use finding::{Finding, Severity};

use crate::config::{KafkaSettings, RelaySettings, Settings};
use crate::fault;
use crate::fault::describe;
use crate::sink::admission;
use crate::store::connect::{self, Purpose};
use crate::store::read_only::reads_contents;
use crate::store::routes::{self, IllegalRoute, Seen};
use crate::store::sources::{self, Source};
use event_outbox::Names;
use event_outbox::code::Code;
use kafka::Cluster;

/// The `application_name` of a check's sessions. It differs from a relay's, so that nobody takes a check for a relay.
const APPLICATION: &str = "outbox-relay-check";

/// The maximum number of topics that are checked.
const MOST_TOPICS: usize = 20;

/// The codes of findings that stop all events. A relay reports these itself when it starts.
const FATAL: &[Code] = &[
    Code::DatabaseUnreachable,
    Code::BrokerUnreachable,
    Code::BrokerTls,
    Code::BrokerLogin,
    Code::TokenServerAway,
    Code::TokenRefused,
    Code::SchemaMissing,
    Code::SchemaOlder,
    Code::SchemaNewer,
    Code::ServerOld,
    Code::LanesBroken,
];

/// What to check, and what to tolerate.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    /// The maximum age of a transaction.
    pub(crate) transaction: Duration,
    /// Topics to check in addition to those that events go to.
    pub(crate) topics: Vec<String>,
}

impl Default for Scope {
    fn default() -> Self {
        Self { transaction: Duration::from_secs(300), topics: Vec::new() }
    }
}

/// The codes of a database that lets nobody in, although it answers.
const NO_SESSION: &[Code] = &[Code::DatabaseLogin, Code::DatabaseName, Code::DatabaseTls, Code::DatabaseReadOnly];

/// The codes of findings about several relays, which each of them logs for as long as they are true.
const OF_RELAYS: &[Code] = &[Code::RelaysDiffer, Code::RelayNameShared];

/// All findings, the worst first.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) findings: Vec<Finding>,
    /// What was checked and is right.
    pub(crate) passed: Vec<String>,
    /// What was not checked, and why.
    pub(crate) unchecked: Vec<String>,
}

impl Report {
    pub(crate) fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Returns true when a server could not be reached, so that not everything was checked.
    pub(crate) fn is_incomplete(&self) -> bool {
        let is_away = |code| matches!(code, Code::DatabaseUnreachable | Code::BrokerUnreachable);
        self.findings.iter().any(|finding| is_away(finding.code) || NO_SESSION.contains(&finding.code))
    }

    /// Returns the findings that a starting relay has not already reported itself.
    pub(crate) fn beyond_the_fatal(&self) -> impl Iterator<Item = &Finding> {
        let is_reported =
            |code| [FATAL, NO_SESSION, OF_RELAYS, &exposure::CODES].iter().any(|codes| codes.contains(&code));
        self.findings.iter().filter(move |finding| !is_reported(finding.code))
    }
}

/// Checks the database and the brokers of a configured relay.
pub(crate) async fn run(settings: &Settings, scope: &Scope) -> Report {
    let outbox = &settings.outbox;
    let names = Names::new(&outbox.schema, &outbox.table, &outbox.processed_table);
    let mut found = Found { findings: exposures(settings), ..Found::default() };
    found.topics.extend(scope.topics.iter().map(|topic| (topic.clone(), Seen { events: i64::MAX, ..Seen::default() })));
    if let Err(error) = database(settings, &names, scope, &mut found).await {
        found.findings.push(database_error(settings, &error));
    }
    if let Some(kafka) = &settings.kafka
        && let Err(error) = brokers(settings, kafka, &names, &mut found).await
    {
        // Use only the code, because the error's text may quote a secret.
        let code = error.rdkafka_error_code();
        found.findings.push(Finding::error(
            Code::BrokerUnreachable,
            format!("The brokers at {} could not be checked ({code:?}).", kafka.brokers()),
            code.map_or("compare the KAFKA_ settings with each other", |code| fault::classify_kafka(code).next_step),
        ));
    }
    found.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    Report { findings: found.findings, passed: found.passed, unchecked: found.unchecked }
}

#[derive(Default)]
struct Found {
    findings: Vec<Finding>,
    passed: Vec<String>,
    unchecked: Vec<String>,
    topics: BTreeMap<String, Seen>,
    processed_ms: Option<f64>,
    /// The consumer groups of the inbox, and the topics that are recorded for them.
    sources: BTreeMap<String, Vec<Source>>,
    /// The identity of the outbox in Kafka, if the relay publishes exactly once.
    identity: Option<transactions::Identity>,
}

impl Found {
    /// Adds the findings of one check, or else that it has passed. Notes do not count against it.
    fn add(&mut self, findings: impl IntoIterator<Item = Finding>, passed: impl Into<String>) {
        let before = self.findings.len();
        self.findings.extend(findings);
        if self.findings[before..].iter().all(|finding| finding.severity == Severity::Note) {
            self.passed.push(passed.into());
        }
    }
}

fn database_error(settings: &Settings, error: &sqlx::Error) -> Finding {
    let target = settings.database.target();
    let (reason, fault) = (describe(error), fault::classify_database(error));
    match error.as_database_error().and_then(|error| error.code()).as_deref() {
        Some("57014") => Finding::warning(
            Code::DatabaseSlow,
            format!("A query of the database {target} took too long, so not everything was checked: {reason}."),
            fault.next_step,
        ),
        Some("55P03") => Finding::warning(
            Code::DatabaseLocked,
            format!("Another session holds a lock in {target}, so not everything was checked: {reason}."),
            fault.next_step,
        ),
        _ => {
            let code = if NO_SESSION.contains(&fault.code) { fault.code } else { Code::DatabaseUnreachable };
            Finding::error(code, format!("The database {target} cannot be used: {reason}."), fault.next_step)
        }
    }
}

async fn database(settings: &Settings, names: &Names, scope: &Scope, found: &mut Found) -> Result<(), sqlx::Error> {
    let (database, tolerated) = (&settings.database, scope.transaction);
    let mut conn = connect::connect(database, APPLICATION, Purpose::Read).await?;
    let conn = &mut conn;
    let version: String = rights::first(conn, "select current_setting('server_version')").await?;
    let user = rights::current_user(conn).await?;
    found.passed.push(format!("{} answers: PostgreSQL {version}, user {user}", database.target()));
    let read_only = connect::cannot_write(conn).await?.map(|problem| {
        let message = format!("The database {} {problem}, so a relay cannot work.", database.target());
        Finding::error(Code::DatabaseReadOnly, message, fault::READ_ONLY.next_step)
    });
    found.add(read_only, "the database can be written");
    found.add(sessions::clock(conn).await?, "the clocks of this machine and of the database agree");
    let between = "what stands between this machine and the database";
    match pooler::pooler(database, APPLICATION).await? {
        Ok(pooler) => found.add(pooler, format!("{between} fits")),
        Err(reason) => found.unchecked.push(format!("{between}: {reason}")),
    }
    let age = humantime::format_duration(tolerated);
    found.add(
        sessions::oldest_transaction(conn, names, tolerated).await?,
        format!("no visible transaction is open for longer than {age}"),
    );
    let mut holders: Vec<_> = sessions::prepared_transactions(conn, tolerated).await?.into_iter().collect();
    holders.extend(sessions::replication_slots(conn).await?);
    found.add(holders, "no prepared transaction and no idle replication slot holds vacuum back");
    outbox(conn, settings, names, found).await
}

async fn outbox(
    conn: &mut PgConnection,
    settings: &Settings,
    names: &Names,
    found: &mut Found,
) -> Result<(), sqlx::Error> {
    let relay = &settings.relay;
    let lanes = match schema::usable(conn, names).await {
        Ok(Ok(lanes)) => lanes,
        Ok(Err(finding)) => {
            found.findings.push(finding);
            return Ok(());
        }
        // 42501 insufficient_privilege: `rights` finds out which right is missing.
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42501") => {
            found.findings.extend(rights::rights(conn, names, relay.settle).await?);
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let reader = rights::reader(conn, names).await?;
    let is_reader = reader.is_some();
    let rights = match reader {
        Some(note) => vec![note],
        None => rights::rights(conn, names, relay.settle).await?,
    };
    found.passed.push(format!("the outbox {} is there, with {lanes} lanes, in a version that fits", names.outbox()));
    let lacking = rights.iter().any(|finding| finding.code == Code::RightsMissing);
    if is_reader {
        found.findings.extend(rights);
    } else {
        found.add(rights, "the user has the rights of a relay, and no others");
    }
    if lacking {
        // Without these rights every further check would fail.
        return Ok(());
    }
    found.add(rights::hidden_rows(conn, names, relay.settle).await?, "no policy hides rows from the relay");
    found.add(schema::indexes(conn, names).await?, "the indexes are there, and the planner takes them");
    found
        .add(table::table(conn, names).await?, "the table is logged and vacuumed, ids ascend, no foreign trigger runs");
    found.add(objects::objects(conn, names).await?, "nobody else owns what the outbox runs");
    if reads_contents(conn, names).await? {
        found.add(
            table::payloads(conn, names, relay.envelope).await?,
            format!("payloads fit the envelope {}", relay.envelope),
        );
    }
    let (topics, illegal) = routes::routes(conn, names, &relay.topic).await?;
    let refused = topics.keys().filter_map(|topic| refused_topic(topic, relay));
    found.add(illegal.iter().map(illegal_topic).chain(refused), "every event has a legal topic");
    for (topic, seen) in topics {
        let entry = found.topics.entry(topic).or_insert(seen);
        entry.largest = entry.largest.max(seen.largest);
        entry.oldest_s = entry.oldest_s.max(seen.oldest_s);
    }
    let (lacking, identity) = transactions::database(conn, settings, names, lanes).await?;
    found.findings.extend(lacking);
    found.identity = identity;
    if connect::cannot_write(conn).await?.is_none() {
        // A standby has no unlogged tables, and no relays.
        found.add(
            relays::conflicts(conn, names, relay).await?,
            "live relays have the same settings and names of their own",
        );
    }
    found.sources = sources::sources(conn, names).await?;
    found.processed_ms = dedup_window::oldest_processed_ms(conn, names).await?;
    Ok(())
}

async fn brokers(
    settings: &Settings,
    kafka: &KafkaSettings,
    names: &Names,
    found: &mut Found,
) -> Result<(), rdkafka::error::KafkaError> {
    let cluster = match Cluster::reach(kafka).await? {
        Ok(cluster) => cluster,
        Err(finding) => {
            found.findings.push(finding);
            return Ok(());
        }
    };
    let answered = format!("{} of the brokers answer(s), at the addresses that they advertise", cluster.brokers.len());
    found.add(advertised::findings(&cluster.brokers).await, answered);
    if let Some(identity) = found.identity {
        found.findings.extend(transactions::kafka(&cluster, settings, identity).await);
    }
    // Check the busiest topics first.
    let mut topics: Vec<_> = std::mem::take(&mut found.topics).into_iter().collect();
    topics.sort_by_key(|(_, seen)| std::cmp::Reverse(seen.events));
    if topics.len() > MOST_TOPICS {
        found.findings.push(Finding::note(
            Code::TopicsNotAll,
            format!("The events go to {} topics; only the {MOST_TOPICS} busiest were checked.", topics.len()),
            "no action is needed; RELAY_TOPIC decides to how many topics events go",
        ));
    }
    if topics.is_empty() {
        found.unchecked.push("topics, because no event names one yet: `outbox-relay check --topic NAME`".to_owned());
    }
    let question = question(settings, names);
    for (name, seen) in topics.iter().take(MOST_TOPICS) {
        let (findings, topic) = topics::topic(&cluster, kafka, &settings.relay, name, *seen).await?;
        let partitions = topic.map_or(0, |topic| topic.partitions);
        found.add(findings, format!("the topic {name} takes events: {partitions} partitions"));
        let retention = topic.and_then(|topic| topic.retention);
        let violation = question
            .as_ref()
            .zip(retention)
            .and_then(|(question, retention)| question.violation(Some(name), false, retention));
        // Report a topic once: a window that is too narrow hides the finding about events that are already forgotten.
        let has_forgotten = || topic.and_then(|topic| dedup_window::outlived(name, topic, found.processed_ms, names));
        let finding = violation.as_ref().map(dedup_window::too_narrow).or_else(has_forgotten);
        found.findings.extend(finding);
    }
    let Some(question) = question else { return Ok(()) };
    found.findings.extend(question.horizon().as_ref().map(dedup_window::too_narrow));
    let all = cluster.topics().await?;
    let routed: Vec<&str> = topics.iter().take(MOST_TOPICS).map(|(name, _)| name.as_str()).collect();
    let dead_letters = |topic| crate::inspect::dedup_window::dead_letter_topics(topic, all.iter());
    // A name may be that of a dead letter topic of two topics.
    for name in routed.iter().copied().flat_map(dead_letters).collect::<BTreeSet<_>>() {
        let retention = cluster
            .topic_config(name)
            .await
            .and_then(|config| crate::inspect::dedup_window::TopicRetention::from_config(&config));
        let violation = retention.and_then(|retention| question.violation(Some(name), true, retention));
        found.findings.extend(violation.as_ref().map(dedup_window::too_narrow));
    }
    let findings = dedup_window::of_groups(&question, kafka, std::mem::take(&mut found.sources), &routed).await?;
    found.findings.extend(findings);
    Ok(())
}

/// Returns the settings of the window; `None` if `processed_events` is never pruned.
fn question<'a>(settings: &'a Settings, names: &'a Names) -> Option<crate::inspect::dedup_window::Question<'a>> {
    let retention = &settings.relay.retention;
    Some(crate::inspect::dedup_window::Question {
        names,
        template: &settings.relay.topic,
        window: retention.processed_after?,
        dead_letter_horizon: retention.dead_letter_horizon,
        topics: &[],
    })
}

/// Reports a topic that no event may go to.
fn refused_topic(topic: &str, relay: &RelaySettings) -> Option<Finding> {
    let refusal = admission::topic_refusal(topic, relay)?;
    Some(Finding::error(
        Code::TopicIllegal,
        format!("Events go to a topic that is refused, and become DEAD: {refusal}."),
        "fix RELAY_TOPIC or what the application writes, or add the topic to RELAY_TOPICS",
    ))
}

fn illegal_topic(route: &IllegalRoute) -> Finding {
    let IllegalRoute { entity_type, error } = route;
    Finding::error(
        Code::TopicIllegal,
        format!("Events of the entity type {entity_type:?} have no legal topic and become DEAD: {error}."),
        "fix RELAY_TOPIC, or what the application writes into entity_type and topic",
    )
}
