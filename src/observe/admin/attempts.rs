//! Counts wrong tokens by caller, and shuts a caller out for a minute after too many.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The wrong tokens that a caller may send in [`WINDOW`].
const MOST: u32 = 30;
const WINDOW: Duration = Duration::from_secs(60);

/// The callers that are remembered. Further ones are not counted until others are forgotten.
const CALLERS: usize = 1024;

/// The wrong tokens of each caller, since the first of its window.
#[derive(Debug, Default)]
pub(super) struct Attempts(Mutex<HashMap<IpAddr, (Instant, u32)>>);

impl Attempts {
    /// Returns true while a caller is shut out.
    pub(super) fn is_shut_out(&self, caller: IpAddr, now: Instant) -> bool {
        let attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        attempts.get(&caller).is_some_and(|(since, count)| *count >= MOST && is_within(*since, now))
    }

    /// Counts a wrong token. Returns true when it shuts the caller out.
    pub(super) fn count(&self, caller: IpAddr, now: Instant) -> bool {
        let mut attempts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if attempts.len() >= CALLERS {
            attempts.retain(|_, (since, _)| is_within(*since, now));
        }
        if attempts.len() >= CALLERS && !attempts.contains_key(&caller) {
            return false;
        }
        let (since, count) = attempts.entry(caller).or_insert((now, 0));
        if !is_within(*since, now) {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        *count == MOST
    }
}

fn is_within(since: Instant, now: Instant) -> bool {
    now.duration_since(since) < WINDOW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_shut_out_for_a_minute_and_no_other_one_is() {
        let (attempts, start) = (Attempts::default(), Instant::now());
        let [one, other] = [IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2])];
        let counted: Vec<_> = (0..MOST).map(|_| attempts.count(one, start)).collect();
        assert_eq!(counted.iter().filter(|shut| **shut).count(), 1, "it is reported once");
        assert!(attempts.is_shut_out(one, start) && !attempts.is_shut_out(other, start));
        assert!(!attempts.is_shut_out(one, start + WINDOW));
        assert!(!attempts.count(one, start + WINDOW));
    }

    #[test]
    fn callers_without_end_are_not_remembered() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        for number in 0..2 * CALLERS as u32 {
            attempts.count(IpAddr::from(number.to_be_bytes()), now);
        }
        assert_eq!(attempts.0.lock().unwrap().len(), CALLERS);
    }
}
