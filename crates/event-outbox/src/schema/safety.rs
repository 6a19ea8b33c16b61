//! Keeps objects of other users out of an outbox: the search path, and SQL that finds what is not of `pg_catalog` or not of the owner.
//!
//! Without a fixed search path, a user with CREATE on a schema of the path can put functions and operators there that the migration, a
//! function or a command would call in place of those of `pg_catalog` (CVE-2018-1058). Expressions that are stored, such as defaults, keep
//! them for good.

use sqlx::PgConnection;

use super::dollar_quote;
use crate::names::{Names, SEARCH_PATH, literal};

/// The first statement of a printed script. The setting is the session's and not a transaction's, because a tool may run the statements
/// one by one.
pub const PIN: &str = "set search_path = pg_catalog, pg_temp;\n";

/// The last statement of a printed script.
pub const UNPIN: &str = "reset search_path;\n";

/// The SQLSTATE of our own errors about objects of other users: see OR-2206.
pub(super) const FOREIGN: &str = "OR206";

/// The span for which a search path is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Span {
    Transaction,
    Session,
}

/// Sets [`SEARCH_PATH`] and returns the path before, which the caller sets again at the end.
pub(super) async fn pin(conn: &mut PgConnection, span: Span) -> Result<String, sqlx::Error> {
    let sql = "select pg_catalog.current_setting('search_path')";
    let before = sqlx::query_scalar(sql).persistent(false).fetch_one(&mut *conn).await?;
    set(conn, SEARCH_PATH, span).await?;
    Ok(before)
}

/// Sets the search path.
pub(super) async fn set(conn: &mut PgConnection, path: &str, span: Span) -> Result<(), sqlx::Error> {
    sqlx::query("select pg_catalog.set_config('search_path', $1, $2)")
        .bind(path)
        .bind(span == Span::Transaction)
        .persistent(false)
        .execute(conn)
        .await
        .map(drop)
}

/// SQL that is true for the name of a function of the outbox or the inbox, in their schema.
fn is_ours(names: &Names) -> String {
    let name = |function: &str| format!("(parse_ident({}))[2]", literal(function));
    format!(
        "p.pronamespace = (select oid from pg_namespace where nspname = {}) and p.proname in ({}, {}, {})",
        literal(names.schema_raw()),
        name(&names.emit()),
        name(&names.emit_many()),
        name(&names.once())
    )
}

/// Returns a statement that fails if another user has already created objects where a new outbox would use them: the tables of the inbox,
/// which outboxes of a schema share, and functions of the same name that a call would prefer. The user who migrates, superusers and the
/// schema's owner are trusted.
pub(super) fn refuse_squatters(names: &Names) -> String {
    let quote = dollar_quote(names);
    let inbox = [names.processed(), names.held(), names.source(), names.inbox_companion("group")];
    let inbox = inbox.map(|table| format!("to_regclass({})", literal(&table))).join(", ");
    let schema = literal(names.schema_raw());
    format!(
        "do {quote}
declare
    squatters text;
begin
    select string_agg(thing || ' of ' || quote_ident(pg_get_userbyid(owner)), ', ' order by thing) into squatters
      from (select 'table ' || c.oid::regclass as thing, c.relowner as owner from pg_class c
             where c.oid in ({inbox})
             union all
            select 'function ' || p.oid::regprocedure, p.proowner from pg_proc p where {ours}) used
     where not exists (select from pg_roles r where r.oid = owner and (r.rolsuper or r.rolname = current_user))
       and owner not in (select case when pg_get_userbyid(n.nspowner) = 'pg_database_owner' then d.datdba else n.nspowner end
                           from pg_namespace n, pg_database d where n.nspname = {schema} and d.datname = current_database());
    if squatters is not null then
        raise exception 'objects of other users are in the way of the outbox: %', squatters
            using errcode = '{FOREIGN}',
                  hint = 'Drop them, or make the schema''s owner own them.';
    end if;
end
{quote};",
        ours = is_ours(names)
    )
}

/// Returns a query for what the outbox and the inbox run and `pg_catalog` does not hold, in columns: `part` of the outbox, `relation` and
/// `field` of a default, `thing` that the part uses, `owner` of the thing, and `trusted` if only a superuser or the outbox's owner can
/// change it. Run it on [`SEARCH_PATH`]. It reads the catalog and needs no right.
///
/// Postgres stores no dependencies on its own built-in objects, so nearly all rows of `pg_depend` that remain are of others.
pub fn foreign_objects(names: &Names) -> String {
    let parts = [
        "lane",
        "hold",
        "relay",
        "migration",
        "control",
        "pause",
        "audit",
        "audit_row",
        "archive",
        "delivery",
        "backfill",
    ];
    let tables = parts.map(|part| names.companion(part)).into_iter();
    let tables: Vec<_> =
        tables.chain([names.outbox(), names.processed(), names.held(), names.source()]).map(|t| literal(&t)).collect();
    let (outbox, health) = (literal(&names.outbox()), literal(&names.companion("health")));
    let outbox_functions =
        ["stamp", "new_id", "lock_entity", "oldest_transaction"].map(|part| names.companion(part)).into_iter();
    let functions = outbox_functions.chain([names.inbox_companion("guard")]);
    let own: Vec<_> =
        functions.map(|name| format!("coalesce(to_regprocedure({})::oid, 0)", literal(&format!("{name}()")))).collect();
    format!(
        "select used.*, owned.rolname::text as owner,
       owned.rolsuper or owned.oid = (select relowner from pg_class where oid = to_regclass({outbox})) as trusted
  from (select parts.part, parts.relation, parts.field, pg_describe_object(d.refclassid, d.refobjid, 0) as thing,
               case d.refclassid
                   when 'pg_proc'::regclass then (select proowner from pg_proc where oid = d.refobjid)
                   when 'pg_operator'::regclass then (select oprowner from pg_operator where oid = d.refobjid)
                   when 'pg_type'::regclass then (select typowner from pg_type where oid = d.refobjid)
                   when 'pg_opclass'::regclass then (select opcowner from pg_opclass where oid = d.refobjid)
                   when 'pg_collation'::regclass then (select collowner from pg_collation where oid = d.refobjid)
               end as owner_oid
          from (select 'pg_attrdef'::regclass as class, e.oid, e.adrelid::regclass as relation,
                       case a.attgenerated when '' then a.attname end as field,
                       case a.attgenerated when '' then 'the default of ' else 'the generated column ' end
                           || e.adrelid::regclass || '.' || quote_ident(a.attname) as part
                  from pg_attrdef e join pg_attribute a on a.attrelid = e.adrelid and a.attnum = e.adnum
                union all
                select 'pg_constraint'::regclass, c.oid, c.conrelid::regclass, null,
                       'the constraint ' || quote_ident(c.conname) || ' of ' || c.conrelid::regclass from pg_constraint c
                union all
                select 'pg_class'::regclass, i.indexrelid, i.indrelid::regclass, null, 'the index ' || i.indexrelid::regclass from pg_index i
                union all
                select 'pg_trigger'::regclass, t.oid, t.tgrelid::regclass, null,
                       'the trigger ' || quote_ident(t.tgname) || ' of ' || t.tgrelid::regclass
                  from pg_trigger t where not t.tgisinternal
                union all
                select 'pg_rewrite'::regclass, r.oid, r.ev_class::regclass, null, 'the view ' || r.ev_class::regclass
                  from pg_rewrite r where r.ev_class = to_regclass({health})) parts
          join pg_depend d on d.classid = parts.class and d.objid = parts.oid
         where parts.relation in (select to_regclass(name) from unnest(array[{tables}, {health}]) name)
           and d.refclassid in ('pg_proc'::regclass, 'pg_operator'::regclass, 'pg_type'::regclass, 'pg_opclass'::regclass,
                                'pg_collation'::regclass)
           and (pg_identify_object(d.refclassid, d.refobjid, 0)).schema is distinct from 'pg_catalog'
           and not (d.refclassid = 'pg_proc'::regclass and d.refobjid in ({own}))
        union
        -- Functions of the same name with other arguments, which a call may prefer.
        select 'calls of ' || quote_ident(p.proname), null, null, 'function ' || p.oid::regprocedure, p.proowner
          from pg_proc p
         where {ours} and p.oid not in ({functions})) used
  join pg_roles owned on owned.oid = used.owner_oid",
        tables = tables.join(", "),
        own = own.join(", "),
        ours = is_ours(names),
        functions = our_functions(names)
    )
}

/// Returns a query that is true if a function of the outbox or the inbox runs on its caller's search path. Run it like
/// [`foreign_objects`].
pub fn has_open_function(names: &Names) -> String {
    format!(
        "select exists (select from pg_proc p where p.oid in ({}) and not exists (
           select from unnest(p.proconfig) setting where setting like 'search_path=%'))",
        our_functions(names)
    )
}

/// SQL for the oids of the functions that migrations create for callers, null for those that are missing.
fn our_functions(names: &Names) -> String {
    let functions = [
        // The function before version 15.
        format!("{}(text,text,text,jsonb,jsonb,integer,text,timestamptz,bytea)", names.emit()),
        format!("{}(text,text,text,jsonb,jsonb,integer,text,timestamptz,bytea,uuid,text)", names.emit()),
        format!("{}(text,bigint,text,jsonb,jsonb,integer,text,timestamptz,bytea,uuid,text)", names.emit()),
        format!("{}(jsonb)", names.emit_many()),
        format!("{}(text,uuid)", names.once()),
    ];
    functions.map(|function| format!("coalesce(to_regprocedure({})::oid, 0)", literal(&function))).join(", ")
}
