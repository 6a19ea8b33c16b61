//! The figures of a run for people: one table, a row per figure.

use std::fmt;

use super::cost::Costs;
use super::drain::Drained;
use super::report::Report;

/// Rows of `what`, `figure` and `value unit`, in columns.
#[derive(Debug, Default)]
struct Table(Vec<[String; 3]>);

impl Table {
    fn row(&mut self, what: &str, figure: &str, value: impl Into<String>) {
        self.0.push([what.to_owned(), figure.to_owned(), value.into()]);
    }

    fn drained(&mut self, what: &str, drained: &Drained) {
        self.row(what, "rate", format!("{} events/s", grouped(drained.events_per_s)));
        self.row(
            what,
            "rate with the start of the process",
            format!("{} events/s", grouped(drained.events_per_s_from_start)),
        );
        self.row(what, "events", format!("{} in {:.2} s", grouped(drained.events as f64), drained.seconds));
        if drained.records != drained.events || drained.published != drained.events {
            self.row(what, "NOT once each", format!("{} records, {} published", drained.records, drained.published));
        }
        self.costs(what, &drained.costs);
    }

    fn costs(&mut self, what: &str, costs: &Costs) {
        self.row(what, "WAL", format!("{} bytes/event", grouped(costs.wal_bytes_per_event)));
        for (figure, value) in [
            ("CPU of the relay", costs.relay_cpu_us_per_event),
            ("CPU of the relay's sessions", costs.relay_sessions_cpu_us_per_event),
            ("CPU of Postgres", costs.postgres_cpu_us_per_event),
            ("CPU of the broker", costs.broker_cpu_us_per_event),
        ] {
            self.row(what, figure, value.map_or("not measured".to_owned(), |us| format!("{us:.2} us/event")));
        }
        if let Some(bytes) = costs.relay_peak_memory_bytes {
            self.row(what, "peak memory of the relay", format!("{:.1} MB", bytes as f64 / 1e6));
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        let mut last = "";
        for [what, figure, value] in &self.0 {
            let shown = if what == last { "" } else { what };
            last = what;
            writeln!(f, "{shown:first$}  {figure:second$}  {value}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (machine, load) = (&self.machine, &self.load);
        let broker = machine.broker_version.as_deref().unwrap_or("of unknown version");
        writeln!(
            f,
            "outbox-relay {}, Postgres {}, Kafka {broker}, {} cores; payload {} bytes, {} entities, {} partitions",
            machine.relay_version,
            machine.postgres_version,
            machine.cores,
            load.payload_bytes,
            grouped(load.entities as f64),
            load.partitions
        )?;
        if machine.relay_is_debug_build {
            writeln!(f, "A DEBUG BUILD: these figures mean nothing.")?;
        }
        writeln!(f)?;
        let mut table = Table::default();
        if let Some(drained) = &self.drain {
            table.drained("drain", drained);
        }
        table.fmt(f)
    }
}

/// A whole number with commas between its thousands.
fn grouped(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = if number <= -0.5 { "-".to_owned() } else { String::new() };
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        for (number, text) in
            [(0.0, "0"), (999.4, "999"), (1000.0, "1,000"), (1234567.0, "1,234,567"), (-4200.0, "-4,200")]
        {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn columns_are_aligned_and_a_repeated_first_column_is_left_out() {
        let mut table = Table::default();
        table.row("drain", "rate", "1");
        table.row("drain", "WAL", "2");
        table.row("idle", "CPU", "3");
        assert_eq!(table.to_string(), "drain  rate  1\n       WAL   2\nidle   CPU   3\n");
    }
}
