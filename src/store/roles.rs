//! Creates four database roles and grants each the rights it needs, and no others. Nobody logs in as one of these roles; they are granted
//! to users.
//!
//! | role | may | may not |
//! |---|---|---|
//! | writer | insert events, read their ids | read other columns, set a status, change or delete events |
//! | relay | read and settle events, keep the relay registry; with `retention` delete old events | insert events, change their contents |
//! | operator | read events without their contents; retry and discard them and pause through functions that write the audit entry | read a
//! payload, change a row past the audit, write an audit entry for another user |
//! | monitor | read states, counts, the audit tables, and the sessions without their queries | read a payload, change anything |
//!
//! A fifth role owns the functions that show sessions and may see their queries, which contain payloads. It is granted to nobody.

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::store::search_path;
use event_outbox::names::{Names, literal};
use event_outbox::schema::{PIN, UNPIN, dollar_quote};

/// The columns that an application writes. `created_at`, `status` and the columns that follow from them belong to the relay.
const WRITTEN: &str =
    "event_id, entity_type, entity_id, event_type, event_version, payload, payload_bytes, headers, topic, available_at";

/// All columns of an event except its contents. `xmax` shows which transaction has locked it.
const SEEN: &str = "id, event_id, entity_type, entity_id, event_type, event_version, topic, available_at, created_at, status, \
                    published_at, attempts, last_error, lane, xid, due, xmax";

/// The columns of a held event except its record.
const HELD: &str = "consumer_group, topic, key, position, event_id, reason, error, held_at";

/// The columns of a lane's row that a relay writes.
pub(crate) const PROGRESS: &str =
    "nonce, sealed, scanned_through, snapshot, swept_through, sweep_snapshot, system, relation";

const SUFFIXES: [&str; 4] = ["writer", "relay", "operator", "monitor"];

/// The options for creating the roles.
#[derive(Debug, Clone, Default)]
pub(crate) struct RoleOptions {
    /// The prefix of the roles' names; the table's name if `None`.
    pub(crate) prefix: Option<String>,
    /// True if the relay may delete old events.
    pub(crate) retention: bool,
}

/// Returns the quoted names of the roles: writer, relay, operator, monitor.
pub(crate) fn names(names: &Names, options: &RoleOptions) -> [String; 4] {
    SUFFIXES.map(|suffix| names.role(options.prefix.as_deref(), suffix))
}

/// Creates the roles, or changes their rights to those that this binary grants, in one transaction.
///
/// # Errors
/// Any database error; nothing is changed then.
pub(crate) async fn make(conn: &mut PgConnection, names: &Names, options: &RoleOptions) -> Result<(), sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    for statement in statements(names, options) {
        tx.execute(sqlx::raw_sql(AssertSqlSafe(statement))).await?;
    }
    tx.commit().await
}

/// Returns the same statements as a script for an administrator.
pub(crate) fn script(names: &Names, options: &RoleOptions) -> String {
    format!("{PIN}begin;\n{};\ncommit;\n{UNPIN}", statements(names, options).join(";\n"))
}

fn statements(names: &Names, options: &RoleOptions) -> Vec<String> {
    let all = self::names(names, options);
    let [writer, relay, operator, monitor] = &all;
    // Takes a lock: two sessions at once would change the same rows of the catalog, and one of them would fail. Only the owner of the table
    // can take it.
    let turn = format!("lock table {} in share update exclusive mode", names.companion("migration"));
    let mut statements = vec![turn];
    statements.extend(all.iter().map(|role| create(names, role)));
    // Revokes rights that an older binary granted and this one does not.
    let tables =
        ["lane", "hold", "relay", "migration", "control", "pause", "audit", "audit_row", "archive", "delivery"]
            .map(|part| names.companion(part));
    let inbox = [names.processed(), names.source(), names.held()];
    let tables = [&[names.outbox(), names.companion("health")][..], &inbox, &tables].concat().join(", ");
    let roles = all.join(", ");
    statements.push(format!("revoke all on {tables} from {roles}"));
    statements.push(format!("grant usage on schema {} to {roles}", names.schema()));
    let mut grant =
        |rights: &str, table: String, role: &str| statements.push(format!("grant {rights} on {table} to {role}"));
    let (outbox, companion) = (names.outbox(), |part| names.companion(part));

    grant(&format!("insert ({WRITTEN}), select (id, event_id)"), outbox.clone(), writer);

    grant("select, update (status, published_at, attempts, last_error, due)", outbox.clone(), relay);
    grant(&format!("select, update ({PROGRESS})"), companion("lane"), relay);
    grant("select, insert, update, delete", companion("hold"), relay);
    grant("select, update (epoch, transactional_id, opened)", companion("delivery"), relay);
    grant("select, insert, update, delete", companion("relay"), relay);
    for part in ["migration", "control", "pause"] {
        grant("select", companion(part), relay);
    }
    if options.retention {
        grant("delete", outbox.clone(), relay);
        grant("insert", companion("archive"), relay);
        grant("update (value)", companion("control"), relay);
        grant("select, delete", names.processed(), relay);
        grant("select", names.source(), relay);
    }

    grant(&format!("select ({SEEN})"), outbox.clone(), operator);
    for part in ["lane", "hold", "control", "pause", "audit", "audit_row", "migration", "relay", "delivery", "health"] {
        grant("select", companion(part), operator);
    }
    // For `dlq list` in a consumers' database.
    grant(&format!("select ({HELD})"), names.held(), operator);

    grant(&format!("select ({SEEN})"), outbox, monitor);
    // `xid` and `xmax` of the archive belong to another time.
    grant(&format!("select ({}, archived_at)", SEEN.trim_end_matches(", xmax")), companion("archive"), monitor);
    grant("select (consumer_group, processed_at)", names.processed(), monitor);
    grant("select", names.source(), monitor);
    grant(&format!("select ({HELD})"), names.held(), monitor);
    for part in ["lane", "hold", "relay", "migration", "control", "pause", "audit", "audit_row", "delivery", "health"] {
        grant("select", companion(part), monitor);
    }
    for function in WRITERS_FUNCTIONS {
        statements.push(format!("grant execute on function {} to {writer}", signature(names, function)));
    }
    for function in OPERATORS_FUNCTIONS {
        statements.push(format!("grant execute on function {} to {operator}", signature(names, function)));
    }
    if options.retention {
        let group = names.inbox_companion("group");
        let role = literal(&raw(relay));
        statements
            .push(format!("insert into {group} (consumer_group, role) values ('*', {role}) on conflict do nothing"));
    }
    statements.push(show_sessions(names, &names.role(options.prefix.as_deref(), "activity"), &all));
    statements
}

/// The functions with which applications write events.
const WRITERS_FUNCTIONS: [(&str, &str); 3] = [
    ("emit", "text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text"),
    ("emit", "text, bigint, text, jsonb, jsonb, integer, text, timestamptz, bytea, uuid, text"),
    ("emit_many", "jsonb"),
];

/// The functions with which operators change rows.
const OPERATORS_FUNCTIONS: [(&str, &str); 5] = [
    ("decide", "text, bigint[], jsonb, text, text"),
    ("begin_pause", "text, text, text, text, float8, text, text"),
    ("end_pause", "text, text, text, text, text, text"),
    ("note", "text, jsonb, text, text, bigint"),
    ("discard", "text[], uuid[], jsonb, text, text, bigint"),
];

fn signature(names: &Names, (function, arguments): (&str, &str)) -> String {
    let name = match function {
        "emit" => names.emit(),
        "emit_many" => names.emit_many(),
        other => names.companion(other),
    };
    format!("{name}({arguments})")
}

/// Removes the quotes of an identifier.
fn raw(identifier: &str) -> String {
    identifier[1..identifier.len() - 1].replace("\"\"", "\"")
}

fn create(names: &Names, role: &str) -> String {
    // Roles belong to the whole server: the migration of another database may create the same role at the same time.
    block(names, &format!("create role {role} nologin"), "duplicate_object or unique_violation", "null")
}

/// Returns the statements that let the roles see the sessions of other users without their queries, which shows who holds a lock. The
/// functions get an owner that may see them; only an administrator may grant that. Takes the right back that the monitor had before.
fn show_sessions(names: &Names, owner: &str, [_, relay, operator, monitor]: &[String; 4]) -> String {
    let sessions = format!("{}()", names.companion("sessions"));
    let oldest = format!("{}()", names.companion("oldest_transaction"));
    let (owner_raw, monitor_raw) = (literal(&raw(owner)), literal(&raw(monitor)));
    let notice = literal(&format!(
        "{operator} and {monitor} do not see what other users' sessions do: let an administrator run this who may grant pg_read_all_stats"
    ));
    let granted = format!(
        "select from pg_auth_members m join pg_roles r on r.oid = m.member \
         where m.roleid = 'pg_read_all_stats'::regrole and r.rolname = {monitor_raw}"
    );
    let works = format!(
        "select from pg_proc where oid = {}::regprocedure and pg_has_role(proowner, 'pg_read_all_stats', 'usage') \
         and has_function_privilege({monitor_raw}, oid, 'execute')",
        literal(&sessions)
    );
    block(
        names,
        &format!(
            "if not exists (select from pg_roles where rolname = {owner_raw}) then create role {owner} nologin; end if; \
             if not pg_has_role({owner_raw}, 'pg_read_all_stats', 'usage') then grant pg_read_all_stats to {owner}; end if; \
             if exists ({granted}) then revoke pg_read_all_stats from {monitor}; end if; \
             grant execute on function {sessions} to {relay}, {operator}, {monitor}; \
             alter function {sessions} owner to {owner}; alter function {oldest} owner to {owner}"
        ),
        "insufficient_privilege",
        &format!("if not exists ({works}) then raise notice using message = {notice}; end if"),
    )
}

fn block(names: &Names, statement: &str, condition: &str, otherwise: &str) -> String {
    let quote = dollar_quote(names);
    format!("do {quote} begin {statement}; exception when {condition} then {otherwise}; end {quote}")
}
