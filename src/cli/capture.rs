//! Runs `outbox-relay capture`: turns the changes of a table of the application into events.

mod backfill;
mod columns;
mod list;

use clap::Args;
use serde_json::json;

use super::app_table::{self, Patience, Trust};
use super::exit::Failure;
use super::target::{By, Target};
use super::{output, runtime};
use crate::config::Settings;
use crate::observe::print::outln;
use crate::store::app_table::strangers::Use;
use crate::store::app_table::{AppTable, Installed, Owner};
use crate::store::capture::backfill::state;
use crate::store::capture::key::{self, Refusal};
use crate::store::capture::parts::Difference;
use crate::store::capture::script::{self, Before};
use crate::store::capture::{Change, Definition, OP, order};
use crate::store::connect::Purpose;
use crate::store::{routes, short_locks};
use crate::text;
use columns::Columns;
use event_outbox::Names;

#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// The table of the application, for example orders, shop.orders or '"Weird name"'
    #[arg(required_unless_present = "list")]
    table: Option<String>,
    /// The changes that become events
    #[arg(long, value_enum, value_delimiter = ',', default_value = "insert,update,delete", value_name = "CHANGES")]
    on: Vec<Change>,
    /// The columns that an event has, besides those of the key [default: all, also those that are added later]
    #[arg(long, value_name = "COLUMNS", value_parser = columns::parse)]
    columns: Option<Columns>,
    /// The columns whose values are the entity's id [default: the primary key]
    #[arg(long, value_name = "COLUMNS", value_parser = columns::parse)]
    key: Option<Columns>,
    /// The type of the entity, which chooses the topic [default: the table's name]
    #[arg(long = "type", value_name = "NAME")]
    entity_type: Option<String>,
    /// The type of an event; {op} becomes Created, Updated, Deleted or Snapshot
    #[arg(long, value_name = "TEMPLATE", default_value = OP, value_parser = event_type)]
    event_type: String,
    /// Set triggers for each statement instead of each row, for applications that change many rows in one statement
    #[arg(long)]
    bulk: bool,
    /// Let TRUNCATE pass, which makes no events; without this flag it is refused
    #[arg(long)]
    allow_truncate: bool,
    /// Show the captured tables and change nothing
    #[arg(long, conflicts_with_all = ["table", "on", "columns", "key", "entity_type", "event_type", "bulk", "allow_truncate", "trust_users", "drop", "backfill", "dry_run"])]
    list: bool,
    /// Remove the triggers
    #[arg(long, conflicts_with_all = ["on", "columns", "key", "entity_type", "event_type", "bulk", "allow_truncate", "trust_users", "backfill"])]
    drop: bool,
    /// Make one event for each row that the captured table has; goes on where it was interrupted
    #[arg(long, conflicts_with_all = ["on", "columns", "key", "entity_type", "event_type", "bulk", "allow_truncate", "trust_users"])]
    backfill: bool,
    /// Only the rows for which this SQL condition is true (with --backfill)
    #[arg(long = "where", value_name = "SQL", requires = "backfill")]
    filter: Option<String>,
    /// Handle at most N per second
    #[arg(long, value_name = "PER_SECOND", requires = "backfill", value_parser = clap::value_parser!(u32).range(1..))]
    rate: Option<u32>,
    /// Begin anew instead of going on (with --backfill)
    #[arg(long, requires = "backfill")]
    restart: bool,
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

fn event_type(text: &str) -> Result<String, String> {
    let rest = text.replace(OP, "");
    match !text.is_empty() && !rest.contains(['{', '}', '\0']) {
        true => Ok(text.to_owned()),
        false => Err("expected a name with or without {op}, for example Order{op}".to_owned()),
    }
}

impl Capture {
    pub(crate) fn run(self, settings: &Settings) -> Result<(), Failure> {
        runtime()?.block_on(async {
            let purpose = if self.list { Purpose::Read } else { Purpose::Write };
            let mut target = Target::open(settings, "capture", purpose).await?;
            let Some(given) = self.table.as_deref().filter(|_| !self.list) else {
                return list::list(&mut target, self.json).await;
            };
            let table = app_table::find(&mut target, given).await?;
            let all = app_table::installed(&mut target, script::COMMAND).await?;
            let captured = all.into_iter().find(|installed| installed.oid == table.oid);
            match (self.drop, self.backfill) {
                (true, _) => self.drop(&mut target, &table, captured).await,
                (_, true) => self.backfill(&mut target, &table, captured).await,
                _ => self.capture(settings, &mut target, &table, captured).await,
            }
        })
    }

    async fn capture(
        &self,
        settings: &Settings,
        target: &mut Target,
        table: &AppTable,
        before: Option<Installed>,
    ) -> Result<(), Failure> {
        let shown = app_table::shown(table);
        let definition = self.definition(settings, &target.names, table);
        let (definition, mut notes) = definition.map_err(|refusal| refused(table, &refusal))?;
        notes.extend(before.as_ref().and_then(|before| other_entity_type(before, &definition)));
        let owner = app_table::owner(target, table, &[]).await?;
        let is_accepted = self.trust.trust_users || self.dry_run;
        notes.extend(app_table::strangers(target, table, &owner, Use::Reads, is_accepted).await?);
        let statements = self.statements(target, table, &definition, &owner, before.as_ref()).await?;
        let unchanged = statements.is_empty();
        if !self.dry_run && !unchanged {
            let done = short_locks::run(&mut target.conn, &statements, table.oid, self.patience.lock_timeout).await;
            done.map_err(|error| app_table::not_run("capture", table, error))?;
        }
        let sql = if unchanged { String::new() } else { short_locks::script(&statements) };
        if self.json {
            let document = json!({
                "dry_run": self.dry_run, "captured": definition, "replaced": before.is_some() && !unchanged, "unchanged": unchanged,
                "notes": notes, "sql": sql,
            });
            return output::json(&document).map(drop);
        }
        let (verb, rest) = match (unchanged, self.dry_run, before.is_some()) {
            (true, ..) => ("captures", " already, nothing was changed"),
            (false, true, _) => ("would capture", ""),
            (false, false, true) => ("captures anew", ""),
            (false, false, false) => ("captures", ""),
        };
        outln!("{} {verb} {shown}{rest}", target.shown);
        outln!("{}", list::described(&definition));
        notes.iter().for_each(|note| outln!("  note: {note}"));
        if self.dry_run && !unchanged {
            outln!("nothing was changed\n");
            output::text(&sql);
            return Ok(());
        }
        let name = text::shell(&table.quoted());
        outln!("  next: outbox-relay capture {name} --backfill   -- one event for each row that is there");
        outln!("  undo: outbox-relay capture {name} --drop");
        Ok(())
    }

    /// Returns the statements that capture the table; none if it is captured in this way already.
    async fn statements(
        &self,
        target: &mut Target,
        table: &AppTable,
        definition: &Definition,
        owner: &Owner,
        before: Option<&Installed>,
    ) -> Result<Vec<String>, Failure> {
        let functions = script::functions(&target.names, table);
        let functions = app_table::refuse_squatters(target, owner, &functions).await?;
        let difference = match before {
            Some(installed) => {
                let parts = script::parts(&target.names, table, definition);
                let found = parts.difference(&mut target.conn, definition, installed, owner).await;
                found.map_err(|error| target.failed("look at the triggers of", error))?
            }
            None => Difference::Triggers,
        };
        if difference == Difference::None {
            return Ok(Vec::new());
        }
        // Triggers that are set anew are others to a backfill, which would then be repeated.
        let keeps_triggers = difference == Difference::Functions;
        let earlier = Before { installed: before, functions: &functions, keeps_triggers };
        let author = self.by.author(self.reason.clone());
        Ok(script::capture(&target.names, table, definition, owner, &earlier, &author))
    }

    /// Returns what becomes of the changes, and what the user should know.
    fn definition(
        &self,
        settings: &Settings,
        names: &Names,
        table: &AppTable,
    ) -> Result<(Definition, Vec<String>), Refusal> {
        let refusal = |reason: &str, fix: &str| Refusal { reason: reason.to_owned(), fix: fix.to_owned() };
        let given = self.key.as_ref().map(|columns| columns.0.as_slice()).unwrap_or_default();
        let entity = key::entity_key(table, given)?;
        let columns = self.columns.as_ref().map(|given| key::event_columns(table, &entity.columns, &given.0));
        let all = [Change::Insert, Change::Update, Change::Delete];
        let on: Vec<_> = all.into_iter().filter(|change| self.on.contains(change)).collect();
        if table.has_children {
            return Err(refusal(
                "other tables inherit from it, and triggers do not see their rows",
                "capture each of these tables",
            ));
        }
        if table.kind == "p" && on.contains(&Change::Update) && on.len() < all.len() {
            return Err(refusal(
                "an update that moves a row to another partition is a delete and an insert",
                "--on insert,update,delete for a table with partitions",
            ));
        }
        if self.bulk && (table.kind == "p" || table.is_partition) {
            return Err(refusal(
                "triggers for each statement do not see what is written to a partition by another name",
                "capture it without --bulk",
            ));
        }
        let earlier = order::before_the_events(names, table, &on, self.bulk);
        if let (true, Some(name)) = (self.bulk, earlier.first()) {
            return Err(refusal(
                &format!(
                    "its trigger {} runs before a trigger for each statement can, and the events of what it changes would come too early",
                    text::name(name)
                ),
                "capture it without --bulk",
            ));
        }
        let entity_type = self.entity_type.clone().unwrap_or_else(|| table.name.clone());
        if let Err(error) =
            routes::resolve(&settings.relay.topic, &entity_type, &self.event_type.replace(OP, "Created"), None)
        {
            return Err(refusal(
                &format!("its events would have no legal topic: {}", text::sentence(&error.to_string())),
                "--type NAME with letters, digits, '.', '_' and '-', or another RELAY_TOPIC",
            ));
        }
        let mut notes = Vec::new();
        if !entity.unique {
            notes.push(
                "several rows can have this key: changes of one row keep their order, and changes of two rows only if the application \
                 locks the entity"
                    .to_owned(),
            );
        }
        if self.allow_truncate {
            notes.push("TRUNCATE makes no events: consumers keep the rows that it removes".to_owned());
        }
        if !earlier.is_empty() {
            let triggers: Vec<_> = earlier.iter().map(|name| text::name(name).to_string()).collect();
            notes.push(format!(
                "events are written when the transaction commits, because {} run after each row and may change other rows first: until \
                 then the transaction cannot alter or truncate the table",
                triggers.join(", ")
            ));
        }
        let definition = Definition {
            table: table.quoted(),
            on,
            key: entity.columns,
            unique: entity.unique,
            columns: columns.transpose()?,
            entity_type,
            event_type: self.event_type.clone(),
            bulk: self.bulk,
            deferred: !earlier.is_empty(),
            allow_truncate: self.allow_truncate,
        };
        Ok((definition, notes))
    }

    async fn drop(&self, target: &mut Target, table: &AppTable, captured: Option<Installed>) -> Result<(), Failure> {
        let captured = captured.ok_or_else(|| not_captured(table))?;
        app_table::owner(target, table, &[]).await?;
        let has_backfill = state::has_table(&mut target.conn, &target.names).await;
        let has_backfill = has_backfill.map_err(|error| target.failed("look for a backfill of", error))?;
        let author = self.by.author(self.reason.clone());
        let statements = script::drop(&target.names, &captured, has_backfill, &author);
        if !self.dry_run {
            let done = short_locks::run(&mut target.conn, &statements, table.oid, self.patience.lock_timeout).await;
            done.map_err(|error| app_table::not_run("drop the triggers of", table, error))?;
        }
        let (sql, shown) = (short_locks::script(&statements), app_table::shown(table));
        if self.json {
            return output::json(&json!({ "dry_run": self.dry_run, "dropped": table.quoted(), "sql": sql })).map(drop);
        }
        if self.dry_run {
            outln!("would stop to capture {shown}; nothing was changed\n");
            output::text(&sql);
            return Ok(());
        }
        outln!("{} captures {shown} no more; events that were written stay", target.shown);
        Ok(())
    }
}

/// Reads what a trigger function's comment says.
fn definition_of(captured: &Installed) -> Result<Definition, Failure> {
    serde_json::from_str(&captured.definition).map_err(|error| {
        Failure::finding(format!(
            "the comment of the trigger function of {} was changed",
            text::name(&captured.quoted())
        ))
        .because(error)
        .hint("run outbox-relay capture for this table again")
    })
}

/// Returns a note if the entity type changes, which chooses the topic: by default it is the table's name, and tables are renamed.
fn other_entity_type(before: &Installed, definition: &Definition) -> Option<String> {
    let before = definition_of(before).ok().filter(|before| before.entity_type != definition.entity_type)?;
    let [before, now] = [&before, definition].map(|definition| text::name(&definition.entity_type).to_string());
    Some(format!("the entity type was {before} and is {now} from now on: {} keeps it", text::flag("--type", &before)))
}

fn not_captured(table: &AppTable) -> Failure {
    let name = text::shell(&table.quoted());
    Failure::finding(format!("{} is not captured", app_table::shown(table)))
        .hint(format!("outbox-relay capture {name} captures it; outbox-relay capture --list shows all"))
}

fn refused(table: &AppTable, refusal: &Refusal) -> Failure {
    Failure::finding(format!(
        "{} cannot be captured; nothing was changed\n  {}",
        app_table::shown(table),
        refusal.reason
    ))
    .hint(refusal.fix.clone())
}
