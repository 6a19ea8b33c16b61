//! Reads what the catalog knows about a table of the application, for `adopt` and `capture`.
//!
//! - [`strangers`]: the users whose code would run with the rights of the outbox's owner

pub(crate) mod strangers;

use serde::Deserialize;
use sqlx::{PgConnection, Row};

use crate::store::read_only::read;
use event_outbox::Names;
use event_outbox::hash::fnv1a;
use event_outbox::names::{literal, quote};

/// The most tables that are named when several fit, or when none does.
const MOST_NAMED: usize = 10;

/// A table of the application.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct AppTable {
    pub(crate) oid: i64,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `r` table, `p` partitioned table, `v` view, `m` materialized view, `f` foreign table.
    pub(crate) kind: String,
    /// `p` permanent, `u` unlogged, `t` temporary.
    pub(crate) persistence: String,
    /// True if other tables inherit from it; partitions do not count.
    pub(crate) has_children: bool,
    pub(crate) is_partition: bool,
    pub(crate) columns: Vec<Column>,
    /// The unique indexes on columns, without a condition; the primary key first.
    pub(crate) keys: Vec<Key>,
    /// The triggers of others that run after a change, at once.
    pub(crate) triggers: Vec<Trigger>,
}

/// A column of the table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// The type as it is declared, such as `character varying(40)`.
    #[serde(rename = "type")]
    pub(crate) declared: String,
    /// The name of the type in the catalog, such as `varchar`; for a domain that of its base type.
    pub(crate) base: String,
    /// The category of the type: `E` for an enum.
    pub(crate) category: String,
    pub(crate) not_null: bool,
    /// True if a sequence numbers the rows: identity, or a default with `nextval`.
    pub(crate) numbered: bool,
    pub(crate) default: Option<String>,
    /// The labels of an enum.
    pub(crate) labels: Vec<String>,
    /// True for a type of `pg_catalog`, an enum, or a domain over one of these: its operators are found on our search path.
    pub(crate) built_in: bool,
}

/// A trigger of others that runs after a change and is not deferred.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Trigger {
    pub(crate) name: String,
    /// True if it runs for each row, false if it runs for each statement.
    pub(crate) for_each_row: bool,
}

/// A unique index.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) columns: Vec<String>,
    pub(crate) primary: bool,
    /// True if the index is checked at the end of the statement or of the transaction, and not at once.
    pub(crate) deferrable: bool,
}

/// The result of looking for a table by its name.
#[derive(Debug)]
pub(crate) enum Found {
    One(Box<AppTable>),
    /// No table has the name. Holds the names of similar tables.
    None(Vec<String>),
    /// Several schemas have such a table. Holds their quoted names.
    Several(Vec<String>),
}

impl AppTable {
    /// Returns the quoted name with its schema.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }

    /// Returns the column of that name.
    pub(crate) fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }

    /// Returns the primary key.
    pub(crate) fn primary_key(&self) -> Option<&Key> {
        self.keys.iter().find(|key| key.primary)
    }

    /// Returns the name of a function of the outbox for this table, quoted and with its schema. The hash keeps two tables apart, also one
    /// that was renamed and the one that has its name now.
    pub(crate) fn function(&self, names: &Names, purpose: &str) -> String {
        let table = format!("{} {}", self.oid, self.quoted());
        names.companion(&format!("{purpose}_{:08x}", fnv1a(table.as_bytes()) as u32))
    }
}

/// Splits a name as Postgres does: `shop.orders`, `"Weird name"`, `shop."a.b"`. The schema is `None` if only a table is named. Returns
/// `None` if the text is no name.
fn parse(given: &str) -> Option<(Option<String>, String)> {
    let (mut parts, mut rest) = (Vec::new(), given);
    loop {
        let part;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut name = String::new();
            let mut chars = quoted.char_indices().peekable();
            let end = loop {
                match chars.next()? {
                    (_, '"') if chars.peek().is_some_and(|(_, next)| *next == '"') => {
                        chars.next();
                        name.push('"');
                    }
                    (at, '"') => break at + 1,
                    (_, c) => name.push(c),
                }
            };
            (part, rest) = (name, &quoted[end..]);
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            (part, rest) = (rest[..end].to_owned(), &rest[end..]);
        }
        if part.is_empty() || part.contains('\0') {
            return None;
        }
        parts.push(part);
        match rest.strip_prefix('.') {
            Some(next) => rest = next,
            None if rest.is_empty() => break,
            None => return None,
        }
    }
    let name = parts.pop()?;
    match parts.len() {
        0 => Some((None, name)),
        1 => Some((parts.pop(), name)),
        _ => None,
    }
}

/// Finds a table by the name that a user typed. A name without quotes is also tried in lower case, as Postgres reads it.
///
/// # Errors
/// Any database error.
pub(crate) async fn find(conn: &mut PgConnection, given: &str) -> Result<Found, sqlx::Error> {
    let Some((schema, name)) = parse(given) else { return Ok(Found::None(Vec::new())) };
    for fold in [false, true] {
        let folded = |text: &str| literal(&if fold { text.to_lowercase() } else { text.to_owned() });
        let of_schema = schema.as_deref().map_or_else(String::new, |of| format!(" and n.nspname = {}", folded(of)));
        let mut found = select(conn, &format!("c.relname = {}{of_schema}", folded(&name))).await?;
        match found.len() {
            0 => continue,
            1 => return Ok(found.pop().map_or(Found::None(Vec::new()), |table| Found::One(Box::new(table)))),
            _ => return Ok(Found::Several(found.iter().take(MOST_NAMED).map(AppTable::quoted).collect())),
        }
    }
    similar(conn, &name).await.map(Found::None)
}

async fn select(conn: &mut PgConnection, condition: &str) -> Result<Vec<AppTable>, sqlx::Error> {
    let query = format!(
        "select jsonb_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname, 'kind', c.relkind,
  'persistence', c.relpersistence, 'is_partition', c.relispartition,
  'has_children', c.relkind = 'r' and exists (select from pg_inherits i where i.inhparent = c.oid),
  'columns', (
    select coalesce(jsonb_agg(jsonb_build_object('name', a.attname, 'type', format_type(a.atttypid, a.atttypmod),
             'base', coalesce(b.typname, t.typname), 'category', coalesce(b.typcategory, t.typcategory), 'not_null', a.attnotnull,
             'default', case a.attgenerated when '' then pg_get_expr(d.adbin, d.adrelid) end,
             'numbered', a.attidentity <> '' or coalesce(pg_get_expr(d.adbin, d.adrelid) like 'nextval(%', false),
             'labels', (select coalesce(jsonb_agg(e.enumlabel order by e.enumsortorder), '[]') from pg_enum e where e.enumtypid = t.oid),
             'built_in', coalesce(b.typtype, t.typtype) = 'e' or coalesce(b.typnamespace, t.typnamespace) = 'pg_catalog'::regnamespace)
             order by a.attnum), '[]')
      from pg_attribute a join pg_type t on t.oid = a.atttypid left join pg_type b on b.oid = nullif(t.typbasetype, 0)
      left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
     where a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped),
  'keys', (
    select coalesce(jsonb_agg(jsonb_build_object('name', k.relname, 'primary', i.indisprimary, 'deferrable', not i.indimmediate,
             'columns', (select jsonb_agg(a.attname order by p.at) from unnest(i.indkey::int2[]) with ordinality p (attnum, at)
                          join pg_attribute a on a.attrelid = c.oid and a.attnum = p.attnum where p.at <= i.indnkeyatts))
             order by not i.indisprimary, k.relname), '[]')
      from pg_index i join pg_class k on k.oid = i.indexrelid
     where i.indrelid = c.oid and i.indisunique and i.indisvalid and i.indpred is null and i.indexprs is null),
  'triggers', (
    select coalesce(jsonb_agg(distinct jsonb_build_object('name', g.tgname, 'for_each_row', g.tgtype & 1 = 1)), '[]')
      from pg_trigger g left join pg_description d on d.objoid = g.tgfoid and d.classoid = 'pg_proc'::regclass and d.objsubid = 0
     where (g.tgrelid = c.oid or g.tgrelid in (select relid from pg_partition_tree(c.oid))) and not g.tgisinternal
       and g.tgenabled in ('O', 'A') and not g.tginitdeferred and g.tgtype & 66 = 0 and g.tgtype & 28 <> 0
       and not starts_with(coalesce(d.description, ''), {ours})))::text
  from pg_class c join pg_namespace n on n.oid = c.relnamespace
 where c.relkind in ('r', 'p', 'v', 'm', 'f') and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast'
   and {condition}
 order by n.nspname",
        ours = literal(OUR_COMMENT)
    );
    let rows = read(conn, &query).await?;
    let table = |text: String| serde_json::from_str(&text).map_err(|error| sqlx::Error::Decode(error.into()));
    rows.iter().map(|row| table(row.try_get(0)?)).collect()
}

/// Returns quoted names of tables whose names contain the given one, or the reverse.
async fn similar(conn: &mut PgConnection, name: &str) -> Result<Vec<String>, sqlx::Error> {
    let name = literal(&name.to_lowercase());
    let query = format!(
        "select quote_ident(n.nspname) || '.' || quote_ident(c.relname) from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.relkind in ('r', 'p') and n.nspname !~ '^pg_' and n.nspname <> 'information_schema' \
           and (strpos(lower(c.relname), {name}) > 0 or strpos({name}, lower(c.relname)) > 0) \
         order by 1 limit {MOST_NAMED}"
    );
    read(conn, &query).await?.iter().map(|row| row.try_get(0)).collect()
}

/// The rights of this session's user and of the outbox's owner.
#[derive(Debug, Clone)]
pub(crate) struct Owner {
    /// The owner of the outbox. The functions of its triggers run with the owner's rights.
    pub(crate) outbox: String,
    /// True if this user is the owner of the outbox, or may act as the owner.
    pub(crate) is_ours: bool,
    /// True if this user is the owner itself.
    pub(crate) is_self: bool,
    /// The rights on the table that the outbox's owner lacks, of those that were asked for.
    pub(crate) lacks: Vec<String>,
}

/// Reads who owns the outbox, and which of `rights` on the table the owner lacks.
///
/// # Errors
/// Any database error.
pub(crate) async fn owner(
    conn: &mut PgConnection,
    names: &Names,
    table: &AppTable,
    rights: &[&str],
) -> Result<Owner, sqlx::Error> {
    let wanted: Vec<_> = rights.iter().map(|right| literal(right)).collect();
    let query = format!(
        "select r.rolname::text, pg_has_role(r.oid, 'usage'), r.rolname = current_user, \
           array(select w from unnest(array[{}]::text[]) w where not has_table_privilege(r.oid, {}::oid, w)) \
           || case when has_schema_privilege(r.oid, {}, 'usage') then '{{}}'::text[] else array['USAGE'] end \
         from pg_class c join pg_roles r on r.oid = c.relowner where c.oid = to_regclass({})",
        wanted.join(", "),
        table.oid,
        literal(&table.schema),
        literal(&names.outbox()),
    );
    let row = read(conn, &query).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
    let lacks = if rights.is_empty() { Vec::new() } else { row.try_get(3)? };
    Ok(Owner { outbox: row.try_get(0)?, is_ours: row.try_get(1)?, is_self: row.try_get(2)?, lacks })
}

/// Returns the owners of those functions of `functions`, quoted and with their schema, that exist.
///
/// # Errors
/// Any database error.
pub(crate) async fn owners(
    conn: &mut PgConnection,
    functions: &[String],
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let wanted: Vec<_> = functions.iter().map(|function| literal(function)).collect();
    let query = format!(
        "select wanted.name, r.rolname::text from unnest(array[{}]::text[]) wanted (name) \
           join pg_proc p on p.oid = to_regprocedure(wanted.name || '()') join pg_roles r on r.oid = p.proowner",
        wanted.join(", ")
    );
    read(conn, &query).await?.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

/// Returns a dollar quote that does not occur in the text.
pub(crate) fn dollar_quote(text: &str) -> String {
    let mut tag = "$body$".to_owned();
    while text.contains(&tag) {
        tag.insert(1, '_');
    }
    tag
}

/// The triggers of the outbox on a table of the application.
#[derive(Debug, Clone)]
pub(crate) struct Installed {
    pub(crate) oid: i64,
    pub(crate) schema: String,
    pub(crate) name: String,
    /// The functions of the triggers, quoted and with their schema.
    pub(crate) functions: Vec<String>,
    /// The names of the triggers, not quoted.
    pub(crate) triggers: Vec<String>,
    /// The oids of the triggers, in order. A trigger that is set anew has another one.
    pub(crate) oids: Vec<i64>,
    /// True if a trigger is disabled, or enabled only for replicas, also on a single partition.
    pub(crate) is_disabled: bool,
    /// The comment of the function, without its beginning.
    pub(crate) definition: String,
}

impl Installed {
    /// Returns the quoted name of the table with its schema.
    pub(crate) fn quoted(&self) -> String {
        format!("{}.{}", quote(&self.schema), quote(&self.name))
    }
}

/// The beginning of the comments of all trigger functions that commands make.
const OUR_COMMENT: &str = "outbox-relay ";

/// Returns the beginning of the comment of every trigger function that a command has made for this outbox. The rest is JSON.
pub(crate) fn comment(names: &Names, command: &str) -> String {
    format!("{OUR_COMMENT}{command} of {}: ", names.outbox())
}

/// Returns the triggers that `command` has set for this outbox, by table. They are found by the comments of their functions, because
/// triggers follow a table that is renamed.
///
/// # Errors
/// Any database error.
pub(crate) async fn installed(
    conn: &mut PgConnection,
    names: &Names,
    command: &str,
) -> Result<Vec<Installed>, sqlx::Error> {
    let prefix = comment(names, command);
    let query = format!(
        "select c.oid::int8, n.nspname::text, c.relname::text, \
           array_agg(distinct quote_ident(pn.nspname) || '.' || quote_ident(p.proname)), array_agg(t.tgname::text order by t.tgname), \
           bool_or(t.tgenabled not in ('O', 'A') or exists (select from pg_trigger c where c.tgfoid = t.tgfoid and c.tgparentid <> 0 \
             and c.tgenabled not in ('O', 'A'))), max(substr(d.description, {})), array_agg(t.oid::int8 order by t.oid) \
         from pg_trigger t join pg_proc p on p.oid = t.tgfoid join pg_namespace pn on pn.oid = p.pronamespace \
           join pg_class c on c.oid = t.tgrelid join pg_namespace n on n.oid = c.relnamespace \
           join pg_description d on d.objoid = p.oid and d.classoid = 'pg_proc'::regclass and d.objsubid = 0 \
         where not t.tgisinternal and t.tgparentid = 0 and pn.nspname = {} and starts_with(d.description, {}) \
         group by 1, 2, 3 order by 2, 3",
        prefix.chars().count() + 1,
        literal(names.schema_raw()),
        literal(&prefix),
    );
    let installed = |row: &sqlx::postgres::PgRow| {
        Ok(Installed {
            oid: row.try_get(0)?,
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
            functions: row.try_get(3)?,
            triggers: row.try_get(4)?,
            is_disabled: row.try_get(5)?,
            definition: row.try_get::<Option<String>, _>(6)?.unwrap_or_default(),
            oids: row.try_get(7)?,
        })
    };
    read(conn, &query).await?.iter().map(installed).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_as_postgres_splits_them() {
        let parsed = |given| parse(given).map(|(schema, name)| (schema.unwrap_or_default(), name));
        let pair = |schema: &str, name: &str| Some((schema.to_owned(), name.to_owned()));
        assert_eq!(parsed("orders"), pair("", "orders"));
        assert_eq!(parsed("shop.orders"), pair("shop", "orders"));
        assert_eq!(parsed(r#"shop."a.b""#), pair("shop", "a.b"));
        assert_eq!(parsed(r#""My ""shop"."x""#), pair("My \"shop", "x"));
        assert_eq!(parsed("Weird name"), pair("", "Weird name"));
        for bad in ["", ".", "a.", "a.b.c", "\"a", "\"a\"b", "\"\""] {
            assert_eq!(parsed(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_dollar_quote_does_not_occur_in_its_text() {
        assert_eq!(dollar_quote("x"), "$body$");
        assert_eq!(dollar_quote("a $body$ b"), "$_body$");
    }
}
