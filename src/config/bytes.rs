//! Parses sizes in bytes, as people write them.

/// Parses `16777216`, `512KB` (1000), `16MiB` (1024). Takes only whole numbers, and ignores the unit's case.
pub(super) fn parse(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim_start_matches(' ').to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_decimal_or_binary_by_their_name() {
        assert_eq!(parse("16777216"), Some(16_777_216));
        assert_eq!(parse("16MiB"), Some(16_777_216));
        assert_eq!(parse("16 mib"), Some(16_777_216));
        assert_eq!(parse("512KB"), Some(512_000));
        assert_eq!(parse("1GiB"), Some(1 << 30));
    }

    #[test]
    fn anything_else_is_no_size() {
        for text in ["", "MiB", "-1", "1.5MiB", "16Mi", "16 MB s", "99999999999GiB", "+5", " 5"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
