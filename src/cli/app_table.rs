//! Finds the table of the application that `adopt` and `capture` work on, and says why it cannot be used.

use std::time::Duration;

use clap::Args;

use super::exit::Failure;
use super::target::Target;
use crate::fault;
use crate::store::adopt::script as adopt;
use crate::store::app_table::strangers::{self, Stranger, Use};
use crate::store::app_table::{self, AppTable, Found, Installed, Owner};
use crate::store::capture::script as capture;
use crate::store::parts;
use crate::store::short_locks::NotRun;
use crate::text;
use event_outbox::code::Code;
use event_outbox::names::quote;

/// Limits the wait for a lock.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Patience {
    /// Wait at most this long for a lock that another session holds
    #[arg(long, default_value = "5s", value_parser = humantime::parse_duration)]
    pub(super) lock_timeout: Duration,
}

/// Whether code of other users may run with the rights of the outbox's owner.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct Trust {
    /// Go on although code of the table's owner, or of others who are named, could run with the rights of the outbox's owner
    #[arg(long)]
    pub(super) trust_users: bool,
}

/// Looks for users whose code could run with the rights of the outbox's owner. Returns a note for each reason if that is accepted, and fails
/// otherwise.
pub(super) async fn strangers(
    target: &mut Target,
    table: &AppTable,
    owner: &Owner,
    used: Use,
    is_accepted: bool,
) -> Result<Vec<String>, Failure> {
    let found = strangers::strangers(&mut target.conn, &target.names, table, used).await;
    let found = found.map_err(|error| target.failed("look for the rights of users on", error))?;
    let name = text::name(&quote(&owner.outbox)).to_string();
    let line =
        |Stranger { role, because }: &Stranger| format!("{} {}", text::name(&quote(role)), text::sentence(because));
    let lines: Vec<_> = found.iter().map(line).collect();
    if lines.is_empty() || is_accepted {
        let note = |line: &String| {
            format!(
                "{line}, so this user's code can run with the rights of {name}, the owner of the outbox: --trust-users accepts that"
            )
        };
        return Ok(lines.iter().map(note).collect());
    }
    Err(Failure::finding(format!(
        "code of other users could run with the rights of {name}, the owner of the outbox; nothing was changed\n  {}",
        lines.join("\n  ")
    ))
    .hint(format!(
        "--trust-users if each of them may have the rights of {name}; otherwise give the outbox or the table another owner, or change the types"
    )))
}

/// Returns the table that the user has named.
pub(super) async fn find(target: &mut Target, given: &str) -> Result<AppTable, Failure> {
    let found = app_table::find(&mut target.conn, given).await;
    let table = match found.map_err(|error| target.failed("look for the table beside", error))? {
        Found::One(table) => *table,
        Found::None(similar) => {
            let hint = match (renamed(target, given).await?, similar.as_slice()) {
                (Some(now), _) => format!("a table that had this name is {now} now"),
                (None, []) => "name it as in SQL: orders, shop.orders or 'shop.\"Weird name\"'".to_owned(),
                (None, similar) => format!("there is {}", similar.join(", ")),
            };
            let failure = Failure::finding(format!("there is no table {} in this database", text::name(given)));
            return Err(failure.hint(text::sentence(&hint).to_string()));
        }
        Found::Several(tables) => {
            let failure = Failure::usage(format!("several schemas have a table {}", text::name(given)));
            return Err(failure.hint(text::sentence(&format!("name one of {}", tables.join(", "))).to_string()));
        }
    };
    let shown = shown(&table);
    if parts::is_own(&target.names, &table.schema, &table.name) {
        return Err(
            Failure::usage(format!("{shown} belongs to the outbox itself")).hint("name a table of the application")
        );
    }
    let kind = match table.kind.as_str() {
        "v" | "m" => Some("a view"),
        "f" => Some("a foreign table"),
        _ if table.persistence == "t" => Some("a temporary table"),
        _ => None,
    };
    match kind {
        Some(kind) => Err(Failure::usage(format!("{shown} is {kind}"))
            .hint("a trigger needs an ordinary table: name the table that has the rows")),
        None => Ok(table),
    }
}

/// Returns the triggers that a command has set, by table.
pub(super) async fn installed(target: &mut Target, command: &str) -> Result<Vec<Installed>, Failure> {
    let all = app_table::installed(&mut target.conn, &target.names, command).await;
    all.map_err(|error| target.failed("look for the triggers of", error))
}

/// Returns the present name of a captured or adopted table that had this name when the command set its triggers.
async fn renamed(target: &mut Target, given: &str) -> Result<Option<String>, Failure> {
    let bare = |name: &str| name.replace('"', "").to_lowercase();
    let (given, of_any_schema) = (bare(given), format!(".{}", bare(given)));
    for command in [adopt::COMMAND, capture::COMMAND] {
        for installed in installed(target, command).await? {
            let definition: serde_json::Value = serde_json::from_str(&installed.definition).unwrap_or_default();
            let before = bare(definition["table"].as_str().unwrap_or_default());
            if before == given || before.ends_with(&of_any_schema) {
                return Ok(Some(installed.quoted()));
            }
        }
    }
    Ok(None)
}

/// Returns the table's name for people.
pub(super) fn shown(table: &AppTable) -> String {
    text::name(&table.quoted()).to_string()
}

/// Fails if a function with one of these names belongs to somebody who is not the outbox's owner: the owner could change what it does.
/// Returns those that exist.
pub(super) async fn refuse_squatters(
    target: &mut Target,
    owner: &Owner,
    functions: &[String],
) -> Result<Vec<String>, Failure> {
    let found = app_table::owners(&mut target.conn, functions).await;
    let found = found.map_err(|error| target.failed("look for the trigger functions of", error))?;
    for (function, of) in &found {
        if *of != owner.outbox {
            return Err(foreign(
                &format!("the function {}() of {}", text::name(function), text::name(&quote(of))),
                &format!("drop function {function}()"),
            ));
        }
    }
    Ok(found.into_iter().map(|(function, _)| function).collect())
}

/// Turns an object of another user that is in the way into a failure.
pub(super) fn foreign(what: &str, fix: &str) -> Failure {
    Failure::finding(format!("{what} is in the way: it has the name of an object of the outbox; nothing was changed"))
        .code(Code::ForeignObjects)
        .hint(format!("{}, and find out who made it", text::sentence(fix)))
}

/// Reads who owns the outbox. Fails if this user cannot act for the owner, or if the owner lacks one of `rights` on the table.
pub(super) async fn owner(target: &mut Target, table: &AppTable, rights: &[&str]) -> Result<Owner, Failure> {
    let owner = app_table::owner(&mut target.conn, &target.names, table, rights).await;
    let owner = owner.map_err(|error| target.failed("look at the rights on", error))?;
    let name = quote(&owner.outbox);
    if !owner.is_ours {
        return Err(Failure::finding(format!("only the owner of {} can do this", target.shown))
            .code(Code::RightsMissing)
            .hint(format!("connect as {}, or as a member of this role", text::name(&name))));
    }
    if !owner.lacks.is_empty() {
        let (schema, on_schema) = (quote(&table.schema), owner.lacks.iter().any(|right| right == "USAGE"));
        let rights: Vec<_> = owner.lacks.iter().filter(|right| *right != "USAGE").map(String::as_str).collect();
        let mut grants = Vec::new();
        if on_schema {
            grants.push(format!("grant usage on schema {schema} to {name};"));
        }
        if !rights.is_empty() {
            grants.push(format!("grant {} on {} to {name};", rights.join(", ").to_lowercase(), table.quoted()));
        }
        return Err(Failure::finding(format!(
            "the trigger would run with the rights of {}, the owner of the outbox, who lacks {} on {}",
            text::name(&name),
            owner.lacks.join(", "),
            shown(table)
        ))
        .code(Code::RightsMissing)
        .hint(text::sentence(&grants.join(" ")).to_string()));
    }
    Ok(owner)
}

/// Turns what kept statements from running into a failure: "cannot `what` `table`".
pub(super) fn not_run(what: &str, table: &AppTable, error: NotRun) -> Failure {
    let shown = shown(table);
    match error {
        NotRun::Locked(holders) => {
            let who: Vec<_> = holders.iter().map(ToString::to_string).collect();
            let who = if who.is_empty() { "other sessions, one after the other".to_owned() } else { who.join("; ") };
            Failure::finding(format!("cannot {what} {shown}: the lock was not free at any attempt; nothing was changed"))
                .because(format!("the table is locked by {who}"))
                .code(Code::DatabaseLocked)
                .hint("end the other transaction, run it again in a quieter minute, or raise --lock-timeout: writers wait 40 ms for each attempt, and up to 1.5 s only while an autovacuum has the table")
        }
        NotRun::Database(error) => {
            let mut fault = fault::classify_database(&error);
            if fault.code == Code::RightsMissing {
                fault.next_step = "run it as a user that owns the table and may act for the owner of the outbox";
            }
            Failure::finding(format!("cannot {what} {shown}; nothing was changed")).because(error).fault(fault)
        }
    }
}
