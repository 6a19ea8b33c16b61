//! Parses a point in time from the command line.

use std::time::Duration;

use chrono::{DateTime, Utc};

/// Parses a time: `2h` means two hours ago, or `2026-01-31T12:00:00Z`.
pub(super) fn time_arg(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return before_now(ago).ok_or_else(|| "the time is too far in the past".to_owned());
    }
    DateTime::parse_from_rfc3339(text)
        .map(|time| time.to_utc())
        .map_err(|_| "expected a duration such as 2h or 7d, or a time such as 2026-01-31T12:00:00Z".to_owned())
}

fn before_now(ago: Duration) -> Option<DateTime<Utc>> {
    Utc::now().checked_sub_signed(chrono::TimeDelta::from_std(ago).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_length_of_time_or_a_moment() {
        assert_eq!(time_arg("2026-01-31T12:00:00Z").map(|time| time.timestamp()), Ok(1_769_860_800));
        let then = time_arg("2h").expect("a length of time");
        assert_eq!((Utc::now() - then).num_hours(), 2);
        for wrong in ["yesterday", "2026-01-31", "", "999999999y"] {
            assert!(time_arg(wrong).is_err(), "{wrong}");
        }
    }
}
