//! Tests how applications write events: what is refused at the insert, the ids of events, and the locks of entities.

use anyhow::{Context, ensure};
use event_outbox::event::{EventId, NewEvent};
use event_outbox::outbox::{EmitError, Outbox as Writer};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use uuid::Uuid;

use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_postgres:
            events_that_kafka_could_not_take_are_refused_at_the_insert,
            an_entity_id_may_be_a_number,
            the_id_of_an_event_is_unique_and_follows_time,
            a_dedupe_key_writes_an_event_once,
            many_events_keep_their_order_and_take_their_locks_in_one_order,
            the_library_writes_what_the_functions_take,
            a_stranger_who_holds_an_entitys_lock_is_named,
            repeated_ids_are_named_and_leave_no_index_behind;
    }
}

async fn refused(connection: &mut PgConnection, sql: &str, code: &str, reasons: &[&str]) -> anyhow::Result<()> {
    let error = connection.execute(AssertSqlSafe(sql.to_owned())).await.err().with_context(|| sql.to_owned())?;
    let error = error.into_database_error().context("not an error of the database")?;
    let text = error.downcast_ref::<sqlx::postgres::PgDatabaseError>();
    let text = format!("{} {}", text.message(), text.hint().unwrap_or_default());
    ensure!(error.code().as_deref() == Some(code), "{sql}: {error:?}");
    for reason in reasons {
        ensure!(text.contains(reason), "no {reason:?} in {text}");
    }
    Ok(())
}

async fn events_that_kafka_could_not_take_are_refused_at_the_insert(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    for (call, reasons) in [
        ("outbox_emit('order', 'a', 'X', '{}', '{\"tries\": 1}')", &["tries is of the type number", "strings"][..]),
        ("outbox_emit('order', 'a', 'X', '{}', '{\"tries\": null}')", &["tries is of the type null"]),
        ("outbox_emit('order', 'a', 'X', '{}', '[\"a\"]')", &["array, not an object"]),
        ("outbox_emit('', 'a', 'X', '{}')", &["entity_type of an event is empty", "chooses the topic"]),
        ("outbox_emit(null, 'a', 'X', '{}')", &["entity_type of an event is empty"]),
        ("outbox_emit('order', 'a', '', '{}')", &["event_type of an event is empty"]),
        (
            "outbox_emit('order', 'a', 'X', '{}', event_id => gen_random_uuid(), dedupe_key => 'k')",
            &["Give one of them"],
        ),
        ("outbox_emit_many('{}')", &["not a JSON array"]),
        ("outbox_emit_many('[1]')", &["not an object"]),
        ("outbox_emit_many('[{\"entity_type\": \"order\", \"type\": \"X\"}]')", &["no event has: type"]),
        (
            "outbox_emit_many('[{\"entity_type\": \"order\", \"entity_id\": \"a\"}]')",
            &["event_type of an event is empty"],
        ),
    ] {
        refused(&mut connection, &format!("select {call}"), "22023", reasons).await?;
    }
    ensure!(Outbox::from_database(&database).number("select count(*) from event_outbox").await? == 0);
    Ok(())
}

async fn an_entity_id_may_be_a_number(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    connection
        .execute("select outbox_emit('order', 42, 'X', '{}'), outbox_emit('order', 9007199254740993, 'X', '{}')")
        .await?;
    sqlx::query("select outbox_emit('order', $1, 'X', '{}')").bind(43_i64).execute(&mut connection).await?;
    connection.execute("select outbox_emit('order', null, 'X', '{}'), outbox_emit('order', '44', 'X', '{}')").await?;
    connection
        .execute("select outbox_emit_many('[{\"entity_type\": \"order\", \"entity_id\": 45, \"event_type\": \"X\"}]')")
        .await?;
    let ids: Vec<Option<String>> =
        sqlx::query_scalar("select entity_id from event_outbox order by id").fetch_all(&mut connection).await?;
    let ids: Vec<_> = ids.iter().map(Option::as_deref).collect();
    ensure!(ids == [Some("42"), Some("9007199254740993"), Some("43"), None, Some("44"), Some("45")], "{ids:?}");
    Ok(())
}

async fn the_id_of_an_event_is_unique_and_follows_time(database: TestDatabase) -> anyhow::Result<()> {
    let mut connection = database.connect().await?;
    let id = Uuid::from_u128(7);
    let emit = format!("outbox_emit('order', 'a', 'X', '{{}}', event_id => '{id}')");
    let given: Uuid = sqlx::query_scalar(AssertSqlSafe(format!("select {emit}"))).fetch_one(&mut connection).await?;
    ensure!(given == id);
    refused(&mut connection, &format!("select {emit}"), "23505", &["event_outbox_event"]).await?;
    let plain = format!("insert into event_outbox (event_id, entity_type, event_type) values ('{id}', 'order', 'X')");
    refused(&mut connection, &plain, "23505", &["event_outbox_event"]).await?;

    // Of the function and of the column's default, one after the other.
    for _ in 0..50 {
        connection.execute("select outbox_emit('order', 'a', 'X', '{}'); select pg_sleep(0.002)").await?;
        connection
            .execute("insert into event_outbox (entity_type, event_type) values ('order', 'X'); select pg_sleep(0.002)")
            .await?;
    }
    let ids: Vec<Uuid> = sqlx::query_scalar("select event_id from event_outbox where event_id <> $1 order by id")
        .bind(id)
        .fetch_all(&mut connection)
        .await?;
    ensure!(ids.len() == 100 && ids.is_sorted(), "{ids:?}");
    ensure!(ids.iter().all(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122), "{ids:?}");
    let of_now = "select abs(('x' || left(replace(event_id::text, '-', ''), 12))::bit(48)::bigint / 1000 \
                  - extract(epoch from created_at)) < 60 from event_outbox where event_id <> $1";
    let of_now: Vec<bool> = sqlx::query_scalar(of_now).bind(id).fetch_all(&mut connection).await?;
    ensure!(of_now.iter().all(|of_now| *of_now), "an id is of another time");
    Ok(())
}

async fn a_dedupe_key_writes_an_event_once(database: TestDatabase) -> anyhow::Result<()> {
    async fn emit(connection: &mut PgConnection, key: &str) -> sqlx::Result<Uuid> {
        let sql = "select outbox_emit('order', 'a', 'X', '{}', dedupe_key => $1)";
        sqlx::query_scalar(sql).bind(key).fetch_one(connection).await
    }
    let outbox = Outbox::from_database(&database);
    let (mut one, mut other) = (database.connect().await?, database.connect().await?);
    let first = emit(&mut one, "request-1").await?;
    ensure!(emit(&mut one, "request-1").await? == first && emit(&mut other, "request-2").await? != first);
    ensure!(outbox.number("select count(*) from event_outbox").await? == 2);

    // A second call waits for the first to end, and writes the event if that is rolled back.
    for (key, commits) in [("commits", true), ("rolls back", false)] {
        let mut tx = one.begin().await?;
        let first = emit(&mut tx, key).await?;
        let waiting = tokio::spawn(async move { emit(&mut other, key).await.map(|id| (id, other)) });
        until_blocked(&outbox).await;
        if commits {
            tx.commit().await?
        } else {
            tx.rollback().await?
        }
        let (second, returned) = waiting.await??;
        other = returned;
        ensure!(second == first, "{key}: {second} is not {first}");
        let sql = format!("select count(*) from event_outbox where event_id = '{first}'");
        ensure!(outbox.number(&sql).await? == 1, "{key}");
    }
    // After the window the id is the same, so that consumers still know it.
    outbox.execute("delete from event_outbox").await?;
    ensure!(emit(&mut one, "request-1").await? == first);
    ensure!(outbox.number("select count(*) from event_outbox").await? == 1);
    Ok(())
}

async fn until_blocked(outbox: &Outbox) {
    let sql = "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
    eventually("a session waits for a lock", SOON, || async {
        match outbox.number(sql).await {
            Ok(1..) => Ok(()),
            other => Err(other),
        }
    })
    .await;
}

fn listed(entities: &[&str]) -> Value {
    let event = |(n, entity): (usize, &&str)| {
        json!({"entity_type": "order", "entity_id": entity, "event_type": "X", "payload": {"n": n},
               "headers": {"trace": "t"}, "event_version": 2, "topic": "t"})
    };
    entities.iter().enumerate().map(event).collect()
}

async fn many_events_keep_their_order_and_take_their_locks_in_one_order(database: TestDatabase) -> anyhow::Result<()> {
    async fn many(connection: &mut PgConnection, entities: &[&str]) -> sqlx::Result<Vec<Uuid>> {
        sqlx::query_scalar("select outbox_emit_many($1)").bind(listed(entities)).fetch_all(connection).await
    }
    let mut connection = database.connect().await?;
    let ids = many(&mut connection, &["b", "a", "b", "c"]).await?;
    let rows: Vec<(Uuid, String, Value, i32, Option<String>)> = sqlx::query_as(
        "select event_id, entity_id, payload, event_version, topic from event_outbox where headers = '{\"trace\": \"t\"}' order by id",
    )
    .fetch_all(&mut connection)
    .await?;
    ensure!(rows.iter().map(|row| row.0).eq(ids.iter().copied()), "{rows:?} {ids:?}");
    ensure!(rows.iter().map(|row| row.1.as_str()).eq(["b", "a", "b", "c"]), "{rows:?}");
    ensure!(
        rows.iter().enumerate().all(|(n, row)| row.2 == json!({"n": n}) && row.3 == 2 && row.4.is_some()),
        "{rows:?}"
    );

    // a and b against b and a: calls for one event each deadlock sooner or later, this never does.
    let rounds = |entities: [&'static str; 2]| {
        let database = database.clone();
        async move {
            let mut connection = database.connect().await?;
            for _ in 0..200 {
                many(&mut connection, &entities).await?;
            }
            anyhow::Ok(())
        }
    };
    let (one, other) = tokio::join!(tokio::spawn(rounds(["left", "right"])), tokio::spawn(rounds(["right", "left"])));
    one?.and(other?)?;
    // The second entity's lock is held before the first event is written.
    let mut holder = database.connect().await?;
    let mut held = holder.begin().await?;
    held.execute("select outbox_emit('order', 'z', 'X', '{}')").await?;
    let waiting = tokio::spawn(async move { many(&mut connection, &["a", "z"]).await });
    let outbox = Outbox::from_database(&database);
    until_blocked(&outbox).await;
    let highest = "select max(id) from event_outbox";
    held.execute("select outbox_emit('order', 'z', 'X', '{}')").await?;
    held.commit().await?;
    waiting.await??;
    let last: Vec<String> = sqlx::query_scalar("select entity_id from event_outbox order by id desc limit 4")
        .fetch_all(&mut holder)
        .await?;
    ensure!(last == ["z", "a", "z", "z"], "{last:?} up to {}", outbox.number(highest).await?);
    Ok(())
}

async fn the_library_writes_what_the_functions_take(database: TestDatabase) -> anyhow::Result<()> {
    type Written = (Option<String>, Option<Value>, Option<Vec<u8>>, Value, i32);
    let mut connection = database.connect().await?;
    let writer = Writer::default();
    let id = EventId(Uuid::from_u128(9));
    let plain = || NewEvent::new("order", "a", "X");
    ensure!(writer.emit(&mut connection, &plain().id(id)).await? == id);
    let repeated = writer.emit(&mut connection, &plain().id(id)).await;
    ensure!(matches!(repeated, Err(EmitError::Database(_))), "{repeated:?}");
    let keyed = writer.emit(&mut connection, &plain().dedupe_key("k")).await?;
    let events = [
        plain().json(&json!({"n": 1, "s": "\"\\ ü"}))?.header("h", "\"v\"").version(3).topic("t"),
        NewEvent::without_entity("order", "Y").bytes([0, 255, 16]),
        plain().dedupe_key("k"),
        plain().id(EventId(Uuid::from_u128(10))),
    ];
    let ids = writer.emit_many(&mut connection, &events).await?;
    ensure!(ids.len() == 4 && ids[2] == keyed && ids[3] == EventId(Uuid::from_u128(10)), "{ids:?}");
    let rows: Vec<Written> = sqlx::query_as(
        "select entity_id, payload, payload_bytes, headers, event_version from event_outbox where event_id = any ($1) order by id",
    )
    .bind(vec![ids[0].0, ids[1].0])
    .fetch_all(&mut connection)
    .await?;
    ensure!(
        rows == [
            (Some("a".to_owned()), Some(json!({"n": 1, "s": "\"\\ ü"})), None, json!({"h": "\"v\""}), 3),
            (None, None, Some(vec![0, 255, 16]), json!({}), 1),
        ],
        "{rows:?}"
    );
    Ok(())
}

/// A user without any right has seen the key of a lock in pg_locks, and holds it.
async fn a_stranger_who_holds_an_entitys_lock_is_named(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let name = format!("{}_stranger", database.name());
    outbox.execute(&format!("create role {name} login password 'secret'")).await?;
    let url = database.url();
    let (_, server) = url.split_once('@').context("no user in the URL")?;
    let mut stranger = PgConnection::connect(&format!("postgres://{name}:secret@{server}")).await?;
    // The key of the hash that older versions used means nothing any more.
    stranger.execute("select pg_advisory_lock(hashtextextended('order/a', 8317987319222330741))").await?;
    let secret = stranger.execute("select * from event_outbox_secret").await;
    ensure!(secret.is_err(), "a stranger reads the secret");
    let mut writer = database.connect().await?;
    let mut tx = writer.begin().await?;
    tx.execute("select outbox_emit('order', 'a', 'X', '{}')").await?;
    let key: i64 = sqlx::query_scalar(
        "select (classid::bigint << 32) | objid::bigint from pg_locks l join pg_database d on d.oid = l.database \
         where locktype = 'advisory' and objsubid = 1 and granted and datname = current_database() \
           and exists (select from pg_locks r where r.pid = l.pid and r.mode = 'RowExclusiveLock')",
    )
    .fetch_one(&mut stranger)
    .await?;
    tx.commit().await?;
    stranger.execute(AssertSqlSafe(format!("select pg_advisory_lock({key})"))).await?;
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut stranger).await?;
    let emit = "select outbox_emit('order', 'a', 'X', '{}')";
    let named =
        [format!("session {pid}"), name.clone(), "writes no events".to_owned(), format!("pg_terminate_backend({pid})")];
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    // A short timeout of the caller is kept, and the holder named as well.
    writer.execute("set lock_timeout = '100ms'").await?;
    refused(&mut writer, emit, "55P03", &named).await?;
    writer.execute("set lock_timeout = 0").await?;
    refused(&mut writer, emit, "55P03", &named).await?;
    // A session that writes events of the entity is waited for, within the caller's timeout.
    stranger.close().await?;
    let mut holder = database.connect().await?;
    let mut held = holder.begin().await?;
    held.execute(emit).await?;
    writer.execute("set lock_timeout = '100ms'").await?;
    refused(&mut writer, emit, "55P03", &["lock timeout", "writes events of the entity order/a"]).await?;
    held.commit().await?;
    writer.execute(emit).await?;
    let timeout: String = sqlx::query_scalar("show lock_timeout").fetch_one(&mut writer).await?;
    ensure!(timeout == "100ms", "{timeout}");
    outbox.execute(&format!("drop role {name}")).await.map(drop)
}

async fn repeated_ids_are_named_and_leave_no_index_behind(database: TestDatabase) -> anyhow::Result<()> {
    let script = Relay::bare().with("RELAY_SCHEMA", "elder").argument("--print").output("migrate").await?.stdout;
    let (first, _) = script.split_once("-- 0002 control").context("no second migration")?;
    let mut connection = database.connect().await?;
    connection.execute(sqlx::raw_sql(AssertSqlSafe(format!("{first}; commit")))).await?;
    let twice = "insert into elder.event_outbox (event_id, entity_type, event_type) values \
                 ('0b4d8a9e-0f4c-4f3e-9d7e-2d6f0d0e7a11', 'order', 'A'), ('0b4d8a9e-0f4c-4f3e-9d7e-2d6f0d0e7a11', 'order', 'B')";
    connection.execute(twice).await?;
    let relay = Relay::bare().with("DATABASE_URL", database.url()).with("RELAY_SCHEMA", "elder");
    let output = relay.output("migrate").await?;
    ensure!(output.code == Some(1) && output.stderr.contains("OR-2115"), "{output:?}");
    ensure!(output.stderr.contains("0b4d8a9e-0f4c-4f3e-9d7e-2d6f0d0e7a11"), "{output:?}");
    let outbox = Outbox::from_database(&database);
    let left =
        "select count(*) from pg_class where relname = 'event_outbox_event' and relnamespace = 'elder'::regnamespace";
    ensure!(outbox.number(left).await? == 0, "an index is left behind");
    ensure!(outbox.number("select max(version) from elder.event_outbox_migration").await? == 13);
    // The statements of the runbook.
    let runbook = include_str!("../../docs/how-to/runbook.md");
    let (_, entry) = runbook.split_once("### OR-2115").context("no entry")?;
    let (_, sql) = entry.split_once("```sql").context("no statements")?;
    let (sql, _) = sql.split_once("```").context("no end of the statements")?;
    let sql = sql.replace("event_outbox", "elder.event_outbox");
    connection.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
    let output = relay.output("migrate").await?;
    ensure!(output.code == Some(0), "{output:?}");
    Ok(())
}
