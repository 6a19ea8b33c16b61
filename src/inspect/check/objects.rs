//! Checks for objects of other users that the outbox runs, and for users that may create some.

use sqlx::{PgConnection, Row};

use super::finding::Finding;
use super::rights::first;
use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::code::Code;
use event_outbox::names::literal;
use event_outbox::schema;

pub(super) async fn objects(conn: &mut PgConnection, names: &Names) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = foreign(conn, names).await?;
    findings.extend(open_functions(conn, names).await?);
    findings.extend(open_schema(conn, names).await?);
    Ok(findings)
}

/// Returns an error for what another user can change, and a note for the rest that is not of `pg_catalog`. A trigger always runs such a
/// function; [`super::table`] reports triggers.
async fn foreign(conn: &mut PgConnection, names: &Names) -> Result<Vec<Finding>, sqlx::Error> {
    let (mut theirs, mut own) = (Vec::new(), Vec::new());
    for row in read(conn, &schema::foreign_objects(names)).await? {
        let (part, thing, owner): (String, String, String) =
            (row.try_get("part")?, row.try_get("thing")?, row.try_get("owner")?);
        let text = format!("{part} uses {thing} of {owner}");
        match row.try_get::<Option<bool>, _>("trusted")? {
            Some(true) if part.starts_with("the trigger") || part.starts_with("calls of") => {}
            Some(true) => own.push(text),
            _ => theirs.push(text),
        }
    }
    let fix = "read OR-2206 in docs/how-to/runbook.md: it says how to replace each kind of object";
    let mut findings = Vec::new();
    if !theirs.is_empty() {
        findings.push(Finding::error(
            Code::ForeignObjects,
            format!(
                "Other users own code that runs with the outbox, and can change it: {}. It runs with the rights of whoever writes or \
                 publishes events.",
                theirs.join("; ")
            ),
            fix,
        ));
    } else if !own.is_empty() {
        findings.push(Finding::note(
            Code::ForeignObjects,
            format!("The outbox depends on objects that are not built into Postgres: {}.", own.join("; ")),
            "no action is needed if you created this dependency on purpose; otherwise read OR-2206 in docs/how-to/runbook.md",
        ));
    }
    Ok(findings)
}

async fn open_functions(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    Ok(first::<bool>(conn, &schema::has_open_function(names)).await?.then(|| {
        Finding::error(
            Code::ForeignObjects,
            format!(
                "{} or {} runs on the search path of its caller, where other users may have placed functions and operators.",
                names.emit(),
                names.once()
            ),
            "outbox-relay migrate",
        )
    }))
}

/// Reports grants of CREATE on the outbox's schema, except to the schema's owner, the outbox's owner and superusers.
async fn open_schema(conn: &mut PgConnection, names: &Names) -> Result<Option<Finding>, sqlx::Error> {
    let query = format!(
        "select string_agg(distinct case acl.grantee when 0 then 'public' else quote_ident(r.rolname) end, ', ') \
         from pg_namespace n cross join aclexplode(n.nspacl) acl left join pg_roles r on r.oid = acl.grantee \
         where n.nspname = {} and acl.privilege_type = 'CREATE' and acl.grantee <> n.nspowner and r.rolsuper is not true \
           and acl.grantee is distinct from (select relowner from pg_class where oid = to_regclass({}))",
        literal(names.schema_raw()),
        literal(&names.outbox())
    );
    let creators: Option<String> = first(conn, &query).await?;
    Ok(creators.map(|creators| {
        let schema = names.schema();
        Finding::warning(
            Code::SchemaOpen,
            format!(
                "{creators} may create objects in the schema {schema} of the outbox, such as a function of the same name as {} that an \
                 application's call prefers.",
                names.emit()
            ),
            format!("revoke create on schema {schema} from {creators};"),
        )
    }))
}
