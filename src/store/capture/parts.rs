//! The triggers and functions of a captured table, and whether those that are installed are equal to them.

use sqlx::{PgConnection, Row};

use super::Definition;
use crate::store::app_table::{Installed, Owner, dollar_quote};
use crate::store::read_only::read;
use event_outbox::names::{literal, quote};

/// The bits of `pg_trigger.tgtype`.
pub(super) mod bits {
    pub(crate) const ROW: i16 = 1;
    pub(crate) const BEFORE: i16 = 2;
    pub(crate) const INSERT: i16 = 4;
    pub(crate) const DELETE: i16 = 8;
    pub(crate) const UPDATE: i16 = 16;
    pub(crate) const TRUNCATE: i16 = 32;
}

/// What a definition needs.
#[derive(Debug, Clone)]
pub(crate) struct Parts {
    pub(super) functions: Vec<Function>,
    pub(super) triggers: Vec<Trigger>,
    /// The comment of each function, which has the definition.
    pub(super) comment: String,
}

/// A trigger function.
#[derive(Debug, Clone)]
pub(super) struct Function {
    /// The name, quoted and with its schema.
    pub(super) name: String,
    pub(super) body: String,
    /// The settings beside the search path.
    pub(super) settings: &'static [(&'static str, &'static str)],
    /// True if it runs with the rights of the outbox's owner, for everybody who may change the table.
    pub(super) is_definer: bool,
}

/// A trigger.
#[derive(Debug, Clone)]
pub(super) struct Trigger {
    /// The name, not quoted.
    pub(super) name: String,
    /// The function, quoted and with its schema.
    pub(super) function: String,
    /// When it runs, as in `pg_trigger.tgtype`.
    pub(super) bits: i16,
    pub(super) is_deferred: bool,
    /// `trigger` or `constraint trigger`.
    pub(super) kind: &'static str,
    /// When it runs, and on which table, as SQL.
    pub(super) event: String,
}

/// How far the installed triggers and functions are from the wanted ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Difference {
    /// Everything is there already.
    None,
    /// Only functions differ, as after an upgrade of this program. No change of the table has been missed.
    Functions,
    /// Triggers have to be set.
    Triggers,
}

impl Function {
    /// Returns the rest of `create function`.
    pub(super) fn text(&self) -> String {
        let settings: String =
            self.settings.iter().map(|(name, value)| format!("\n    set {name} = {}", literal(value))).collect();
        let rights = if self.is_definer { " volatile security definer" } else { "" };
        let (body, tag) = (&self.body, dollar_quote(&self.body));
        format!(
            "returns trigger language plpgsql{rights}\n    set search_path = pg_catalog, pg_temp{settings}\nas {tag}{body}{tag}"
        )
    }

    /// SQL that is true if the function is there as it is wanted. The server writes names of settings in its own way.
    fn is_there(&self, comment: &str, owner: &Owner) -> String {
        let settings = self.settings.iter().map(|(name, value)| literal(&format!("{name}={value}")));
        let settings: Vec<_> = std::iter::once(literal("search_path=pg_catalog, pg_temp")).chain(settings).collect();
        let sorted = |array: &str| format!("array(select lower(s) from unnest({array}) s order by 1)");
        format!(
            "exists (select from pg_proc p join pg_roles r on r.oid = p.proowner \
               where p.oid = to_regprocedure({name}) and p.prosrc = {body} and p.prosecdef = {is_definer} and r.rolname = {owner} \
                 and obj_description(p.oid, 'pg_proc') = {comment} and {installed} = {wanted} \
                 and not exists (select from aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a where a.grantee = 0))",
            name = literal(&format!("{}()", self.name)),
            body = literal(&self.body),
            is_definer = self.is_definer,
            owner = literal(&owner.outbox),
            comment = literal(comment),
            installed = sorted("p.proconfig"),
            wanted = sorted(&format!("array[{}]", settings.join(", "))),
        )
    }
}

impl Trigger {
    pub(super) fn create(&self) -> String {
        let Self { name, function, kind, event, .. } = self;
        format!("create {kind} {} {event} execute function {function}()", quote(name))
    }

    /// SQL that is true for the row `t` of `pg_trigger` that is this trigger.
    fn is_it(&self) -> String {
        let Self { name, function, bits, is_deferred, .. } = self;
        format!(
            "t.tgname = {} and t.tgtype = {bits} and t.tginitdeferred = {is_deferred} and t.tgfoid = to_regprocedure({}) \
             and t.tgqual is null and t.tgattr::text = ''",
            literal(name),
            literal(&format!("{function}()")),
        )
    }
}

impl Parts {
    /// Compares what an earlier call has set with this.
    ///
    /// # Errors
    /// Any database error.
    pub(crate) async fn difference(
        &self,
        conn: &mut PgConnection,
        definition: &Definition,
        installed: &Installed,
        owner: &Owner,
    ) -> Result<Difference, sqlx::Error> {
        let before: Option<Definition> = serde_json::from_str(&installed.definition).ok();
        if installed.is_disabled || before.as_ref() != Some(definition) {
            return Ok(Difference::Triggers);
        }
        let triggers: Vec<_> = self.triggers.iter().map(|trigger| format!("({})", trigger.is_it())).collect();
        let functions: Vec<_> = self.functions.iter().map(|function| function.is_there(&self.comment, owner)).collect();
        let query = format!(
            "select (select count(*) from pg_trigger t where t.tgrelid = {} and not t.tgisinternal and t.tgparentid = 0 and ({})), {}",
            installed.oid,
            triggers.join(" or "),
            functions.join(" and ")
        );
        let row = read(conn, &query).await?.pop().ok_or(sqlx::Error::RowNotFound)?;
        let (found, has_functions): (i64, bool) = (row.try_get(0)?, row.try_get(1)?);
        let has_triggers = found as usize == self.triggers.len() && installed.triggers.len() == self.triggers.len();
        Ok(match (has_triggers, has_functions) {
            (true, true) => Difference::None,
            (true, false) => Difference::Functions,
            (false, _) => Difference::Triggers,
        })
    }
}
