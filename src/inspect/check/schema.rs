//! Checks the schema, its indexes, and the plan of the claim.

use sqlx::{PgConnection, Row};

use super::finding::Finding;
use event_outbox::Names;
use event_outbox::code::Code;

use crate::fault;
use crate::store::plan::{self, Statement};
use crate::store::read_only::{read, reads_contents};
use crate::store::search_path;
use event_outbox::names::literal;
use event_outbox::schema::{self, SchemaError};

/// Returns the number of lanes, or the finding that keeps the schema from being used.
pub(super) async fn usable(conn: &mut PgConnection, names: &Names) -> Result<Result<u16, Finding>, sqlx::Error> {
    // Use a transaction. Behind a pooler the parts of a prepared statement may otherwise reach two servers.
    let mut tx = search_path::begin(conn).await?;
    let lanes = schema::lanes(&mut tx, names).await;
    tx.rollback().await?;
    match lanes {
        Ok(lanes) => Ok(Ok(lanes)),
        Err(SchemaError::Database(error)) => Err(error),
        Err(error) => Ok(Err(refused(&error))),
    }
}

fn refused(error: &SchemaError) -> Finding {
    let migrate = "outbox-relay migrate";
    match error {
        SchemaError::Missing { others, .. } => Finding::error(
            Code::SchemaMissing,
            format!("The outbox cannot be used: {error}."),
            fault::missing_outbox(others),
        ),
        SchemaError::Older { .. } => {
            Finding::error(Code::SchemaOlder, format!("The outbox cannot be used: {error}."), migrate)
        }
        SchemaError::OldServer { .. } => Finding::error(
            Code::ServerOld,
            format!("The outbox cannot be used: {error}."),
            "upgrade the server, for example with pg_upgrade",
        ),
        SchemaError::Partitioned { .. } => Finding::error(
            Code::TablePartitioned,
            format!("The outbox cannot be used: {error}."),
            "move the events into a plain table that `outbox-relay migrate` creates",
        ),
        SchemaError::BrokenLanes { .. } => Finding::error(
            Code::LanesBroken,
            format!("{error}: events of a lane without a row are never claimed."),
            "put the missing numbers back; the number of lanes is in the column lane's expression: \\d+ event_outbox",
        ),
        _ => Finding::error(
            Code::SchemaNewer,
            format!("The outbox cannot be used: {error}."),
            "upgrade this binary, or point RELAY_SCHEMA and RELAY_TABLE at another outbox",
        ),
    }
}

struct Wanted {
    suffix: &'static str,
    columns: &'static str,
    predicate: &'static str,
    /// The predicate as Postgres prints it.
    printed: &'static str,
}

fn wanted() -> [Wanted; 3] {
    [
        Wanted { suffix: "late", columns: "(xid, id, lane)", predicate: "", printed: "" },
        Wanted {
            suffix: "due",
            columns: "(due, id, lane)",
            predicate: " where due is not null",
            printed: " WHERE (due IS NOT NULL)",
        },
        Wanted {
            suffix: "failed",
            columns: "(id)",
            predicate: " where last_error is not null",
            printed: " WHERE (last_error IS NOT NULL)",
        },
    ]
}

/// Checks the indexes, and the claim's plan if all of them exist. Without them the plan can only be bad.
pub(super) async fn indexes(conn: &mut PgConnection, names: &Names) -> Result<Vec<Finding>, sqlx::Error> {
    let query = format!(
        "select c.relname::text, i.indisvalid and i.indisready, pg_get_indexdef(i.indexrelid) \
         from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = {}::regclass",
        literal(&names.outbox())
    );
    let rows = read(conn, &query).await?;
    let mut findings = Vec::new();
    for Wanted { suffix, columns, predicate, printed } in wanted() {
        let name = names.part_raw(suffix);
        let index = names.part(suffix);
        let create = format!("create index concurrently {index} on {} {columns}{predicate}", names.outbox());
        let found = rows.iter().find(|row| row.try_get::<&str, _>(0).is_ok_and(|found| found == name));
        let Some(found) = found else {
            findings.push(Finding::error(
                Code::IndexMissing,
                format!("The index {index} is missing: every claim scans the whole table."),
                format!("{create};"),
            ));
            continue;
        };
        let definition: String = found.try_get(2)?;
        if !found.try_get::<bool, _>(1)? {
            findings.push(Finding::error(
                Code::IndexInvalid,
                format!(
                    "The index {index} is invalid, so no query uses it: its creation has failed or is still running."
                ),
                format!("reindex index concurrently {}.{index};", names.schema()),
            ));
        } else if !definition.ends_with(&format!("USING btree {columns}{printed}")) {
            findings.push(Finding::error(
                Code::IndexInvalid,
                format!(
                    "The index {index} differs from the one that `migrate` creates, so the claim may scan the whole table."
                ),
                format!("drop index concurrently {}.{index}; {create};", names.schema()),
            ));
        }
    }
    // Postgres plans a statement only for a user who may run it.
    if findings.is_empty() && reads_contents(conn, names).await? {
        findings.extend(plans(conn, names).await?);
    }
    Ok(findings)
}

async fn plans(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let lines = plan::explain(conn, names, Statement::Claim).await?;
    Ok(plan::costly_step(&lines, names).map(|step| {
        Finding::error(
            Code::ClaimPlan,
            format!(
                "The planner does not use the indexes that the claim needs, so the claim reads published events as well ({step})."
            ),
            format!(
                "analyze {}; if that does not help, compare the indexes with `outbox-relay migrate --print`",
                names.outbox()
            ),
        )
    }))
}
