//! The cases in which the relay differs on purpose, as docs/reference/debezium.md says: rows with other values, and rows at which the
//! connector stops.

use serde_json::json;

use super::cases::{Case, Difference, JSON, Stop};

/// Returns the case of rows whose expanded values differ on purpose.
pub(crate) fn expanded() -> Case {
    let row = |payload: &str| format!("insert into outbox values ('{{id}}', 'order', 'o-{{w}}', 'x', {payload})");
    Case {
        name: "expand_differs",
        table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload json)",
        table_name: "public.outbox",
        options: json!({
            "transforms.outbox.table.expand.json.payload": "true", "value.converter": JSON, "value.converter.schemas.enable": "false",
        }),
        rows: vec![
            row(r#"E'{"s": "a\\u0000b"}'"#),
            row(r#"'{"d": 2e23}'"#),
            row(r#"'{"d": 9.5e21}'"#),
            row(r#"'{"a": [{"b": 1}, {"c": 2}]}'"#),
        ],
        stops: None,
        differs: vec![
            Difference { row: 0, connector: &[r#"{"s":"a\u0000b"}"#], relay: r#""{\"s\": \"a\\u0000b\"}""# },
            // From Java 19 on a few doubles are printed with fewer digits. It is the same number.
            Difference {
                row: 1,
                connector: &[r#"{"d":2.0E23}"#, r#"{"d":1.9999999999999998E23}"#],
                relay: r#"{"d":1.9999999999999998E23}"#,
            },
            Difference {
                row: 2,
                connector: &[r#"{"d":9.5E21}"#, r#"{"d":9.500000000000001E21}"#],
                relay: r#"{"d":9.500000000000001E21}"#,
            },
            Difference {
                row: 3,
                connector: &[
                    r#"{"a":[{"b":1,"c":null},{"b":null,"c":2}]}"#,
                    r#"{"a":[{"c":null,"b":1},{"c":2,"b":null}]}"#,
                ],
                relay: r#"{"a":[{"b":1,"c":null},{"b":null,"c":2}]}"#,
            },
        ],
    }
}

/// Returns the cases whose row stops the connector.
pub(crate) fn stopping() -> Vec<Case> {
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
            Stop::Sent("o-1", r#"{"n":12345678901234567890,"x":1}"#),
        ),
        Case::stopping("stops_at_array", expand.clone(), &row("[1, 2]"), Stop::Sent("o-1", "[1,2]")),
        Case::stopping(
            "stops_at_types",
            expand,
            &row(r#"{"a": [{"b": 1}, {"b": "x"}]}"#),
            Stop::Sent("o-1", r#"{"a":[{"b":1},{"b":"x"}]}"#),
        ),
        Case {
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload text, at timestamptz)",
            ..Case::stopping(
                "stops_at_timestamptz",
                json!({"transforms.outbox.table.field.event.timestamp": "at"}),
                "insert into outbox values ('{id}', 'order', 'o-1', 'x', 'p', '2026-11-27 09:00:00+00')",
                Stop::Sent("o-1", "p"),
            )
        },
        Case {
            table: "create table outbox (id uuid primary key, aggregatetype text not null, aggregateid text not null, type text, payload text, at bigint)",
            ..Case::stopping(
                "stops_at_bigint",
                json!({"transforms.outbox.table.field.event.timestamp": "at"}),
                "insert into outbox values ('{id}', 'order', 'o-1', 'x', 'p', 1795770000000)",
                Stop::Sent("o-1", "p"),
            )
        },
        Case {
            table: "create table outbox (id uuid primary key, aggregatetype text, aggregateid text not null, type text, payload jsonb)",
            ..Case::stopping(
                "stops_at_no_route",
                json!({}),
                "insert into outbox values ('{id}', null, 'o-1', 'OrderPlaced', '{}')",
                Stop::Dead,
            )
        },
        Case::stopping(
            "stops_at_topic",
            json!({}),
            "insert into outbox values ('{id}', 'or der', 'o-1', 'OrderPlaced', '{}')",
            Stop::Dead,
        ),
    ]
}
