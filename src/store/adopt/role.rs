//! Lists the meanings of a column of an outbox table, with the names and types by which each is recognised.

use std::str::FromStr;

use crate::store::app_table::Column;
use crate::text;

/// The meaning of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Id,
    EventId,
    EntityType,
    EntityId,
    EventType,
    EventVersion,
    Payload,
    Headers,
    Topic,
    CreatedAt,
    Pending,
    None,
}

impl Role {
    /// Every role, as `--map` takes it.
    pub(crate) const ALL: [Self; 12] = [
        Self::Id,
        Self::EventId,
        Self::EntityType,
        Self::EntityId,
        Self::EventType,
        Self::EventVersion,
        Self::Payload,
        Self::Headers,
        Self::Topic,
        Self::CreatedAt,
        Self::Pending,
        Self::None,
    ];

    /// The roles that are parts of an event.
    pub(crate) const PARTS: [Self; 9] = [
        Self::EventId,
        Self::EntityType,
        Self::EntityId,
        Self::EventType,
        Self::EventVersion,
        Self::Payload,
        Self::Headers,
        Self::Topic,
        Self::CreatedAt,
    ];

    /// The roles that may have one value for all rows.
    pub(crate) const CONSTANT: [Self; 3] = [Self::EntityType, Self::EventType, Self::Topic];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::EventId => "event_id",
            Self::EntityType => "entity_type",
            Self::EntityId => "entity_id",
            Self::EventType => "event_type",
            Self::EventVersion => "event_version",
            Self::Payload => "payload",
            Self::Headers => "headers",
            Self::Topic => "topic",
            Self::CreatedAt => "created_at",
            Self::Pending => "pending",
            Self::None => "none",
        }
    }

    /// Names of columns with this meaning, the most telling first: in lower case and without `_`.
    pub(super) fn known_names(self) -> &'static [&'static str] {
        match self {
            Self::EventId => &["eventid", "eventuuid", "messageid", "uuid", "guid", "id"],
            Self::EntityType => &["aggregatetype", "entitytype", "aggregate", "aggregatename", "streamtype", "entity"],
            Self::EntityId => &[
                "aggregateid",
                "aggregateuuid",
                "entityid",
                "streamid",
                "aggregatekey",
                "entitykey",
                "partitionkey",
                "messagekey",
                "key",
            ],
            Self::EventType => &["eventtype", "eventname", "messagetype", "type", "eventkind", "name", "kind"],
            Self::EventVersion => &["eventversion", "schemaversion", "payloadversion", "version"],
            Self::Payload => &["payload", "data", "eventdata", "body", "content", "message", "event", "json"],
            Self::Headers => &["headers", "messageheaders", "metadata", "meta"],
            Self::Topic => &["topic", "topicname", "destination", "channel"],
            Self::CreatedAt => {
                &["createdat", "occurredat", "createdon", "occurredon", "insertedat", "created", "timestamp", "ts"]
            }
            Self::Id | Self::Pending | Self::None => &[],
        }
    }

    /// Returns true if a column of this type can have the meaning.
    pub(super) fn takes(self, column: &Column) -> bool {
        let one_of = |types: &[&str]| types.contains(&column.base.as_str());
        let is_text = || one_of(&["text", "varchar", "bpchar", "name", "citext"]) || column.category == "E";
        match self {
            Self::Id => one_of(&["int8", "int4", "int2"]),
            Self::EventId => one_of(&["uuid"]),
            Self::EntityType | Self::EventType | Self::Topic => is_text(),
            Self::EntityId => is_text() || one_of(&["uuid", "int8", "int4", "int2", "numeric"]),
            Self::EventVersion => one_of(&["int4", "int2"]),
            Self::Payload => one_of(&["jsonb", "json", "text", "varchar", "bytea"]),
            Self::Headers => one_of(&["jsonb", "json"]),
            Self::CreatedAt => one_of(&["timestamptz", "timestamp"]),
            Self::Pending | Self::None => true,
        }
    }

    /// The types that the role takes, for people.
    pub(super) fn taken_types(self) -> &'static str {
        match self {
            Self::Id => "bigint, integer or smallint",
            Self::EventId => "uuid",
            Self::EntityType | Self::EventType | Self::Topic => "text, varchar or an enum",
            Self::EntityId => "text, varchar, uuid, bigint, integer, numeric or an enum",
            Self::EventVersion => "integer or smallint",
            Self::Payload => "jsonb, json, text, varchar or bytea",
            Self::Headers => "jsonb or json",
            Self::CreatedAt => "timestamptz or timestamp",
            Self::Pending | Self::None => "any type",
        }
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|role| role.name() == text).ok_or_else(|| format!("expected one of {}", names()))
    }
}

/// Returns the name in lower case and without `_`, for comparisons with known names.
pub(super) fn plain(name: &str) -> String {
    name.chars().filter(|c| *c != '_').collect::<String>().to_lowercase()
}

/// Returns a name as it is shown to people.
pub(super) fn shown(name: &str) -> String {
    text::name(name).to_string()
}
