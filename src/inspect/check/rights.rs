//! Checks the rights of the relay's user: missing ones and excessive ones.

use sqlx::{PgConnection, Row};

use super::finding::Finding;
use crate::config::Settle;
use crate::store::read_only::read;
use crate::store::roles;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::names::{literal, quote};

/// The columns of the outbox that a relay writes.
const MARKED: [&str; 5] = ["status", "published_at", "attempts", "last_error", "due"];

/// Returns a finding if the relay lacks a right that it needs.
pub(crate) async fn missing_rights(
    conn: &mut PgConnection,
    names: &Names,
    settle: Settle,
) -> Result<Option<Finding>, sqlx::Error> {
    Ok(rights(conn, names, settle).await?.into_iter().find(|finding| finding.id == "rights-missing"))
}

/// Compares the user's rights with those that a relay needs. It reads the catalog, so it works without any right on the tables.
pub(super) async fn rights(
    conn: &mut PgConnection,
    names: &Names,
    settle: Settle,
) -> Result<Vec<Finding>, sqlx::Error> {
    let user = current_user(conn).await?;
    let lacking = lacking_grants(conn, names, settle, "current_user").await?;
    let mut findings = Vec::new();
    if !lacking.is_empty() {
        findings.push(missing(&user, &lacking, role_with_all(conn, names, settle).await?, settle));
    }
    if !lacking.iter().any(|grant| grant.right == "USAGE") {
        findings.extend(excess(conn, names, &user).await?);
    }
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

/// A right that a relay needs and a user lacks.
struct Grant {
    right: String,
    on: String,
}

/// Returns the rights that `who`, an SQL expression, lacks.
async fn lacking_grants(
    conn: &mut PgConnection,
    names: &Names,
    settle: Settle,
    who: &str,
) -> Result<Vec<Grant>, sqlx::Error> {
    let mut grants = Vec::new();
    let schema = literal(names.schema_raw());
    let usage = format!("select coalesce(has_schema_privilege({who}, {schema}, 'usage'), false)");
    if !first::<bool>(conn, &usage).await? {
        grants.push(Grant { right: "USAGE".to_owned(), on: format!("schema {}", names.schema()) });
    }
    let all = &["select", "insert", "update", "delete"][..];
    let progress: Vec<_> = roles::PROGRESS.split(", ").collect();
    let of_outbox = match settle {
        Settle::Mark => &["select"][..],
        Settle::Delete => &["select", "delete"],
    };
    let companion = |suffix| (names.part_raw(suffix), names.companion(suffix));
    for ((raw, table), privileges, updated) in [
        ((names.table_raw().to_owned(), names.outbox()), of_outbox, &MARKED[..]),
        (companion("lane"), &["select"], &progress),
        (companion("hold"), all, &[]),
        (companion("relay"), all, &[]),
        (companion("migration"), &["select"], &[]),
        (companion("control"), &["select"], &[]),
        (companion("pause"), &["select"], &[]),
        (companion("delivery"), &["select"], &[]),
    ] {
        // The oid is null for a missing table, which the schema's check reports. `to_regclass` would ask for USAGE on the schema.
        let oid = format!(
            "(select c.oid from pg_class c join pg_namespace n on n.oid = c.relnamespace \
              where n.nspname = {schema} and c.relname = {})",
            literal(&raw)
        );
        let lacks = |right| format!("not has_table_privilege({who}, {oid}, {right})");
        let mut rights = wanted(conn, privileges, lacks("wanted")).await?;
        let columns = format!("not has_column_privilege({who}, {oid}, wanted, 'update') and {}", lacks("'update'"));
        let columns = wanted(conn, updated, columns).await?;
        if !columns.is_empty() {
            rights.push(format!("update ({})", columns.join(", ")));
        }
        if !rights.is_empty() {
            let upper = |right: &String| match right.split_once(' ') {
                Some((verb, columns)) => format!("{} {columns}", verb.to_uppercase()),
                None => right.to_uppercase(),
            };
            grants.push(Grant { right: rights.iter().map(upper).collect::<Vec<_>>().join(", "), on: table });
        }
    }
    Ok(grants)
}

/// Returns the words for which `lacks` is true; it is an SQL expression about `wanted`.
async fn wanted(conn: &mut PgConnection, words: &[&str], lacks: String) -> Result<Vec<String>, sqlx::Error> {
    let list = words.iter().map(|word| literal(word)).collect::<Vec<_>>().join(", ");
    let query = format!("select wanted from unnest(array[{list}]::text[]) wanted where {lacks}");
    read(conn, &query).await?.iter().map(|row| row.try_get(0)).collect()
}

/// Returns the role that `migrate --roles` makes for relays, quoted, if it exists and has every right on this outbox.
async fn role_with_all(conn: &mut PgConnection, names: &Names, settle: Settle) -> Result<Option<String>, sqlx::Error> {
    let raw = literal(&names.part_raw("relay"));
    let exists: bool = first(conn, &format!("select exists (select from pg_roles where rolname = {raw})")).await?;
    let has_all = exists && lacking_grants(conn, names, settle, &format!("{raw}::name")).await?.is_empty();
    Ok(has_all.then(|| names.role(None, "relay")))
}

async fn lacking(conn: &mut PgConnection, table: &str, privileges: &[&str]) -> Result<Vec<String>, sqlx::Error> {
    wanted(conn, privileges, format!("not has_table_privilege(to_regclass({}), wanted)", literal(table))).await
}

/// Returns the columns that the user may not update.
pub(super) async fn not_updatable(
    conn: &mut PgConnection,
    table: &str,
    columns: &[&str],
) -> Result<Vec<String>, sqlx::Error> {
    let lacks = format!("not has_column_privilege(to_regclass({}), wanted, 'update')", literal(table));
    wanted(conn, columns, lacks).await
}

/// Returns the user's name, quoted if SQL needs quotes.
pub(super) async fn current_user(conn: &mut PgConnection) -> Result<String, sqlx::Error> {
    first(conn, "select quote_ident(current_user)").await
}

/// Groups the missing rights into one finding, with one block of SQL. A role that has all of them is one grant.
fn missing(user: &str, lacking: &[Grant], role: Option<String>, settle: Settle) -> Finding {
    let rights = lacking.iter().map(|Grant { right, on }| format!("{right} on {on}"));
    let rights = rights.collect::<Vec<_>>().join("; ");
    let grants = lacking.iter().map(|Grant { right, on }| format!("grant {} on {on} to {user};", right.to_lowercase()));
    let (has_all, fix) = match role {
        Some(role) => (format!("The role {role} has all that a relay needs"), format!("grant {role} to {user};")),
        None => (
            format!(
                "`outbox-relay migrate --roles{}` makes a role that has all that a relay needs",
                match settle {
                    Settle::Mark => "",
                    Settle::Delete => " --retention",
                }
            ),
            grants.collect::<Vec<_>>().join(" "),
        ),
    };
    Finding::error(Code::RightsMissing, format!("The relay's user {user} has no right to {rights}. {has_all}."), fix)
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
/// read, update and, where the relay deletes published rows, delete every row are fine; an expression other than `true` may hide some.
pub(crate) async fn hidden_rows(
    conn: &mut PgConnection,
    names: &Names,
    settle: Settle,
) -> Result<Option<Finding>, sqlx::Error> {
    let outbox = names.outbox();
    let table = literal(&outbox);
    let applies = "p.polrelid = t.oid and (0 = any (p.polroles) or exists (\
                     select from unnest(p.polroles) r where r <> 0 and pg_has_role(current_user, r, 'usage')))";
    let expression = |column: &str| format!("coalesce(pg_get_expr(p.{column}, p.polrelid), 'true') = 'true'");
    let (reads, writes) = (expression("polqual"), expression("polwithcheck"));
    let permitted = |command: &str, condition: &str| {
        format!(
            "exists (select from pg_policy p where {applies} and p.polpermissive and p.polcmd in ('*', '{command}') and {condition})"
        )
    };
    let (permits_read, permits_write) = (permitted("r", &reads), permitted("w", &format!("{reads} and {writes}")));
    let (permits_delete, commands) = match settle {
        Settle::Mark => ("true".to_owned(), "'*', 'r', 'w'"),
        Settle::Delete => (permitted("d", &reads), "'*', 'r', 'w', 'd'"),
    };
    let query = format!(
        "select row_security_active(t.oid) and (\
           not ({permits_read} and {permits_write} and {permits_delete}) \
           or exists (select from pg_policy p where {applies} and not p.polpermissive and p.polcmd in ({commands}) \
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
