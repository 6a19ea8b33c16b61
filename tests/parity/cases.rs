//! The configurations of the comparison with a real connector, each with its table and its rows. The suite `main` uses some of them, without a
//! connector.

use serde_json::{Map, Value, json};

use super::differing::{expanded, stopping};
use super::tables::other_tables;

/// A configuration of the connector.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The definition of the application's table.
    pub(crate) table: &'static str,
    /// `schema.table`.
    pub(crate) table_name: &'static str,
    /// The options that differ from [`Case::options`].
    pub(crate) options: Value,
    /// Statements of one transaction each. `{id}` is a new uuid, `{w}` a writer, `{case}` the name of the case.
    pub(crate) rows: Vec<String>,
    /// Set if the connector stops at the only row.
    pub(crate) stops: Option<Stop>,
    /// The rows whose values differ on purpose.
    pub(crate) differs: Vec<Difference>,
}

/// What the relay makes of a row at which the connector stops.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    /// A record with this key and this value.
    Sent(&'static str, &'static str),
    /// An event that goes DEAD.
    Dead,
}

/// A row with another value than the connector's, as docs/reference/debezium.md says.
#[derive(Debug)]
pub(crate) struct Difference {
    /// The number of the row in [`Case::rows`].
    pub(crate) row: usize,
    /// The values that the connector may have written.
    pub(crate) connector: &'static [&'static str],
    pub(crate) relay: &'static str,
}

const STRING: &str = "org.apache.kafka.connect.storage.StringConverter";
pub(crate) const JSON: &str = "org.apache.kafka.connect.json.JsonConverter";
pub(crate) const BINARY: &str = "io.debezium.converters.BinaryDataConverter";
pub(crate) const BYTES: &str = "org.apache.kafka.connect.converters.ByteArrayConverter";

/// The table of Debezium's documentation.
const TABLE: &str = "create table outbox (id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null, \
     type varchar(255) not null, payload jsonb)";

/// Payloads that the connector sends in each configuration without expansion.
pub(crate) const PAYLOADS: [&str; 12] = [
    r#"'{"a": 1, "b": "x"}'"#,
    r#"'{"n": 1.10, "e": [], "z": null, "o": {}, "i": 12345678901234567890}'"#,
    r#"E'{"s": "\u00e9 \\u0001 \\u001f \\u000b \\" \\\\ / \U0001F600 \u007f \u2028"}'"#,
    "null",
    "'null'",
    r#"'"text"'"#,
    "'[]'",
    "'[1, 2]'",
    "'true'",
    r#"'{"b": 1, "aa": 2, "b": 3}'"#,
    "jsonb_build_object('t', repeat(E'x\\U0001F600', 20000))::text::jsonb",
    r#"'{"nested": {"deep": [{"a": 1}, {"a": 2, "b": 3}]}}'"#,
];

/// Keys that converters print differently.
const KEYS: [&str; 7] =
    ["'o-1{w}'", "'é{w}'", "E'\\U0001F600 {w}'", r#"'"quoted" {w}'"#, "E'tab\\t{w}'", r"E'back\\slash {w}'", "''"];

/// Rows of the usual table: every payload, and every key.
fn rows(routed: &str, cast: &str, payloads: &[&str]) -> Vec<String> {
    let insert = |key: &str, payload: &str| {
        format!(
            "insert into outbox (id, aggregatetype, aggregateid, type, payload) values ('{{id}}', '{routed}', {key}, 'OrderPlaced', ({payload}){cast})"
        )
    };
    let of_payloads = payloads.iter().map(|payload| insert("'o-1{w}'", payload));
    let of_keys = KEYS.iter().map(|key| insert(key, payloads[0]));
    // The application deletes the row in the same transaction.
    let deleted = [insert("'o-1{w}'", payloads[0]) + "; delete from outbox where id = '{id}'"];
    of_payloads.chain(of_keys).chain(deleted).collect()
}

/// Payloads that can be expanded, or that the router leaves as they are.
pub(crate) const EXPANDABLE: [&str; 14] = [
    r#"'{"a": 1, "b": "x"}'"#,
    r#"'{"n": 1.10, "e": [], "z": null, "o": {}, "l": 12345678901, "m": -2147483649, "f": 100.0, "t": true}'"#,
    r#"E'{"s": "\u00e9 \\u0001 \\u001f \\" \\\\ / \U0001F600"}'"#,
    "null",
    "'null'",
    r#"'"text"'"#,
    "'[]'",
    "'true'",
    r#"'{"mixed": [1, "x"]}'"#,
    r#"'{"nulls": [null]}'"#,
    r#"'{"d": [0.001, 0.0001, 1234567.8, 12345678.9, -0.5]}'"#,
    r#"'{"a": [[1], [2, 3]], "b": [{"c": {"d": "e"}}, {"c": {"d": "f"}}]}'"#,
    r#"'{"nested": {"deep": [{"a": 1}, {"a": 2}]}}'"#,
    "jsonb_build_object('t', repeat(E'x\\U0001F600', 2000))::text::jsonb",
];

impl Case {
    pub(crate) fn usual(name: &'static str, options: Value, payloads: &[&str]) -> Self {
        Self {
            name,
            table: TABLE,
            table_name: "public.outbox",
            options,
            rows: rows("order", "::jsonb", payloads),
            stops: None,
            differs: Vec::new(),
        }
    }

    pub(crate) fn stopping(name: &'static str, options: Value, row: &str, stop: Stop) -> Self {
        Self { rows: vec![row.to_owned()], stops: Some(stop), ..Self::usual(name, options, &PAYLOADS) }
    }

    /// Returns all options of the connector. `None`: without the address of a database.
    pub(crate) fn options(&self, database: Option<(u16, &str, &str, &str)>) -> Map<String, Value> {
        let mut options = json!({
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector",
            "topic.prefix": format!("prefix_{}", self.name),
            "plugin.name": "pgoutput",
            "slot.name": self.name,
            "publication.autocreate.mode": "filtered",
            "publication.name": self.name,
            "table.include.list": self.table_name,
            "snapshot.mode": "no_data",
            "poll.interval.ms": "20",
            "transforms": "outbox",
            "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
            "transforms.outbox.route.topic.replacement": format!("parity.{}.${{routedByValue}}", self.name),
            "key.converter": STRING,
            "value.converter": STRING,
        });
        let all = options.as_object_mut().expect("an object");
        all.extend(self.options.as_object().expect("an object").clone());
        all.retain(|_, value| !value.is_null());
        if let Some((port, user, password, name)) = database {
            all.extend([
                ("database.hostname".to_owned(), json!("127.0.0.1")),
                ("database.port".to_owned(), json!(port.to_string())),
                ("database.user".to_owned(), json!(user)),
                ("database.password".to_owned(), json!(password)),
                ("database.dbname".to_owned(), json!(name)),
            ]);
        }
        all.clone()
    }

    /// Returns the id of a row.
    fn id(&self, writer: usize, round: usize, row: usize) -> String {
        let first = (writer << 24) | (round << 8) | row;
        format!("{first:08x}-0000-4000-8000-{:012x}", fnv(self.name))
    }

    /// Returns the announced difference of the row whose id is in the text.
    pub(crate) fn difference(&self, id: &str) -> Option<&Difference> {
        let of = |row: usize| self.id(0, 0, row).get(6..).is_some_and(|end| id.contains(end));
        self.differs.iter().find(|difference| of(difference.row))
    }

    /// Returns true if the text has the id of a row that the first writer writes in its first round.
    pub(crate) fn is_of_first_round(&self, id: &str) -> bool {
        (0..self.rows.len()).any(|row| id.contains(&self.id(0, 0, row)))
    }

    /// Returns true if the record's time is that of the row.
    pub(crate) fn has_timestamp(&self) -> bool {
        self.options.get("transforms.outbox.table.field.event.timestamp").is_some()
    }

    /// Returns the statements of a writer in one round, each with the id of its row.
    pub(crate) fn statements(&self, writer: usize, round: usize) -> Vec<String> {
        let fill = |(n, row): (usize, &String)| {
            let id = self.id(writer, round, n);
            row.replace("{id}", &id).replace("{w}", &writer.to_string()).replace("{case}", self.name)
        };
        self.rows.iter().enumerate().map(fill).collect()
    }

    /// Returns true for a topic of this case.
    pub(crate) fn owns(&self, topic: &str) -> bool {
        topic.starts_with(&format!("parity.{}.", self.name)) || topic == format!("outbox.event.{}", self.name)
    }
}

fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Returns every configuration.
pub(crate) fn cases() -> Vec<Case> {
    let schemaless = |which: &str| (format!("{which}.converter.schemas.enable"), json!("false"));
    let with = |pairs: &[(&str, &str)]| -> Value {
        let pairs = pairs.iter().map(|(name, value)| ((*name).to_owned(), json!(value)));
        Value::Object(pairs.collect())
    };
    let merged = |mut one: Value, more: Vec<(String, Value)>| {
        one.as_object_mut().expect("an object").extend(more);
        one
    };
    let json_value = || merged(with(&[("value.converter", JSON)]), vec![schemaless("value")]);
    let json_both = || {
        merged(
            with(&[("value.converter", JSON), ("key.converter", JSON)]),
            vec![schemaless("value"), schemaless("key")],
        )
    };
    let expand = |mut one: Value| {
        one["transforms.outbox.table.expand.json.payload"] = json!("true");
        one
    };
    let mut cases = vec![
        Case {
            rows: rows("{case}", "::jsonb", &PAYLOADS),
            ..Case::usual("defaults", json!({"transforms.outbox.route.topic.replacement": null}), &PAYLOADS)
        },
        Case::usual("json_value", json_value(), &PAYLOADS),
        Case::usual("json_key", json_both(), &PAYLOADS),
        Case::usual("json_schemas", with(&[("value.converter", JSON), ("key.converter", JSON)]), &PAYLOADS),
        Case::usual("expand", expand(json_value()), &EXPANDABLE),
        Case::usual("expand_schemas", expand(with(&[("value.converter", JSON)])), &EXPANDABLE),
        Case::usual(
            "expand_nulls",
            merged(
                expand(json_value()),
                vec![("transforms.outbox.table.json.payload.null.behavior".to_owned(), json!("optional_bytes"))],
            ),
            &EXPANDABLE,
        ),
        Case::usual(
            "tombstones",
            merged(
                json_value(),
                vec![("transforms.outbox.route.tombstone.on.empty.payload".to_owned(), json!("true"))],
            ),
            &PAYLOADS,
        ),
    ];
    cases.extend(other_tables());
    cases.push(expanded());
    cases.extend(stopping());
    cases
}
