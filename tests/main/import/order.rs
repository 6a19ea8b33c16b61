//! Shows which trigger writes an entity's events in the order in which their transactions commit, for applications that lock the entity
//! before the insert, after the insert, or not at all. Sessions are stepped by hand, so each case is the same in every run.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Outbox, Relay, SOON, TestDatabase, eventually};
use sqlx::{AssertSqlSafe, Executor, PgConnection};
use tokio::task::JoinHandle;

use super::{apply, case, clear, take_over};

/// What turns a row of the application's table into an event.
#[derive(Debug, Clone, Copy)]
enum Firing {
    /// A plain trigger for each row. No command sets it; it shows that the test sees events in the wrong order.
    Row,
    /// `import debezium` with these options.
    Import(&'static [&'static str]),
    /// `adopt`.
    Adopt,
}

/// How the application writes two events of one entity.
#[derive(Debug, Clone, Copy)]
enum Writes {
    /// Updates the entity's row, then inserts the event.
    LockFirst,
    /// Inserts the event, then updates the entity's row, as the flush of an ORM does.
    LockLast,
    /// Takes no lock, and the second transaction commits before the first.
    NoLock,
    /// Takes no lock, and both commit at once: the second is overtaken between its deferred triggers and its commit.
    NoLockAtOnce,
}

const ROW_TRIGGER: &str = "
    create function row_trigger() returns trigger language plpgsql as $$ begin
        insert into event_outbox (entity_type, entity_id, event_type, payload)
        values (new.aggregatetype, new.aggregateid, new.type, new.payload);
        return null;
    end $$;
    create trigger row_trigger after insert on outbox for each row execute function row_trigger()";

const LOOP_TABLE: &str =
    "create table outbox (id bigserial primary key, aggregatetype text, aggregateid text, type text, payload jsonb,
    published boolean not null default false)";

/// The application of the cases makes the ids itself.
const OWN_IDS: &str = "alter table outbox alter id set default gen_random_uuid()";

/// Stops a session at its commit, after the trigger under test: triggers of one row run in the order of their names.
const GATE: &str = "
    create function zz_gate() returns trigger language plpgsql as $$ begin
        if current_setting('test.gate', true) = 'shut' then perform pg_advisory_xact_lock(4711); end if;
        return null;
    end $$;
    create constraint trigger zz_gate after insert on outbox deferrable initially deferred for each row execute function zz_gate();
    create table entity (n bigint); insert into entity values (0)";

fn insert(n: i64) -> String {
    format!("insert into outbox (aggregatetype, aggregateid, type, payload) values ('defaults', 'e', 'X', '{n}')")
}

const LOCK: &str = "update entity set n = n + 1";

async fn run(session: &mut PgConnection, sql: &str) -> anyhow::Result<()> {
    session.execute(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await.with_context(|| sql.to_owned()).map(drop)
}

/// Runs statements beside the test. Returns when the session has ended them, or waits for a lock.
async fn begin(
    outbox: &Outbox,
    mut session: PgConnection,
    sql: String,
) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut session).await?;
    let running = tokio::spawn(async move { run(&mut session, &sql).await });
    eventually("the session ends its statements or waits", SOON, || async {
        let waits = format!("select count(*) from pg_locks where pid = {pid} and not granted");
        let waits = outbox.number(&waits).await.map_err(|error| format!("{error:#}"))?;
        if running.is_finished() || waits > 0 { Ok(()) } else { Err("it runs".to_owned()) }
    })
    .await;
    Ok(running)
}

/// Writes two events. Returns their numbers in the order of commits.
async fn write(outbox: &Outbox, writes: Writes) -> anyhow::Result<[i64; 2]> {
    let (mut first, second) = (outbox.connect().await?, outbox.connect().await?);
    let mut gate = outbox.connect().await?;
    let (one, two) = (insert(1), insert(2));
    match writes {
        Writes::LockFirst => {
            run(&mut first, &format!("begin; {LOCK}; {one}")).await?;
            let waits = begin(outbox, second, format!("begin; {LOCK}; {two}; commit")).await?;
            ensure!(!waits.is_finished(), "nothing serialises the entity");
            run(&mut first, "commit").await?;
            waits.await??;
            Ok([1, 2])
        }
        Writes::LockLast => {
            run(&mut first, &format!("begin; {one}")).await?;
            begin(outbox, second, format!("begin; {two}; {LOCK}; commit")).await?.await??;
            run(&mut first, &format!("{LOCK}; commit")).await?;
            Ok([2, 1])
        }
        Writes::NoLock => {
            run(&mut first, &format!("begin; {one}")).await?;
            begin(outbox, second, format!("begin; {two}; commit")).await?.await??;
            run(&mut first, "commit").await?;
            Ok([2, 1])
        }
        Writes::NoLockAtOnce => {
            run(&mut gate, "select pg_advisory_lock(4711)").await?;
            run(&mut first, &format!("begin; {one}")).await?;
            let stopped = begin(outbox, second, format!("set test.gate = 'shut'; begin; {two}; commit")).await?;
            ensure!(!stopped.is_finished(), "the gate is open");
            let overtaking = begin(outbox, first, "commit".to_owned()).await?;
            let overtakes = overtaking.is_finished();
            run(&mut gate, "select pg_advisory_unlock(4711)").await?;
            stopped.await??;
            overtaking.await??;
            Ok(if overtakes { [1, 2] } else { [2, 1] })
        }
    }
}

/// Creates table and trigger. Returns the statement that removes what `drop table` leaves.
async fn set_up(outbox: &Outbox, relay: &Relay, firing: Firing) -> anyhow::Result<String> {
    let undo = match firing {
        Firing::Row => {
            apply(outbox, case("defaults")?.table).await?;
            apply(outbox, ROW_TRIGGER).await?;
            apply(outbox, OWN_IDS).await?;
            "drop function row_trigger() cascade".to_owned()
        }
        Firing::Import(arguments) => {
            let undo = take_over(outbox, relay, &case("defaults")?, arguments).await?;
            apply(outbox, OWN_IDS).await?;
            undo
        }
        Firing::Adopt => {
            apply(outbox, LOOP_TABLE).await?;
            let output = relay.clone().argument("outbox").output("adopt").await?;
            ensure!(output.code == Some(0), "{output:?}");
            "select 1".to_owned()
        }
    };
    apply(outbox, GATE).await?;
    Ok(undo)
}

pub(super) async fn each_trigger_keeps_the_order_that_the_pages_say(database: TestDatabase) -> anyhow::Result<()> {
    let outbox = Outbox::from_database(&database);
    let relay = Relay::bare().with("DATABASE_URL", database.url());
    let all = [Writes::LockFirst, Writes::LockLast, Writes::NoLock, Writes::NoLockAtOnce];
    for (firing, kept) in [
        (Firing::Row, [true, false, false, true]),
        (Firing::Import(&["--bulk"]), [true, false, false, true]),
        (Firing::Import(&[]), [true, true, true, false]),
        (Firing::Import(&["--order", "strict"]), [true, true, true, true]),
        (Firing::Adopt, [true, true, true, false]),
    ] {
        for (writes, kept) in all.into_iter().zip(kept) {
            let undo = set_up(&outbox, &relay, firing).await?;
            let committed = tokio::time::timeout(Duration::from_secs(60), write(&outbox, writes)).await??;
            let number = "coalesce(payload #>> '{}', convert_from(payload_bytes, 'UTF8'))::int8";
            let numbers = format!("select {number} from event_outbox order by id");
            let events: Vec<i64> =
                sqlx::query_scalar(AssertSqlSafe(numbers)).fetch_all(&mut outbox.connect().await?).await?;
            ensure!(events.len() == 2, "{firing:?} {writes:?}: {events:?}");
            ensure!((events == committed) == kept, "{firing:?} {writes:?}: {events:?}, commits {committed:?}");
            apply(&outbox, &format!("{undo}; drop function zz_gate() cascade; drop table entity")).await?;
            if matches!(firing, Firing::Adopt) {
                let output = relay
                    .clone()
                    .argument("outbox")
                    .argument("--undo")
                    .argument("--wait")
                    .argument("0s")
                    .output("adopt")
                    .await?;
                ensure!(output.code == Some(1), "the events are not published: {output:?}");
            }
            clear(&outbox).await?;
        }
    }
    Ok(())
}
