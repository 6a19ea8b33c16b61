//! Lists the notices: stable names of log lines, in the field `notice`.
//!
//! Each INFO line has a notice. A WARN or ERROR line has one if its code depends on the cause: the code names the cause, the notice names
//! the line. Other WARN and ERROR lines have only a code.
//!
//! A new notice needs a line here and a row in docs/reference/log-lines.md. Tests find a line without a notice, a notice that nothing logs,
//! and a missing row.

use std::fmt;

/// Takes one line per notice: variant, name, meaning.
macro_rules! notices {
    ($($variant:ident $name:literal $meaning:literal;)+) => {
        /// The name of a log line. Prints as `outage_ended`.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Notice {
            $(#[doc = $meaning] $variant,)+
        }

        impl fmt::Display for Notice {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name,)+ })
            }
        }

        impl Notice {
            /// Every notice.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
        }
    };
}

notices! {
    // Start, work, end.
    Starting "starting" "A relay or a consumer starts.";
    Migrated "migrated" "`run --migrate` has migrated the outbox.";
    AdminListening "admin_listening" "The admin address accepts probes and scrapes.";
    Ready "ready" "Both servers have answered, no right is missing, and the relay can publish.";
    CheckFinding "check_finding" "The check at start has a finding.";
    Status "status" "Counts the backlog and what was published.";
    Reloaded "reloaded" "The configuration was read again while the relay runs.";
    Stopping "stopping" "The relay claims no more and drains.";
    Stopped "stopped" "A relay or a service of the demo has stopped.";
    Failed "failed" "The relay cannot start, or ends with an error.";

    // Lanes and partitions.
    LanesAssigned "lanes_assigned" "A relay has joined or left, and the lanes of this one have changed.";
    EventsRecovered "events_recovered" "A worker has marked events that a former owner of its lanes had published.";
    ProgressTopicCreated "progress_topic_created" "The topic of exactly-once progress was created.";
    PartitionsAssigned "partitions_assigned" "A consumer got partitions.";
    PartitionsRevoked "partitions_revoked" "A consumer gives partitions back.";
    TypeIgnored "type_ignored" "No handler of a consumer takes an event type.";

    RelayConflict "relay_conflict" "Live relays of the outbox have different settings, or the same name.";

    // Incidents.
    OutageStarted "outage_started" "A server went away.";
    OutageChanged "outage_changed" "An outage goes on for another reason.";
    ConnectionRefused "connection_refused" "The database server has no connection left for the relay.";
    WakeUpOff "wake_up_off" "Notifications of writers do not reach the relay.";
    WakeUpOn "wake_up_on" "Notifications of writers reach the relay again.";
    ServerRefuses "server_refuses" "A server has refused the relay since its start, and somebody has to act.";
    OutageEnded "outage_ended" "The server is back.";
    TopicClosed "topic_closed" "A topic cannot be written, and its events are held.";
    TopicReopened "topic_reopened" "A topic can be written again.";
    PartitionClosed "partition_closed" "A partition takes no records, and its events are held.";
    PartitionReopened "partition_reopened" "A partition takes records again.";
    RecordsUnacknowledged "records_unacknowledged" "Records were not acknowledged and are sent again.";
    RecordsAcknowledged "records_acknowledged" "Records are acknowledged again.";
    TransactionsUnusable "transactions_unusable" "Events cannot be published in transactions and wait.";
    TransactionsUsable "transactions_usable" "Events can be published in transactions again.";
    EventRefused "event_refused" "An event cannot be sent and needs a decision.";
    Resolved "resolved" "The incident that began with the line of the same code is over.";

    // Operators and retention.
    PauseStarted "pause_started" "A pause is in force.";
    PauseEnded "pause_ended" "A pause was resumed or has expired.";
    Pruned "pruned" "Retention has removed old events.";
}
