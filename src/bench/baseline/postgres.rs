//! Claims and marks rows without Kafka.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use tokio::task::JoinSet;

use crate::bench::Bench;
use crate::bench::bench_schema::BenchSchema;
use crate::bench::cost::Meter;
use crate::bench::failure::BenchError;
use crate::bench::seed_rows::{As, Keys, RowSeeder};
use crate::lane::LaneRange;
use crate::lane::progress::{Progress, Scan};
use crate::store::claim::{ClaimSql, ClaimedRow, Limits};
use crate::store::session::{LaneUpdate, Next, Sequence, Transaction, Wanted};

/// The relay's limit on an idle transaction; no transaction of the baseline is idle.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) struct Claimed {
    pub(super) events_per_s: f64,
    pub(super) wal_bytes_per_event: f64,
}

/// One session with its share of the rows. It runs the relay's statements in the relay's order.
struct Session {
    conn: PgConnection,
    transaction: Transaction,
    claim: ClaimSql,
    lanes: LaneRange,
    batch_size: usize,
    batch_bytes: usize,
    prepared: bool,
}

pub(super) async fn claim_and_mark(
    bench: &Bench,
    schema: &BenchSchema,
    events: u64,
    workers: usize,
) -> Result<Claimed, BenchError> {
    bench.begin("limit of claim and mark");
    let keys = Keys::Spread(bench.entities());
    let mut seeder = RowSeeder::new(bench.schemas.connect().await?, schema, &bench.samples, keys, As::Pending).await?;
    seeder.seed(events, &bench.progress).await?;
    seeder.checkpoint().await;
    let mut meter = Meter::new(&bench.schemas, schema).await?;
    let mut sessions = Vec::new();
    for index in 0..workers {
        if let Some(lanes) = LaneRange::share(index, workers, schema.lanes) {
            sessions.push(Session::new(bench, schema, lanes).await?);
        }
    }
    let before = meter.read(&[]).await?;
    let began = Instant::now();
    let mut running: JoinSet<_> = sessions.into_iter().map(Session::run).collect();
    let mut marked = 0;
    while let Some(done) = running.join_next().await {
        marked += done.map_err(|_| BenchError::Thread)??;
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = meter.read(&[]).await?;
    let marked = marked as f64;
    Ok(Claimed {
        events_per_s: marked / seconds,
        wal_bytes_per_event: before.wal_until(&after) as f64 / marked.max(1.0),
    })
}

impl Session {
    async fn new(bench: &Bench, schema: &BenchSchema, lanes: LaneRange) -> Result<Self, BenchError> {
        let (relay, prepared) = (&bench.settings.relay, bench.settings.database.prepared_statements);
        let mut conn = bench.schemas.connect().await?;
        let sequence = Sequence::read(&mut conn, &schema.names).await?;
        let transaction = Transaction::new(&schema.names, LONGEST, prepared, false, relay.settle);
        transaction.prepare(&mut conn).await?;
        Ok(Self {
            conn,
            transaction,
            claim: ClaimSql::new(&schema.names, &sequence),
            lanes,
            batch_size: relay.batch_size,
            batch_bytes: relay.batch_bytes,
            prepared,
        })
    }

    /// Claims and marks until nothing is left, and returns the number of marked rows.
    async fn run(mut self) -> Result<u64, BenchError> {
        let mut marked = 0;
        let Self { conn, transaction, claim, lanes, batch_size, batch_bytes, prepared } = &mut self;
        let limits = Limits {
            rows: *batch_size,
            stored_bytes: *batch_bytes as i64,
            row_bytes: i64::MAX,
            kept_bytes: usize::MAX,
            heads_only: false,
            persistent: *prepared,
        };
        let mut begun = transaction.begin(conn, Wanted::Free(*lanes)).await?;
        let mut progress = Progress::default();
        loop {
            let claimed = claim.claim(conn, &progress, *lanes, i64::MAX, limits).await?;
            let rows = claimed.rows.iter().map(ClaimedRow::ctid).collect::<Result<Vec<_>, _>>()?;
            let summary = claimed.summary;
            progress = progress.after(&Scan {
                snapshot: summary.snapshot,
                late_cut_at: None,
                new_cut_at: summary.chosen.last().copied(),
                upto: i64::MAX,
                last_allocated: summary.last_allocated,
            });
            let ctids: Vec<_> = begun.lanes.iter().map(|row| row.ctid).collect();
            let update = LaneUpdate { ctids: &ctids, unwritten: &[], nonce: 0, progress: &progress, sealed: &[] };
            let next = if rows.is_empty() { Next::None } else { Next::Begin(*lanes) };
            let settled = transaction.mark_and_commit(conn, &rows, Some(update), next).await?;
            marked += rows.len() as u64;
            match settled.begun {
                Some(next) => begun = next,
                None if rows.is_empty() => return Ok(marked),
                // Behind a pooler the settle does not begin the next transaction, so begin it here.
                None => begun = transaction.begin(conn, Wanted::Free(*lanes)).await?,
            }
        }
    }
}
