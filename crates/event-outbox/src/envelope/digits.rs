//! Prints numbers, ids and times into a stack buffer of the caller. This runs for every event, and `to_string` would allocate.

use std::io::Write;

use chrono::{DateTime, Datelike, Timelike, Utc};
use uuid::Uuid;

/// Prints decimal digits, with a leading `-` if negative. `i64::MIN` fills the buffer.
pub(super) fn decimal(value: i64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut rest = value.unsigned_abs();
    let mut start = buffer.len();
    loop {
        start -= 1;
        buffer[start] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    if value < 0 {
        start -= 1;
        buffer[start] = b'-';
    }
    &buffer[start..]
}

/// Prints the id in lower case with hyphens, as Postgres does.
pub(super) fn uuid(id: Uuid, buffer: &mut [u8; 36]) -> &[u8] {
    id.hyphenated().encode_lower(buffer).as_bytes()
}

/// Prints a time in UTC by RFC 3339 with the six decimal places of Postgres: `2025-11-21T09:07:00.000001Z`.
///
/// RFC 3339 ends with the year 9999, Postgres does not. Other years get a sign, as in ISO 8601, and the buffer has room for them.
pub(super) fn timestamp(at: DateTime<Utc>, buffer: &mut [u8; 32]) -> &[u8] {
    let Ok(year @ 0..=9999) = u32::try_from(at.year()) else { return far_timestamp(at, buffer) };
    // chrono represents a leap second by 1,000,000 and more microseconds; RFC 3339 writes second 60.
    let micros = at.nanosecond() / 1_000;
    let second = at.second() + micros / 1_000_000;
    put(&mut buffer[0..4], year);
    buffer[4] = b'-';
    put(&mut buffer[5..7], at.month());
    buffer[7] = b'-';
    put(&mut buffer[8..10], at.day());
    buffer[10] = b'T';
    put(&mut buffer[11..13], at.hour());
    buffer[13] = b':';
    put(&mut buffer[14..16], at.minute());
    buffer[16] = b':';
    put(&mut buffer[17..19], second);
    buffer[19] = b'.';
    put(&mut buffer[20..26], micros % 1_000_000);
    buffer[26] = b'Z';
    &buffer[..27]
}

/// Fills `slot` with the zero-padded digits of `value`.
fn put(slot: &mut [u8], mut value: u32) {
    for digit in slot.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

fn far_timestamp(at: DateTime<Utc>, buffer: &mut [u8; 32]) -> &[u8] {
    let mut rest = &mut buffer[..];
    write!(rest, "{}", at.format("%Y-%m-%dT%H:%M:%S.%6fZ")).expect("the widest year fits the buffer");
    let free = rest.len();
    &buffer[..buffer.len() - free]
}

#[cfg(test)]
mod tests {
    use chrono::SecondsFormat;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_widest_values_fit_their_buffers() {
        assert_eq!(decimal(i64::MIN, &mut [0; 20]), i64::MIN.to_string().as_bytes());
        assert_eq!(decimal(i64::MAX, &mut [0; 20]), i64::MAX.to_string().as_bytes());
        let far = |at| String::from_utf8(timestamp(at, &mut [0; 32]).to_vec()).expect("ASCII");
        assert_eq!(far(DateTime::<Utc>::MAX_UTC), "+262142-12-31T23:59:59.999999Z");
        assert_eq!(far(DateTime::<Utc>::MIN_UTC), "-262143-01-01T00:00:00.000000Z");
    }

    #[test]
    fn a_time_without_a_fraction_still_has_six_digits() {
        let at = DateTime::from_timestamp(0, 0).expect("the epoch");
        assert_eq!(timestamp(at, &mut [0; 32]), b"1970-01-01T00:00:00.000000Z");
    }

    proptest! {
        #[test]
        fn numbers_are_printed_as_the_standard_library_prints_them(value: i64) {
            assert_eq!(decimal(value, &mut [0; 20]), value.to_string().as_bytes());
        }

        #[test]
        fn times_are_printed_as_chrono_prints_them(micros in -62_167_219_200_000_000_i64..253_402_300_800_000_000) {
            let at = DateTime::from_timestamp_micros(micros).expect("in chrono's range");
            let expected = at.to_rfc3339_opts(SecondsFormat::Micros, true);
            assert_eq!(timestamp(at, &mut [0; 32]), expected.as_bytes());
        }
    }
}
