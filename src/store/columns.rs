//! Reads the columns of a table of the application.

use sqlx::{PgConnection, Row};

use super::search_path;

/// A column of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableColumn {
    pub(crate) name: String,
    /// The type as `format_type` prints it, of a domain its base type; `enum` for every enum.
    pub(crate) type_name: String,
    pub(crate) nullable: bool,
    pub(crate) has_default: bool,
}

/// Returns the columns of a table in their order; `None` if there is no such table.
///
/// # Errors
/// Any database error.
pub(crate) async fn read(
    conn: &mut PgConnection,
    schema: &str,
    table: &str,
) -> Result<Option<Vec<TableColumn>>, sqlx::Error> {
    let mut tx = search_path::begin(conn).await?;
    let oid: Option<i64> = sqlx::query_scalar(
        "select c.oid::int8 from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where n.nspname = $1 and c.relname = $2 and c.relkind in ('r', 'p')",
    )
    .bind(schema)
    .bind(table)
    .persistent(false)
    .fetch_optional(&mut *tx)
    .await?;
    let Some(oid) = oid else { return Ok(None) };
    let rows = sqlx::query(
        "select a.attname::text, \
                case when t.typtype = 'e' then 'enum' \
                     when t.typtype = 'd' then format_type(t.typbasetype, t.typtypmod) \
                     else format_type(a.atttypid, a.atttypmod) end, \
                not a.attnotnull, a.atthasdef \
           from pg_attribute a join pg_type t on t.oid = a.atttypid \
          where a.attrelid::int8 = $1 and a.attnum > 0 and not a.attisdropped order by a.attnum",
    )
    .bind(oid)
    .persistent(false)
    .fetch_all(&mut *tx)
    .await?;
    tx.commit().await?;
    let column = |row: &sqlx::postgres::PgRow| {
        Ok(TableColumn {
            name: row.try_get(0)?,
            type_name: row.try_get(1)?,
            nullable: row.try_get(2)?,
            has_default: row.try_get(3)?,
        })
    };
    rows.iter().map(column).collect::<Result<_, sqlx::Error>>().map(Some)
}
