//! The configurations of the comparison with a real connector, each with its table and its rows. The suite `main` uses some of them, without a
//! connector.

use std::path::Path;

use serde_json::{Map, Value, json};

/// The version of the connector that golden.json comes from.
pub(crate) const CONNECTOR: &str = "3.6.1.Final";

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
    /// The record of a row at which the connector stops: the key and the value that the relay sends.
    pub(crate) stops: Option<(&'static str, &'static str)>,
}

const STRING: &str = "org.apache.kafka.connect.storage.StringConverter";
const JSON: &str = "org.apache.kafka.connect.json.JsonConverter";
const BINARY: &str = "io.debezium.converters.BinaryDataConverter";
const BYTES: &str = "org.apache.kafka.connect.converters.ByteArrayConverter";

/// The table of Debezium's documentation.
const TABLE: &str = "create table outbox (id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null, \
     type varchar(255) not null, payload jsonb)";

/// Payloads that the connector sends in each configuration without expansion.
const PAYLOADS: [&str; 12] = [
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
const EXPANDABLE: [&str; 14] = [
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
    fn usual(name: &'static str, options: Value, payloads: &[&str]) -> Self {
        Self {
            name,
            table: TABLE,
            table_name: "public.outbox",
            options,
            rows: rows("order", "::jsonb", payloads),
            stops: None,
        }
    }

    fn stopping(name: &'static str, options: Value, row: &str, sent: (&'static str, &'static str)) -> Self {
        Self { rows: vec![row.to_owned()], stops: Some(sent), ..Self::usual(name, options, &PAYLOADS) }
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

    /// Returns the statements of a writer in one round, each with the id of its row.
    pub(crate) fn statements(&self, writer: usize, round: usize) -> Vec<String> {
        let fill = |(n, row): (usize, &String)| {
            let hex = format!("{:08x}", (writer << 24) | (round << 8) | n);
            let id = format!("{hex}-0000-4000-8000-{:012x}", fnv(self.name));
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

/// Returns the file of the records that the real connector has written.
pub(crate) fn golden() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity/golden.json")
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
    cases.extend(stopping());
    cases
}

/// Returns the cases with other columns than those of the documentation.
fn other_tables() -> Vec<Case> {
    let placed_table = "create table outbox (id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null, \
         type varchar(255) not null, payload jsonb, tenant text, n4 integer, n8 bigint, yes boolean, at timestamptz, local timestamp, \
         local3 timestamp(3), day date, ref uuid, fixed char(8), part integer)";
    let placed_row = |extra: &str| {
        format!(
            "insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'OrderPlaced', '{{\"a\": [1, 2.50]}}', {extra})"
        )
    };
    let placed_rows = vec![
        placed_row(
            "'tenant é', -7, 12345678901, true, '2026-11-27 09:00:00.123400+01', '2026-11-27 09:00:00.123456', '2026-11-27 09:00:00.12', \
             '2026-11-27', '00000000-0000-0000-0000-0000000000AB', 'abc', 5",
        ),
        placed_row(
            "E'\\U0001F600 \"q\"', 0, 0, false, '2026-11-27 09:00:00+00', '1969-12-31 23:59:59', '2026-01-01', '1969-12-31', \
             '00000000-0000-0000-0000-0000000000ab', 'abcdefgh', 0",
        ),
    ];
    let all = |at: &str| {
        ["tenant", "n4", "n8", "yes", "at", "local", "local3", "day", "ref", "fixed"]
            .map(|name| format!("{name}:{at}:x-{name}"))
            .join(",")
    };
    let placed = |name: &'static str, options: Value| Case {
        name,
        table: placed_table,
        table_name: "public.outbox",
        options,
        rows: placed_rows.clone(),
        stops: None,
    };
    let with_nulls = |mut case: Case| {
        case.rows.push(placed_row("null, null, null, null, null, null, null, null, null, null, null"));
        case
    };
    vec![
        placed(
            "headers",
            json!({"transforms.outbox.table.fields.additional.placement": format!("{},type:header:eventType,part:partition", all("header"))}),
        ),
        with_nulls(placed(
            "headers_json",
            json!({
                "transforms.outbox.table.fields.additional.placement": all("header"),
                "header.converter": JSON, "header.converter.schemas.enable": "false",
            }),
        )),
        placed(
            "headers_schemas",
            json!({"transforms.outbox.table.fields.additional.placement": all("header"), "header.converter": JSON}),
        ),
        with_nulls(placed(
            "envelope",
            json!({
                "transforms.outbox.table.fields.additional.placement": format!("{},part:partition", all("envelope")),
                "value.converter": JSON, "value.converter.schemas.enable": "false",
            }),
        )),
        with_nulls(placed(
            "envelope_expand",
            json!({
                "transforms.outbox.table.fields.additional.placement": "at:envelope,tenant:envelope:who",
                "transforms.outbox.table.expand.json.payload": "true",
                "value.converter": JSON, "value.converter.schemas.enable": "false",
            }),
        )),
        with_nulls(placed(
            "envelope_schemas",
            json!({
                "transforms.outbox.table.fields.additional.placement": all("envelope"),
                "value.converter": JSON,
            }),
        )),
        Case {
            name: "text_ids",
            table: "create schema shop; create table shop.\"OutBox\" (event_id text primary key, aggregate_type text not null, aggregate_id bigint, \
                 event_type text, payload text, created_at timestamp not null, version integer)",
            table_name: "shop.OutBox",
            options: json!({
                "transforms.outbox.table.field.event.id": "event_id",
                "transforms.outbox.table.field.event.key": "aggregate_id",
                "transforms.outbox.table.field.event.type": "event_type",
                "transforms.outbox.table.field.event.timestamp": "created_at",
                "transforms.outbox.table.field.event.schema.version": "version",
                "transforms.outbox.route.by.field": "aggregate_type",
                "transforms.outbox.route.tombstone.on.empty.payload": "true",
                "transforms.outbox.table.fields.additional.placement": "event_type:header:event-type",
            }),
            rows: [
                ("'t-{id}'", "7", "'plain text'"),
                ("'{id}'", "-7", r#"'{"json": true}'"#),
                ("'x-{id}'", "7", "''"),
                ("'y-{id}'", "9223372036854775807", "E' \\t\\n'"),
                ("'z-{id}'", "7", "null"),
                ("E'\\U0001F600-{id}'", "0", "E'\\u00a0'"),
            ]
            .map(|(id, key, payload)| {
                format!("insert into shop.\"OutBox\" values ({id}, 'order', {key}, 'OrderPlaced', {payload}, '2026-11-27 09:00:00.123999', 3)")
            })
            .to_vec(),
            stops: None,
        },
        Case {
            name: "binary_data",
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload bytea)",
            table_name: "public.outbox",
            options: json!({
                "value.converter": BINARY, "value.converter.delegate.converter.type": JSON,
                "value.converter.delegate.converter.type.schemas.enable": "false",
            }),
            rows: ["'\\x00ff80'", "''", "null", "'\\x7b7d'"]
                .map(|payload| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', null, {payload})"))
                .to_vec(),
            stops: None,
        },
        Case {
            name: "byte_array",
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload bytea)",
            table_name: "public.outbox",
            options: json!({"value.converter": BYTES}),
            rows: ["'\\x00ff80'", "''", "null"]
                .map(|payload| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', null, {payload})"))
                .to_vec(),
            stops: None,
        },
        Case {
            name: "hex",
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload bytea)",
            table_name: "public.outbox",
            options: json!({"binary.handling.mode": "hex"}),
            rows: vec!["insert into outbox values ('{id}', 'order', 'o-{w}', null, '\\x00ff80')".to_owned()],
            stops: None,
        },
        Case {
            name: "json_column",
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload json)",
            table_name: "public.outbox",
            options: json!({}),
            rows: [r#"E'{ "b" : 1,\n "a" : "\\u00e9\\u0000" , "b" : 2 }'"#, r#"'{"a": 1e2, "b": -0.0}'"#]
                .map(|payload| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'x', {payload})"))
                .to_vec(),
            stops: None,
        },
        Case {
            name: "json_column_expand",
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload json)",
            table_name: "public.outbox",
            options: json!({
                "transforms.outbox.table.expand.json.payload": "true", "value.converter": JSON, "value.converter.schemas.enable": "false",
            }),
            rows: [r#"E'{ "b" : 1,\n "a" : "\\u00e9" , "b" : 2 }'"#, r#"'{"a": 1e2, "b": -0.0, "c": -0, "d": 1E10, "e": 4.9e-324, "f": 1.0E-5}'"#]
                .map(|payload| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'x', {payload})"))
                .to_vec(),
            stops: None,
        },
        Case {
            rows: ["orders-v2", "customers-v10", "other", "a.b-v1"]
                .map(|kind| {
                    format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'parity.regex.{kind}', '{{}}')")
                })
                .to_vec(),
            ..Case::usual(
                "regex",
                json!({
                    "transforms.outbox.route.by.field": "type",
                    "transforms.outbox.route.topic.regex": "parity\\.regex\\.(?<name>[a-z.]+)-(v[0-9]{1,2})",
                    "transforms.outbox.route.topic.replacement": "parity.regex.$2.${name}",
                }),
                &PAYLOADS,
            )
        },
    ]
}

/// Returns the cases whose row stops the connector.
fn stopping() -> Vec<Case> {
    let expand = json!({
        "transforms.outbox.table.expand.json.payload": "true", "value.converter": JSON, "value.converter.schemas.enable": "false",
    });
    let row =
        |payload: &str| format!("insert into outbox values ('{{id}}', 'order', 'o-1', 'OrderPlaced', '{payload}')");
    vec![
        Case::stopping(
            "stops_at_big_number",
            expand.clone(),
            &row(r#"{"n": 12345678901234567890, "x": 1}"#),
            ("o-1", r#"{"n":12345678901234567890,"x":1}"#),
        ),
        Case::stopping("stops_at_array", expand.clone(), &row("[1, 2]"), ("o-1", "[1,2]")),
        Case::stopping(
            "stops_at_types",
            expand,
            &row(r#"{"a": [{"b": 1}, {"b": "x"}]}"#),
            ("o-1", r#"{"a":[{"b":1},{"b":"x"}]}"#),
        ),
        Case {
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload text, at timestamptz)",
            ..Case::stopping(
                "stops_at_timestamptz",
                json!({"transforms.outbox.table.field.event.timestamp": "at"}),
                "insert into outbox values ('{id}', 'order', 'o-1', 'x', 'p', '2026-11-27 09:00:00+00')",
                ("o-1", "p"),
            )
        },
        Case {
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload text, at bigint)",
            ..Case::stopping(
                "stops_at_bigint",
                json!({"transforms.outbox.table.field.event.timestamp": "at"}),
                "insert into outbox values ('{id}', 'order', 'o-1', 'x', 'p', 1795770000000)",
                ("o-1", "p"),
            )
        },
    ]
}
