//! Checks host names.

/// Returns true for a host name or an IPv4 address. Allows underscores, which DNS does not have but Docker Compose resolves,
/// and one dot at the end.
pub(super) fn is_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    host.len() <= 253 && host.split('.').all(is_label)
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_letters_digits_hyphens_and_underscores() {
        for host in ["db", "db-1.shop.svc.cluster.local.", "shop_db_1", "10.0.0.1", "xn--mnchen-3ya.de"] {
            assert!(is_name(host), "{host}");
        }
        for host in ["", ".", "a..b", "-a", "a-", "a b", "a/b", "a%20b", "münchen", &"x".repeat(64), &"x.".repeat(200)]
        {
            assert!(!is_name(host), "{host}");
        }
    }
}
