//! Shows a line per order. On a terminal the line grows with its events; elsewhere it is printed once the order is done.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::Utc;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use uuid::Uuid;

use crate::demo::output::DemoOutput;
use crate::demo::watch::Sighting;

/// The lines of all orders. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    output: DemoOutput,
    /// The terminal; `None` if stderr is not one.
    screen: Option<MultiProgress>,
    orders: Arc<Mutex<Orders>>,
}

#[derive(Debug, Default)]
struct Orders {
    lines: BTreeMap<String, (History, Option<ProgressBar>)>,
    seen: HashSet<Uuid>,
}

/// The history of an order, as far as the topics have shown it.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    order_id: String,
    version: i32,
    steps: Vec<(i64, &'static str)>,
    shown: bool,
}

impl Timeline {
    pub(super) fn new(output: DemoOutput) -> Self {
        let screen = std::io::stderr().is_terminal().then(MultiProgress::new);
        Self { output, screen, orders: Arc::default() }
    }

    /// Prints a line of the demo itself, above the orders.
    pub(super) fn say(&self, line: impl fmt::Display) {
        match &self.screen {
            Some(screen) => screen.suspend(|| self.output.say(line)),
            None => self.output.say(line),
        }
    }

    /// Adds a record of the topics.
    pub(super) fn see(&self, sighting: &Sighting) {
        let mut orders = self.orders();
        let Some(event_id) = sighting.event_id else { return };
        if !orders.seen.insert(event_id) {
            return;
        }
        // Orders before this one that still grow have their line.
        let before = orders.lines.range(..sighting.order_id.clone());
        let place = before.filter(|(_, (history, line))| line.is_some() && !history.shown).count();
        let (history, line) = orders.lines.entry(sighting.order_id.clone()).or_default();
        history.see(sighting);
        if let Some(screen) = &self.screen {
            let bar = line.get_or_insert_with(|| screen.insert(place, blank()));
            bar.set_message(history.to_string());
            // A finished order scrolls up, so that the lines that still grow always fit on the screen.
            if history.is_complete() && !std::mem::replace(&mut history.shown, true) {
                screen.remove(bar);
                screen.suspend(|| self.output.say(&*history));
            }
        } else if history.is_complete() && !std::mem::replace(&mut history.shown, true) {
            self.output.say(&*history);
        }
    }

    /// Leaves the lines as they are. Later output is printed below.
    pub(super) fn close(&self) {
        for (_, line) in self.orders().lines.values().filter(|(history, _)| !history.shown) {
            line.iter().for_each(ProgressBar::abandon);
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blank() -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new_spinner().with_style(style)
}

/// Returns the words for an event in an order's line.
fn words(event_type: &str) -> &'static str {
    match event_type {
        "OrderPlaced" => "placed",
        "StockReserved" => "goods set aside",
        "StockRefused" => "out of stock",
        "PaymentTaken" => "paid",
        "PaymentRefused" => "payment refused",
        "OrderOverdue" => "overdue",
        "OrderConfirmed" => "CONFIRMED",
        "OrderCancelled" => "CANCELLED",
        "StockReleased" => "goods put back",
        "PaymentRefunded" => "refunded",
        "MailSent" => "mail sent",
        _ => "?",
    }
}

impl History {
    fn see(&mut self, sighting: &Sighting) {
        // The deadline of a finished order is not shown.
        if sighting.event_type == "OrderOverdue" && self.has("OrderConfirmed", "OrderCancelled") {
            return;
        }
        if sighting.event_type == "OrderPlaced" {
            self.version = sighting.version;
        }
        self.order_id.clone_from(&sighting.order_id);
        // This event was written with the order, long before it was due.
        let at = if sighting.event_type == "OrderOverdue" { Utc::now().timestamp_millis() } else { sighting.at };
        self.steps.push((at, words(&sighting.event_type)));
        // The events come from several topics, so some arrive a little late.
        self.steps.sort_by_key(|(at, _)| *at);
    }

    fn has(&self, one: &str, other: &str) -> bool {
        self.steps.iter().any(|(_, step)| *step == words(one) || *step == words(other))
    }

    /// Returns true if no more events are expected.
    fn is_complete(&self) -> bool {
        let compensated = |done: &str, undone: &str| !self.has(done, done) || self.has(undone, undone);
        let cancelled = self.has("OrderCancelled", "OrderCancelled");
        let undone = compensated("StockReserved", "StockReleased") && compensated("PaymentTaken", "PaymentRefunded");
        self.has("MailSent", "MailSent") && (!cancelled || undone)
    }
}

impl fmt::Display for History {
    /// Writes `o-003 v1 | placed, +0.04 goods set aside, …`. The numbers are seconds since the order was placed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} |", self.order_id, self.version)?;
        let start = self.steps.first().map_or(0, |(at, _)| *at);
        for (index, (at, step)) in self.steps.iter().enumerate() {
            match index {
                0 => write!(f, " {step}")?,
                _ => write!(f, ", +{}.{:02} {step}", (at - start) / 1000, (at - start) % 1000 / 10)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use event_outbox::ledger::Fingerprint;

    use super::*;

    fn history(steps: &[(i64, &str)]) -> History {
        let mut history = History::default();
        for (at, event_type) in steps {
            history.see(&Sighting {
                topic: "order-events".to_owned(),
                partition: 0,
                offset: 0,
                event_id: None,
                event_type: (*event_type).to_owned(),
                version: 1,
                order_id: "o-1".to_owned(),
                at: *at,
                fingerprint: Fingerprint::from_key_value(None, None),
            });
        }
        history
    }

    #[test]
    fn an_order_is_shown_in_the_order_of_time_and_not_of_arrival() {
        let history = history(&[(1_000, "OrderPlaced"), (2_250, "PaymentTaken"), (1_040, "StockReserved")]);
        assert_eq!(history.to_string(), "o-1 v1 | placed, +0.04 goods set aside, +1.25 paid");
    }

    #[test]
    fn a_cancelled_order_is_complete_when_what_was_done_is_undone() {
        let mut steps = vec![(1, "OrderPlaced"), (2, "StockReserved"), (3, "PaymentRefused"), (4, "OrderCancelled")];
        steps.push((5, "MailSent"));
        assert!(!history(&steps).is_complete());
        steps.push((6, "StockReleased"));
        assert!(history(&steps).is_complete());
    }
}
