//! Runs drains in pairs that differ in one thing.

use serde::Serialize;

use super::Bench;
use super::drain::{Backlog, Drained, drain};
use super::failure::BenchError;
use super::seed_rows::Keys;

/// The numbers of relays that work side by side.
const RELAYS: &[usize] = &[1, 2, 4];

/// A drain with a hot key, and one without keys.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HotKey {
    /// The drain of events without an entity.
    pub(crate) unkeyed: Drained,
    /// The drain in which half of the events are of one entity.
    pub(crate) half_on_one: Drained,
    pub(crate) share_of_unkeyed: f64,
}

/// A drain with a large history, and one without.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Retained {
    /// The number of published rows in the table before the backlog.
    pub(crate) retained_rows: u64,
    pub(crate) without: Drained,
    pub(crate) with: Drained,
    pub(crate) share_of_without: f64,
}

/// A drain with a large history that is removed during the drain, and one with a history that stays.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Pruned {
    /// The number of published rows in the table before the backlog.
    pub(crate) retained_rows: u64,
    pub(crate) without: Drained,
    pub(crate) with: Drained,
    pub(crate) share_of_without: f64,
}

/// Runs drains with one, two and four relays.
pub(crate) async fn relays(bench: &Bench) -> Result<Vec<Drained>, BenchError> {
    let mut drained = Vec::new();
    for &relays in RELAYS {
        bench.begin(format!("relays: {relays}"));
        drained.push(drain(bench, Backlog { relays, ..bench.backlog() }).await?);
    }
    Ok(drained)
}

pub(crate) async fn hot_key(bench: &Bench) -> Result<HotKey, BenchError> {
    bench.begin("hot-key: unkeyed");
    let unkeyed = drain(bench, Backlog { keys: Keys::Unkeyed, ..bench.backlog() }).await?;
    bench.begin("hot-key: half on one");
    let half_on_one = drain(bench, Backlog { keys: Keys::HalfOnOne(bench.entities()), ..bench.backlog() }).await?;
    let share_of_unkeyed = half_on_one.events_per_s / unkeyed.events_per_s;
    Ok(HotKey { unkeyed, half_on_one, share_of_unkeyed })
}

pub(crate) async fn retained(bench: &Bench) -> Result<Retained, BenchError> {
    let retained_rows = bench.plan.retained;
    bench.begin("retained: none");
    let without = drain(bench, bench.backlog()).await?;
    bench.begin(format!("retained: {retained_rows}"));
    let with = drain(bench, Backlog { retained: retained_rows, ..bench.backlog() }).await?;
    let share_of_without = with.events_per_s / without.events_per_s;
    Ok(Retained { retained_rows, without, with, share_of_without })
}

pub(crate) async fn retention(bench: &Bench) -> Result<Pruned, BenchError> {
    let retained_rows = bench.plan.retained;
    let backlog = Backlog { retained: retained_rows, ..bench.backlog() };
    bench.begin("retention: keep");
    let without = drain(bench, backlog).await?;
    bench.begin("retention: delete");
    let with = drain(bench, Backlog { prunes: true, ..backlog }).await?;
    let share_of_without = with.events_per_s / without.events_per_s;
    Ok(Pruned { retained_rows, without, with, share_of_without })
}
