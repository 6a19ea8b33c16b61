//! Runs `outbox-relay adopt`: hands the table of a polling loop over to the outbox, and back.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::app_table::{self, Patience, Trust};
use super::exit::Failure;
use super::target::{By, Target};
use super::{output, runtime};
use crate::config::Settings;
use crate::observe::print::{errln, outln};
use crate::observe::progress::Progress;
use crate::store::adopt::flag::Flag;
use crate::store::adopt::given::{Given, Refusal};
use crate::store::adopt::mapping::{Mapping, Source};
use crate::store::adopt::role::Role;
use crate::store::adopt::rows::Unpublished;
use crate::store::adopt::{guess, history, rows, script};
use crate::store::app_table::strangers::Use;
use crate::store::app_table::{AppTable, Installed};
use crate::store::connect::Purpose;
use crate::store::short_locks;
use crate::text;

/// The pause between two looks at what the relay has still to publish.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct Adopt {
    /// The table of the application, for example orders, shop.orders or '"Weird name"'
    table: String,
    /// Say what a column means: id, event_id, entity_type, entity_id, event_type, event_version, payload, headers, topic, created_at, pending
    /// or none; may be repeated
    #[arg(long, value_name = "COLUMN=ROLE", value_parser = mapped)]
    map: Vec<(String, Role)>,
    /// Give all rows one entity_type, event_type or topic; may be repeated
    #[arg(long, value_name = "ROLE=VALUE", value_parser = constant)]
    constant: Vec<(Role, String)>,
    /// A value of the state column of rows that are not published yet; may be repeated
    #[arg(long, value_name = "VALUE")]
    pending: Vec<String>,
    /// A value of the state column of rows that are published, or given up; may be repeated. Rows that are handed over get the first
    #[arg(long, value_name = "VALUE")]
    done: Vec<String>,
    /// The loop deletes the rows that it has published, so every row is pending
    #[arg(long)]
    deletes: bool,
    /// Give new rows back to the loop, and wait until the relay has published those before
    #[arg(long, conflicts_with_all = ["map", "constant", "pending", "done", "deletes", "trust_users", "dry_run"])]
    undo: bool,
    /// Wait at most this long for the relay (with --undo)
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = humantime::parse_duration)]
    wait: Duration,
    #[command(flatten)]
    trust: Trust,
    #[command(flatten)]
    patience: Patience,
    /// The reason for the change, kept with it
    #[arg(long)]
    reason: Option<String>,
    #[command(flatten)]
    by: By,
    /// Show the changes, do not make them
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn mapped(text: &str) -> Result<(String, Role), String> {
    // A column's name may have an equals sign in it, a role has none.
    let (column, role) = text.rsplit_once('=').ok_or("expected COLUMN=ROLE, for example aggregate_id=entity_id")?;
    Ok((column.to_owned(), role.parse()?))
}

fn constant(text: &str) -> Result<(Role, String), String> {
    let (role, value) = text.split_once('=').ok_or("expected ROLE=VALUE, for example entity_type=order")?;
    let role: Role = role.parse()?;
    match (Role::CONSTANT.contains(&role), value.is_empty()) {
        (true, false) => Ok((role, value.to_owned())),
        (true, true) => Err("the value is empty".to_owned()),
        (false, _) => Err("expected entity_type, event_type or topic".to_owned()),
    }
}

impl Adopt {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(async {
            let mut target = Target::open(settings, "adopt", Purpose::Write).await?;
            let table = app_table::find(&mut target, &self.table).await?;
            if self.undo {
                self.undo(&mut target, &table).await
            } else {
                self.adopt(settings, &mut target, &table).await
            }
        })
    }

    async fn adopt(&self, settings: &Settings, target: &mut Target, table: &AppTable) -> Result<(), Failure> {
        let shown = app_table::shown(table);
        if adopted(target, table).await?.is_some() {
            return Err(Failure::finding(format!("{shown} is adopted already")).hint(format!(
                "outbox-relay adopt {} --undo gives it back to the loop",
                text::shell(&table.quoted())
            )));
        }
        if table.kind == "p" || table.has_children {
            return Err(Failure::finding(format!(
                "{shown} has partitions or child tables, which this command does not adopt"
            ))
            .hint("adopt an ordinary table, or write events with outbox_emit"));
        }
        // Before the first look at the rows: it would run casts of their types with the rights of this user.
        let owner = app_table::owner(target, table, &[]).await?;
        let accepted = app_table::strangers(target, table, &owner, Use::Changes, self.trust.trust_users).await?;
        let mut mapping = self.mapping(target, table).await?;
        mapping.notes.extend(accepted);
        let found = rows::look(&mut target.conn, table, &mapping, &settings.relay.topic).await;
        let found = found.map_err(|error| app_table::not_run("read", table, error.into()))?;
        refuse(table, &found.refusals)?;
        let right = if mapping.flag == Flag::Deleted { "DELETE" } else { "UPDATE" };
        let owner = app_table::owner(target, table, &["SELECT", right]).await?;
        let author = self.by.author(self.reason.clone());
        let statements = script::adopt(&target.names, table, &mapping, &owner, &author);
        let mut moved = found.rows;
        if !self.dry_run {
            let done = short_locks::run(&mut target.conn, &statements, table.oid, self.patience.lock_timeout).await;
            let done = done.map_err(|error| app_table::not_run("adopt", table, error))?;
            moved = first_number(&done).map_err(|error| target.failed("count the rows of", error))?;
        }
        let sql = short_locks::script(&statements);
        if self.json {
            let document = json!({
                "dry_run": self.dry_run, "table": table.quoted(), "mapping": mapping_json(&mapping), "moved": moved,
                "unused": mapping.unused, "notes": mapping.notes, "sql": sql,
            });
            return output::json(&document).map(drop);
        }
        let rows = text::counted(moved, "pending row");
        outln!("{}", lines(&mapping).trim_end());
        mapping.notes.iter().for_each(|note| outln!("  note: {note}"));
        if self.dry_run {
            outln!("would move {rows} of {shown} to {}; nothing was changed\n", target.shown);
            output::text(&sql);
            return Ok(());
        }
        outln!("adopted {shown}: moved {rows} to {}; new rows follow when they are committed", target.shown);
        let name = text::shell(&table.quoted());
        outln!("  next: outbox-relay run; leave the loop stopped\n  undo: outbox-relay adopt {name} --undo");
        Ok(())
    }

    /// Returns what the columns mean.
    async fn mapping(&self, target: &mut Target, table: &AppTable) -> Result<Mapping, Failure> {
        let given = Given {
            map: self.map.clone(),
            constants: self.constant.clone(),
            pending: self.pending.clone(),
            done: self.done.clone(),
            deletes: self.deletes,
        };
        let mut states = Vec::new();
        if let Some(column) = guess::state_column(table, &given) {
            let found = rows::states(&mut target.conn, table, &column.name).await;
            let found = found.map_err(|error| app_table::not_run("read the states in", table, error.into()))?;
            let Some(found) = found else {
                let column = text::name(&column.name);
                return Err(Failure::finding(format!("{column} has too many values to be a state"))
                    .hint("--map COLUMN=pending names another column"));
            };
            states = found;
        }
        guess::mapping(table, &given, &states).or_else(|refusals| {
            refuse(table, &refusals)?;
            Err(Failure::finding(format!("{} cannot be adopted", app_table::shown(table))))
        })
    }

    async fn undo(&self, target: &mut Target, table: &AppTable) -> Result<(), Failure> {
        let shown = app_table::shown(table);
        app_table::owner(target, table, &[]).await?;
        let (given_back, is_new) = match adopted(target, table).await? {
            Some(adopted) => (self.give_back(target, table, &adopted).await?, true),
            None => (given_back_before(target, table).await?, false),
        };
        if !self.json {
            match is_new {
                true => outln!("{shown} belongs to the loop again: its new rows stay pending there"),
                false => outln!("{shown} was given back to the loop {}", given_back.when_and_who()),
            }
        }
        let last = match given_back.last_id {
            Some(last) => last,
            // The entry is of a version that did not write the id. Every event of the table has at most the highest id of now.
            None => rows::highest(&mut target.conn, &target.names)
                .await
                .map_err(|error| target.failed("find the last event of", error))?,
        };
        let unpublished = self.until_published(target, last).await?;
        if self.json {
            let types = unpublished.types.iter();
            let types: Vec<_> = types.map(|(name, events)| json!({ "entity_type": name, "events": events })).collect();
            output::json(&json!({
                "dry_run": false, "table": table.quoted(), "undone": true, "given_back_at": given_back.at,
                "given_back_by": given_back.who(), "last_id": last, "unpublished": unpublished.events,
                "unpublished_types": types, "held": unpublished.held,
            }))?;
        }
        if unpublished.events > 0 {
            return Err(Failure::finding(format!(
                "not published yet up to the id {last}: {unpublished}; a loop that is started now may overtake them"
            ))
            .hint(format!(
                "outbox-relay adopt {} --undo goes on waiting; outbox-relay status shows what the events wait for\n      {ALL_TABLES}: if \
                 none of these can be of {shown}, start the loop",
                text::shell(&table.quoted())
            )));
        }
        if !self.json {
            outln!("  the relay has published every event before\n  next: start the loop");
        }
        Ok(())
    }

    /// Removes the trigger.
    async fn give_back(
        &self,
        target: &mut Target,
        table: &AppTable,
        adopted: &Installed,
    ) -> Result<history::Entry, Failure> {
        let author = self.by.author(self.reason.clone());
        let statements = script::undo(&target.names, adopted, &author);
        let done = short_locks::run(&mut target.conn, &statements, table.oid, self.patience.lock_timeout).await;
        let done = done.map_err(|error| app_table::not_run("undo the adoption of", table, error))?;
        let entry = done.first().ok_or(sqlx::Error::RowNotFound).and_then(history::Entry::from_row);
        entry.map_err(|error| target.failed("read the audit entry of", error))
    }

    /// Waits until every event up to this id is published. Returns those that are not.
    async fn until_published(&self, target: &mut Target, last: i64) -> Result<Unpublished, Failure> {
        let deadline = Instant::now() + self.wait;
        let (mut bar, mut first) = (None, 0);
        loop {
            let left = rows::unpublished(&mut target.conn, &target.names, last).await;
            let left = left.map_err(|error| target.failed("count the events of", error))?;
            if left.events == 0 || Instant::now() >= deadline {
                return Ok(left);
            }
            if bar.is_none() {
                first = left.events;
                if !self.json {
                    errln!("note: waits until the relay has published {left} up to the id {last}; {ALL_TABLES}");
                }
            }
            let bar = bar.get_or_insert_with(|| Progress::new("published", first.unsigned_abs()));
            bar.set((first - left.events).max(0).unsigned_abs());
            sleep(LOOK).await;
        }
    }
}

/// Says which events an undo waits for.
const ALL_TABLES: &str = "events of other tables count as well, because an event does not name its table";

/// Returns the undo of a table that is not adopted any more.
async fn given_back_before(target: &mut Target, table: &AppTable) -> Result<history::Entry, Failure> {
    let last = history::last(&mut target.conn, &target.names, table).await;
    let (shown, list) =
        (app_table::shown(table), "outbox-relay capture --list shows the tables with triggers of the outbox");
    match last.map_err(|error| target.failed("read the audit table of", error))? {
        Some(entry) if entry.is_undo => Ok(entry),
        Some(entry) => Err(Failure::finding(format!(
            "{shown} is not adopted by {} any more: it was adopted {}, and its trigger is gone without an undo",
            target.shown,
            entry.when_and_who()
        ))
        .hint(format!("{list}; outbox-relay status shows the events that are not published yet"))),
        None => Err(Failure::finding(format!("{shown} is not adopted by {}", target.shown)).hint(list)),
    }
}

/// Returns the trigger of the table, if it is adopted.
async fn adopted(target: &mut Target, table: &AppTable) -> Result<Option<Installed>, Failure> {
    let all = app_table::installed(target, script::COMMAND).await?;
    Ok(all.into_iter().find(|installed| installed.oid == table.oid))
}

/// Fails with all reasons, if there are any.
fn refuse(table: &AppTable, refusals: &[Refusal]) -> Result<(), Failure> {
    if refusals.is_empty() {
        return Ok(());
    }
    let line = |text: &str| text::sentence(text).to_string();
    let reasons: Vec<_> = refusals.iter().map(|refusal| line(&refusal.reason)).collect();
    let mut fixes: Vec<_> = refusals.iter().map(|refusal| line(&refusal.fix)).collect();
    fixes.dedup();
    let shown = app_table::shown(table);
    Err(Failure::finding(format!("{shown} cannot be adopted; nothing was changed\n  {}", reasons.join("\n  ")))
        .hint(fixes.join("\n      ")))
}

fn first_number(rows: &[sqlx::postgres::PgRow]) -> Result<i64, sqlx::Error> {
    use sqlx::Row;
    rows.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
}

fn mapping_json(mapping: &Mapping) -> Value {
    let part = |role: Role, source: &Source| match source {
        Source::Column { name, declared, .. } => json!({ "role": role, "column": name, "type": declared }),
        Source::Constant(value) => json!({ "role": role, "constant": value }),
    };
    let mut all = vec![json!({ "role": "id", "column": mapping.id })];
    all.extend(mapping.parts.iter().map(|(role, source)| part(*role, source)));
    all.push(match &mapping.flag {
        Flag::Boolean { column, done } => json!({ "role": "pending", "column": column, "published": done }),
        Flag::Time { column, .. } => json!({ "role": "pending", "column": column }),
        Flag::State { column, pending, done, .. } => {
            json!({ "role": "pending", "column": column, "pending": pending, "done": done })
        }
        Flag::Deleted => json!({ "role": "pending", "deletes": true }),
    });
    Value::Array(all)
}

/// Shows what the columns mean, a line for each.
fn lines(mapping: &Mapping) -> String {
    let mut lines = vec![(Role::Id.name(), text::name(&mapping.id).to_string(), "the order of the rows".to_owned())];
    for (role, source) in &mapping.parts {
        lines.push(match source {
            Source::Column { name, declared, .. } => {
                (role.name(), text::name(name).to_string(), text::name(declared).to_string())
            }
            Source::Constant(value) => (role.name(), "-".to_owned(), format!("always {}", text::name(value))),
        });
    }
    let flag = mapping.flag.column().map_or_else(|| "-".to_owned(), |column| text::name(column).to_string());
    lines.push((Role::Pending.name(), flag, text::sentence(&mapping.flag.described()).to_string()));
    let width = lines.iter().map(|(_, column, _)| column.chars().count()).max().unwrap_or_default();
    let mut shown: String =
        lines.iter().map(|(role, column, rest)| format!("  {role:<13}  {column:<width$}  {rest}\n")).collect();
    if !mapping.unused.is_empty() {
        let unused: Vec<_> = mapping.unused.iter().map(|name| text::name(name).to_string()).collect();
        shown += &format!("  not used       {}\n", unused.join(", "));
    }
    shown
}
