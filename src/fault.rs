//! One table: what an error of Postgres or Kafka means for the relay, whether it costs the row an attempt, and what the operator
//! does next. Matched by code, never by the text of a message.

use rdkafka::error::RDKafkaErrorCode;

/// What an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// A server is away or busy: wait, then do the same again. Costs no attempt.
    Outage,
    /// One topic cannot be written: hold its rows. Costs no attempt.
    Destination,
    /// The row itself cannot be sent: by policy. Costs the row an attempt.
    Row,
    /// Somebody has to change something before it can work; tried again all the same. Costs no attempt.
    Operator,
}

/// An entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) class: Class,
    /// The operator's next step.
    pub(crate) next_step: &'static str,
}

const fn fault(class: Class, next_step: &'static str) -> Fault {
    Fault { class, next_step }
}

/// What librdkafka's error codes mean for a record that was not acknowledged.
pub(crate) fn of_kafka(code: RDKafkaErrorCode) -> Fault {
    use RDKafkaErrorCode as Code;
    match code {
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition => {
            fault(Class::Destination, "create the topic")
        }
        Code::TopicAuthorizationFailed => {
            fault(Class::Destination, "grant the relay's user WRITE and DESCRIBE on the topic")
        }
        Code::InvalidTopic => {
            fault(Class::Destination, "mend the topic's name in RELAY_TOPIC or in the row's topic column")
        }
        Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge => {
            fault(Class::Row, "raise the topic's max.message.bytes and KAFKA_MESSAGE_MAX_BYTES, or discard the event")
        }
        Code::InvalidRecord | Code::InvalidMessage | Code::PolicyViolation | Code::UnsupportedForMessageFormat => {
            fault(Class::Row, "the broker refuses the record: mend the event, or discard it")
        }
        Code::InvalidTimestamp => {
            fault(Class::Row, "created_at is outside what the topic accepts (message.timestamp.before/after.max.ms)")
        }
        Code::ClusterAuthorizationFailed | Code::TransactionalIdAuthorizationFailed => {
            fault(Class::Operator, "grant the relay's user IDEMPOTENT_WRITE on the cluster")
        }
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
            fault(Class::Operator, "check KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_MECHANISM, user and password")
        }
        Code::SSL => fault(Class::Operator, "check KAFKA_SSL_CA_LOCATION and the broker's certificate"),
        Code::NotEnoughReplicas | Code::NotEnoughReplicasAfterAppend => {
            fault(Class::Outage, "bring the topic's replicas back: fewer than min.insync.replicas are in sync")
        }
        _ => fault(Class::Outage, "check that the brokers run and can be reached"),
    }
}

/// What an error of the database means.
pub(crate) fn of_database(error: &sqlx::Error) -> Fault {
    let code = error.as_database_error().and_then(|error| error.code());
    let Some(code) = code.as_deref() else {
        return match error {
            sqlx::Error::Tls(_) => fault(Class::Operator, "check sslmode and sslrootcert in DATABASE_URL"),
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => {
                fault(Class::Outage, "check that the database runs and can be reached")
            }
            _ => fault(Class::Operator, "report this: the database answered what the relay does not understand"),
        };
    };
    match code {
        "28000" | "28P01" => fault(Class::Operator, "check the user and the password in DATABASE_URL and pg_hba.conf"),
        "3D000" => fault(Class::Operator, "check the database's name in DATABASE_URL"),
        "42501" => {
            fault(Class::Operator, "grant the relay's user SELECT and UPDATE on the outbox and its companion tables")
        }
        "42P01" | "42703" | "42883" | "3F000" => fault(Class::Operator, "run `outbox-relay migrate`"),
        "25006" => {
            fault(Class::Outage, "this server is read-only, a standby perhaps: point DATABASE_URL at the primary")
        }
        "53300" => fault(Class::Outage, "the server has no connection left: raise max_connections or stop a client"),
        "53100" => fault(Class::Outage, "the server's disk is full: free space"),
        "55P03" => fault(Class::Outage, "another session holds a lock: see pg_locks and pg_blocking_pids()"),
        "25P03" => fault(Class::Outage, "the relay was frozen for longer than RELAY_PUBLISH_TIMEOUT: give it CPU"),
        // Connection exceptions, insufficient resources, operator intervention, system errors, rolled back transactions.
        _ if ["08", "53", "57", "58", "40"].iter().any(|class| code.starts_with(class)) => {
            fault(Class::Outage, "check that the database runs and can be reached")
        }
        _ => fault(Class::Operator, "see the error: the database refused a statement of the relay"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_heal_by_itself_never_costs_an_attempt() {
        for code in [
            RDKafkaErrorCode::MessageTimedOut,
            RDKafkaErrorCode::BrokerTransportFailure,
            RDKafkaErrorCode::PurgeInflight,
            RDKafkaErrorCode::Fatal,
            RDKafkaErrorCode::NotLeaderForPartition,
            RDKafkaErrorCode::RequestTimedOut,
        ] {
            assert_eq!(of_kafka(code).class, Class::Outage, "{code:?}");
        }
        assert_eq!(of_kafka(RDKafkaErrorCode::UnknownTopic).class, Class::Destination);
        assert_eq!(of_kafka(RDKafkaErrorCode::MessageSizeTooLarge).class, Class::Row);
    }
}
