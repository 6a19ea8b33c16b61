//! Lists each option of a connector with its verdict.

use std::fmt;

use serde::Serialize;

use crate::observe::terminal::{Tone, paint};
use crate::text;

/// The verdict about an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// Consumers see what they saw.
    Kept,
    /// Consumers or operators see a difference, which the text names.
    Differs,
    /// Nothing is written until the option is changed or given up.
    Refused,
}

/// One option with its verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    /// The name in the file.
    pub(crate) option: String,
    /// The value in the file; missing for a default, and for an option that may hold a secret.
    pub(crate) value: Option<String>,
    pub(crate) verdict: Verdict,
    /// The text says how it is kept, how it differs, or why it is refused.
    pub(crate) text: String,
}

/// All options, in the order in which they are shown: refused, different, kept.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Report(pub(crate) Vec<Line>);

/// Returns the place of a verdict in the order from bad to good.
fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Refused => 0,
        Verdict::Differs => 1,
        Verdict::Kept => 2,
    }
}

impl Report {
    pub(super) fn add(&mut self, option: &str, value: Option<&str>, verdict: Verdict, text: impl Into<String>) {
        let value = value.map(str::to_owned);
        let line = Line { option: option.to_owned(), value, verdict, text: text.into() };
        match self.0.iter_mut().find(|other| other.option == option) {
            // The worst verdict about an option counts.
            Some(other) if rank(other.verdict) > rank(verdict) => *other = line,
            Some(_) => {}
            None => self.0.push(line),
        }
    }

    pub(super) fn sort(&mut self) {
        self.0.sort_by(|a, b| rank(a.verdict).cmp(&rank(b.verdict)).then_with(|| a.option.cmp(&b.option)));
    }

    /// Returns the number of options with this verdict.
    pub(crate) fn count(&self, verdict: Verdict) -> usize {
        self.0.iter().filter(|line| line.verdict == verdict).count()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.0 {
            let verdict = match line.verdict {
                Verdict::Kept => paint(Tone::Good, "kept   "),
                Verdict::Differs => paint(Tone::Doubtful, "differs"),
                Verdict::Refused => paint(Tone::Bad, "refused"),
            };
            let value =
                line.value.as_deref().map_or_else(String::new, |value| format!("={}", text::name(value).at_most(80)));
            writeln!(f, "{verdict}  {}{value}\n           {}", text::name(&line.option), text::sentence(&line.text))?;
        }
        Ok(())
    }
}
