//! Makes events of the rows that a captured table has already.

use std::time::Duration;

use serde_json::json;

use super::super::app_table;
use super::super::exit::Failure;
use super::super::interrupt::interrupted;
use super::super::output;
use super::super::target::Target;
use super::{Capture, definition_of, not_captured, refused};
use crate::observe::print::{errln, outln};
use crate::observe::progress::Progress as Bar;
use crate::resend::rate::Rate;
use crate::store::app_table::{AppTable, Installed, Owner};
use crate::store::audit;
use crate::store::capture::backfill::state::{self, FailedRow, Found, Progress};
use crate::store::capture::backfill::{Backfill, Step};
use crate::store::capture::key::walked;
use crate::text;
use event_outbox::names::quote;

/// The rows of a page.
const PAGE: i64 = 500;

/// The most failed rows that are named.
const MOST_NAMED: usize = 10;

/// The pause after every skipped row, or the table, was found locked.
const LOCKED: Duration = Duration::from_millis(200);

impl Capture {
    pub(super) async fn backfill(
        &self,
        target: &mut Target,
        table: &AppTable,
        captured: Option<Installed>,
    ) -> Result<(), Failure> {
        // Without the triggers, the events of the backfill could be older than changes that nobody has seen.
        let captured = captured.ok_or_else(|| not_captured(table))?;
        let definition = definition_of(&captured)?;
        let owner = app_table::owner(target, table, &[]).await?;
        let shown = app_table::shown(table);
        if captured.is_disabled {
            return Err(Failure::finding(format!("a trigger of {shown} is disabled, so changes make no events"))
                .hint(format!("alter table {} enable trigger user", table.quoted())));
        }
        let key = walked(table).map_err(|refusal| refused(table, &refusal))?;
        let (names, key, triggers) = (target.names.clone(), key.to_vec(), captured.oids.clone());
        let work =
            Backfill { names: &names, table, definition: &definition, key, filter: self.filter.clone(), triggers };
        let failed = |error: sqlx::Error| app_table::not_run("read the rows of", table, error.into());
        work.check_filter(&mut target.conn).await.map_err(|(error, at)| bad_filter(table, &work, error, at))?;
        if self.dry_run {
            let rows = work.estimate(&mut target.conn).await.map_err(failed)?;
            return self.shown(json!({ "dry_run": true, "backfill": table.quoted(), "estimated_rows": rows }), || {
                let rows = text::counted(rows, "row");
                outln!("would write events of about {rows} of {shown}; nothing was changed");
            });
        }
        prepare(target, table, &owner).await?;
        let before = state::progress(&mut target.conn, work.names, table.oid).await.map_err(failed)?;
        let before = before.filter(|_| !self.restart);
        // A script that runs the command again must not repeat all events, also if some rows have none: the events would have new ids.
        if let Some(before) = before.as_ref().filter(|before| is_done(before, &work)) {
            let events = before.events;
            self.shown(
                json!({
                    "dry_run": false, "backfill": table.quoted(), "events": events, "resumed": true, "finished": true,
                    "locked": 0, "failed": before.failed,
                }),
                || {
                    let events = text::counted(events, "event");
                    outln!("the backfill of {shown} is finished, with {events}; --restart writes them again");
                },
            )?;
            return complete(table, &before.failed);
        }
        let (mut progress, resumed) = self.begin(target, &work, before).await?;
        let stop = interrupted()?;
        let estimate = work.estimate(&mut target.conn).await.unwrap_or_default();
        let bar = Bar::new("backfill", u64::try_from(estimate.max(progress.events)).unwrap_or_default());
        bar.set(u64::try_from(progress.events).unwrap_or_default());
        let began = progress.events;
        let mut rate = Rate::new(self.rate);
        let (mut pages, mut locked) = (true, 0);
        let all = async {
            while !*stop.borrow() {
                let mut step = match pages {
                    true => work.page(&mut target.conn, &mut progress, rate.page(PAGE)).await.map_err(failed)?,
                    false => Step::TooManyLocked,
                };
                if step == Step::NoMorePages {
                    pages = false;
                }
                if matches!(step, Step::NoMorePages | Step::TooManyLocked) {
                    step = work.visit(&mut target.conn, &mut progress).await.map_err(failed)?;
                    locked = if step == Step::Locked { locked + 1 } else { 0 };
                }
                match step {
                    Step::NoMorePages => break,
                    Step::NotAlone => return Err(not_alone(&shown)),
                    Step::TooManyFailed => return Err(too_many_failed(&shown, &progress.failed)),
                    Step::Page(events) => {
                        bar.add(u64::try_from(events).unwrap_or_default());
                        tokio::time::sleep(rate.spend(events)).await;
                    }
                    Step::Locked if locked < progress.skipped.len() => {}
                    Step::Locked | Step::TooManyLocked => tokio::time::sleep(LOCKED).await,
                }
            }
            Ok(())
        };
        all.await?;
        drop(bar);
        let finished = !*stop.borrow();
        if finished {
            let filter = json!({ "table": table.quoted(), "where": self.filter });
            let author = self.by.author(self.reason.clone());
            let entry = audit::entry(&names, "capture --backfill", &filter, &author, &progress.events.to_string());
            if !work.finish(&mut target.conn, &progress, &entry).await.map_err(failed)? {
                return Err(not_alone(&shown));
            }
        }
        let events = progress.events;
        self.shown(
            json!({
                "dry_run": false, "backfill": table.quoted(), "events": events, "resumed": resumed, "finished": finished,
                "locked": progress.skipped.len(), "failed": progress.failed,
            }),
            || {
                let new = text::counted(events - began, "event");
                outln!("wrote {new} of rows of {shown}{}", total(resumed, events));
            },
        )?;
        if finished {
            return complete(table, &progress.failed);
        }
        let again = text::flag("--where", self.filter.as_deref().unwrap_or_default());
        let again = if self.filter.is_some() { format!(" {again}") } else { String::new() };
        let name = text::shell(&table.quoted());
        Err(Failure::interrupted("the backfill was interrupted")
            .hint(format!("outbox-relay capture {name} --backfill{again} goes on where it stopped")))
    }

    /// Goes on with a backfill that was interrupted, or begins one.
    async fn begin(
        &self,
        target: &mut Target,
        work: &Backfill<'_>,
        before: Option<Progress>,
    ) -> Result<(Progress, bool), Failure> {
        let failed = |error: sqlx::Error| app_table::not_run("read the rows of", work.table, error.into());
        match before.filter(|before| !before.finished) {
            Some(before) if before.triggers != work.triggers => {
                let shown = app_table::shown(work.table);
                Err(Failure::usage(format!("{shown} was captured anew since its unfinished backfill began"))
                    .because("rows that changed in between may have no event")
                    .hint("--restart begins anew"))
            }
            Some(mut before) if is_same(&before, work) => {
                let taken = state::take(&mut target.conn, work.names, work.table.oid, &mut before).await;
                if !taken.map_err(failed)? {
                    return Err(not_alone(&app_table::shown(work.table)));
                }
                errln!("note: goes on after {}", text::counted(before.events, "event"));
                Ok((before, true))
            }
            Some(before) => {
                let filter =
                    before.filter.as_deref().map_or_else(|| "no --where".to_owned(), |f| text::flag("--where", f));
                Err(Failure::usage(format!(
                    "a backfill of {} with {} is not finished",
                    app_table::shown(work.table),
                    text::sentence(&filter)
                ))
                .hint("repeat that one to go on, or --restart to begin anew"))
            }
            None => Ok((work.start(&mut target.conn).await.map_err(failed)?, false)),
        }
    }

    fn shown(&self, document: serde_json::Value, as_text: impl FnOnce()) -> Result<(), Failure> {
        match self.json {
            true => output::json(&document).map(drop),
            false => {
                as_text();
                Ok(())
            }
        }
    }
}

/// Returns true if the earlier backfill goes through the same rows.
fn is_same(before: &Progress, work: &Backfill<'_>) -> bool {
    before.filter == work.filter && before.key == work.key
}

/// Returns true if the earlier backfill has gone through the same rows to the end.
fn is_done(before: &Progress, work: &Backfill<'_>) -> bool {
    before.finished && before.triggers == work.triggers && is_same(before, work)
}

fn total(resumed: bool, events: i64) -> String {
    if resumed { format!(", {events} in all") } else { String::new() }
}

/// The classes of SQLSTATEs that come from the text of a condition: a syntax error or a wrong name, and a wrong value.
const OF_A_CONDITION: [&str; 2] = ["42", "22"];

/// The SQLSTATE of a missing right, which is in one of these classes.
const NO_RIGHT: &str = "42501";

/// Turns the error of the check of `--where` into a failure that shows the place of the mistake.
fn bad_filter(table: &AppTable, work: &Backfill<'_>, error: sqlx::Error, at: Option<usize>) -> Failure {
    let database = error.as_database_error();
    let code = database.and_then(|error| error.code()).unwrap_or_default();
    let (Some(database), true) =
        (database, code != NO_RIGHT && OF_A_CONDITION.iter().any(|class| code.starts_with(class)))
    else {
        return app_table::not_run("read the rows of", table, error.into());
    };
    let filter = work.filter.as_deref().unwrap_or_default();
    let message = text::sentence(database.message());
    let place = at.map_or_else(String::new, |at| marked(filter, at));
    let columns: Vec<_> = table.columns.iter().map(|column| text::name(&quote(&column.name)).to_string()).collect();
    let example = "--where \"created_at >= '2026-01-01' and status <> 'draft'\"";
    Failure::usage(format!("--where is no condition on a row of {}: {message}{place}", app_table::shown(table))).hint(
        format!("accepted is what may follow WHERE in SQL, such as {example}; the columns are {}", columns.join(", ")),
    )
}

/// Shows the line of the filter with this character, and a mark below it. A position behind the filter is at its end: a part is missing.
fn marked(filter: &str, at: usize) -> String {
    let before: String = filter.trim_end().chars().take(at).collect();
    let column = before.chars().rev().take_while(|c| *c != '\n').count();
    let line = filter.lines().nth(before.matches('\n').count()).unwrap_or_default();
    let cut: String = line.chars().take(column).collect();
    let indent = text::sentence(&cut).to_string().chars().count();
    format!("\n  {}\n  {:>indent$}^", text::sentence(line), "")
}

/// Creates the table of backfills, if this is the first one.
async fn prepare(target: &mut Target, table: &AppTable, owner: &Owner) -> Result<(), Failure> {
    let found = state::find(&mut target.conn, &target.names).await;
    match found.map_err(|error| target.failed("look for the backfills of", error))? {
        Found::Ours => Ok(()),
        Found::None => state::create(&mut target.conn, &target.names, owner)
            .await
            .map_err(|error| app_table::not_run("begin the backfill of", table, error.into())),
        Found::Foreign(of) => {
            let name = target.names.companion("backfill");
            let what = format!(
                "the relation {} of {}, or a trigger, rule or policy on it,",
                text::name(&name),
                text::name(&quote(&of))
            );
            Err(app_table::foreign(&what, &format!("drop {name}")))
        }
    }
}

fn not_alone(shown: &str) -> Failure {
    Failure::finding(format!(
        "another process has taken the backfill of {shown} over, or its triggers were dropped, replaced or disabled"
    ))
    .hint("let the other process go on; or end it, see outbox-relay capture --list, and run this again")
}

/// Fails if a finished backfill has left rows out.
fn complete(table: &AppTable, left_out: &[FailedRow]) -> Result<(), Failure> {
    if left_out.is_empty() {
        return Ok(());
    }
    let shown = app_table::shown(table);
    let rows = text::counted(left_out.len(), "row");
    Err(Failure::finding(format!("no event of {rows} of {shown}{}", named(left_out))).hint(format!(
        "outbox-relay capture --drop {}, correct these rows, capture the table again and repeat the backfill for them with --where",
        text::shell(&table.quoted())
    )))
}

fn too_many_failed(shown: &str, rows: &[FailedRow]) -> Failure {
    Failure::finding(format!(
        "more than {} rows of {shown} cannot become events, so the backfill has stopped{}",
        rows.len(),
        named(rows)
    ))
    .hint("correct the rows, or leave them out with --where and --restart")
}

/// Lists the first of these rows, a line for each.
fn named(rows: &[FailedRow]) -> String {
    let line =
        |row: &FailedRow| format!("\n  {}: {}", text::sentence(&row.key.join(", ")), text::sentence(&row.reason));
    let rest = rows.len().saturating_sub(MOST_NAMED);
    let rest = if rest > 0 { format!("\n  and {rest} more") } else { String::new() };
    rows.iter().take(MOST_NAMED).map(line).collect::<String>() + &rest
}
