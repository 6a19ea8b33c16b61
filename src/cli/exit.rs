//! Exit codes, picked here and nowhere else: 0 fine, 1 a finding, 2 usage, 64 bad configuration, 70 unexpected, 130
//! interrupted.

use std::error::Error;
use std::process::ExitCode;

use crate::config::ConfigError;

const FINDING: u8 = 1;
const USAGE: u8 = 2;
const BAD_CONFIGURATION: u8 = 64;
const UNEXPECTED: u8 = 70;
/// What shells make of a SIGINT.
pub(super) const INTERRUPTED: u8 = 130;

/// A command that did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
}

impl Failure {
    /// Something the user has to know or do; the command itself worked as it should.
    pub(crate) fn finding(message: impl Into<String>) -> Self {
        Self { code: FINDING, message: message.into(), cause: None, hint: None }
    }

    /// The command line asks for something there is not.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into(), cause: None, hint: None }
    }

    /// Something that should not have happened.
    pub(crate) fn unexpected(message: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self { code: UNEXPECTED, message: message.into(), cause: Some(cause.into()), hint: None }
    }

    /// What was asked for contradicts itself.
    #[cfg(feature = "demo")]
    pub(crate) fn bad_configuration(message: impl Into<String>) -> Self {
        Self { code: BAD_CONFIGURATION, message: message.into(), cause: None, hint: None }
    }

    /// The user ended it.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self { code: INTERRUPTED, message: message.into(), cause: None, hint: None }
    }

    pub(crate) fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Prints the failure: what failed, why, what to do next.
    pub(crate) fn report(self) -> ExitCode {
        eprintln!("error: {}", self.message);
        let mut cause = self.cause.as_deref().map(|cause| cause as &dyn Error);
        while let Some(error) = cause {
            eprintln!("  caused by: {error}");
            cause = error.source();
        }
        if let Some(hint) = self.hint {
            eprintln!("\nhint: {hint}");
        }
        ExitCode::from(self.code)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let mistakes = error.0.len();
        let (noun, lines) = (if mistakes == 1 { "mistake" } else { "mistakes" }, error.to_string());
        Self {
            code: BAD_CONFIGURATION,
            message: format!("{mistakes} {noun} in the configuration\n  {}", lines.replace('\n', "\n  ")),
            cause: None,
            hint: Some("`.env.example` lists every setting".to_owned()),
        }
    }
}

/// clap prints help and version to stdout and exits 0; a wrong usage goes to stderr.
pub(crate) fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() || printed.is_err() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}
