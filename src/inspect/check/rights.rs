//! Checks the rights of the relay's user: missing ones and excessive ones.

use sqlx::{PgConnection, Row};

use super::finding::Finding;
use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::names::{literal, quote};

/// The columns of the outbox that a relay writes.
const MARKED: [&str; 5] = ["status", "published_at", "attempts", "last_error", "due"];

/// Returns a finding if the relay lacks a right that it needs.
pub(crate) async fn missing_rights(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    Ok(rights(conn, names).await?.into_iter().find(|finding| finding.id == "rights-missing"))
}

/// Compares the user's rights with those that a relay needs. It reads the catalog, so it works without any right on the tables.
pub(super) async fn rights(conn: &mut PgConnection, names: &Names) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = Vec::new();
    let user = current_user(conn).await?;
    let usage: bool =
        first(conn, &format!("select coalesce(has_schema_privilege({}, 'usage'), false)", literal(names.schema_raw())))
            .await?;
    if !usage {
        findings.push(missing(&user, "USAGE", &format!("schema {}", names.schema())));
        return Ok(findings);
    }
    for (table, privileges) in [
        (names.outbox(), &["select"][..]),
        (names.companion("lane"), &["select"]),
        (names.companion("hold"), &["select", "insert", "update", "delete"]),
        (names.companion("relay"), &["select", "insert", "update", "delete"]),
        (names.companion("migration"), &["select"]),
        (names.companion("control"), &["select"]),
        (names.companion("pause"), &["select"]),
        (names.companion("delivery"), &["select"]),
    ] {
        let lacking = lacking(conn, &table, privileges).await?;
        if !lacking.is_empty() {
            findings.push(missing(&user, &lacking.join(", ").to_uppercase(), &table));
        }
    }
    let unmarked = not_updatable(conn, &names.outbox(), &MARKED).await?;
    if !unmarked.is_empty() {
        findings.push(missing(&user, &format!("UPDATE ({})", unmarked.join(", ")), &names.outbox()));
    }
    findings.extend(excess(conn, names, &user).await?);
    Ok(findings)
}

/// Returns a note if the user reads the states of events without their contents, as operators and monitors do. Such a user is no relay's,
/// and lacks nothing.
pub(super) async fn reader(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = literal(&names.outbox());
    let query = format!(
        "select coalesce(not has_table_privilege(t, 'select') and has_column_privilege(t, 'status', 'select') \
           and not has_column_privilege(t, 'published_at', 'update'), false) from to_regclass({outbox}) t"
    );
    if !first::<bool>(conn, &query).await? {
        return Ok(None);
    }
    let user = current_user(conn).await?;
    Ok(Some(Finding::note(
        Code::RightsReader,
        format!(
            "The user {user} is no relay's and sees no payloads: the rights of a relay and the payloads were not checked."
        ),
        "no action is needed; run it as the relay's user as well",
    )))
}

async fn lacking(conn: &mut PgConnection, table: &str, privileges: &[&str]) -> Result<Vec<String>, sqlx::Error> {
    // Pass an oid, which is null for a missing table. The schema's check reports a missing table.
    let list = privileges.iter().map(|privilege| literal(privilege)).collect::<Vec<_>>().join(", ");
    let query = format!(
        "select wanted from unnest(array[{list}]) wanted where not has_table_privilege(to_regclass({}), wanted)",
        literal(table)
    );
    read(conn, &query).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Returns the columns that the user may not update.
pub(super) async fn not_updatable(
    conn: &mut PgConnection,
    table: &str,
    columns: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    let list = columns.iter().map(|column| literal(column)).collect::<Vec<_>>().join(", ");
    let query = format!(
        "select wanted from unnest(array[{list}]) wanted \
         where not has_column_privilege(to_regclass({}), wanted, 'update')",
        literal(table)
    );
    read(conn, &query).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Returns the user's name, quoted if SQL needs quotes.
pub(super) async fn current_user(conn: &mut PgConnection) -> Result<String, sqlx::Error> {
    first(conn, "select quote_ident(current_user)").await
}

fn missing(user: &str, right: &str, on: &str) -> Finding {
    Finding::error(
        Code::RightsMissing,
        format!("The relay's user {user} has no right to {right} on {on}."),
        format!("grant {} on {on} to {user};", right.to_lowercase()),
    )
}

async fn excess(conn: &mut PgConnection, names: &Names, user: &str) -> Result<Option<Finding>, sqlx::Error> {
    let superuser: bool = first(conn, "select rolsuper from pg_roles where rolname = current_user").await?;
    if superuser {
        return Ok(Some(Finding::warning(
            Code::RightsSuperuser,
            format!("The relay's user {user} is a superuser: a leaked password gives full control of the server."),
            "create a user for the relay with the grants of docs/how-to/grant-rights.md, and put it into DATABASE_URL",
        )));
    }
    let outbox = literal(&names.outbox());
    let owner: bool = first(
        conn,
        &format!("select pg_has_role(current_user, relowner, 'usage') from pg_class where oid = to_regclass({outbox})"),
    )
    .await?;
    let mut beyond = lacking_not(conn, &names.outbox(), &["truncate", "insert", "references", "trigger"]).await?;
    if owner {
        beyond.insert(0, "drop".to_owned());
    }
    Ok((!beyond.is_empty()).then(|| {
        let rights = beyond.join(", ").to_uppercase();
        let fix = if owner {
            "let another role own the tables: `alter table … owner to …`, then the grants of docs/how-to/grant-rights.md".to_owned()
        } else {
            format!("revoke {rights} on {} from {user};", names.outbox())
        };
        Finding::warning(
            Code::RightsExcessive,
            format!("The relay's user {user} may {rights} {}, which a relay never does.", names.outbox()),
            fix,
        )
    }))
}

async fn lacking_not(conn: &mut PgConnection, table: &str, privileges: &[&str]) -> Result<Vec<String>, sqlx::Error> {
    let lacking = lacking(conn, table, privileges).await?;
    Ok(privileges
        .iter()
        .map(|privilege| (*privilege).to_owned())
        .filter(|privilege| !lacking.contains(privilege))
        .collect())
}

/// Returns a finding when row level security may hide rows of the outbox from this user, or refuse its marks. Policies that let the user
/// read and update every row are fine; an expression other than `true` may hide some.
pub(crate) async fn hidden_rows(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let table = literal(&outbox);
    let applies = "p.polrelid = t.oid and (0 = any (p.polroles) or exists (\
                     select from unnest(p.polroles) r where r <> 0 and pg_has_role(current_user, r, 'usage')))";
    let expression = |column: &str| format!("coalesce(pg_get_expr(p.{column}, p.polrelid), 'true') = 'true'");
    let (reads, writes) = (expression("polqual"), expression("polwithcheck"));
    let query = format!(
        "select row_security_active(t.oid) and (\
           not exists (select from pg_policy p where {applies} and p.polpermissive and p.polcmd in ('*', 'r') and {reads}) \
           or not exists (select from pg_policy p where {applies} and p.polpermissive and p.polcmd in ('*', 'w') and {reads} and {writes}) \
           or exists (select from pg_policy p where {applies} and not p.polpermissive and p.polcmd in ('*', 'r', 'w') \
             and not ({reads} and {writes}))), current_user::text \
         from (select {table}::regclass::oid) t (oid)"
    );
    let rows = read(conn, &query).await?;
    let row = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let (hides, user): (bool, String) = (row.try_get(0)?, row.try_get(1)?);
    Ok(hides.then(|| {
        let policy = quote(&format!("{user} sees all"));
        Finding::error(
            Code::RowSecurity,
            format!("Row level security applies to the relay's user on {outbox}: rows that its policies hide are never published."),
            format!("create policy {policy} on {outbox} to {} using (true) with check (true);", quote(&user)),
        )
    }))
}

/// Returns the first value of a query's first row.
pub(super) async fn first<T>(conn: &mut PgConnection, query: &str) -> Result<T, sqlx::Error>
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
{
    read(conn, query).await?.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}
