//! Makes events of the rows that a captured table has already.

use std::time::Duration;

use serde_json::json;

use super::super::app_table;
use super::super::exit::Failure;
use super::super::interrupt::interrupted;
use super::super::output;
use super::super::target::Target;
use super::{Capture, definition_of, not_captured};
use crate::observe::print::{errln, outln};
use crate::observe::progress::Progress as Bar;
use crate::resend::rate::Rate;
use crate::store::app_table::{AppTable, Installed};
use crate::store::audit;
use crate::store::capture::backfill::{Backfill, Progress, Step};
use crate::store::capture::key::walked;
use crate::text;

/// The rows of a page.
const PAGE: i64 = 500;

/// The pause after every skipped row was found locked.
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
        let key = walked(table).ok_or_else(|| {
            Failure::finding(format!("{shown} has no unique key, so its rows cannot be visited one after the other"))
                .hint("alter table … add primary key (…), or a unique index on columns that are not null")
        })?;
        let (names, key) = (target.names.clone(), key.to_vec());
        let work = Backfill { names: &names, table, definition: &definition, key, filter: self.filter.clone() };
        let failed = |error: sqlx::Error| app_table::not_run("read the rows of", table, error.into());
        if self.dry_run {
            let rows = work.estimate(&mut target.conn).await.map_err(failed)?;
            return self.shown(json!({ "dry_run": true, "backfill": table.quoted(), "estimated_rows": rows }), || {
                outln!("about {rows} rows of {shown} would become events; nothing was changed");
            });
        }
        work.prepare(&mut target.conn, &owner).await.map_err(failed)?;
        let (mut progress, resumed) = self.begin(target, &work).await?;
        let stop = interrupted()?;
        let estimate = work.estimate(&mut target.conn).await.unwrap_or_default();
        let bar = Bar::new("backfill", u64::try_from(estimate.max(progress.events)).unwrap_or_default());
        bar.set(u64::try_from(progress.events).unwrap_or_default());
        let began = progress.events;
        let mut rate = Rate::new(self.rate);
        let all = async {
            while !*stop.borrow() {
                match work.page(&mut target.conn, &mut progress, rate.page(PAGE)).await.map_err(failed)? {
                    Step::NoMorePages => break,
                    Step::NotAlone => return Err(not_alone(&shown)),
                    Step::Page(events) => {
                        bar.add(u64::try_from(events).unwrap_or_default());
                        tokio::time::sleep(rate.spend(events)).await;
                    }
                }
            }
            let mut locked = 0;
            while !*stop.borrow() && !progress.skipped.is_empty() {
                locked = match work.visit(&mut target.conn, &mut progress).await.map_err(failed)? {
                    true => 0,
                    false => locked + 1,
                };
                if locked >= progress.skipped.len() && locked > 0 {
                    tokio::time::sleep(LOCKED).await;
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
            work.finish(&mut target.conn, &entry).await.map_err(failed)?;
        }
        let events = progress.events;
        self.shown(
            json!({
                "dry_run": false, "backfill": table.quoted(), "events": events, "resumed": resumed, "finished": finished,
                "locked": progress.skipped.len(),
            }),
            || outln!("{} events of rows of {shown} were written{}", events - began, total(resumed, events)),
        )?;
        if finished {
            return Ok(());
        }
        let again = text::flag("--where", self.filter.as_deref().unwrap_or_default());
        let again = if self.filter.is_some() { format!(" {again}") } else { String::new() };
        let name = text::shell(&table.quoted());
        Err(Failure::interrupted("the backfill was interrupted")
            .hint(format!("outbox-relay capture {name} --backfill{again} goes on where it stopped")))
    }

    /// Goes on with a backfill that was interrupted, or begins one.
    async fn begin(&self, target: &mut Target, work: &Backfill<'_>) -> Result<(Progress, bool), Failure> {
        let failed = |error: sqlx::Error| app_table::not_run("read the rows of", work.table, error.into());
        let before = work.progress(&mut target.conn).await.map_err(failed)?;
        match before.filter(|before| !before.finished && !self.restart) {
            Some(before) if before.filter == work.filter && before.key == work.key => {
                errln!("note: goes on after {} events", before.events);
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

fn total(resumed: bool, events: i64) -> String {
    if resumed { format!(", {events} in all") } else { String::new() }
}

fn not_alone(shown: &str) -> Failure {
    Failure::finding(format!("another process makes the backfill of {shown}"))
        .hint("let it go on, or end it and run this again")
}
