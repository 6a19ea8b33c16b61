//! Checks what exactly-once needs in addition: rights on the delivery table, transactions, and a group and a topic for the progress.

use rdkafka::error::RDKafkaErrorCode;
use sqlx::PgConnection;

use super::finding::Finding;
use super::kafka::{Cluster, value};
use super::rights;
use crate::config::{Delivery, Settings};
use crate::fault::{self, Class};
use crate::sink::client::ClientSettings;
use crate::sink::progress::METADATA_MAX_BYTES;
use crate::sink::transactions::{ProgressGroup, TransactionError};
use crate::store::delivery;
use event_outbox::Names;
use event_outbox::code::Code;

/// The columns of the delivery table that a relay writes.
const OWNED: [&str; 3] = ["epoch", "transactional_id", "opened"];

/// The identity of an outbox in Kafka.
#[derive(Debug, Clone, Copy)]
pub(super) struct Identity {
    pub(super) value: i64,
    pub(super) lanes: u16,
}

/// Returns what the database lacks for exactly-once, and the outbox's identity. The identity is `None` for at-least-once delivery.
pub(super) async fn database(
    conn: &mut PgConnection,
    settings: &Settings,
    names: &Names,
    lanes: u16,
) -> Result<(Vec<Finding>, Option<Identity>), sqlx::Error> {
    if settings.relay.delivery != Delivery::ExactlyOnce {
        return Ok((Vec::new(), None));
    }
    let table = names.companion("delivery");
    let lacking = rights::not_updatable(conn, &table, &OWNED).await?;
    let mut findings = Vec::new();
    if !lacking.is_empty() {
        let (user, columns) = (rights::current_user(conn).await?, lacking.join(", "));
        findings.push(Finding::error(
            Code::RightsMissing,
            format!("RELAY_DELIVERY is exactly_once, and the relay's user {user} has no right to UPDATE ({columns}) on {table}."),
            format!("outbox-relay migrate --roles, or: grant update ({columns}) on {table} to {user};"),
        ));
    }
    let value = delivery::identity(conn, names).await?;
    Ok((findings, Some(Identity { value, lanes })))
}

/// Returns what the cluster lacks for exactly-once.
pub(super) async fn kafka(cluster: &Cluster, settings: &Settings, identity: Identity) -> Vec<Finding> {
    let Some(kafka) = &settings.kafka else { return Vec::new() };
    let client = ClientSettings::new(kafka, settings.relay.batch_size, 0);
    let group = ProgressGroup::new(client, identity.value, identity.lanes);
    let name = group.name().to_owned();
    let mut findings = Vec::new();
    findings.extend(topic(cluster, &name, identity.lanes).await);
    // Use a transactional id of its own, which only another check can fence. The check only asks whether fencing works.
    let fenced = group.fence(&format!("{name}.check"), settings.relay.publish_timeout).await;
    if let Err(error @ (TransactionError::Kafka(_) | TransactionError::Topic { .. })) = fenced {
        findings.push(refused(
            &error,
            "transactions",
            &format!("--transactional-id {name}"),
            "--operation Write --operation Describe",
        ));
    }
    if let Err(error) = group.read(vec![0]).await {
        findings.push(refused(&error, "the group of the progress", &format!("--group {name}"), "--operation Read"));
    }
    findings.extend(brokers(cluster).await);
    findings
}

async fn topic(cluster: &Cluster, name: &str, lanes: u16) -> Option<Finding> {
    let create = format!("kafka-topics.sh --bootstrap-server … --create --topic {name} --partitions {lanes}");
    match cluster.topic(name).await {
        Ok(Ok(partitions)) if partitions.len() < usize::from(lanes) => Some(Finding::error(
            Code::ProgressTopic,
            format!("The progress topic {name} has {} partitions, and there are {lanes} lanes.", partitions.len()),
            format!("kafka-topics.sh --bootstrap-server … --alter --topic {name} --partitions {lanes}"),
        )),
        Ok(Ok(_)) => None,
        Ok(Err(RDKafkaErrorCode::TopicAuthorizationFailed)) => Some(Finding::error(
            Code::ProgressTopic,
            format!("The relay's user may not see the progress topic {name}."),
            format!(
                "kafka-acls.sh --bootstrap-server … --add --allow-principal User:… --operation Read --topic {name}"
            ),
        )),
        Ok(Err(_)) => Some(Finding::warning(
            Code::ProgressTopic,
            format!("The progress topic {name} does not exist: the relay creates it if it has the right."),
            create,
        )),
        Err(_) => None,
    }
}

fn refused(error: &TransactionError, what: &str, resource: &str, operations: &str) -> Finding {
    use RDKafkaErrorCode::{GroupAuthorizationFailed, TransactionalIdAuthorizationFailed};
    match error.code() {
        Some(TransactionalIdAuthorizationFailed | GroupAuthorizationFailed) => Finding::error(
            Code::TransactionsUnauthorized,
            format!("RELAY_DELIVERY is exactly_once, and the relay's user has no right to {what}."),
            format!(
                "kafka-acls.sh --bootstrap-server … --add --allow-principal User:… {operations} \
                 {resource} --resource-pattern-type prefixed"
            ),
        ),
        Some(code) if fault::classify_kafka(code).class == Class::ActionRequired => Finding::error(
            fault::classify_kafka(code).code,
            format!("RELAY_DELIVERY is exactly_once, and the brokers reject {what} ({code:?})."),
            fault::classify_kafka(code).next_step,
        ),
        code => Finding::error(
            Code::TransactionsUnusable,
            format!("RELAY_DELIVERY is exactly_once, and the coordinator of {what} does not answer ({code:?})."),
            "see the log of the brokers: __transaction_state and __consumer_offsets need as many brokers as their replication factor",
        ),
    }
}

async fn brokers(cluster: &Cluster) -> Vec<Finding> {
    let entries = cluster.broker_config().await;
    let number = |name: &str| value(&entries, name).and_then(|value| value.parse::<usize>().ok());
    let mut findings = Vec::new();
    if let Some(bytes) = number("offset.metadata.max.bytes").filter(|bytes| *bytes < METADATA_MAX_BYTES) {
        findings.push(Finding::note(
            Code::ProgressSmall,
            format!(
                "The brokers accept only {bytes} bytes of progress per lane, so batches are smaller than necessary."
            ),
            format!("offset.metadata.max.bytes={METADATA_MAX_BYTES} on the brokers"),
        ));
    }
    for name in ["transaction.state.log.min.isr", "offsets.topic.replication.factor"] {
        if cluster.brokers.len() > 1 && number(name) == Some(1) {
            findings.push(Finding::warning(
                Code::ProgressSingleReplica,
                format!("{name} is 1: if that broker is lost, the state that prevents duplicates is lost with it."),
                format!("{name}=2 or more on the brokers, and kafka-reassign-partitions.sh for the existing topics"),
            ));
        }
    }
    findings
}
