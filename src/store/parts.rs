//! Lists what an outbox consists of, for people who have just created one.

use sqlx::{PgConnection, Row};

use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::names::{literal, quote};

/// The companion tables of an outbox, and its view.
const COMPANIONS: [&str; 13] = [
    "lane",
    "hold",
    "relay",
    "delivery",
    "control",
    "pause",
    "audit",
    "audit_row",
    "archive",
    "migration",
    "secret",
    // Made by the first `capture --backfill`.
    "backfill",
    "health",
];

/// Returns the parts that exist, by kind.
///
/// # Errors
/// Any database error.
pub(crate) async fn of(
    conn: &mut PgConnection,
    names: &Names,
) -> Result<Vec<(&'static str, Vec<String>)>, sqlx::Error> {
    let mut wanted: Vec<_> = COMPANIONS.iter().map(|suffix| names.companion(suffix)).collect();
    wanted.splice(0..0, [names.outbox()]);
    wanted.extend([names.processed(), names.held(), names.source()]);
    let tables = existing(conn, &wanted, "pg_class", "relname", "relnamespace").await?;
    let functions = [names.emit(), names.emit_many(), names.once()];
    let functions = existing(conn, &functions, "pg_proc", "proname", "pronamespace").await?;
    Ok(vec![("tables", tables), ("functions", functions)])
}

/// Returns true for a table of the outbox or of the inbox.
pub(crate) fn is_own(names: &Names, schema: &str, table: &str) -> bool {
    let given = format!("{}.{}", quote(schema), quote(table));
    let mut own = COMPANIONS.iter().map(|suffix| names.companion(suffix));
    own.any(|own| own == given)
        || [names.outbox(), names.processed(), names.held(), names.source(), names.inbox_companion("group")]
            .contains(&given)
}

/// Returns those of `wanted`, quoted names with their schema, that the catalog has, in their order.
async fn existing(
    conn: &mut PgConnection,
    wanted: &[String],
    catalog: &str,
    name: &str,
    schema: &str,
) -> Result<Vec<String>, sqlx::Error> {
    let list = wanted.iter().map(|wanted| literal(wanted)).collect::<Vec<_>>().join(", ");
    let query = format!(
        "select wanted.name from unnest(array[{list}]) with ordinality wanted (name, at) \
         where exists (select from {catalog} c join pg_namespace n on n.oid = c.{schema} \
           where wanted.name = '\"' || replace(n.nspname, '\"', '\"\"') || '\".\"' || replace(c.{name}, '\"', '\"\"') || '\"') \
         order by wanted.at"
    );
    read(conn, &query).await?.iter().map(|row| row.try_get(0)).collect()
}
