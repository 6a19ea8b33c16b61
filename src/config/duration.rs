//! Lengths of time, as people write them.

use std::time::Duration;

/// Longest text taken for a duration: `1h 30m 15s 250ms` and no more. humantime panics on some sums of seconds near
/// `u64::MAX`, which need more digits than fit.
const MAX_TEXT: usize = 20;

/// Parses `250ms`, `1m 30s`, `2h`. A number without a unit is refused.
pub(super) fn parse(text: &str) -> Option<Duration> {
    if text.len() > MAX_TEXT {
        return None;
    }
    humantime::parse_duration(text).ok()
}

/// `250ms`, `1m 30s`: what [`parse`] takes.
pub(super) fn shown(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250)));
        assert_eq!(parse("1m 30s"), Some(Duration::from_secs(90)));
        for text in ["250", "", " ", "-1s", "-1", "never", "1 fortnight", "18446744073709551615s 1000ms"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_shown_is_read_back(millis in 0_u64..=3_600_000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse(&shown(duration)), Some(duration));
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9]{1,22}[a-z]{0,3} ?[0-9]{0,12}[a-z]{0,3}|\\PC*") {
            parse(&text);
        }
    }
}
