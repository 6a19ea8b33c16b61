//! Creates four database roles and grants each the rights it needs, and no others. Nobody logs in as one of these roles; they are granted
//! to users.
//!
//! | role | may | may not |
//! |---|---|---|
//! | writer | insert events, read their ids | read other columns, set a status, change or delete events |
//! | relay | read and settle events, keep the relay registry; with `retention` delete old events | insert events, change their contents |
//! | operator | read events without their contents, retry and discard them, pause; insert into the audit tables | read a payload, change or
//! delete audit entries |
//! | monitor | read states, counts and the audit tables | read a payload, change anything |

use sqlx::{AssertSqlSafe, Executor, PgConnection};

use crate::store::search_path;
use event_outbox::names::{Names, literal};
use event_outbox::schema::{PIN, UNPIN, dollar_quote};

/// The columns that an application writes. `created_at`, `status` and the columns that follow from them belong to the relay.
const WRITTEN: &str =
    "event_id, entity_type, entity_id, event_type, event_version, payload, payload_bytes, headers, topic, available_at";

/// All columns of an event except its contents.
const SEEN: &str = "id, event_id, entity_type, entity_id, event_type, event_version, topic, available_at, created_at, status, \
                    published_at, attempts, last_error, lane, xid, due";

/// The columns of a lane's row that a relay writes.
const PROGRESS: &str = "nonce, sealed, scanned_through, snapshot, swept_through, sweep_snapshot, system, relation";

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
    // Takes a lock: two sessions at once would change the same rows of the catalog, and one of them would fail.
    let turn = format!(
        "select pg_catalog.pg_advisory_xact_lock(pg_catalog.hashtextextended({}, 0))",
        literal(&format!("roles of {}", names.outbox()))
    );
    let mut statements = vec![turn];
    statements.extend(all.iter().map(|role| create(names, role)));
    // Revokes rights that an older binary granted and this one does not.
    let tables =
        ["lane", "hold", "relay", "migration", "control", "pause", "audit", "audit_row", "archive", "delivery"]
            .map(|part| names.companion(part));
    let tables = [&[names.outbox(), names.processed()][..], &tables].concat().join(", ");
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
    }

    grant(&format!("select ({SEEN}), update (status, available_at, last_error)"), outbox.clone(), operator);
    for part in ["lane", "hold"] {
        grant("select", companion(part), operator);
    }
    grant("select, update (value)", companion("control"), operator);
    grant("select, insert, delete", companion("pause"), operator);
    for part in ["audit", "audit_row"] {
        grant("select, insert", companion(part), operator);
    }
    for part in ["migration", "relay"] {
        grant("select", companion(part), operator);
    }

    grant(&format!("select ({SEEN})"), outbox, monitor);
    grant(&format!("select ({SEEN}, archived_at)"), companion("archive"), monitor);
    grant("select (consumer_group, processed_at)", names.processed(), monitor);
    for part in ["lane", "hold", "relay", "migration", "control", "pause", "audit", "audit_row", "delivery"] {
        grant("select", companion(part), monitor);
    }
    statements.push(format!(
        "grant execute on function {}(text, text, text, jsonb, jsonb, integer, text, timestamptz, bytea) to {writer}",
        names.emit()
    ));
    statements.push(see_sessions(names, monitor));
    statements
}

fn create(names: &Names, role: &str) -> String {
    // Roles belong to the whole server: the migration of another database may create the same role at the same time.
    block(names, &format!("create role {role} nologin"), "duplicate_object or unique_violation", "null")
}

/// Returns the statement that lets the monitor see the queries of other users' sessions, which shows who holds a lock. Only an
/// administrator may grant this right.
fn see_sessions(names: &Names, monitor: &str) -> String {
    let notice = literal(&format!("{monitor} does not see what other users' sessions do: grant it pg_read_all_stats"));
    block(
        names,
        // A second grant would raise a notice.
        &format!(
            "if not pg_catalog.pg_has_role({}, 'pg_read_all_stats', 'member') then grant pg_read_all_stats to {monitor}; end if",
            literal(&monitor[1..monitor.len() - 1].replace("\"\"", "\""))
        ),
        "insufficient_privilege",
        &format!("raise notice using message = {notice}"),
    )
}

fn block(names: &Names, statement: &str, condition: &str, otherwise: &str) -> String {
    let quote = dollar_quote(names);
    format!("do {quote} begin {statement}; exception when {condition} then {otherwise}; end {quote}")
}
