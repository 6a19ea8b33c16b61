//! Lists the codes of warnings and errors. They are in the log, in the findings of `check` and in the errors of the command line.
//!
//! A code never gets another meaning, and a code that was removed is not used again.
//!
//! A new code needs a line here and an entry in docs/how-to/runbook.md. The tests of the workspace find a log line without a code, a code
//! that nothing uses, and a missing or obsolete entry.

use std::fmt;

/// Takes one line per code: number, variant, name, meaning.
macro_rules! codes {
    ($($number:literal $variant:ident $name:literal $meaning:literal;)+) => {
        /// The subject of a warning or an error. Prints as `OR-2001`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $meaning] $variant = $number,)+
        }

        impl Code {
            /// Every code, in the order of the numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Returns the id of a finding: as stable as the number.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }

            /// Returns what the code stands for, as its entry in the runbook begins.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)+ }
            }
        }
    };
}

codes! {
    // 1xxx: configuration, start, end
    1001 ConfigurationRefused "configuration-refused" "the configuration has mistakes, and nothing was started";
    1002 KafkaSettingsConflict "kafka-settings-conflict" "librdkafka refuses the KAFKA_ settings together";
    1003 ShutdownTimeout "shutdown-timeout" "the relay was told to stop and did not drain in time";
    1004 StoppedAtOnce "stopped-at-once" "a second signal ended the relay before it had drained";
    1005 InTheClear "in-the-clear" "the configuration exposes events or secrets";
    1006 SecretArgument "secret-argument" "secrets are on the command line";
    1007 SecretReadable "secret-readable" "every user of the host can read a file with a secret";
    1008 AdminTokenWrong "admin-token-wrong" "a caller of the admin address sends wrong tokens";
    1009 ReloadRefused "reload-refused" "the configuration was read again and has mistakes";
    1010 ServiceManagerAway "service-manager-away" "the service manager that started the relay cannot be reached";

    // 20xx: the database server
    2001 DatabaseUnreachable "database-unreachable" "the database does not answer";
    2002 DatabaseLogin "database-login" "the database does not let this user in";
    2003 DatabaseName "database-name" "the database of that name does not exist";
    2004 DatabaseTls "database-tls" "no TLS connection to the database comes about";
    2005 DatabaseReadOnly "database-read-only" "the database server is read-only, a standby perhaps";
    2006 DatabaseFull "database-full" "the database server's disk is full";
    2007 DatabaseConnections "database-connections" "the database server has no connection left";
    2008 DatabaseSlow "database-slow" "a statement took too long and was cancelled";
    2009 DatabaseLocked "database-locked" "another session holds a lock that is needed";
    2010 DatabaseDeadlock "database-deadlock" "the database rolled a transaction back in favour of another";
    2011 DatabaseResources "database-resources" "the database server is short of memory, or its system fails it";
    2012 DatabaseDamaged "database-damaged" "the database reports an internal error or damaged data";
    2013 DatabaseRefused "database-refused" "the database refused a statement of the relay";
    2014 DatabaseTrigger "database-trigger" "a trigger or a function of the outbox failed";
    2015 RelayFrozen "relay-frozen" "the relay stood still for so long that the database ended its transaction";
    2016 TransactionTimeout "transaction-timeout" "transaction_timeout ended the relay's transaction";
    2017 DatabasePlaintext "database-plaintext" "the connection to the database may be without TLS";
    2018 DatabaseUnverified "database-unverified" "the database's certificate is not verified";

    // 21xx: the outbox's tables
    2101 SchemaMissing "schema-missing" "there is no outbox of that name";
    2102 SchemaOlder "schema-older" "the outbox's tables are older than this binary needs";
    2103 SchemaNewer "schema-newer" "the outbox's tables are newer than this binary";
    2104 SchemaForeign "schema-foreign" "a table of that name is there and is no outbox";
    2105 ServerOld "server-old" "the PostgreSQL version is not supported";
    2106 LanesBroken "lanes-broken" "rows of the lane table are missing";
    2107 IndexMissing "index-missing" "an index of the outbox is missing";
    2108 IndexInvalid "index-invalid" "an index of the outbox is invalid, or not the migration's";
    2109 ClaimPlan "claim-plan" "the planner does not take the claim's indexes";
    2110 TableUnlogged "table-unlogged" "the outbox is an unlogged table";
    2111 SequenceCache "sequence-cache" "ids are handed out in blocks, so that their order is not the order of commits";
    2112 Triggers "triggers" "triggers run on the outbox";
    2113 TablePartitioned "table-partitioned" "the outbox is a partitioned table";
    2114 StampTriggers "stamp-triggers" "the outbox lacks triggers that claims rest on";
    2115 EventIdsRepeated "event-ids-repeated" "several events have the same id";

    // 22xx: rights in the database
    2201 RightsMissing "rights-missing" "the user lacks a right in the database";
    2202 RightsSuperuser "rights-superuser" "the relay is a superuser";
    2203 RightsExcessive "rights-excessive" "the relay's user may do what a relay never does";
    2204 RowSecurity "row-security" "row level security may hide rows from the relay";
    2205 SessionsHidden "sessions-hidden" "the user may not see what other sessions do";
    2206 ForeignObjects "foreign-objects" "the outbox runs objects that other users own";
    2207 SchemaOpen "schema-open" "other users may create objects in the outbox's schema";
    2208 RightsReader "rights-reader" "the user reads the outbox and is no relay";

    // 23xx: between relay and database
    2301 PoolerTransaction "pooler-transaction" "a transaction pooler stands before the database";
    2302 PoolerPreparedStatements "pooler-prepared-statements" "the pooler before the database loses prepared statements";
    2303 PoolerSession "pooler-session" "a session pooler stands before the database";
    2304 PoolerError "pooler-error" "the pooler before the database reports an error of its own";

    // 24xx: what goes on in the database
    2401 ClockSkew "clock-skew" "the clocks of relay and database differ";
    2402 TransactionOld "transaction-old" "a transaction has been open for long";
    2403 TransactionPrepared "transaction-prepared" "a prepared transaction holds back vacuum and keeps its locks";
    2404 ReplicationSlot "replication-slot" "a replication slot keeps WAL and dead rows";
    2405 AutovacuumOff "autovacuum-off" "autovacuum is off";
    2406 DeadTuples "dead-tuples" "dead rows pile up in the outbox";

    // 30xx: the brokers
    3001 BrokerUnreachable "broker-unreachable" "no broker answers";
    3002 BrokerLogin "broker-login" "the brokers refuse the login";
    3003 BrokerTls "broker-tls" "no TLS connection to the brokers comes about";
    3004 BrokerName "broker-name" "a broker's name cannot be resolved";
    3005 BrokerTimeout "broker-timeout" "the brokers did not answer in time";
    3006 BrokerDisk "broker-disk" "a broker cannot write to its disk";
    3007 BrokerQuota "broker-quota" "the relay's Kafka user is over its quota";
    3008 BrokerOld "broker-old" "the brokers are too old for what is asked of them";
    3009 ProducerLost "producer-lost" "a producer could not go on and was replaced";
    3010 ProducerRight "producer-right" "the right to be an idempotent producer is missing";
    3011 ClientResources "client-resources" "the relay's own machine is short of memory, threads or disk";
    3012 GroupRight "group-right" "the right to use a consumer group is missing";
    3013 BrokerAnswer "broker-answer" "the brokers answered what is not understood";
    3014 RecordsUnacknowledged "records-unacknowledged" "records were not acknowledged and are sent again";
    3015 CoordinatorAway "coordinator-away" "a coordinator of groups or transactions is away";
    3016 TransactionsUnauthorized "transactions-unauthorized" "a right that exactly-once needs is missing";
    3017 TransactionsUnusable "transactions-unusable" "events cannot be published in transactions of Kafka";
    3018 ProgressTopic "progress-topic" "the progress topic is missing, hidden or too small";
    3019 ProgressSmall "progress-small" "the brokers take little progress per lane";
    3020 ProgressSingleReplica "progress-single-replica" "one broker's disk holds the progress";
    3021 TokenServerAway "token-server-away" "the server of login tokens does not answer";
    3022 TokenRefused "token-refused" "the server of login tokens refuses the client";
    3023 BrokerPlaintext "broker-plaintext" "the connections to the brokers are without TLS";
    3024 BrokerUnverified "broker-unverified" "the brokers' certificates are not verified";
    3025 BrokerPassword "broker-password-plaintext" "a password or a token goes to the brokers without TLS";

    // 31xx: topics
    3101 TopicMissing "topic-missing" "a topic that events go to does not exist";
    3102 TopicUnauthorized "topic-unauthorized" "the relay's user may not write or see a topic";
    3103 TopicIllegal "topic-illegal" "events name a topic that Kafka does not allow";
    3104 TopicUnusable "topic-unusable" "the cluster gives no information about a topic";
    3105 TopicLeaderless "topic-leaderless" "partitions of a topic have no leader";
    3106 TopicMinIsr "topic-min-isr" "fewer replicas are in sync than the topic requires";
    3107 TopicSingleReplica "topic-single-replica" "one broker's disk holds all that is acknowledged";
    3108 TopicConfigHidden "topic-config-hidden" "the user may not see a topic's configuration";
    3109 TopicsNotAll "topics-not-all" "there are more topics than the check looks at";
    3110 TopicPartitioner "topic-partitioner" "producers of a topic use different partitioners";
    3111 MessageSizeMismatch "message-size-mismatch" "the client may send more than the topic takes";
    3112 ProcessedWindow "processed-window" "a topic keeps events that processed_events has forgotten";
    3113 TopicClosed "topic-closed" "a topic cannot be written, and its events are held";
    3114 EventsExpire "events-expire" "events wait that are older than their topic keeps records";

    // 4xxx: events
    4001 EventRefused "event-refused" "an event cannot be sent, and needs a decision";
    4002 MessageTooLarge "message-too-large" "events are larger than a record may be";
    4003 RecordRefused "record-refused" "the broker refuses a record for what it is";
    4004 RecordTimestamp "record-timestamp" "an event's time is outside what its topic accepts";
    4005 PayloadNotJson "payload-not-json" "payloads are not JSON, and the envelope is";
    4006 EventLocked "event-locked" "another session has locked a pending event";
    4007 EventUnreadable "event-unreadable" "a row of the outbox cannot be read as an event";
    4008 NameTooLong "name-too-long" "an event's entity id, type, topic or headers are too long";

    // 5xxx: lanes and who owns them
    5001 MarksNotMade "marks-not-made" "published events cannot be marked";
    5002 Stalled "stalled" "events wait and none has moved for RELAY_STALL_AFTER";
    5003 ProducerFenced "producer-fenced" "another relay took a worker's lanes over while it did not answer";
    5004 ProgressLost "progress-lost" "the progress of lanes is lost";
    5005 LanesReset "lanes-reset" "the progress of lanes was written on another server";
    5006 IdsWentBack "ids-went-back" "event ids begin again";
    5007 RelaysDiffer "relays-differ" "live relays of one outbox have different settings";
    5008 RelayNameShared "relay-name-shared" "live relays of one outbox have the same name";

    // 6xxx: operations
    6001 RetentionFails "retention-fails" "old events cannot be pruned";
    6002 TopicDiffers "topic-differs" "verify found that table and topic differ";

    // 7xxx: consumers
    7001 ConsumerOutage "consumer-outage" "the consumer cannot read from Kafka for now";
    7002 OffsetsUncommitted "offsets-uncommitted" "the consumer's offsets cannot be committed";
    7003 HandlerSlow "handler-slow" "a handler takes too long to end and is aborted";
    7004 HandlerStuck "handler-stuck" "a handler blocks and cannot be aborted";
    7005 GroupFails "group-fails" "the consumer group cannot share its partitions out";
    7006 PartitionsStay "partitions-stay" "partitions that were assigned cannot be resumed";
    7007 DeadLetterUnsent "dead-letter-unsent" "a dead letter cannot be sent, and its partition waits";
    7008 DeadLetter "dead-letter" "an event was not applied and is a dead letter";
    7009 EventRetried "event-retried" "an event could not be applied and is tried again";
    7010 GroupNotLeft "group-not-left" "the consumer has ended without leaving its group in order";
    7011 TransactionAborted "transaction-aborted" "a handler hid a database error, and its effects were rolled back";
    7012 KeyHeld "key-held" "a key is held, and its later events wait";
    7013 HandlerHangs "handler-hangs" "a handler has not ended for long";
    7014 SourceMissing "source-missing" "a topic that a consumer reads does not exist";
    7015 EventsLost "events-lost" "retention removed events before a consumer read them";
    7016 OffsetsWentBack "offsets-went-back" "a partition is read from an earlier offset than before";
    7017 BatchHalved "batch-halved" "a batch failed and is applied in smaller parts";
    7018 HookPanicked "hook-panicked" "the hook before a dead letter panicked";

    // 9xxx: the program itself
    9001 Unexpected "unexpected" "something happened that should not";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OR-{}", *self as u16)
    }
}

impl serde::Serialize for Code {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
