//! Prints the metrics of a run for people: one table with a row per metric.

use std::fmt;

use indicatif::HumanCount;

use super::baseline::Baseline;
use super::cost::Costs;
use super::drain::{Drained, MeanCycle, Shares};
use super::failover::Failover;
use super::held_snapshot::HeldSnapshot;
use super::idle::Idle;
use super::latency::Latency;
use super::percentiles::Percentiles;
use super::report::Report;

/// The rows of the table, with the columns `what`, `metric` and `value unit`.
#[derive(Debug, Default)]
struct Table(Vec<[String; 3]>);

impl Table {
    fn row(&mut self, what: &str, metric: &str, value: impl Into<String>) {
        self.0.push([what.to_owned(), metric.to_owned(), value.into()]);
    }

    fn drained(&mut self, what: &str, drained: &Drained) {
        self.row(what, "rate", format!("{} events/s", grouped(drained.events_per_s)));
        self.row(
            what,
            "rate with the start of the process",
            format!("{} events/s", grouped(drained.events_per_s_from_start)),
        );
        self.row(what, "events", format!("{} in {:.2} s", grouped(drained.events as f64), drained.seconds));
        let more = drained.records.checked_sub(drained.events);
        let once = more.is_some_and(|more| more == 0 || drained.in_transactions);
        if let Some(more @ 1..) = more.filter(|_| drained.in_transactions) {
            self.row(what, "markers of transactions", grouped(more as f64).to_string());
        }
        if !once || drained.published != drained.events {
            self.row(what, "NOT once each", format!("{} records, {} published", drained.records, drained.published));
        }
        if let Some(Shares { claim, send, acks, settle }) = drained.stages {
            let shares = [("claim", claim), ("send", send), ("acks", acks), ("settle", settle)];
            let shares = shares.map(|(stage, share)| format!("{stage} {:.0} %", share * 100.0));
            self.row(what, "time of the workers", shares.join("  "));
        }
        self.costs(what, &drained.costs);
    }

    fn baseline(&mut self, baseline: &Baseline) {
        let what = "baseline";
        self.row(
            what,
            "claim and mark without Kafka",
            format!("{} events/s", grouped(baseline.claim_and_mark_events_per_s)),
        );
        let wal = grouped(baseline.claim_and_mark_wal_bytes_per_event);
        self.row(what, "WAL of claim and mark", format!("{wal} bytes/event"));
        self.row(what, "produce without Postgres", format!("{} events/s", grouped(baseline.produce_events_per_s)));
    }

    fn latency(&mut self, latency: &Latency) {
        let what = format!("latency at {}/s", grouped(latency.rate_events_per_s as f64));
        for (metric, times) in [
            ("from the scheduled time", &latency.from_schedule),
            ("from the commit", &latency.from_commit),
            ("of that the insert", &latency.insert),
            ("of that the writer's own lag", &latency.writer_lag),
        ] {
            self.row(&what, metric, times.as_ref().map_or("none arrived".to_owned(), percentiles));
        }
        if latency.missing + latency.duplicates > 0 {
            self.row(&what, "NOT once each", format!("{} missing, {} twice", latency.missing, latency.duplicates));
        }
        if let Some(MeanCycle { events, claim_ms, send_ms, acks_ms, settle_ms }) = latency.mean_cycle {
            let cycle = format!(
                "{events:.1} events: claim {claim_ms:.2}  send {send_ms:.2}  acks {acks_ms:.2}  settle {settle_ms:.2} ms"
            );
            self.row(&what, "a worker's cycle, on average", cycle);
        }
        self.costs(&what, &latency.costs);
    }

    fn held_snapshot(&mut self, held: &HeldSnapshot) {
        let what = "held snapshot";
        self.row(what, "median window", format!("{} events/s", grouped(held.median_events_per_s)));
        let (worst, share) = (grouped(held.worst_events_per_s), held.worst_share_of_median * 100.0);
        self.row(what, "worst window", format!("{worst} events/s, {share:.0} % of the median"));
        let windows: Vec<_> = held.windows_events_per_s.iter().map(|rate| grouped(*rate).to_string()).collect();
        self.row(what, &format!("each {} s", held.window_s), windows.join(" "));
        self.costs(what, &held.costs);
    }

    fn idle(&mut self, idle: &Idle) {
        let percent =
            |value: Option<f64>| value.map_or("not measured".to_owned(), |value| format!("{value:.2} % of a core"));
        self.row("idle", "CPU of the relay", percent(idle.relay_cpu_percent));
        self.row("idle", "CPU of the relay's sessions", percent(idle.relay_sessions_cpu_percent));
        self.row("idle", "queries", format!("{:.1} per s", idle.queries_per_s));
        self.row("idle", "WAL", format!("{:.1} bytes/s", idle.wal_bytes_per_s));
    }

    fn failover(&mut self, failover: &Failover) {
        self.row("failover", "worst", format!("{:.0} ms", failover.worst_ms));
        self.row("failover", "median", format!("{:.0} ms", failover.median_ms));
        for kill in &failover.kills {
            let (any, first, all) = (kill.any_ms, kill.first_of_its_lanes_ms, kill.all_of_its_lanes_ms);
            let lanes = kill.lanes.len();
            let text =
                format!("any event {any:.0} ms, first of its {lanes} lanes {first:.0} ms, all of them {all:.0} ms");
            self.row("failover", "SIGKILL to the next", text);
        }
        self.row("failover", "sent twice, missing", format!("{}, {}", failover.duplicates, failover.missing));
    }

    fn costs(&mut self, what: &str, costs: &Costs) {
        self.row(what, "WAL", format!("{} bytes/event", grouped(costs.wal_bytes_per_event)));
        for (metric, value) in [
            ("CPU of the relay", costs.relay_cpu_us_per_event),
            ("CPU of the relay's sessions", costs.relay_sessions_cpu_us_per_event),
            ("CPU of Postgres", costs.postgres_cpu_us_per_event),
            ("CPU of the broker", costs.broker_cpu_us_per_event),
        ] {
            self.row(what, metric, value.map_or("not measured".to_owned(), |us| format!("{us:.2} us/event")));
        }
        if let Some(bytes) = costs.relay_peak_memory_bytes {
            self.row(what, "peak memory of the relay", format!("{:.1} MB", bytes as f64 / 1e6));
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = "";
        let rows = self.0.iter().map(|[what, metric, value]| {
            let shown = if what == last { "" } else { what };
            last = what;
            [shown, metric, value]
        });
        f.write_str(&lab::table::plain(rows, &[]))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (environment, load) = (&self.environment, &self.load);
        let broker = environment.broker_version.as_deref().unwrap_or("of unknown version");
        writeln!(
            f,
            "outbox-relay {}, Postgres {}, Kafka {broker}, {} cores; payload {} bytes, {} entities, {} partitions",
            environment.relay_version,
            environment.postgres_version,
            environment.cores,
            load.payload_bytes,
            grouped(load.entities as f64),
            load.partitions
        )?;
        if environment.relay_is_debug_build {
            writeln!(f, "A DEBUG BUILD: these metrics mean nothing.")?;
        }
        writeln!(f)?;
        self.table().fmt(f)
    }
}

impl Report {
    fn table(&self) -> Table {
        let mut table = Table::default();
        self.baseline.iter().for_each(|baseline| table.baseline(baseline));
        self.drain.iter().for_each(|drained| table.drained("drain", drained));
        self.latency.iter().for_each(|latency| table.latency(latency));
        for drained in self.relays.iter().flatten() {
            table.drained(&format!("relays: {}", drained.relays), drained);
        }
        if let Some(hot) = &self.hot_key {
            table.drained("unkeyed", &hot.unkeyed);
            table.drained("half on one entity", &hot.half_on_one);
            table.row("half on one entity", "of the unkeyed rate", format!("{:.0} %", hot.share_of_unkeyed * 100.0));
        }
        if let Some(retained) = &self.retained {
            let what = format!("{} rows retained", grouped(retained.retained_rows as f64));
            table.drained("none retained", &retained.without);
            table.drained(&what, &retained.with);
            table.row(&what, "of the rate without", format!("{:.0} %", retained.share_of_without * 100.0));
        }
        if let Some(retention) = &self.retention {
            let what = format!("{} rows pruned", grouped(retention.retained_rows as f64));
            table.drained("none pruned", &retention.without);
            table.drained(&what, &retention.with);
            table.row(&what, "of the rate without", format!("{:.0} %", retention.share_of_without * 100.0));
            table.row(&what, "rows pruned during the drain", grouped(retention.with.pruned as f64).to_string());
        }
        self.held_snapshot.iter().for_each(|held| table.held_snapshot(held));
        self.idle.iter().for_each(|idle| table.idle(idle));
        self.failover.iter().for_each(|failover| table.failover(failover));
        table
    }
}

fn percentiles(times: &Percentiles) -> String {
    let Percentiles { p50_ms, p90_ms, p99_ms, p999_ms, max_ms, .. } = times;
    format!("p50 {p50_ms:.2}  p90 {p90_ms:.2}  p99 {p99_ms:.2}  p99.9 {p999_ms:.2}  max {max_ms:.2} ms")
}

/// Formats a whole number with commas between its thousands.
fn grouped(number: f64) -> HumanCount {
    HumanCount(number.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_a_repeated_first_column_is_left_out() {
        let mut table = Table::default();
        table.row("drain", "rate", "1");
        table.row("drain", "WAL", "2");
        table.row("idle", "CPU", "3");
        assert_eq!(table.to_string(), "drain  rate  1\n       WAL   2\nidle   CPU   3\n");
    }
}
