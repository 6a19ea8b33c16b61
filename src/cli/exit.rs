//! Picks the exit code of every command, here and nowhere else: 0 success, 1 a finding, 2 usage, 64 bad configuration,
//! 70 unexpected, 130 interrupted.

use std::error::Error;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue};

use crate::config::ConfigError;
use crate::fault::Fault;
use crate::fault::describe;
use crate::observe::print::{errln, out};
use crate::observe::terminal::{Stream, Tone, paint_for};
use crate::text;
use event_outbox::code::Code;
use event_outbox::notice::Notice;

const FINDING: u8 = 1;
const USAGE: u8 = 2;
const BAD_CONFIGURATION: u8 = 64;
const UNEXPECTED: u8 = 70;
/// The exit code that shells give to a process that SIGINT ended.
pub(super) const INTERRUPTED: u8 = 130;

/// A command that failed: exit code, message, cause and hint.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: u8,
    /// The code of the failure's entry in docs/how-to/runbook.md, if there is an entry.
    code: Option<Code>,
    message: String,
    cause: Option<Box<dyn Error + Send + Sync>>,
    hint: Option<String>,
    /// True if the failure is in the log already, so that nothing has to be printed.
    logged: bool,
}

impl Failure {
    /// Makes a failure that the user has to know about or act on; the command itself worked as it should.
    pub(crate) fn finding(message: impl Into<String>) -> Self {
        Self { exit: FINDING, code: None, message: message.into(), cause: None, hint: None, logged: false }
    }

    /// Makes a failure for a command line that is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { exit: USAGE, code: None, message: message.into(), cause: None, hint: None, logged: false }
    }

    /// Makes a failure for a fault that should not have happened.
    pub(crate) fn unexpected(message: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            exit: UNEXPECTED,
            code: Some(Code::Unexpected),
            message: message.into(),
            cause: Some(cause.into()),
            hint: None,
            logged: false,
        }
    }

    /// Makes a failure for settings that contradict each other.
    #[cfg(feature = "demo")]
    pub(crate) fn bad_configuration(message: impl Into<String>) -> Self {
        Self {
            exit: BAD_CONFIGURATION,
            code: Some(Code::ConfigurationRefused),
            message: message.into(),
            cause: None,
            hint: None,
            logged: false,
        }
    }

    /// Makes a failure for a command that the user ended.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self { exit: INTERRUPTED, code: None, message: message.into(), cause: None, hint: None, logged: false }
    }

    pub(crate) fn because(mut self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the code.
    pub(crate) fn code(mut self, code: Code) -> Self {
        self.code = Some(code);
        self
    }

    /// Sets the code and the hint from the fault table.
    pub(crate) fn fault(self, fault: Fault) -> Self {
        self.code(fault.code).hint(fault.next_step)
    }

    fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.cause.as_deref().map(|cause| cause as &(dyn Error + 'static));
        while let Some(error) = next {
            // sqlx's own text repeats the server's message and adds the line of the server's source.
            if let Some(error) = error.downcast_ref::<sqlx::Error>() {
                causes.push(text::sentence(&describe(error)).to_string());
                break;
            }
            causes.push(text::sentence(&error.to_string()).to_string());
            next = error.source();
        }
        causes
    }

    /// Logs the failure. `report` prints nothing afterwards.
    pub(crate) fn logged(mut self) -> Self {
        let code = self.code.unwrap_or(Code::Unexpected);
        let causes = self.causes();
        let reason = (!causes.is_empty()).then(|| causes.join(": "));
        tracing::error!(
            code = %code,
            notice = %Notice::Failed,
            error = self.message,
            reason,
            next_step = self.hint,
            exit = self.exit,
            "outbox-relay ends with an error"
        );
        self.logged = tracing::enabled!(tracing::Level::ERROR);
        self
    }

    /// Prints the failure: message, causes, hint, and where to read on.
    pub(crate) fn report(self) -> ExitCode {
        if self.logged {
            return ExitCode::from(self.exit);
        }
        let red = paint_for(Stream::Err, Tone::Bad, "error:");
        errln!("{red} {}", self.message);
        for error in self.causes() {
            errln!("  caused by: {error}");
        }
        if let Some(hint) = self.hint {
            errln!("\n{} {hint}", paint_for(Stream::Err, Tone::Strong, "hint:"));
        }
        if let Some(code) = self.code {
            errln!("code: {code} {}, see docs/how-to/runbook.md", code.name());
        }
        ExitCode::from(self.exit)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let mistakes = error.0.len();
        let (noun, lines) = (if mistakes == 1 { "mistake" } else { "mistakes" }, error.to_string());
        Self {
            exit: BAD_CONFIGURATION,
            code: Some(Code::ConfigurationRefused),
            message: format!("{mistakes} {noun} in the configuration\n  {}", lines.replace('\n', "\n  ")),
            cause: None,
            hint: Some("`.env.example` lists every setting".to_owned()),
            logged: false,
        }
    }
}

/// Prints clap's message. Help and version go to stdout with exit code 0, wrong usage goes to stderr.
pub(crate) fn usage(mut error: clap::Error) -> ExitCode {
    // The message repeats arguments, which a script may have taken from a row.
    for kind in [ContextKind::InvalidSubcommand, ContextKind::InvalidArg, ContextKind::InvalidValue] {
        if let Some(ContextValue::String(given)) = error.get(kind) {
            let shown = text::name(given).to_string();
            error.insert(kind, ContextValue::String(shown));
        }
    }
    let message = |stream: Stream| match stream.is_coloured() {
        true => error.render().ansi().to_string(),
        false => error.render().to_string(),
    };
    if error.use_stderr() {
        errln!("{}", message(Stream::Err).trim_end());
        return ExitCode::from(USAGE);
    }
    out!("{}\n", message(Stream::Out).trim_end());
    ExitCode::SUCCESS
}
