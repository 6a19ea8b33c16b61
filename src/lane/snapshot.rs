//! Parses and combines snapshots as `pg_current_snapshot()` prints them. A snapshot says which transactions had ended when a statement
//! began.

use std::fmt;
use std::str::FromStr;

/// A snapshot with the text `xmin:xmax:xip_list`. Transaction ids are 64 bits with the epoch and never wrap
/// (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>).
///
/// `xmax` is the last transaction that has *ended*, plus one. Transactions from `xmax` on may be running, and are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The lowest id that may be running: every transaction below has ended.
    pub(crate) xmin: u64,
    /// The upper bound: no transaction with this id or a higher one has ended.
    pub(crate) xmax: u64,
    /// The transactions in `xmin..xmax` that are running, ascending.
    pub(crate) running: Vec<u64>,
}

impl Default for Snapshot {
    /// Returns the oldest snapshot that Postgres accepts (`3:3:`). It sees no transaction of an application.
    fn default() -> Self {
        Self { xmin: 3, xmax: 3, running: Vec::new() }
    }
}

impl Snapshot {
    /// Returns true when the transaction had ended, so that its commit was visible. Same as `pg_visible_in_snapshot`.
    pub(crate) fn sees(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }

    /// Returns the same snapshot with `xid` as running. A snapshot does not list the transaction that takes it. Without this, rows that
    /// this transaction makes pending later would count as seen.
    pub(crate) fn without(mut self, xid: u64) -> Self {
        if self.sees(xid) {
            let at = self.running.partition_point(|running| *running < xid);
            self.running.insert(at, xid);
            self.xmin = self.xmin.min(xid);
        }
        self
    }

    /// Returns the snapshot that sees exactly what both see. Neither of the two has to see all that the other sees, because a snapshot does
    /// not list the transaction that takes it.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let xmax = self.xmax.min(other.xmax);
        let mut running: Vec<u64> =
            self.running.iter().chain(&other.running).copied().filter(|xid| *xid < xmax).collect();
        running.sort_unstable();
        running.dedup();
        Self { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.xmin, self.xmax)?;
        for (at, xid) in self.running.iter().enumerate() {
            write!(f, "{}{xid}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// The error for a text that is not a snapshot.
#[derive(Debug, thiserror::Error)]
#[error("not a snapshot: {0:?}")]
pub(crate) struct BadSnapshot(String);

impl FromStr for Snapshot {
    type Err = BadSnapshot;

    fn from_str(text: &str) -> Result<Self, BadSnapshot> {
        let parse = || {
            let mut parts = text.splitn(3, ':');
            let xmin = parts.next()?.parse().ok()?;
            let xmax = parts.next()?.parse().ok()?;
            let list = parts.next()?;
            let mut running: Vec<u64> = if list.is_empty() {
                Vec::new()
            } else {
                list.split(',').map(str::parse).collect::<Result<_, _>>().ok()?
            };
            running.sort_unstable();
            Some(Self { xmin, xmax, running })
        };
        parse().ok_or_else(|| BadSnapshot(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        text.parse().expect("a snapshot")
    }

    #[test]
    fn a_snapshot_tells_ended_from_running_and_later_transactions() {
        let seen = snapshot("10:20:10,14,15");
        assert!(seen.sees(9) && seen.sees(11) && seen.sees(19));
        assert!(!seen.sees(10) && !seen.sees(14) && !seen.sees(20));
        assert_eq!(snapshot("7:7:").running, Vec::<u64>::new());
        assert!("7:7".parse::<Snapshot>().is_err() && "a:b:".parse::<Snapshot>().is_err());
        assert_eq!(seen.to_string(), "10:20:10,14,15");
        assert!(!Snapshot::default().sees(3));
    }

    #[test]
    fn the_own_transaction_is_running_until_it_is_not() {
        let seen = snapshot("20:30:20,25").without(17);
        assert_eq!(seen.to_string(), "17:30:17,20,25");
        assert_eq!(snapshot("20:30:20,25").without(22).to_string(), "20:30:20,22,25");
        // The snapshot does not see these transactions in any case.
        assert_eq!(snapshot("20:30:20").without(30).to_string(), "20:30:20");
        assert_eq!(snapshot("20:30:20").without(20).to_string(), "20:30:20");
    }

    #[test]
    fn an_intersection_sees_what_both_see() {
        let both = |one: &str, other: &str| {
            let (one, other) = (snapshot(one), snapshot(other));
            assert_eq!(one.intersection(&other), other.intersection(&one));
            one.intersection(&other).to_string()
        };
        assert_eq!(both("10:20:10,14", "14:20:14"), "10:20:10,14");
        assert_eq!(both("14:21:14", "10:20:10,14"), "10:20:10,14");
        // Each snapshot was taken by a transaction that the other one lists.
        assert_eq!(both("9:12:9", "10:12:10"), "9:12:9,10");
        assert_eq!(both("20:30:25", "18:18:"), "18:18:");
    }

    proptest::proptest! {
        #[test]
        fn an_intersection_sees_no_more_and_no_less(
            one in (3u64..40, proptest::collection::btree_set(3u64..40, 0..6)),
            other in (3u64..40, proptest::collection::btree_set(3u64..40, 0..6)),
        ) {
            let of = |(xmax, running): (u64, std::collections::BTreeSet<u64>)| {
                let running: Vec<u64> = running.into_iter().filter(|xid| *xid < xmax).collect();
                Snapshot { xmin: running.first().copied().unwrap_or(xmax), xmax, running }
            };
            let (one, other) = (of(one), of(other));
            let both = one.intersection(&other);
            for xid in 3..45 {
                proptest::prop_assert_eq!(both.sees(xid), one.sees(xid) && other.sees(xid), "{}", xid);
            }
        }
    }
}
