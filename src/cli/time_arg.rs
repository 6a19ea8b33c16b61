//! Parses a point in time from the command line.

use chrono::{DateTime, NaiveDate, NaiveTime, Utc};

/// Parses a time: `2h` means two hours ago; or one that the relay or Postgres has printed; or a day, which begins at midnight UTC.
pub(super) fn time_arg(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        let ago = chrono::TimeDelta::from_std(ago).ok();
        let then = ago.and_then(|ago| Utc::now().checked_sub_signed(ago));
        return then.ok_or_else(|| "the time is too far in the past".to_owned());
    }
    let printed = text.trim_end_matches(" UTC");
    let with_zone = || DateTime::parse_from_str(printed, "%Y-%m-%d %H:%M:%S%.f%#z").ok();
    let in_utc = || chrono::NaiveDateTime::parse_from_str(printed, "%Y-%m-%d %H:%M:%S%.f").ok();
    let day = || Some(printed.parse::<NaiveDate>().ok()?.and_time(NaiveTime::MIN));
    let time = DateTime::parse_from_rfc3339(text).ok().or_else(with_zone).map(|time| time.to_utc());
    time.or_else(|| in_utc().or_else(day).map(|time| time.and_utc()))
        .ok_or_else(|| "expected a duration such as 2h or 7d, or a time such as 2026-01-31T12:00:00Z".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_length_of_time_or_a_moment() {
        let then = time_arg("2h").expect("a length of time");
        assert_eq!((Utc::now() - then).num_hours(), 2);
        for wrong in ["yesterday", "2026-13-31", "", "12:00", "999999999y"] {
            assert!(time_arg(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_is_taken_in_every_form_in_which_it_is_printed() {
        for noon in [
            "2026-01-31T12:00:00Z",
            "2026-01-31T12:00:00.000000+00:00",
            "2026-01-31T13:00:00+01:00",
            "2026-01-31 12:00:00 UTC",
            "2026-01-31 12:00:00",
            "2026-01-31 12:00:00.000+00",
            "2026-01-31 13:00:00+01",
            "2026-01-31 17:30:00+05:30",
        ] {
            assert_eq!(time_arg(noon).map(|time| time.timestamp()), Ok(1_769_860_800), "{noon}");
        }
        let midnight = time_arg("2026-01-31").expect("a day");
        assert_eq!(midnight.timestamp(), 1_769_860_800 - 12 * 3_600);
        let exact = Utc::now();
        assert_eq!(time_arg(&super::super::output::time(exact)), Ok(exact));
    }
}
