//! Classifies librdkafka's error codes, for a record that was not acknowledged or a request that the cluster did not answer.

use rdkafka::error::RDKafkaErrorCode as Code;

use super::{Class, Fault, fault};
use event_outbox::code::Code as Runbook;

/// Codes with the same meaning.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) codes: &'static [Code],
    /// A few words on the cause, for the page.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the page, which a test writes"))]
    pub(super) meaning: &'static str,
    pub(super) fault: Fault,
}

/// The fault for a code that is newer than this table. The record may have been delivered, as with any other unknown outcome.
const UNHEARD_OF: Fault = fault(
    Class::Outage,
    Runbook::BrokerAnswer,
    "report this code, which this version does not know; meanwhile the events are sent again",
);

/// The fault of a record that got no answer while its batch was waited for.
pub(crate) const NO_ANSWER: Fault = fault(
    Class::Outage,
    Runbook::RecordsUnacknowledged,
    "look at the brokers: a partition without a leader, too few replicas in sync, a full disk",
);

/// The fault of a login without a token, because its server cannot give one for now.
pub(crate) const TOKEN_SERVER_AWAY: Fault = fault(
    Class::Outage,
    Runbook::TokenServerAway,
    "check that the token server runs and that its address can be reached from here; the relay asks again",
);

/// The fault of a login without a token, because its server refused to give one.
pub(crate) const TOKEN_REFUSED: Fault = fault(
    Class::ActionRequired,
    Runbook::TokenRefused,
    "check the client id, its secret and the scope, or the credentials and the role of AWS",
);

/// Every code of librdkafka.
pub(crate) fn codes() -> impl Iterator<Item = Code> {
    TABLE.iter().flat_map(|entry| entry.codes).copied()
}

/// The runbook codes that explain why a record was not acknowledged. Some occur more than once.
pub(crate) fn runbook_codes() -> impl Iterator<Item = Runbook> {
    TABLE.iter().map(|entry| entry.fault.code).chain([NO_ANSWER.code])
}

/// Classifies an error code of librdkafka for a record that was not acknowledged.
pub(crate) fn classify_kafka(code: Code) -> Fault {
    TABLE.iter().find(|entry| entry.codes.contains(&code)).map_or(UNHEARD_OF, |entry| entry.fault)
}

/// The codes that a broker may return for a Produce request (Kafka's ProduceResponse.java, ReplicaManager, UnifiedLog and LogValidator).
/// tests/faults/produce_errors.rs has a case for each.
#[cfg(test)]
pub(crate) const PRODUCE_CODES: &[Code] = &[
    Code::Unknown,
    Code::InvalidMessage,
    Code::UnknownTopicOrPartition,
    Code::LeaderNotAvailable,
    Code::NotLeaderForPartition,
    Code::RequestTimedOut,
    Code::BrokerNotAvailable,
    Code::ReplicaNotAvailable,
    Code::MessageSizeTooLarge,
    Code::NetworkException,
    Code::InvalidTopic,
    Code::MessageBatchTooLarge,
    Code::NotEnoughReplicas,
    Code::NotEnoughReplicasAfterAppend,
    Code::InvalidRequiredAcks,
    Code::TopicAuthorizationFailed,
    Code::ClusterAuthorizationFailed,
    Code::InvalidTimestamp,
    Code::UnsupportedVersion,
    Code::InvalidRequest,
    Code::UnsupportedForMessageFormat,
    Code::PolicyViolation,
    Code::OutOfOrderSequenceNumber,
    Code::DuplicateSequenceNumber,
    Code::InvalidProducerEpoch,
    Code::InvalidTransactionalState,
    Code::InvalidProducerIdMapping,
    Code::ConcurrentTransactions,
    Code::TransactionalIdAuthorizationFailed,
    Code::KafkaStorageError,
    Code::UnknownProducerId,
    Code::FencedLeaderEpoch,
    Code::UnknownLeaderEpoch,
    Code::UnsupportedCompressionType,
    Code::InvalidRecord,
    Code::ThrottlingQuotaExceeded,
    Code::ProducerFenced,
    Code::UnknownTopicId,
];

/// Every code of librdkafka, in the order of the page.
pub(super) const TABLE: &[Entry] = &[
    Entry {
        codes: &[
            Code::BrokerTransportFailure,
            Code::AllBrokersDown,
            Code::NetworkException,
            Code::BrokerNotAvailable,
            Code::NodeUpdate,
            Code::UnknownBroker,
            Code::DestroyBroker,
            Code::RebootstrapRequired,
            Code::ListenerNotFound,
        ],
        meaning: "no broker can be reached, or not the right one",
        fault: fault(
            Class::Outage,
            Runbook::BrokerUnreachable,
            "check that the brokers run and that KAFKA_BOOTSTRAP_SERVERS and their advertised.listeners reach them",
        ),
    },
    Entry {
        codes: &[Code::Resolve],
        meaning: "a broker's name cannot be resolved",
        fault: fault(
            Class::Outage,
            Runbook::BrokerName,
            "check KAFKA_BOOTSTRAP_SERVERS, the brokers' advertised.listeners and the DNS",
        ),
    },
    Entry {
        codes: &[
            Code::MessageTimedOut,
            Code::OperationTimedOut,
            Code::RequestTimedOut,
            Code::TimedOutQueue,
            Code::WaitCache,
            Code::InProgress,
            Code::PreviousInProgress,
            Code::Retry,
            Code::Partial,
        ],
        meaning: "no answer in time; the record may have been written",
        fault: fault(
            Class::Outage,
            Runbook::BrokerTimeout,
            "check the brokers' load and the network; raise RELAY_PUBLISH_TIMEOUT if it recurs",
        ),
    },
    Entry {
        codes: &[
            Code::LeaderNotAvailable,
            Code::NotLeaderForPartition,
            Code::ReplicaNotAvailable,
            Code::PreferredLeaderNotAvailable,
            Code::EligibleLeadersNotAvailable,
            Code::FencedLeaderEpoch,
            Code::UnknownLeaderEpoch,
            Code::StaleControllerEpoch,
            Code::StaleBrokerEpoch,
            Code::NotController,
            Code::ReassignmentInProgress,
            Code::OffsetNotAvailable,
        ],
        meaning: "the partition's leader has moved or is being elected",
        fault: fault(
            Class::Outage,
            Runbook::TopicLeaderless,
            "none if it passes; else see which partitions have no leader",
        ),
    },
    Entry {
        codes: &[Code::NotEnoughReplicas, Code::NotEnoughReplicasAfterAppend, Code::ISRInsufficient],
        meaning: "fewer than min.insync.replicas are in sync",
        fault: fault(
            Class::Outage,
            Runbook::TopicMinIsr,
            "bring the topic's replicas back: fewer than min.insync.replicas are in sync",
        ),
    },
    Entry {
        codes: &[Code::KafkaStorageError, Code::LogDirNotFound],
        meaning: "the broker cannot write to its disk",
        fault: fault(Class::Outage, Runbook::BrokerDisk, "see the broker's log and its disks"),
    },
    Entry {
        codes: &[Code::ThrottlingQuotaExceeded],
        meaning: "the relay's user is over its quota",
        fault: fault(Class::Outage, Runbook::BrokerQuota, "raise the quota of the relay's user, or wait"),
    },
    Entry {
        codes: &[
            Code::Fatal,
            Code::GaplessGuarantee,
            Code::PurgeQueue,
            Code::PurgeInflight,
            Code::OutOfOrderSequenceNumber,
            Code::DuplicateSequenceNumber,
            Code::InvalidProducerEpoch,
            Code::InvalidProducerIdMapping,
            Code::UnknownProducerId,
            Code::ProducerFenced,
            Code::Fenced,
            Code::InvalidTransactionalState,
            Code::Inconsistent,
            Code::State,
            Code::BrokerDestroy,
        ],
        meaning: "this producer cannot continue; a new one sends the unacknowledged records again, in order",
        fault: fault(
            Class::Outage,
            Runbook::ProducerLost,
            "none if it passes; if it recurs see the brokers' log and report it",
        ),
    },
    Entry {
        codes: &[Code::CriticalSystemResource, Code::FileSystem, Code::QueueFull, Code::Interrupted],
        meaning: "the relay's machine is short of a resource",
        fault: fault(
            Class::Outage,
            Runbook::ClientResources,
            "check the memory, the threads and the disk of the relay's machine",
        ),
    },
    Entry {
        codes: &[
            Code::UnknownTopicOrPartition,
            Code::UnknownTopic,
            Code::UnknownPartition,
            Code::UnknownTopicId,
            Code::TopicDeletionDisabled,
        ],
        meaning: "the topic does not exist, or does not exist any more",
        fault: fault(Class::Destination, Runbook::TopicMissing, "create the topic"),
    },
    Entry {
        codes: &[Code::TopicAuthorizationFailed],
        meaning: "the right to write the topic is missing",
        fault: fault(
            Class::Destination,
            Runbook::TopicUnauthorized,
            "grant the relay's user WRITE and DESCRIBE on the topic",
        ),
    },
    Entry {
        codes: &[Code::InvalidTopic],
        meaning: "the cluster does not accept the topic's name",
        fault: fault(
            Class::Destination,
            Runbook::TopicIllegal,
            "fix the topic's name in RELAY_TOPIC or in the row's topic column",
        ),
    },
    // The broker returns this code for every record of a producer with an id, so the topic is at fault and not the record.
    Entry {
        codes: &[Code::UnsupportedForMessageFormat],
        meaning: "the topic's message format does not support idempotent or transactional producers",
        fault: fault(
            Class::Destination,
            Runbook::BrokerOld,
            "set message.format.version of the topic, or of the brokers, to 0.11.0 or later",
        ),
    },
    Entry {
        codes: &[Code::MessageSizeTooLarge, Code::InvalidMessageSize, Code::MessageBatchTooLarge],
        meaning: "the record or its batch is too large; a batch is made smaller until the record is alone",
        fault: fault(
            Class::Row,
            Runbook::MessageTooLarge,
            "raise the topic's max.message.bytes and KAFKA_MESSAGE_MAX_BYTES, or discard the event",
        ),
    },
    Entry {
        codes: &[Code::InvalidRecord, Code::InvalidMessage, Code::PolicyViolation],
        meaning: "the broker refuses the record; a compacted topic refuses records without a key",
        fault: fault(Class::Row, Runbook::RecordRefused, "the broker refuses the record: fix the event, or discard it"),
    },
    Entry {
        codes: &[Code::InvalidTimestamp],
        meaning: "the record's timestamp is outside the range that the topic accepts",
        fault: fault(
            Class::Row,
            Runbook::RecordTimestamp,
            "created_at is outside the range that the topic accepts: fix it, or raise message.timestamp.before/after.max.ms",
        ),
    },
    Entry {
        codes: &[Code::ClusterAuthorizationFailed],
        meaning: "the right to be an idempotent producer is missing",
        fault: fault(
            Class::ActionRequired,
            Runbook::ProducerRight,
            "grant the relay's user WRITE on its topics; brokers before 2.8 need IDEMPOTENT_WRITE on the cluster",
        ),
    },
    // InitProducerId, AddPartitionsToTxn, AddOffsetsToTxn, TxnOffsetCommit, EndTxn and a transactional Produce require WRITE, and
    // FindCoordinator requires DESCRIBE (handle… in Kafka's KafkaApis.scala).
    Entry {
        codes: &[Code::TransactionalIdAuthorizationFailed],
        meaning: "the right to use the transactional ids of an exactly-once relay is missing",
        fault: fault(
            Class::ActionRequired,
            Runbook::TransactionsUnauthorized,
            "grant the relay's user WRITE and DESCRIBE on the transactional ids that begin with outbox-relay.",
        ),
    },
    Entry {
        codes: &[Code::InvalidTransactionTimeout],
        meaning: "the brokers do not allow transactions as long as an exactly-once relay needs",
        fault: fault(
            Class::ActionRequired,
            Runbook::TransactionsUnusable,
            "lower RELAY_PUBLISH_TIMEOUT to the brokers' transaction.max.timeout.ms minus 15 s, or raise transaction.max.timeout.ms",
        ),
    },
    Entry {
        codes: &[
            Code::Authentication,
            Code::SaslAuthenticationFailed,
            Code::UnsupportedSASLMechanism,
            Code::IllegalSASLState,
            Code::SecurityDisabled,
            Code::UnacceptableCredential,
            Code::PrincipalDeserializationFailure,
            Code::InvalidPrincipalType,
            Code::DelegationTokenAuthDisabled,
            Code::DelegationTokenNotFound,
            Code::DelegationTokenOwnerMismatch,
            Code::DelegationTokenRequestNotAllowed,
            Code::DelegationTokenAuthorizationFailed,
            Code::DelegationTokenExpired,
        ],
        meaning: "the brokers refuse the relay's login",
        fault: fault(
            Class::ActionRequired,
            Runbook::BrokerLogin,
            "check KAFKA_SECURITY_PROTOCOL, KAFKA_SASL_MECHANISM, user and password",
        ),
    },
    Entry {
        codes: &[Code::SSL],
        meaning: "no TLS connection can be made",
        fault: fault(
            Class::ActionRequired,
            Runbook::BrokerTls,
            "check dates and issuer of both certificates (docs/how-to/runbook.md): KAFKA_SSL_CA_LOCATION has to contain the broker's issuer, and the broker has to trust KAFKA_SSL_CERTIFICATE_LOCATION",
        ),
    },
    Entry {
        codes: &[
            Code::UnsupportedCompressionType,
            Code::UnsupportedVersion,
            Code::UnsupportedFeature,
            Code::UnknownProtocol,
        ],
        meaning: "the broker is too old for a feature that the relay uses",
        fault: fault(
            Class::ActionRequired,
            Runbook::BrokerOld,
            "upgrade the broker, or do without the feature: set another KAFKA_COMPRESSION_TYPE, or RELAY_DELIVERY=at_least_once",
        ),
    },
    Entry {
        codes: &[Code::GroupAuthorizationFailed],
        meaning: "the right to use a consumer group is missing: an exactly-once relay keeps its progress in one, consumers and `verify` use others",
        fault: fault(
            Class::ActionRequired,
            Runbook::GroupRight,
            "grant the user READ on the group; those of exactly-once relays begin with outbox-relay.",
        ),
    },
    Entry {
        codes: &[
            Code::CoordinatorLoadInProgress,
            Code::CoordinatorNotAvailable,
            Code::NotCoordinator,
            Code::WaitingForCoordinator,
            Code::ConcurrentTransactions,
            Code::TransactionCoordinatorFenced,
            Code::UnstableOffsetCommit,
        ],
        meaning: "a coordinator of groups or transactions is unavailable or still busy; exactly-once relays, consumers and `verify` use one",
        fault: fault(
            Class::Outage,
            Runbook::CoordinatorAway,
            "none if it passes; else check that __transaction_state and __consumer_offsets have leaders, and see the brokers' log",
        ),
    },
    Entry {
        codes: &[Code::OffsetMetadataTooLarge, Code::InvalidCommitOffsetSize],
        meaning: "the brokers accept less progress than an exactly-once relay writes for a batch: the next batches are smaller",
        fault: fault(
            Class::Outage,
            Runbook::ProgressSmall,
            "none; to have large batches again, raise offset.metadata.max.bytes on the brokers",
        ),
    },
    Entry {
        codes: &[
            Code::PartitionEOF,
            Code::NoOffset,
            Code::OffsetOutOfRange,
            Code::AutoOffsetReset,
            Code::LogTruncation,
            Code::PollExceeded,
            Code::AssignPartitions,
            Code::RevokePartitions,
            Code::AssignmentLost,
            Code::ExistingSubscription,
            Code::UnknownGroup,
            Code::IllegalGeneration,
            Code::InconsistentGroupProtocol,
            Code::InvalidGroupId,
            Code::UnknownMemberId,
            Code::InvalidSessionTimeout,
            Code::RebalanceInProgress,
            Code::MemberIdRequired,
            Code::GroupMaxSizeReached,
            Code::FencedInstanceId,
            Code::NonEmptyGroup,
            Code::GroupIdNotFound,
            Code::GroupSubscribedToTopic,
            Code::FencedMemberEpoch,
            Code::UnreleasedInstanceId,
            Code::UnsupportedAssignor,
            Code::StaleMemberEpoch,
            Code::FetchSessionIdNotFound,
            Code::InvalidFetchSessionEpoch,
            Code::BadMessage,
            Code::BadCompression,
            Code::KeyDeserialization,
            Code::ValueDeserialization,
            Code::Underflow,
        ],
        meaning: "returned only to consumers, never for a record that was sent",
        fault: fault(
            Class::Outage,
            Runbook::BrokerAnswer,
            "report this: the relay received what only consumers receive",
        ),
    },
    Entry {
        codes: &[
            Code::TopicAlreadyExists,
            Code::InvalidPartitions,
            Code::InvalidReplicationFactor,
            Code::InvalidReplicaAssignment,
            Code::InvalidConfig,
            Code::OperationNotAttempted,
            Code::NoReassignmentInProgress,
            Code::ElectionNotNeeded,
            Code::ResourceNotFound,
            Code::DuplicateResource,
            Code::InconsistentVoterSet,
            Code::InvalidUpdateVersion,
            Code::FeatureUpdateFailed,
            Code::UnknownSubscriptionId,
            Code::TelemetryTooLarge,
        ],
        meaning: "returned only to administrators, never for a record that was sent",
        fault: fault(
            Class::Outage,
            Runbook::BrokerAnswer,
            "report this: the relay received what only administrators receive",
        ),
    },
    Entry {
        codes: &[
            Code::Fail,
            Code::InvalidArgument,
            Code::Conflict,
            Code::NotImplemented,
            Code::Outdated,
            Code::KeySerialization,
            Code::ValueSerialization,
            Code::ReadOnly,
            Code::NoEnt,
            Code::InvalidType,
            Code::NotConfigured,
            Code::Application,
            Code::Noop,
            Code::InvalidDifferentRecord,
            Code::InvalidRequest,
            Code::InvalidRequiredAcks,
            Code::Unknown,
        ],
        meaning: "a call was not understood; the record may have been written",
        fault: fault(
            Class::Outage,
            Runbook::BrokerAnswer,
            "report this with the log; meanwhile the events are sent again",
        ),
    },
    Entry {
        codes: &[Code::NoError, Code::Begin, Code::End, Code::EndAll],
        meaning: "no error: markers in librdkafka's own list",
        fault: fault(Class::Outage, Runbook::BrokerAnswer, "report this: librdkafka reported success as an error"),
    },
];

#[cfg(test)]
mod tests {
    use rdkafka::types::RDKafkaRespErr;

    use super::*;

    /// Returns every code of the librdkafka that this binary was built with.
    pub(in crate::fault) fn every_code() -> Vec<Code> {
        (-1000..1000).filter_map(|number| RDKafkaRespErr::try_from(number).ok()).map(Code::from).collect()
    }

    #[test]
    fn every_code_of_librdkafka_is_in_the_table_once() {
        let codes = every_code();
        assert!(codes.len() > 150, "only {} codes were found", codes.len());
        for code in codes {
            let entries = TABLE.iter().flat_map(|entry| entry.codes).filter(|known| **known == code).count();
            assert_eq!(entries, 1, "{code:?}");
        }
    }

    #[test]
    fn what_may_heal_by_itself_never_costs_an_attempt() {
        for code in [
            Code::MessageTimedOut,
            Code::BrokerTransportFailure,
            Code::PurgeInflight,
            Code::Fatal,
            Code::NotLeaderForPartition,
            Code::RequestTimedOut,
        ] {
            assert_eq!(classify_kafka(code).class, Class::Outage, "{code:?}");
        }
        assert_eq!(classify_kafka(Code::UnknownTopic).class, Class::Destination);
        assert_eq!(classify_kafka(Code::TopicAuthorizationFailed).class, Class::Destination);
        assert_eq!(classify_kafka(Code::MessageSizeTooLarge).class, Class::Row);
        assert_eq!(classify_kafka(Code::SaslAuthenticationFailed).class, Class::ActionRequired);
    }

    #[test]
    fn what_a_broker_says_of_one_record_or_one_topic_is_an_answer_to_a_produce_request() {
        // An answer to a fetch, and one to the deletion of a topic.
        let others = [Code::InvalidMessageSize, Code::TopicDeletionDisabled];
        for entry in TABLE.iter().filter(|entry| matches!(entry.fault.class, Class::Row | Class::Destination)) {
            for code in entry.codes.iter().filter(|code| **code as i32 > 0 && !others.contains(code)) {
                assert!(PRODUCE_CODES.contains(code), "{code:?}");
            }
        }
        let all: Vec<_> = codes().collect();
        assert!(PRODUCE_CODES.iter().all(|code| all.contains(code)));
    }

    #[test]
    fn what_exactly_once_lacks_is_named() {
        for (code, class, runbook, named) in [
            (
                Code::TransactionalIdAuthorizationFailed,
                Class::ActionRequired,
                Runbook::TransactionsUnauthorized,
                "WRITE and DESCRIBE on the transactional ids",
            ),
            (Code::GroupAuthorizationFailed, Class::ActionRequired, Runbook::GroupRight, "READ on the group"),
            (Code::ClusterAuthorizationFailed, Class::ActionRequired, Runbook::ProducerRight, "WRITE on its topics"),
            (
                Code::InvalidTransactionTimeout,
                Class::ActionRequired,
                Runbook::TransactionsUnusable,
                "transaction.max.timeout.ms",
            ),
            (Code::InvalidTransactionalState, Class::Outage, Runbook::ProducerLost, "none if it passes"),
            (Code::OffsetMetadataTooLarge, Class::Outage, Runbook::ProgressSmall, "offset.metadata.max.bytes"),
            (Code::UnsupportedForMessageFormat, Class::Destination, Runbook::BrokerOld, "message.format.version"),
            (Code::ConcurrentTransactions, Class::Outage, Runbook::CoordinatorAway, "__transaction_state"),
        ] {
            let fault = classify_kafka(code);
            assert_eq!((fault.class, fault.code), (class, runbook), "{code:?}");
            assert!(fault.next_step.contains(named), "{code:?}: {}", fault.next_step);
        }
    }

    #[test]
    fn only_what_a_broker_says_of_a_record_is_the_rows_own_fault() {
        let rows = TABLE.iter().filter(|entry| entry.fault.class == Class::Row).flat_map(|entry| entry.codes);
        assert!(rows.clone().all(|code| *code as i32 > 0), "a client's own code: {:?}", rows.collect::<Vec<_>>());
    }
}
