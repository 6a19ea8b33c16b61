//! The cases with other columns than those of Debezium's documentation.

use serde_json::{Value, json};

use super::cases::{BINARY, BYTES, Case, JSON, PAYLOADS};

/// Returns the cases with other columns than those of the documentation.
pub(crate) fn other_tables() -> Vec<Case> {
    let placed_table = "create type mood as enum ('sad', 'o k'); \
         create table outbox (id uuid primary key, aggregatetype varchar(255) not null, aggregateid varchar(255) not null, \
         type varchar(255) not null, payload jsonb, tenant text, n4 integer, n8 bigint, yes boolean, at timestamptz, local timestamp, \
         local3 timestamp(3), day date, ref uuid, fixed char(8), part integer, n2 smallint, doc jsonb, mood mood, raw bytea)";
    let placed_row = |extra: &str| {
        format!(
            "insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'OrderPlaced', '{{\"a\": [1, 2.50]}}', {extra})"
        )
    };
    let placed_rows = vec![
        placed_row(
            "'tenant é', -7, 12345678901, true, '2026-11-27 09:00:00.123400+01', '2026-11-27 09:00:00.123456', '2026-11-27 09:00:00.12', \
             '2026-11-27', '00000000-0000-0000-0000-0000000000AB', 'abc', 5, -32768, '{\"b\": 1.10, \"a\": [\"é\"]}', 'o k', '\\xfbff00'",
        ),
        placed_row(
            "E'\\U0001F600 \"q\"', 0, 0, false, '2026-11-27 09:00:00+00', '1969-12-31 23:59:59', '2026-01-01', '1969-12-31', \
             '00000000-0000-0000-0000-0000000000ab', 'abcdefgh', 0, 0, '\"text\"', 'sad', decode(repeat('fbff', 60), 'hex')",
        ),
    ];
    let all = |at: &str| {
        ["tenant", "n4", "n8", "yes", "at", "local", "local3", "day", "ref", "fixed", "n2", "doc"]
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
        differs: Vec::new(),
    };
    let with_nulls = |mut case: Case| {
        case.rows.push(placed_row(&["null"; 15].join(", ")));
        case
    };
    vec![
        placed(
            "headers",
            json!({"transforms.outbox.table.fields.additional.placement": format!("{},mood:header:x-mood,type:header:eventType,part:partition", all("header"))}),
        ),
        with_nulls(placed(
            "headers_json",
            json!({
                "transforms.outbox.table.fields.additional.placement": format!("{},mood:header:x-mood", all("header")),
                "header.converter": JSON, "header.converter.schemas.enable": "false", "time.precision.mode": "adaptive_time_microseconds",
            }),
        )),
        placed(
            "headers_schemas",
            json!({"transforms.outbox.table.fields.additional.placement": all("header"), "header.converter": JSON}),
        ),
        with_nulls(placed(
            "envelope",
            json!({
                "transforms.outbox.table.fields.additional.placement": format!("{},mood:envelope:x-mood,raw:envelope:x-raw,part:partition", all("envelope")),
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
                "transforms.outbox.table.fields.additional.placement": format!("{},raw:envelope:x-raw", all("envelope")),
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
            differs: Vec::new(),
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
            differs: Vec::new(),
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
            differs: Vec::new(),
        },
        bytes("hex", json!({"binary.handling.mode": "hex"})),
        bytes("base64", json!({"binary.handling.mode": "base64"})),
        bytes("base64_url", json!({"binary.handling.mode": "base64-url-safe"})),
        bytes("json_bytes", json!({"value.converter": JSON})),
        Case {
            name: "json_column",
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload json)",
            table_name: "public.outbox",
            options: json!({}),
            rows: [r#"E'{ "b" : 1,\n "a" : "\\u00e9\\u0000" , "b" : 2 }'"#, r#"'{"a": 1e2, "b": -0.0}'"#]
                .map(|payload| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'x', {payload})"))
                .to_vec(),
            stops: None,
            differs: Vec::new(),
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
            differs: Vec::new(),
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

/// Returns a case with a payload of bytes, which the connector sends as text.
fn bytes(name: &'static str, options: Value) -> Case {
    Case {
        name,
        table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload bytea)",
        table_name: "public.outbox",
        options,
        rows: ["'\\x00ff80'", "''", "null", "decode(repeat('fbff', 60), 'hex')"]
            .map(|payload| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', null, {payload})"))
            .to_vec(),
        stops: None,
        differs: Vec::new(),
    }
}
