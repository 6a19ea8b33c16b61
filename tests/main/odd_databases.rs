//! Tests databases, roles and sessions with settings that few others have: the relay publishes, and what it reports is true.

use std::sync::Arc;

use anyhow::{Context, ensure};
use event_outbox::schema::MigrateOptions;
use lab::kafka::RealKafka;
use lab::{Outbox, Relay, SOON, TestDatabase, eventually, trials};
use libtest_mimic::Trial;
use serde_json::Value;

/// The events of a trial.
const EVENTS: i64 = 400;

/// Settings that a database may have, each legal and unusual.
const SETTINGS: [&str; 18] = [
    "standard_conforming_strings = off",
    "quote_all_identifiers = on",
    "datestyle = 'SQL, DMY'",
    "intervalstyle = 'sql_standard'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "timezone = 'Asia/Kolkata'",
    "transform_null_equals = on",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "enable_indexscan = off",
    "enable_bitmapscan = off",
    "enable_seqscan = off",
    "synchronize_seqscans = off",
    "plan_cache_mode = 'force_generic_plan'",
    "backslash_quote = off",
    "array_nulls = off",
    "row_security = off",
];

/// Time limits that end sessions and statements which the relay does not bound itself.
const LIMITS: [&str; 4] = [
    "idle_session_timeout = '700ms'",
    "idle_in_transaction_session_timeout = '700ms'",
    "statement_timeout = '2s'",
    "lock_timeout = '200ms'",
];

pub(crate) fn trials() -> Vec<Trial> {
    trials! {
        with_both:
            events_of_every_encoding_are_published_as_utf8,
            collations_of_every_provider_change_nothing,
            settings_of_the_database_change_nothing,
            time_limits_of_the_role_change_nothing,
            a_relay_with_too_few_connections_reports_it_and_publishes;
    }
}

/// Publishes events, and expects a relay that is ready, without an outage, with a check that finds no error.
async fn works(outbox: &Outbox, settings: Relay, kafka: &RealKafka) -> anyhow::Result<()> {
    outbox.create_topic(kafka).await?;
    outbox.write_backlog(EVENTS, 40).await?;
    let relay = settings.start_ready("odd").await?;
    outbox.until_settled().await;
    outbox.all_published().await?;
    // An idle relay, and one that has just worked.
    for n in 1..=20 {
        outbox.write("later", n, 1).await?;
        outbox.until_settled_of("later").await;
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    }
    let numbers = outbox.published_numbers(kafka).await?;
    ensure!(numbers["later"] == (1..=20).collect::<Vec<_>>(), "{:?}", numbers["later"]);
    let checked: Value = serde_json::from_str(&settings.clone().argument("--json").output("check").await?.stdout)?;
    let severe: Vec<_> = checked["findings"]
        .as_array()
        .context("no findings")?
        .iter()
        .filter(|finding| finding["severity"] == "error" || finding["code"] == "OR-2108")
        .collect();
    ensure!(severe.is_empty(), "{severe:#?}");
    for command in ["status", "verify"] {
        let output = settings.output(command).await?;
        ensure!(output.code == Some(0), "{command}: {output:?}");
    }
    ensure!(relay.lines("outage_started").is_empty(), "{:?}", relay.lines("outage_started"));
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}

async fn events_of_every_encoding_are_published_as_utf8(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    for (encoding, text) in [("LATIN1", "Zoë"), ("WIN1252", "12 €"), ("EUC_JP", "注文")] {
        let name = format!("{}_{}", database.name(), encoding.to_lowercase());
        let clause = format!("encoding '{encoding}' locale 'C' template template0");
        let outbox = Outbox::in_new_database(&database, &name, &clause, &MigrateOptions::default()).await?;
        outbox.execute(&format!(
            "insert into event_outbox (entity_type, entity_id, event_type, payload, headers) \
             values ('order', '{text}', 'Named', jsonb_build_object('name', '{text}', 'n', 1), jsonb_build_object('source', '{text}'))"
        )).await?;
        works(&outbox, outbox.relay(&kafka), &kafka).await.with_context(|| encoding.to_owned())?;
        let records = kafka.read_topic(&outbox.topic).await?;
        let named =
            records.iter().find(|record| record.key.as_deref() == Some(text.as_bytes())).context("no record")?;
        let value: Value = serde_json::from_slice(named.value.as_deref().unwrap_or_default())?;
        ensure!(value["data"]["name"] == text && named.header("source") == Some(text), "{encoding}: {named:?}");
    }
    Ok(())
}

async fn collations_of_every_provider_change_nothing(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    for (name, clause) in [
        ("icu", "locale_provider icu icu_locale 'de-u-co-phonebk' locale 'C' encoding 'UTF8' template template0"),
        ("c", "locale 'C' encoding 'UTF8' template template0"),
    ] {
        let name = format!("{}_{name}", database.name());
        let outbox = Outbox::in_new_database(&database, &name, clause, &MigrateOptions::default()).await?;
        works(&outbox, outbox.relay(&kafka), &kafka).await.with_context(|| clause.to_owned())?;
    }
    Ok(())
}

async fn settings_of_the_database_change_nothing(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    for setting in SETTINGS {
        outbox.execute(&format!("alter database {} set {setting}", database.name())).await?;
    }
    works(&outbox, outbox.relay(&kafka), &kafka).await
}

async fn time_limits_of_the_role_change_nothing(database: TestDatabase, kafka: Arc<RealKafka>) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let (user, settings) = crate::check::with_user(&database, &outbox, &kafka).await?;
    crate::check::grant(&outbox, &user).await?;
    for setting in LIMITS {
        outbox.execute(&format!("alter role {user} set {setting}")).await?;
    }
    works(&outbox, settings, &kafka).await
}

/// One worker and the heartbeat can work with two connections.
async fn a_relay_with_too_few_connections_reports_it_and_publishes(
    database: TestDatabase,
    kafka: Arc<RealKafka>,
) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    outbox.create_topic(&kafka).await?;
    let (user, settings) = crate::check::with_user(&database, &outbox, &kafka).await?;
    crate::check::grant(&outbox, &user).await?;
    outbox.execute(&format!("alter role {user} connection limit 2")).await?;
    let relay = settings.with("RELAY_HEARTBEAT_INTERVAL", "1s").start_ready("limit").await?;
    let line = relay.wait_for("connection_refused").await;
    ensure!(line["code"] == "OR-2007" && line["next_step"].is_string(), "{line}");
    outbox.write_backlog(EVENTS, 40).await?;
    outbox.until_settled().await;
    eventually("there is no outage", SOON, || async {
        let (began, ended) = (relay.lines("outage_started").len(), relay.lines("outage_ended").len());
        if began == ended { Ok(()) } else { Err(format!("{began} began, {ended} ended")) }
    })
    .await;
    ensure!(relay.stop().await? == Some(0));
    Ok(())
}
