//! Checks the outbox table: vacuum, its sequence, triggers of others, and payloads.

use sqlx::{PgConnection, Row};

use super::finding::Finding;
use super::rights::first;
use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::envelope::Envelope;
use event_outbox::names::literal;

/// The number of dead rows from which a missing vacuum is reported. A fast drain leaves even more behind between two vacuums, so the check
/// also requires ten minutes without a vacuum. Such a gap only occurs where vacuum is off or held back.
const DEAD_TUPLES: i64 = 100_000;
/// The number of dead rows per live row from which a missing vacuum is reported.
const DEAD_SHARE: f64 = 0.2;

/// The number of payloads of a text column that are parsed.
const PAYLOADS_PARSED: u32 = 100;

pub(super) async fn table(conn: &mut PgConnection, names: &Names) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    findings.extend(unlogged(conn, names).await?);
    findings.extend(of_another_server(conn, names).await?);
    findings.extend(vacuum(conn, names).await?);
    findings.extend(dead_tuples(conn, names).await?);
    findings.extend(sequence(conn, names).await?);
    findings.extend(triggers(conn, names).await?);
    findings.extend(stamp_triggers(conn, names).await?);
    Ok(findings)
}

async fn of_another_server(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let query = format!(
        "select exists (select from {} where system <> (select system_identifier from pg_control_system()))",
        names.companion("lane")
    );
    Ok(first::<bool>(conn, &query).await?.then(|| {
        Finding::warning(
            Code::LanesReset,
            "The progress of lanes was written on another server: this database was restored, upgraded or copied, and no relay has run since.",
            "no action is needed after a restore or an upgrade; if this database is a copy, start no relay: it would publish the copy's \
             pending events",
        )
    }))
}

async fn unlogged(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let query = format!("select relpersistence <> 'p' from pg_class where oid = {}::regclass", literal(&outbox));
    Ok(first::<bool>(conn, &query).await?.then(|| {
        Finding::error(
            Code::TableUnlogged,
            format!("The table {outbox} is unlogged: a crash of the server empties it, and committed events are lost."),
            format!("alter table {outbox} set logged;"),
        )
    }))
}

async fn vacuum(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let query = format!(
        "select current_setting('autovacuum')::bool, \
         coalesce((select option_value::bool from pg_options_to_table(reloptions) where option_name = 'autovacuum_enabled'), true) \
         from pg_class where oid = {}::regclass",
        literal(&outbox)
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (server, table): (bool, bool) = (row.try_get(0)?, row.try_get(1)?);
    let (whose, fix) = match (server, table) {
        (true, true) => return Ok(None),
        (false, _) => ("on the server", "alter system set autovacuum = on; select pg_reload_conf();".to_owned()),
        (true, false) => ("for the outbox", format!("alter table {outbox} reset (autovacuum_enabled);")),
    };
    Ok(Some(Finding::warning(
        Code::AutovacuumOff,
        format!(
            "Autovacuum is off {whose}: dead row versions of published events pile up, and every claim reads them."
        ),
        fix,
    )))
}

async fn dead_tuples(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let query = format!(
        "select pg_stat_get_dead_tuples(t.oid)::int8, pg_stat_get_live_tuples(t.oid)::int8, \
         coalesce(greatest(pg_stat_get_last_autovacuum_time(t.oid), pg_stat_get_last_vacuum_time(t.oid)) \
                  < now() - interval '10 minutes', true) \
         from (select {}::regclass::oid) t",
        literal(&outbox)
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (dead, live, long_ago): (i64, i64, bool) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    Ok((long_ago && dead > DEAD_TUPLES && dead as f64 > live as f64 * DEAD_SHARE).then(|| {
        Finding::warning(
            Code::DeadTuples,
            format!("The table {outbox} holds {dead} dead rows beside {live} live ones, and no vacuum has ended for ten minutes."),
            format!("vacuum (verbose) {outbox}; -- reports what it could not remove; then look for the session that holds vacuum back: transaction-old"),
        )
    }))
}

async fn sequence(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let query = format!(
        "select max(s.seqcache)::int8 from pg_depend d join pg_sequence s on s.seqrelid = d.objid \
         where d.classid = 'pg_class'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = {}::regclass",
        literal(&outbox)
    );
    let cache: Option<i64> = first(conn, &query).await?;
    Ok(cache.filter(|cache| *cache > 1).map(|cache| {
        Finding::error(
            Code::SequenceCache,
            format!("The sequence of {outbox} gives each session ids in blocks of {cache}: the order of ids is not the order of commits, and events of an entity are published out of order."),
            format!("alter table {outbox} alter column id set cache 1;"),
        )
    }))
}

/// Checks the triggers that maintain `xid`. If they are missing or not enabled ALWAYS, claims may never find restored, replicated or
/// changed rows.
async fn stamp_triggers(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let wanted = ["stamp_insert", "stamp_update"];
    let list = wanted.map(|suffix| literal(&names.part_raw(suffix))).join(", ");
    let query = format!(
        "select count(*) from pg_trigger where tgrelid = {}::regclass and tgenabled = 'A' and tgname in ({list})",
        literal(&outbox)
    );
    let rows = read(conn, &query).await?;
    let found: i64 = rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)?;
    let enable = wanted.map(|suffix| format!("enable always trigger {}", names.part(suffix))).join(", ");
    Ok((found < 2).then(|| {
        Finding::error(
            Code::StampTriggers,
            format!("Triggers of {outbox} that claims depend on are missing or not enabled ALWAYS: events may never be published."),
            format!("alter table {outbox} {enable}; -- if they are missing: `outbox-relay migrate --print` has them, in 0007"),
        )
    }))
}

async fn triggers(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let query = format!(
        "select string_agg(quote_ident(tgname), ', ' order by tgname), min(quote_ident(tgname)) from pg_trigger \
         where tgrelid = {}::regclass and not tgisinternal and tgenabled <> 'D' and tgname not in ({})",
        literal(&outbox),
        ["stamp_insert", "stamp_update", "entity_lock", "wake_up"].map(|own| literal(&names.part_raw(own))).join(", ")
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (all, one): (Option<String>, Option<String>) = (row.try_get(0)?, row.try_get(1)?);
    Ok(all.zip(one).map(|(all, one)| {
        Finding::warning(
            Code::Triggers,
            format!("Triggers run on {outbox} ({all}): they slow down each insert or mark, and a trigger that fails or changes rows stops the relay."),
            format!("alter table {outbox} disable trigger {one}; -- if nobody needs it"),
        )
    }))
}

/// Reports payloads of a text column that are not JSON, if the envelope puts payloads unchanged into a JSON object.
pub(super) async fn payloads(
    conn: &mut PgConnection,
    names: &Names,
    envelope: Envelope,
) -> Result<Option<Finding>, sqlx::Error> {
    if !matches!(envelope, Envelope::Event | Envelope::CloudeventsStructured) {
        return Ok(None);
    }
    let outbox = names.outbox();
    let text: bool = first(
        conn,
        &format!(
            "select coalesce((select atttypid not in ('json'::regtype, 'jsonb'::regtype) from pg_attribute \
             where attrelid = {}::regclass and attname = 'payload' and not attisdropped), false)",
            literal(&outbox)
        ),
    )
    .await?;
    if !text {
        return Ok(None);
    }
    let query = format!("select id::int8, payload::text from {outbox} order by id desc limit {PAYLOADS_PARSED}");
    let mut no_json = Vec::new();
    for row in read(conn, &query).await? {
        let payload: Option<&str> = row.try_get(1)?;
        if payload.is_some_and(|payload| serde_json::from_str::<serde::de::IgnoredAny>(payload).is_err()) {
            no_json.push(row.try_get::<i64, _>(0)?);
        }
    }
    Ok(no_json.first().map(|id| {
        Finding::warning(
            Code::PayloadNotJson,
            format!(
                "{} of the last {PAYLOADS_PARSED} payloads are not JSON, number {id} for example, and the envelope {envelope} puts them into a JSON object as they are: consumers cannot parse it.",
                no_json.len()
            ),
            format!("RELAY_ENVELOPE=raw sends any text; or let the application write JSON: alter table {outbox} alter column payload type json using payload::json;"),
        )
    }))
}
