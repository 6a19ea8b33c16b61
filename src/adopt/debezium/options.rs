//! The options that need no computation: what becomes of each. docs/reference/debezium.md is tested against this table.

use super::report::Verdict;

/// An option, or a family of options whose names begin alike.
#[derive(Debug)]
pub(crate) struct Known {
    /// The name; one that ends in `*` is the beginning of names.
    pub(crate) name: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) text: &'static str,
}

const fn kept(name: &'static str, text: &'static str) -> Known {
    Known { name, verdict: Verdict::Kept, text }
}

const fn differs(name: &'static str, text: &'static str) -> Known {
    Known { name, verdict: Verdict::Differs, text }
}

const fn refused(name: &'static str, text: &'static str) -> Known {
    Known { name, verdict: Verdict::Refused, text }
}

const NO_SLOT: &str = "not needed: the relay reads the table and needs no replication slot; drop the slot after the cut, and the publication if nobody else uses it";
const NO_SNAPSHOT: &str = "not needed: the trigger takes no snapshot";
const OWN_PACE: &str = "not needed: the relay has settings of its own for batches and pauses";
const NO_EFFECT: &str = "nothing to do: it has no effect on records of the router";
const CONNECTION: &str = "the relay's connection is DATABASE_URL";
const VALUES: &str = "it changes values before the router sees them, and the trigger reads them unchanged";

/// The options of connector and router that the command knows, besides those that it computes with.
pub(crate) const KNOWN: &[Known] = &[
    kept("name", "not needed: the relay has a name of its own, RELAY_NAME"),
    kept("tasks.max", "not needed: the connector has one task, and relays share the work"),
    kept("database.*", CONNECTION),
    kept("plugin.name", NO_SLOT),
    kept("slot.*", NO_SLOT),
    kept("publication.*", NO_SLOT),
    kept("publish.via.partition.root", NO_SLOT),
    kept("lsn.flush.mode", NO_SLOT),
    kept("flush.lsn.source", NO_SLOT),
    kept("offset.mismatch.strategy", NO_SLOT),
    kept("xmin.fetch.interval.ms", NO_SLOT),
    kept("status.update.interval.ms", NO_SLOT),
    kept(
        "heartbeat.*",
        "not needed after the cut: no slot holds WAL back, and topics of heartbeats get no records any more; until then the connector needs them",
    ),
    kept("topic.heartbeat.*", "not needed: the relay sends no heartbeats to Kafka"),
    kept("snapshot.locking.*", NO_SNAPSHOT),
    kept("snapshot.lock.timeout.ms", NO_SNAPSHOT),
    kept("snapshot.delay.ms", NO_SNAPSHOT),
    kept("snapshot.fetch.size", NO_SNAPSHOT),
    kept("snapshot.isolation.mode", NO_SNAPSHOT),
    kept("snapshot.max.threads*", NO_SNAPSHOT),
    kept("legacy.snapshot.max.threads", NO_SNAPSHOT),
    kept("snapshot.query.*", NO_SNAPSHOT),
    kept("snapshot.include.collection.list", NO_SNAPSHOT),
    kept("snapshot.select.statement.overrides*", NO_SNAPSHOT),
    kept("incremental.snapshot.*", NO_SNAPSHOT),
    kept("streaming.delay.ms", OWN_PACE),
    kept("max.batch.size", OWN_PACE),
    kept("max.queue.size*", OWN_PACE),
    kept("poll.interval.ms", OWN_PACE),
    kept("retriable.restart.connector.wait.ms", OWN_PACE),
    kept("errors.max.retries", OWN_PACE),
    kept("errors.retry.*", OWN_PACE),
    kept("signal.*", "not needed: operators use the relay's commands"),
    kept("notification.*", "not needed: operators use the relay's log and metrics"),
    kept("custom.metric.tags", "not needed: the relay has metrics of its own"),
    kept("statistics.metrics.enabled", "not needed: the relay has metrics of its own"),
    kept("guardrail.*", "not needed: there is one table"),
    kept("schema.include.list", "table.include.list names the table"),
    kept("schema.exclude.list", "table.include.list names the table"),
    kept("table.exclude.list", "table.include.list names the table"),
    kept("column.include.list", "the trigger reads only the columns of the router's options"),
    kept("column.exclude.list", "the trigger reads only the columns of the router's options"),
    refused("column.mask.*", VALUES),
    refused("column.truncate.*", VALUES),
    refused("converters", VALUES),
    refused("post.processors", VALUES),
    kept("column.propagate.source.type", NO_EFFECT),
    kept("datatype.propagate.source.type", NO_EFFECT),
    kept("message.key.columns", "nothing to do: the router replaces the key"),
    kept("tombstones.on.delete", "nothing to do: the router drops deletes, and the trigger sees only inserts"),
    kept("skip.messages.without.change", NO_EFFECT),
    kept("include.unknown.datatypes", NO_EFFECT),
    kept("decimal.handling.mode", "nothing to do: numeric columns are not taken"),
    kept("hstore.handling.mode", "nothing to do: hstore columns are not taken"),
    kept("interval.handling.mode", "nothing to do: interval columns are not taken"),
    kept("money.fraction.digits", "nothing to do: money columns are not taken"),
    kept("unavailable.value.placeholder", "nothing to do: inserts have all values"),
    kept("schema.refresh.mode", NO_EFFECT),
    kept("schema.history.*", NO_EFFECT),
    kept(
        "logical.decoding.message.*",
        "the trigger sees rows only; messages of pg_logical_emit_message never were records of the router",
    ),
    kept("topic.naming.strategy", "nothing to do: the router names the topic"),
    kept("topic.delimiter", "nothing to do: the router names the topic"),
    kept("topic.cache.size", "nothing to do: the router names the topic"),
    kept("topic.transaction", "nothing to do: see provide.transaction.metadata"),
    differs(
        "topic.creation.*",
        "the relay creates no topics: create them before the cut, or let the brokers create them",
    ),
    kept(
        "event.processing.failure.handling.mode",
        "a row that cannot be sent goes DEAD, and an operator decides: see RELAY_ON_POISON",
    ),
    differs(
        "errors.tolerance",
        "a row that cannot be sent goes DEAD and stops nothing else; with RELAY_ON_POISON=hold_entity the entity waits",
    ),
    kept("errors.log.*", "not needed: the relay logs each event that it cannot send"),
    differs("exactly.once.support", "set RELAY_DELIVERY=exactly_once if consumers read committed records only"),
    kept("transaction.boundary*", "see exactly.once.support"),
    kept("offsets.storage.topic", "not needed: progress is in the database"),
    kept("predicates*", "computed: see the predicate of the router"),
    kept("executor.shutdown.timeout.ms", OWN_PACE),
    kept("internal.*", NO_EFFECT),
    kept("openlineage.*", "not needed: the relay reports no lineage"),
    kept("config.action.reload", "not needed: restart the relay, or let it reload its file"),
    kept("config.providers*", "not needed: secrets come from files, see DATABASE_URL_FILE"),
    differs(
        "tracing.*",
        "the relay starts no span: let the application write the header traceparent, and it arrives unchanged",
    ),
    differs(
        "table.op.invalid.behavior",
        "the trigger sees only inserts: an update is neither sent nor reported nor fatal",
    ),
    kept("custom.sanitize.pattern", NO_EFFECT),
    kept("schema.name.adjustment.mode", "nothing to do: names of columns stay as they are in the forms that are kept"),
];

/// Finds what becomes of an option. An exact name wins over a family.
pub(super) fn find(name: &str) -> Option<&'static Known> {
    let exact = KNOWN.iter().find(|known| known.name == name);
    exact.or_else(|| {
        KNOWN.iter().find(|known| known.name.strip_suffix('*').is_some_and(|beginning| name.starts_with(beginning)))
    })
}

/// The members of families whose values are shown, and the options of converters that are kept.
const SHOWN: [&str; 17] = [
    "database.dbname",
    "database.hostname",
    "database.port",
    "database.sslmode",
    "database.user",
    "header.converter.schemas.enable",
    "heartbeat.interval.ms",
    "key.converter.schemas.enable",
    "producer.override.batch.size",
    "producer.override.compression.type",
    "producer.override.linger.ms",
    "producer.override.max.request.size",
    "publication.autocreate.mode",
    "publication.name",
    "slot.drop.on.stop",
    "slot.name",
    "value.converter.schemas.enable",
];

/// Returns true if the value of an option may be shown: the whole name is known, and it holds no secret. Clients of Kafka and of
/// secret stores take passwords and private keys under many names, so a name that is not known here may be one of them.
pub(super) fn is_shown(name: &str) -> bool {
    SHOWN.contains(&name)
        || KNOWN.iter().any(|known| known.name == name)
        || COMPUTED.iter().any(|(computed, _)| *computed == name)
}

/// Returns the same for an option of the router, by its name without the prefix.
pub(super) fn is_shown_of_router(name: &str) -> bool {
    ["type", "predicate", "negate"].contains(&name) || is_shown(name)
}

/// The options that `plan` computes with, each with one sentence for the reference page.
pub(crate) const COMPUTED: &[(&str, &str)] = &[
    ("connector.class", "kept for io.debezium.connector.postgresql.PostgresConnector; every other class is refused"),
    (
        "table.include.list",
        "kept if it names one table; with several, --from-table picks the outbox, and the others are not taken over",
    ),
    ("topic.prefix", "kept in what predicates compare and in names of schemas"),
    (
        "transforms",
        "kept with one io.debezium.transforms.outbox.EventRouter; every other transform is refused, because it may change any record",
    ),
    (
        "transforms.NAME.predicate",
        "kept if the predicate is TopicNameMatches or RecordIsTombstone and lets rows of the table pass; else refused",
    ),
    ("transforms.NAME.negate", "kept, see predicate"),
    (
        "table.field.event.id",
        "kept: the header id; the relay's event-id is the same if it is a uuid, else a uuid that follows from it",
    ),
    ("table.field.event.key", "kept: the bytes of the key converter, and so the partition"),
    ("table.field.event.type", "kept as event type, which the router itself does not use"),
    ("table.field.event.payload", "kept: the bytes of the value converter"),
    (
        "table.field.event.timestamp",
        "kept: the timestamp of the record; besides timestamp also timestamptz and bigint (milliseconds), at which the connector stops",
    ),
    (
        "table.field.event.schema.version",
        "kept as the relay's event-version; the version of Connect's schema is in no record of the kept forms",
    ),
    ("table.fields.additional.placement", "kept for header, envelope and partition"),
    ("table.fields.additional.error.on.missing", "kept: true refuses a missing column, false leaves it out"),
    ("table.field.additional.missing", "kept: error refuses a missing column, ignore leaves it out"),
    ("table.expand.json.payload", "kept with JsonConverter; rows at which the connector stops pass"),
    ("table.json.payload.null.behavior", "kept"),
    ("route.by.field", "kept: entity type, and what the topic is made from"),
    (
        "route.topic.regex",
        "kept if both languages of patterns agree on it: plain characters, classes, groups, greedy quantifiers behind one character",
    ),
    ("route.topic.replacement", "kept"),
    ("route.tombstone.on.empty.payload", "kept"),
    ("key.converter", "kept for StringConverter and JsonConverter, with their options"),
    (
        "value.converter",
        "kept for StringConverter, JsonConverter, ByteArrayConverter and BinaryDataConverter, with their options",
    ),
    ("header.converter", "kept for SimpleHeaderConverter (the default), StringConverter and JsonConverter"),
    ("binary.handling.mode", "kept"),
    (
        "time.precision.mode",
        "kept for adaptive and adaptive_time_microseconds; others are refused if a column of that kind is sent",
    ),
    ("field.name.adjustment.mode", "kept if none; else refused if payloads are expanded"),
    (
        "extended.headers.enabled",
        "kept if false; by default the connector adds three headers __debezium.context.*, which the relay does not send",
    ),
    ("skipped.operations", "kept, unless it has c: then the connector sends no inserts"),
    ("provide.transaction.metadata", "kept if false; if true it differs: the relay writes no topic of transactions"),
    ("snapshot.mode", "kept if rows of the past are not read; else it differs: the trigger sees only new rows"),
    (
        "producer.override.*",
        "compression.type, linger.ms, batch.size and max.request.size are kept as settings; others differ: set KAFKA_… yourself",
    ),
];
