//! Lists the faults that can be mixed: the name of each, its effect on a stage, and the events that may be sent again because of it.

use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;
use rand::Rng;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::proxy::{Catch, Spot, Way, Weather};
use crate::stage::Stage;
use lab::kafka::RealKafka;
use lab::{SOON, eventually};

/// A fault that leaves the servers themselves alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// SIGKILL of a relay, which is started again.
    Kill,
    /// SIGTERM of a relay, which is started again.
    Stop,
    /// SIGSTOP of a relay for a moment.
    Freeze,
    /// `pg_terminate_backend` of all sessions of a relay.
    EndSessions,
    /// A relay's connections to Postgres are reset.
    CutPostgres,
    /// A relay receives nothing from Postgres for a moment, or Postgres receives nothing from the relay.
    StillPostgres,
    /// Postgres answers a relay slowly.
    SlowPostgres,
    /// A commit succeeds, but its answer is lost.
    LoseCommit,
    /// Another session locks the whole table.
    LockTable,
    /// Another session locks one pending row.
    LockRow,
    /// A relay's connections to Kafka are reset.
    CutKafka,
    /// A relay receives nothing from Kafka for a moment, or Kafka receives nothing from the relay.
    StillKafka,
    /// Kafka answers a relay slowly.
    SlowKafka,
    /// Kafka appends records, but its answer is lost.
    LoseAck,
    /// A relay joins.
    Join,
    /// A relay leaves.
    Leave,
}

impl Fault {
    /// All faults.
    pub(crate) const ALL: [Self; 16] = [
        Self::Kill,
        Self::Stop,
        Self::Freeze,
        Self::EndSessions,
        Self::CutPostgres,
        Self::StillPostgres,
        Self::SlowPostgres,
        Self::LoseCommit,
        Self::LockTable,
        Self::LockRow,
        Self::CutKafka,
        Self::StillKafka,
        Self::SlowKafka,
        Self::LoseAck,
        Self::Join,
        Self::Leave,
    ];

    /// Returns how many times a relay may send its events in flight again because of this fault, summed over all relays.
    fn repeats(self, relays: u64) -> u64 {
        match self {
            // These relays end or wait, and lose nothing that is in flight.
            Self::Stop | Self::Join | Self::Leave | Self::SlowPostgres => 0,
            Self::LockRow => relays,
            // Every relay repeats once for each time that its statement gives up.
            Self::LockTable => 3 * relays,
            Self::Kill | Self::EndSessions | Self::CutPostgres | Self::LoseCommit | Self::CutKafka | Self::LoseAck => 1,
            Self::Freeze | Self::StillPostgres => 2,
            // Once for each `publish_timeout` that passes.
            Self::StillKafka | Self::SlowKafka => 4,
        }
    }

    /// Applies the fault to a stage. On return the stage works again, though the relays may not have noticed yet.
    pub(crate) async fn strike(self, stage: &mut Stage, kafka: &RealKafka) -> anyhow::Result<()> {
        stage.may_repeat(self.repeats(stage.relays.len() as u64));
        let (while_it_lasts, cut) =
            (Duration::from_millis(stage.random.random_range(200..3500)), stage.random.random());
        let way = [Way::Requests, Way::Answers, Way::Both][stage.random.random_range(0..3)];
        let delay = Duration::from_millis(stage.random.random_range(1..60));
        match self {
            Self::Kill => {
                let victim = stage.anyone();
                victim.kill()?;
                victim.revive()?;
            }
            Self::Stop => {
                let victim = stage.anyone();
                victim.until_ready().await?;
                victim.stop().await?;
                victim.revive()?;
            }
            Self::Freeze => {
                let victim = stage.anyone();
                victim.signal(Signal::SIGSTOP)?;
                tokio::time::sleep(while_it_lasts).await;
                victim.signal(Signal::SIGCONT)?;
            }
            Self::EndSessions => {
                let sessions = stage.anyone().sessions();
                let sql = format!(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity \
                     where datname = current_database() and application_name = '{sessions}'"
                );
                stage.outbox.number(&sql).await?;
            }
            Self::CutPostgres => drop(stage.anyone().postgres.cut()),
            Self::CutKafka => drop(stage.anyone().kafka.cut()),
            Self::StillPostgres => {
                let proxy = &stage.anyone().postgres;
                proxy.weather(Weather::Still(way));
                tokio::time::sleep(while_it_lasts).await;
                proxy.heal(cut);
            }
            Self::StillKafka => {
                let proxy = &stage.anyone().kafka;
                proxy.weather(Weather::Still(way));
                tokio::time::sleep(while_it_lasts).await;
                proxy.heal(cut);
            }
            Self::SlowPostgres => {
                let proxy = &stage.anyone().postgres;
                proxy.weather(Weather::Slow(delay));
                tokio::time::sleep(while_it_lasts).await;
                proxy.heal(false);
            }
            Self::SlowKafka => {
                let proxy = &stage.anyone().kafka;
                proxy.weather(Weather::Slow(delay * 10));
                tokio::time::sleep(while_it_lasts).await;
                proxy.heal(false);
            }
            Self::LoseAck => {
                let victim = stage.anyone();
                victim.kafka.set_trap(Spot::Produce, Catch::LoseAnswer);
            }
            Self::LoseCommit => {
                let victim = stage.anyone();
                victim.postgres.set_trap(Spot::Mark, Catch::LoseAnswer);
            }
            Self::LockTable => lock_table(stage, while_it_lasts).await?,
            Self::LockRow => lock_row(stage).await?,
            Self::Join => stage.join(kafka).await?,
            Self::Leave if stage.relays.len() > 1 => {
                let last = stage.relays.len() - 1;
                stage.relays[last].until_ready().await?;
                stage.leave().await?;
            }
            Self::Leave => {}
        }
        Ok(())
    }
}

async fn lock_table(stage: &Stage, while_it_lasts: Duration) -> anyhow::Result<()> {
    let mut other = stage.outbox.connect().await?;
    let mut locked = other.begin().await?;
    locked.execute("lock table event_outbox in access exclusive mode").await?;
    tokio::time::sleep(while_it_lasts).await;
    Ok(locked.rollback().await?)
}

/// Locks a pending row of an entity. While the row is locked, no later row of its entity may be published.
async fn lock_row(stage: &mut Stage) -> anyhow::Result<()> {
    for relay in &stage.relays {
        relay.postgres.weather(Weather::Still(Way::Requests));
    }
    stage.probe_if_quiet().await;
    let mut other = stage.outbox.connect().await?;
    let mut lock = other.begin().await?;
    let (id, entity) = lock_any_row(&mut lock).await;
    for relay in &stage.relays {
        relay.postgres.weather(Weather::Clear);
    }
    for _ in 0..5 {
        stage.moment().await;
    }
    let overtaken = format!(
        "select count(*) from {} where entity_id = $1 and id > $2 and status <> 'PENDING'",
        stage.outbox.events()
    );
    let overtaken: i64 =
        sqlx::query_scalar(AssertSqlSafe(overtaken)).bind(&entity).bind(id).fetch_one(&mut *lock).await?;
    ensure!(overtaken == 0, "{overtaken} rows of {entity} have overtaken row {id}, which is locked");
    Ok(lock.rollback().await?)
}

async fn lock_any_row(lock: &mut PgConnection) -> (i64, String) {
    let sql = "select id, entity_id from event_outbox where status = 'PENDING' and entity_id is not null \
               order by entity_id = 'hot' desc limit 1 for update skip locked";
    let lock = tokio::sync::Mutex::new(lock);
    eventually("a pending row can be locked", SOON, || async {
        let row = sqlx::query_as(sql).fetch_optional(&mut **lock.lock().await).await;
        row.map_err(|error| error.to_string())?.ok_or_else(|| "there is none".to_owned())
    })
    .await
}
