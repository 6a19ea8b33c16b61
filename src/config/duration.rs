//! Parses and prints durations, as people write them.

use std::fmt;
use std::ops::Deref;
use std::str::FromStr;
use std::time::Duration;

/// The longest text that is accepted as a duration, enough for `1h 30m 15s 250ms`. humantime panics on some sums of seconds near
/// `u64::MAX`; these need more digits than fit.
const MAX_TEXT: usize = 20;

/// The units of a computed duration, in nanoseconds, the longest first. Months are left out, because their length differs.
const UNITS: [(&str, u128); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("m", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// The length of a year in humantime.
const YEAR_NANOS: u128 = 31_557_600_000_000_000;

/// A duration that prints as it was given: `90d` stays `90d`, `24h` stays `24h`. The printed text parses to the same duration.
///
/// One that was computed prints in years if they are whole, else in days and shorter units: `10y`, `90d`, `30m 1ms`.
#[derive(Clone, Copy, Default)]
pub struct GivenDuration {
    length: Duration,
    /// The text, padded with zeros. Only zeros mean that the duration was computed.
    text: [u8; MAX_TEXT],
}

impl GivenDuration {
    /// Returns the duration without its text.
    pub fn length(self) -> Duration {
        self.length
    }
}

impl From<Duration> for GivenDuration {
    fn from(length: Duration) -> Self {
        Self { length, text: [0; MAX_TEXT] }
    }
}

/// The error for a text that is not a duration, or is too long.
#[derive(Debug, thiserror::Error)]
#[error("expected a duration with its unit, such as 250ms, 30m or 90d")]
pub struct NotADuration;

impl FromStr for GivenDuration {
    type Err = NotADuration;

    /// Parses `250ms`, `1m 30s`, `2h`. Rejects a number without a unit.
    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let mut given = [0; MAX_TEXT];
        let shown = text.trim();
        given.get_mut(..shown.len()).ok_or(NotADuration)?.copy_from_slice(shown.as_bytes());
        let length = humantime::parse_duration(shown).map_err(|_| NotADuration)?;
        Ok(Self { length, text: given })
    }
}

impl fmt::Display for GivenDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = self.text.iter().position(|byte| *byte == 0).unwrap_or(MAX_TEXT);
        match std::str::from_utf8(&self.text[..end]) {
            Ok(text) if !text.is_empty() => f.pad(text),
            _ => f.pad(&computed(self.length)),
        }
    }
}

fn computed(length: Duration) -> String {
    let mut nanos = length.as_nanos();
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos.is_multiple_of(YEAR_NANOS) {
        return format!("{}y", nanos / YEAR_NANOS);
    }
    let mut parts = Vec::new();
    for (unit, size) in UNITS {
        let count = nanos / size;
        if count > 0 {
            parts.push(format!("{count}{unit}"));
        }
        nanos %= size;
    }
    parts.join(" ")
}

impl fmt::Debug for GivenDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl Deref for GivenDuration {
    type Target = Duration;

    fn deref(&self) -> &Duration {
        &self.length
    }
}

/// Compares lengths, not texts: `24h` equals `1d`.
impl PartialEq for GivenDuration {
    fn eq(&self, other: &Self) -> bool {
        self.length == other.length
    }
}

impl Eq for GivenDuration {}

/// Parses `250ms`, `1m 30s`, `2h`. Rejects a number without a unit.
pub(super) fn parse(text: &str) -> Option<GivenDuration> {
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_duration_needs_its_unit() {
        assert_eq!(parse("250ms"), Some(Duration::from_millis(250).into()));
        assert_eq!(parse("1m 30s"), Some(Duration::from_secs(90).into()));
        for text in ["250", "", " ", "-1s", "-1", "never", "1 fortnight", "18446744073709551615s 1000ms"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_duration_prints_as_it_was_given() {
        for text in ["90d", "24h", "1h 30m", "90m", "3months", "1500ms", "2weeks", "0s"] {
            assert_eq!(parse(text).map(|given| given.to_string()).as_deref(), Some(text));
        }
        assert_eq!(parse(" 90d ").map(|given| given.to_string()).as_deref(), Some("90d"));
    }

    #[test]
    fn a_computed_duration_prints_in_units_that_have_one_length() {
        for (millis, shown) in
            [(0, "0s"), (90_000, "1m 30s"), (7_776_000_000, "90d"), (1_800_001, "30m 1ms"), (315_576_000_000, "10y")]
        {
            assert_eq!(GivenDuration::from(Duration::from_millis(millis)).to_string(), shown);
        }
    }

    /// Generates durations in whole units and in odd ones, from nanoseconds to the longest.
    fn durations() -> impl Strategy<Value = Duration> {
        let whole = (0_usize..UNITS.len(), 0_u64..=1_000_000).prop_map(|(unit, count)| {
            let nanos = UNITS[unit].1 * u128::from(count);
            Duration::new((nanos / 1_000_000_000) as u64, (nanos % 1_000_000_000) as u32)
        });
        prop_oneof![whole, (any::<u64>(), 0_u32..1_000_000_000).prop_map(|(secs, nanos)| Duration::new(secs, nanos))]
    }

    proptest! {
        #[test]
        fn what_a_computed_duration_prints_is_read_back(duration in durations()) {
            let shown = GivenDuration::from(duration).to_string();
            prop_assert_eq!(humantime::parse_duration(&shown).ok(), Some(duration), "{}", shown);
            prop_assert!(shown.len() > MAX_TEXT || parse(&shown) == Some(duration.into()), "{}", shown);
        }

        #[test]
        fn what_a_given_duration_prints_is_read_back(text in "([1-9][0-9]{0,3} ?(d|h|m|s|ms|days|weeks|months|years) ?){1,3}") {
            if let Some(given) = parse(&text) {
                prop_assert_eq!(given.to_string(), text.trim());
                prop_assert_eq!(parse(&given.to_string()), Some(given));
                prop_assert_eq!(humantime::parse_duration(&text).ok(), Some(given.length()));
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in "[0-9]{1,22}[a-z]{0,3} ?[0-9]{0,12}[a-z]{0,3}|\\PC*") {
            parse(&text);
        }
    }
}
