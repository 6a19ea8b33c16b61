//! Checks log directives: a level, or `target=level` pairs.

use tracing_subscriber::EnvFilter;

use super::mistake::nearest;

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// `EnvFilter` takes a bare word that is no level for the name of a target, so that `verbose` or `inof` would turn all other
/// logs off. A target is written `target=level` here.
pub(super) fn directives(text: &str) -> Result<String, String> {
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    for word in &words {
        let bare = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if bare && !LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level)) {
            let near = nearest(word, LEVELS).map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            return Err(format!("{word:?} is no level, expected one of {}, or target=level{near}", LEVELS.join(", ")));
        }
    }
    let joined = words.join(",");
    EnvFilter::try_new(&joined).map(|_| joined).map_err(|_| String::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_targets_are_taken() {
        for text in ["info", "INFO", "off", "warn,outbox_relay=debug", "outbox_relay[cycle{a=1}]=trace"] {
            assert_eq!(directives(text).as_deref(), Ok(text));
        }
        assert_eq!(directives(" info, sqlx::query=warn ").as_deref(), Ok("info,sqlx::query=warn"));
    }

    #[test]
    fn what_would_silence_the_logs_is_refused() {
        assert!(directives("inof").unwrap_err().contains("did you mean info?"));
        for text in ["", " ", "verbose", "info,", "info,sqlx", "outbox_relay=loud", "a=b=c"] {
            assert!(directives(text).is_err(), "{text}");
        }
    }
}
