//! Measures `held-snapshot`: the rate of events while another session holds a snapshot. Vacuum can then remove nothing, and every
//! scan over dead rows or dead index entries gets slower with each of them.

use std::time::{Duration, Instant};

use serde::Serialize;
use sqlx::{AssertSqlSafe, Executor};

use super::Bench;
use super::bench_schema::BenchSchema;
use super::cost::{Costs, Meter};
use super::drain;
use super::failure::BenchError;
use super::percentiles::median;
use super::seed_rows::{As, Keys, RowSeeder};
use super::steady::{BETWEEN_LOOKS, Steady};
use super::watermarks::Watermarks;

/// The smallest backlog of a run without a rate; the largest is one chunk more. The relay then always has work, and the writer is
/// never faster than the relay.
const LOW_WATER: u64 = 50_000;
const CHUNK: u64 = 25_000;

/// The interval of the writer's chunks in a run with a rate.
const BETWEEN_CHUNKS: Duration = Duration::from_millis(100);

/// The time before the first window, in which the backlog builds up.
const WARM_UP: Duration = Duration::from_secs(5);

/// The rate over time. The writer's inserts run on the same server and slow it down.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HeldSnapshot {
    pub(crate) seconds: f64,
    pub(crate) window_s: u64,
    /// The requested rate; null: as fast as the relay publishes.
    pub(crate) rate_events_per_s: Option<u64>,
    /// The rate in each whole window.
    pub(crate) windows_events_per_s: Vec<f64>,
    /// The pending events at the end of each window.
    pub(crate) windows_backlog: Vec<u64>,
    pub(crate) median_events_per_s: f64,
    pub(crate) worst_events_per_s: f64,
    pub(crate) worst_share_of_median: f64,
    pub(crate) costs: Costs,
}

/// Runs the scenario at `rate` events per second, or as fast as the relay publishes.
pub(crate) async fn held_snapshot(
    bench: &Bench,
    rate: Option<u64>,
    seconds: u64,
    window: u64,
) -> Result<HeldSnapshot, BenchError> {
    let schema = bench.schemas.make().await?;
    let mut holder = bench.schemas.connect().await?;
    holder.execute("begin isolation level repeatable read").await?;
    // The first statement of the transaction takes the snapshot.
    holder.execute(AssertSqlSafe(format!("select from {} limit 1", schema.names.outbox()))).await?;
    let mut steady = Steady::start(bench, &schema, 1).await?;
    let mut meter = Meter::new(&bench.schemas, &schema).await?;
    let before = meter.read(&steady.relays).await?;
    let began = Instant::now();
    let Flow { windows, published } =
        flow(bench, &schema, &mut steady, rate, Duration::from_secs(seconds), window).await?;
    let passed = began.elapsed().as_secs_f64();
    let mut after = meter.read(&steady.relays).await?;
    drain::stop(std::mem::take(&mut steady.relays))?;
    drop(steady);
    meter.reread_images(&mut after).await;
    holder.execute("rollback").await?;
    bench.schemas.remove(&schema.name).await?;
    let rates: Vec<f64> = windows.iter().map(|window| window.published as f64 / window.seconds).collect();
    let (worst, median) = (rates.iter().copied().reduce(f64::min).unwrap_or(0.0), median(rates.clone()));
    Ok(HeldSnapshot {
        seconds: passed,
        window_s: window,
        rate_events_per_s: rate,
        windows_backlog: windows.iter().map(|window| window.backlog).collect(),
        costs: meter.costs(&before, &after, published),
        windows_events_per_s: rates,
        median_events_per_s: median,
        worst_events_per_s: worst,
        worst_share_of_median: if median > 0.0 { worst / median } else { 0.0 },
    })
}

/// A measured window. A poll, or a chunk in progress, makes a window a little longer than requested.
struct Window {
    seconds: f64,
    published: u64,
    /// The pending events at the end of the window.
    backlog: u64,
}

struct Flow {
    windows: Vec<Window>,
    /// The number of events in all, including the warm-up.
    published: u64,
}

async fn flow(
    bench: &Bench,
    schema: &BenchSchema,
    steady: &mut Steady,
    rate: Option<u64>,
    time: Duration,
    window: u64,
) -> Result<Flow, BenchError> {
    let keys = Keys::Spread(bench.entities());
    let mut seeder = RowSeeder::new(bench.schemas.connect().await?, schema, &bench.samples, keys, As::Pending).await?;
    let watermarks = Watermarks::new(&bench.schemas, schema)?;
    let before = watermarks.records().await?;
    let began = Instant::now();
    let mut flow = Flow { windows: Vec::new(), published: 0 };
    // The start of the window, and the number of events published by then.
    let mut open: Option<(Instant, u64)> = None;
    while began.elapsed() < WARM_UP + time {
        steady.check()?;
        let published = watermarks.records().await?.saturating_sub(before);
        let backlog = seeder.inserted().saturating_sub(published);
        flow.published = published;
        match open {
            None if began.elapsed() >= WARM_UP => open = Some((Instant::now(), published)),
            Some((opened, counted)) if opened.elapsed() >= Duration::from_secs(window) => {
                let seconds = opened.elapsed().as_secs_f64();
                flow.windows.push(Window { seconds, published: published - counted, backlog });
                open = Some((Instant::now(), published));
            }
            _ => {}
        }
        bench.progress.set_message(format!("{published} published, {backlog} waiting, {:.0?}", began.elapsed()));
        match rate {
            Some(rate) => {
                let due = (began.elapsed().as_secs_f64() * rate as f64) as u64;
                seeder.add(due.saturating_sub(seeder.inserted())).await?;
                tokio::time::sleep(BETWEEN_CHUNKS).await;
            }
            None if backlog < LOW_WATER => seeder.add(CHUNK).await?,
            None => tokio::time::sleep(BETWEEN_LOOKS).await,
        }
    }
    Ok(flow)
}
