//! Reports the mistakes of a configuration: all mistakes of a start at once, each on a line that an operator can act on.

use std::fmt;

/// Every mistake found in one configuration, in the order of its layers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError(pub Vec<Mistake>);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            mistake.fmt(f)?;
        }
        Ok(())
    }
}

/// The problem of a name that no setting has.
pub(super) const UNKNOWN_SETTING: &str = "unknown setting";

/// One mistake. No field ever holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistake {
    /// The place of the value: `RELAY_BATCH_SIZE`, `relay.toml:3: batch_size` or `--set batch_size`.
    pub setting: String,
    /// The given value; `None` for a secret and for a missing setting.
    pub given: Option<String>,
    /// The problem; empty if `given` and `accepted` explain enough.
    pub problem: String,
    /// The accepted values.
    pub accepted: Option<String>,
    /// The known name or value that is most similar.
    pub nearest: Option<String>,
}

impl Mistake {
    pub(super) fn new(setting: impl Into<String>, problem: impl Into<String>) -> Self {
        Mistake { setting: setting.into(), problem: problem.into(), ..Mistake::default() }
    }

    pub(super) fn expected(mut self, accepted: impl Into<String>) -> Self {
        self.accepted = Some(accepted.into());
        self
    }

    pub(super) fn given(mut self, text: &str) -> Self {
        self.given = showable(text).then(|| text.to_owned());
        self
    }

    /// Returns true for an unknown name that resembles no known one.
    pub(super) fn is_unlike_any(&self) -> bool {
        self.problem == UNKNOWN_SETTING && self.nearest.is_none()
    }

    pub(super) fn nearest(mut self, name: Option<String>) -> Self {
        self.nearest = name;
        self
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.setting)?;
        let given = self.given.as_ref().map(|text| format!("given {text:?}"));
        let problem = Some(self.problem.clone()).filter(|problem| !problem.is_empty());
        let accepted = self.accepted.as_ref().map(|accepted| format!("expected {accepted}"));
        f.write_str(&[given, problem, accepted].into_iter().flatten().collect::<Vec<_>>().join(", "))?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean {nearest}?"),
            None => Ok(()),
        }
    }
}

/// Returns false if the text may be a secret in the wrong place: credentials in a URL, a PEM block, a long blob.
pub(super) fn showable(text: &str) -> bool {
    text.len() <= 200 && !text.contains('@') && !text.contains("-----BEGIN") && !text.contains(['\n', '\r'])
}

/// Returns a given name for display, or a placeholder if it is no name: a URL after `--set`, or text that would break the line.
pub(super) fn shown_name(name: &str) -> &str {
    let is_name = name.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-' | ' '));
    if is_name && showable(name) { name } else { "(not a name)" }
}

/// Finds the known name that is most similar to `name`, if one is similar enough. Ignores case.
pub(super) fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Below a similarity of two thirds, suggestions are noise.
    const ALIKE: f64 = 0.66;
    let name = name.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(score, _)| *score >= ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_is_one_line_with_what_was_given_and_what_is_accepted() {
        let wrong = Mistake::new("RELAY_BATCH_SIZE", "").given("0").expected("an integer from 1 to 100000");
        assert_eq!(wrong.to_string(), "RELAY_BATCH_SIZE: given \"0\", expected an integer from 1 to 100000");
        let unknown = Mistake::new("RELAY_BATCHSIZE", "unknown setting").nearest(Some("RELAY_BATCH_SIZE".into()));
        assert_eq!(unknown.to_string(), "RELAY_BATCHSIZE: unknown setting; did you mean RELAY_BATCH_SIZE?");
        assert_eq!(ConfigError(vec![wrong, unknown]).to_string().lines().count(), 2);
    }

    #[test]
    fn what_looks_like_a_secret_in_the_wrong_place_is_not_repeated() {
        for text in ["postgres://u:hunter2@h/d", "-----BEGIN PRIVATE KEY-----", "two\nlines", &"x".repeat(201)] {
            assert_eq!(Mistake::new("RELAY_TABLE", "").given(text).given, None, "{text}");
        }
    }

    #[test]
    fn what_is_no_name_is_not_repeated_as_one() {
        for name in ["postgres://u:hunter2@h/d", "hunter2\nhunter2", "hunter2\u{1b}[31m"] {
            assert_eq!(shown_name(name), "(not a name)");
        }
        assert_eq!(shown_name("kafka.linger.ms"), "kafka.linger.ms");
    }

    #[test]
    fn only_a_name_that_resembles_is_suggested() {
        let known = ["batch_size", "batch_bytes", "workers"];
        assert_eq!(nearest("BATCHSIZE", known), Some("batch_size"));
        assert_eq!(nearest("worker", known), Some("workers"));
        assert_eq!(nearest("colour", known), None);
    }
}
