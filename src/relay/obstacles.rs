//! Keeps the reasons why a part of the events is blocked. The status line shows them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fault::{Fault, shortened};
use crate::relay::health::outage::Component;
use event_outbox::code::Code;

/// The reason why a part of the events is blocked. It lasts until each component that reported it has withdrawn it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Obstacle {
    pub(crate) why: String,
    pub(crate) fault: Option<Fault>,
    reporters: BTreeSet<Component>,
    /// The codes that were logged.
    logged: BTreeSet<Code>,
}

impl Obstacle {
    fn report(&mut self, by: Component, why: &str) {
        self.why = shortened(why).into_owned();
        self.reporters.insert(by);
    }
}

/// The obstacles of a relay, by name.
#[derive(Debug, Default)]
pub(crate) struct Obstacles(Mutex<BTreeMap<String, Obstacle>>);

impl Obstacles {
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Obstacle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that `by` meets the obstacle `what`, which blocks a part of the events. Returns true when the obstacle is new and has to be
    /// logged.
    pub(crate) fn block(&self, by: Component, what: &str, why: &str) -> bool {
        let mut all = self.all();
        let is_new = !all.contains_key(what);
        all.entry(what.to_owned()).or_default().report(by, why);
        is_new
    }

    /// Does the same for an obstacle whose reason may change. Also returns true when the reason is another.
    pub(crate) fn block_for(&self, by: Component, what: &str, why: &str) -> bool {
        let mut all = self.all();
        let is_new = all.get(what).is_none_or(|obstacle| obstacle.why != shortened(why));
        all.entry(what.to_owned()).or_default().report(by, why);
        is_new
    }

    /// Does the same for an obstacle with a known fault. Also returns true when the fault has a code that is not logged yet.
    pub(crate) fn block_by(&self, by: Component, what: &str, why: &str, fault: Fault) -> bool {
        let mut all = self.all();
        let obstacle = all.entry(what.to_owned()).or_default();
        obstacle.report(by, why);
        obstacle.fault = Some(fault);
        obstacle.logged.insert(fault.code)
    }

    /// Records that `by` no longer meets an obstacle. Returns true when nobody else meets it, so that the obstacle is over.
    pub(crate) fn unblock(&self, by: Component, what: &str) -> bool {
        let mut all = self.all();
        let is_over =
            all.get_mut(what).is_some_and(|obstacle| obstacle.reporters.remove(&by) && obstacle.reporters.is_empty());
        if is_over {
            all.remove(what);
        }
        is_over
    }

    /// Returns an obstacle, if it blocks events.
    pub(crate) fn get(&self, what: &str) -> Option<Obstacle> {
        self.all().get(what).cloned()
    }

    /// Returns all obstacles except `except` as texts.
    pub(crate) fn shown(&self, except: Option<&str>) -> Vec<String> {
        let all = self.all();
        let shown = all.iter().filter(|(what, _)| Some(what.as_str()) != except);
        shown
            .map(|(what, Obstacle { why, fault, .. })| match fault {
                // The reason of a topic ends with the code.
                Some(Fault { code, .. }) if !why.ends_with(&format!("({code})")) => format!("{what}: {why} ({code})"),
                _ => format!("{what}: {why}"),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault;

    const ONE: Component = Component::Worker(0);
    const OTHER: Component = Component::Worker(1);

    #[test]
    fn an_obstacle_lasts_until_each_worker_that_met_it_has_withdrawn_it() {
        let obstacles = Obstacles::default();
        assert!(obstacles.block_by(ONE, "partition", "no leader", fault::NO_ANSWER));
        assert!(!obstacles.block_by(OTHER, "partition", "no leader", fault::NO_ANSWER), "one line is enough");
        assert!(!obstacles.unblock(ONE, "partition"), "the other worker still meets it");
        assert_eq!(obstacles.shown(None).len(), 1);
        assert!(!obstacles.unblock(ONE, "partition"), "withdrawn already");
        assert!(obstacles.unblock(OTHER, "partition"));
        assert!(obstacles.shown(None).is_empty() && !obstacles.unblock(OTHER, "partition"));
    }

    #[test]
    fn an_obstacle_is_logged_once_and_again_after_it_was_over() {
        let obstacles = Obstacles::default();
        assert!(obstacles.block(ONE, "marks", "no row was changed"));
        assert!(!obstacles.block(ONE, "marks", "no row was changed"));
        assert!(obstacles.unblock(ONE, "marks") && obstacles.block(OTHER, "marks", "no row was changed"));
        assert_eq!(obstacles.shown(Some("marks")), Vec::<String>::new());
    }

    #[test]
    fn an_obstacle_whose_reason_changes_is_logged_again() {
        let obstacles = Obstacles::default();
        let long = "a topic keeps its events ".repeat(100);
        assert!(obstacles.block_for(ONE, "window", &long) && !obstacles.block_for(ONE, "window", &long));
        assert!(obstacles.block_for(ONE, "window", "a group is unknown"));
        assert!(obstacles.unblock(ONE, "window") && obstacles.block_for(ONE, "window", "a group is unknown"));
    }
}
