//! A snapshot as `pg_current_snapshot()` prints it: which transactions had not ended when a statement began.

use std::str::FromStr;

/// `xmin:xmax:xip_list`. Transaction ids are 64 bits with the epoch and never wrap
/// (<https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT>).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Snapshot {
    /// Every transaction below has ended.
    pub(crate) xmin: u64,
    /// No transaction from here on had an id yet.
    pub(crate) xmax: u64,
    /// Transactions in `xmin..xmax` still running, ascending.
    pub(crate) running: Vec<u64>,
}

impl Snapshot {
    /// True when the transaction had ended, and so everything it committed was visible.
    pub(crate) fn has_ended(&self, xid: u64) -> bool {
        xid < self.xmin || (xid < self.xmax && self.running.binary_search(&xid).is_err())
    }
}

/// The text was not a snapshot.
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

    #[test]
    fn a_snapshot_tells_ended_from_running_and_future_transactions() {
        let snapshot: Snapshot = "10:20:10,14,15".parse().expect("a snapshot");
        assert!(snapshot.has_ended(9) && snapshot.has_ended(11) && snapshot.has_ended(19));
        assert!(!snapshot.has_ended(10) && !snapshot.has_ended(14) && !snapshot.has_ended(20));
        assert_eq!("7:7:".parse::<Snapshot>().expect("an empty list").running, Vec::<u64>::new());
        assert!("7:7".parse::<Snapshot>().is_err() && "a:b:".parse::<Snapshot>().is_err());
    }
}
