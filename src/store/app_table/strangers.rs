//! Finds users whose code would run with the rights of the outbox's owner.
//!
//! The trigger functions run with these rights. `to_jsonb(row)` calls the casts to json that types of users have, a cast to text those to
//! text, and an update of the table runs the table's triggers. A cast belongs to the owner of its type, who may create one later, and a table's
//! owner may add a column of any type, or a trigger. So it is not enough to look for casts: what counts is who could create one.

use sqlx::{PgConnection, Row};

use super::AppTable;
use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::names::literal;

/// What the trigger function does with the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Reads the row that has changed.
    Reads,
    /// Also changes rows, which runs the triggers of the table.
    Changes,
}

/// A user who is neither the outbox's owner nor a member of that role, and the reason why the user's code could run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stranger {
    pub(crate) role: String,
    /// A verb and its object, for example `owns the table`.
    pub(crate) because: String,
}

/// Returns these users, each with every reason.
///
/// # Errors
/// Any database error.
pub(crate) async fn strangers(
    conn: &mut PgConnection,
    names: &Names,
    table: &AppTable,
    used: Use,
) -> Result<Vec<Stranger>, sqlx::Error> {
    let triggers = match used {
        Use::Reads => String::new(),
        Use::Changes => format!(
            " union all select a.grantee, 'may set triggers on the table' from pg_class c, aclexplode(c.relacl) a \
               where c.oid = {oid} and a.privilege_type = 'TRIGGER' and a.grantee <> c.relowner \
             union all select p.proowner, format('owns the function %s of the trigger %I', p.oid::regprocedure, t.tgname) \
               from pg_trigger t join pg_proc p on p.oid = t.tgfoid where t.tgrelid = {oid} and not t.tgisinternal",
            oid = table.oid
        ),
    };
    // Types of users have oids from 16384 on. Arrays and composite types are turned into JSON by their parts, and domains by their base.
    let query = format!(
        "with recursive part (type, attname) as (
    select a.atttypid, a.attname from pg_attribute a where a.attrelid = {oid} and a.attnum > 0 and not a.attisdropped
    union
    select inner_type.oid, p.attname
      from part p join pg_type t on t.oid = p.type
      cross join lateral (
        select t.typbasetype where t.typbasetype <> 0 union all select t.typelem where t.typelem <> 0
        union all select a.atttypid from pg_attribute a where a.attrelid = nullif(t.typrelid, 0) and a.attnum > 0 and not a.attisdropped
      ) inner_type (oid)),
owned (type, attname, owner) as (
    select t.oid, p.attname, t.typowner from part p join pg_type t on t.oid = p.type
     where t.oid >= 16384 and t.typcategory <> 'A' and t.typtype <> 'd'),
reason (role, because) as (
    select c.relowner, 'owns the table' from pg_class c where c.oid = {oid}
    union all select o.owner, format('owns the type %s of the column %I', format_type(o.type, null), o.attname) from owned o
    union all select f.proowner, format('owns the function %s, which casts the type %s of the column %I', f.oid::regprocedure,
        format_type(o.type, null), o.attname)
      from owned o join pg_cast c on c.castsource = o.type join pg_type t on t.oid = c.casttarget join pg_proc f on f.oid = c.castfunc
     where t.typnamespace = 'pg_catalog'::regnamespace{triggers})
select case r.role when 0 then 'public' else pg_get_userbyid(r.role)::text end, r.because
  from (select distinct role, because from reason) r
 where r.role = 0 or not pg_has_role(r.role, (select relowner from pg_class where oid = to_regclass({outbox})), 'member')
 order by r.because = 'owns the table' desc, 1, 2",
        oid = table.oid,
        outbox = literal(&names.outbox()),
    );
    let stranger = |row: &sqlx::postgres::PgRow| Ok(Stranger { role: row.try_get(0)?, because: row.try_get(1)? });
    read(conn, &query).await?.iter().map(stranger).collect()
}
