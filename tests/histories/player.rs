//! Plays a session of a history against Postgres, as an application would, and reports its actions to the truth.

use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::time::sleep;
use uuid::Uuid;

use crate::script::{Begin, End, History, Step, Transaction, Turns, Write};
use crate::truth::{Outcome, Truth, Written, now};
use lab::Outbox;

/// The tables and triggers that scripts need in addition to the outbox.
pub(crate) const SETUP: &str = "
create table history_entity (entity text primary key, n bigint not null default 0);
create function history_slow() returns trigger language plpgsql as $$
begin
    perform pg_sleep((new.payload ->> 'sleep')::float8);
    return new;
end $$;
create trigger history_slow before insert on event_outbox
    for each row when (new.event_type = 'Slow') execute function history_slow();
";

/// Plays one session to its end.
pub(crate) async fn play(history: &History, session: usize, outbox: &Outbox, truth: &Truth) -> anyhow::Result<()> {
    let script = &history.sessions[session];
    let mut connection = outbox.connect().await?;
    if !script.waits_for_standby {
        connection.execute("set synchronous_commit = 'local'").await?;
    }
    for (number, transaction) in script.transactions.iter().enumerate() {
        let name = format!("{}{session}-{number}", history.prefix());
        let mut open =
            Open { connection: &mut connection, history, truth, name, written: Vec::new(), marks: Vec::new() };
        open.play(transaction).await?;
    }
    Ok(())
}

/// An open transaction.
struct Open<'a> {
    connection: &'a mut PgConnection,
    history: &'a History,
    truth: &'a Truth,
    /// The name under which the transaction is prepared.
    name: String,
    written: Vec<Written>,
    /// The number of events that had been written at each savepoint.
    marks: Vec<usize>,
}

impl Open<'_> {
    async fn play(&mut self, transaction: &Transaction) -> anyhow::Result<()> {
        sleep(transaction.pause).await;
        let autocommit = transaction.begin == Begin::Autocommit;
        if !autocommit {
            self.run("begin").await?;
        }
        if transaction.begin == Begin::WithTransactionId {
            self.run("select pg_current_xact_id()").await?;
        }
        for step in &transaction.steps {
            self.step(*step, autocommit).await?;
        }
        sleep(transaction.stays_open).await;
        match transaction.end {
            _ if autocommit => {}
            End::Commit => {
                self.run("commit").await?;
                self.ended(true);
            }
            End::RollBack => {
                self.run("rollback").await?;
                self.ended(false);
            }
            End::Prepare { waits, commits } => {
                let name = self.name.clone();
                self.run(&format!("prepare transaction '{name}'")).await?;
                sleep(waits).await;
                self.run(&format!("{} prepared '{name}'", if commits { "commit" } else { "rollback" })).await?;
                self.ended(commits);
            }
        }
        Ok(())
    }

    async fn step(&mut self, step: Step, autocommit: bool) -> anyhow::Result<()> {
        match step {
            Step::Savepoint => {
                self.marks.push(self.written.len());
                self.run(&format!("savepoint s{}", self.marks.len())).await
            }
            Step::RollBackToSavepoint => {
                self.run(&format!("rollback to savepoint s{}", self.marks.len())).await?;
                let mark = self.marks.pop().unwrap_or(0);
                self.truth.ended(self.written.split_off(mark), Outcome::RolledBack);
                Ok(())
            }
            Step::Write { entity, how, events } => {
                for _ in 0..if is_bulk(how) { 1 } else { events } {
                    self.take_turn(entity).await?;
                    self.write(entity, how, events).await?;
                    if autocommit {
                        self.ended(true);
                    }
                }
                Ok(())
            }
        }
    }

    /// Waits until no other session may write to the entity.
    async fn take_turn(&mut self, entity: usize) -> anyhow::Result<()> {
        let (history, number) = (self.history.number, entity);
        let name = self.history.entity(entity);
        let sql = match self.history.entities[entity] {
            Turns::RowLock => format!("select from history_entity where entity = '{name}' for update"),
            Turns::CounterUpdate => format!("update history_entity set n = n + 1 where entity = '{name}'"),
            Turns::AdvisoryLock => format!("select pg_advisory_xact_lock({history}, {number})"),
            Turns::Emit | Turns::OneSession(_) => return Ok(()),
        };
        self.run(&sql).await
    }

    async fn write(&mut self, entity: usize, how: Write, events: usize) -> anyhow::Result<()> {
        let name = self.history.entity(entity);
        if let Write::Emit | Write::EmitComputed(_) = how {
            let event = self.emit(&name, how).await?;
            // The session has its turn only now.
            self.note(event, name, false);
            return Ok(());
        }
        let events = if is_bulk(how) { events } else { 1 };
        let first = self.written.len();
        for _ in 0..events {
            self.note(Uuid::new_v4(), name.clone(), how == Write::Poison);
        }
        let (ids, numbers): (Vec<Uuid>, Vec<i64>) =
            self.written[first..].iter().map(|written| (written.event, written.n)).unzip();
        match how {
            Write::Copy => self.copy(&name, &ids, &numbers).await,
            Write::InsertSelect => {
                let sql = "insert into event_outbox (event_id, entity_type, entity_id, event_type, payload) \
                           select event, 'order', $1, 'Counted', jsonb_build_object('n', n) \
                           from unnest($2::uuid[], $3::int8[]) as events (event, n)";
                sqlx::query(sql).bind(name).bind(ids).bind(numbers).execute(&mut *self.connection).await?;
                Ok(())
            }
            how => self.insert(&name, how, ids[0], numbers[0]).await,
        }
    }

    /// Inserts one row.
    async fn insert(&mut self, entity: &str, how: Write, event: Uuid, n: i64) -> anyhow::Result<()> {
        let (columns, values) = match how {
            Write::Computed(takes) => {
                ("event_type, payload", format!("'Counted', (select jsonb_build_object('n', $3) {})", after(takes)))
            }
            Write::SlowTrigger(takes) => {
                let seconds = takes.as_secs_f64();
                ("event_type, payload", format!("'Slow', jsonb_build_object('n', $3, 'sleep', {seconds})"))
            }
            Write::Poison => {
                ("event_type, payload, headers", "'Poison', jsonb_build_object('n', $3), '{\"number\": 1}'".to_owned())
            }
            _ => ("event_type, payload", "'Counted', jsonb_build_object('n', $3)".to_owned()),
        };
        let sql = format!(
            "insert into event_outbox (entity_type, entity_id, event_id, {columns}) values ('order', $1, $2, {values})"
        );
        sqlx::query(AssertSqlSafe(sql)).bind(entity).bind(event).bind(n).execute(&mut *self.connection).await?;
        Ok(())
    }

    async fn copy(&mut self, entity: &str, events: &[Uuid], numbers: &[i64]) -> anyhow::Result<()> {
        let sql = "copy event_outbox (event_id, entity_type, entity_id, event_type, payload) from stdin";
        let lines: String = std::iter::zip(events, numbers)
            .map(|(event, n)| format!("{event}\torder\t{entity}\tCounted\t{{\"n\": {n}}}\n"))
            .collect();
        let mut copy = self.connection.copy_in_raw(sql).await?;
        copy.send(lines.into_bytes()).await?;
        copy.finish().await?;
        Ok(())
    }

    async fn emit(&mut self, entity: &str, how: Write) -> anyhow::Result<Uuid> {
        let payload = match how {
            Write::EmitComputed(takes) => format!("(select jsonb_build_object('emitted', true) {})", after(takes)),
            _ => "jsonb_build_object('emitted', true)".to_owned(),
        };
        let sql = format!("select outbox_emit('order', $1, 'Counted', {payload})");
        Ok(sqlx::query_scalar(AssertSqlSafe(sql)).bind(entity).fetch_one(&mut *self.connection).await?)
    }

    fn note(&mut self, event: Uuid, entity: String, poison: bool) {
        let n = self.truth.next(&entity);
        self.written.push(Written { event, entity, n, poison });
    }

    fn ended(&mut self, committed: bool) {
        let outcome = if committed { Outcome::Committed(now()) } else { Outcome::RolledBack };
        self.truth.ended(std::mem::take(&mut self.written), outcome);
    }

    async fn run(&mut self, sql: &str) -> anyhow::Result<()> {
        self.connection.execute(AssertSqlSafe(sql.to_owned())).await?;
        Ok(())
    }
}

/// Returns true if one statement writes all events.
fn is_bulk(how: Write) -> bool {
    matches!(how, Write::InsertSelect | Write::Copy)
}

fn after(takes: std::time::Duration) -> String {
    format!("from pg_sleep({})", takes.as_secs_f64())
}
