//! What an error of a handler means: whether another attempt can help, and what becomes of the event if not.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;

use crate::consumer::dead_letter::Reason;
use crate::outbox::EmitError;

/// Why a handler could not apply an event. Made from any error by `?`:
///
/// | error | meaning |
/// |---|---|
/// | the database is away, or too busy | outage: tried again for as long as it takes, costs no attempt |
/// | a constraint or a value was refused, an emitted event is invalid, JSON does not fit | permanent |
/// | anything else | transient: tried again, a limited number of times |
///
/// A handler that knows better says so: [`Failed::permanent`], [`Failed::transient`], [`Failed::outage`].
pub struct Failed {
    pub(crate) kind: Kind,
    pub(crate) reason: Option<Reason>,
    pub(crate) path: Option<String>,
    pub(crate) action: Option<Action>,
    error: Box<dyn Error + Send + Sync>,
}

/// What another attempt would bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A server is away: not the event's fault.
    Outage,
    Transient,
    Permanent,
}

/// What becomes of an event that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// It goes to the dead letter topic, and its successors are applied.
    #[default]
    Skip,
    /// It goes to the dead letter topic, and so do the later events of its key, in order, until it has been applied from there or
    /// given up by an operator. Events of other keys are applied. A record without a key or without an event id has nothing to
    /// hold: it is skipped.
    HoldKey,
    /// The consumer ends with the error; the event is delivered again when it is started again.
    Stop,
}

/// Which action for which error. The handler's own word ([`Failed::then`]) wins over the type's, that over the reason's.
///
/// ```
/// use outbox_relay::consumer::{Action, Policy, Reason};
///
/// let policy = Policy::default().on(Reason::Exhausted, Action::HoldKey).for_type("PaymentBooked", Action::Stop);
/// ```
#[derive(Debug, Clone, Default)]
pub struct Policy {
    default: Action,
    by_reason: HashMap<Reason, Action>,
    by_type: HashMap<String, Action>,
}

impl Policy {
    /// The same for every error.
    pub fn always(action: Action) -> Self {
        Self { default: action, ..Self::default() }
    }

    /// For one reason.
    pub fn on(mut self, reason: Reason, action: Action) -> Self {
        self.by_reason.insert(reason, action);
        self
    }

    /// For one event type, whatever the reason.
    pub fn for_type(mut self, event_type: impl Into<String>, action: Action) -> Self {
        self.by_type.insert(event_type.into(), action);
        self
    }

    pub(crate) fn action(&self, reason: Reason, event_type: Option<&str>) -> Action {
        let by_type = event_type.and_then(|event_type| self.by_type.get(event_type));
        by_type.or_else(|| self.by_reason.get(&reason)).copied().unwrap_or(self.default)
    }
}

impl Failed {
    /// Another attempt cannot help.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Permanent, error.into())
    }

    /// Another attempt may help.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Transient, error.into())
    }

    /// Something that every event needs is away: tried again for as long as it takes.
    pub fn outage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Outage, error.into())
    }

    /// What becomes of the event when the attempts are over, whatever the policy says.
    pub fn then(mut self, action: Action) -> Self {
        self.action = Some(action);
        self
    }

    pub(crate) fn because(mut self, reason: Reason) -> Self {
        self.reason = Some(reason);
        self
    }

    #[cfg(feature = "schema")]
    pub(crate) fn at(mut self, path: String) -> Self {
        self.path = Some(path);
        self
    }

    /// The error and its causes in one line.
    pub(crate) fn describe(&self) -> String {
        let mut text = self.error.to_string();
        let mut source = self.error.source();
        while let Some(cause) = source {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            source = cause.source();
        }
        text
    }

    fn new(kind: Kind, error: Box<dyn Error + Send + Sync>) -> Self {
        Self { kind, reason: None, path: None, action: None, error }
    }
}

impl fmt::Debug for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.describe())
    }
}

/// Not for [`Failed`] itself, which is no [`Error`] so that this can be.
impl<E: Error + Send + Sync + 'static> From<E> for Failed {
    fn from(error: E) -> Self {
        let kind = kind_of(&error);
        Self::new(kind, Box::new(error))
    }
}

fn kind_of(error: &(dyn Error + 'static)) -> Kind {
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return classify_database(error);
    }
    if error.is::<serde_json::Error>() {
        return Kind::Permanent;
    }
    match error.downcast_ref::<EmitError>() {
        Some(EmitError::Database(error)) => classify_database(error),
        #[cfg(feature = "schema")]
        Some(EmitError::Invalid(_)) => Kind::Permanent,
        None => Kind::Transient,
    }
}

/// By SQLSTATE, never by the text of a message.
fn classify_database(error: &sqlx::Error) -> Kind {
    let code = error.as_database_error().and_then(|error| error.code());
    let Some(code) = code.as_deref() else {
        return match error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => Kind::Outage,
            // A row that is not there yet may come with an event of another topic.
            sqlx::Error::RowNotFound => Kind::Transient,
            _ => Kind::Permanent,
        };
    };
    match code {
        // A statement that was cancelled may have been slow by itself.
        "57014" => Kind::Transient,
        // A standby that is about to be promoted, or the wrong server.
        "25006" => Kind::Outage,
        // A right, a table or a function is missing: the deployment is not complete.
        "42501" | "42P01" | "42703" | "42883" => Kind::Transient,
        _ if ["08", "28", "3D", "53", "57", "58"].iter().any(|class| code.starts_with(class)) => Kind::Outage,
        _ if ["22", "23", "42"].iter().any(|class| code.starts_with(class)) => Kind::Permanent,
        _ => Kind::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_that_heals_by_itself_is_an_outage_and_an_unknown_one_is_tried_again() {
        assert_eq!(Failed::from(sqlx::Error::PoolTimedOut).kind, Kind::Outage);
        assert_eq!(Failed::from(EmitError::Database(sqlx::Error::PoolClosed)).kind, Kind::Outage);
        assert_eq!(Failed::from(sqlx::Error::RowNotFound).kind, Kind::Transient);
        assert_eq!(Failed::from(std::io::Error::other("of a web service")).kind, Kind::Transient);
        assert_eq!(Failed::from(sqlx::Error::ColumnNotFound("x".into())).kind, Kind::Permanent);
    }

    #[test]
    fn the_type_wins_over_the_reason_and_the_reason_over_the_default() {
        let policy = Policy::always(Action::Stop).on(Reason::Invalid, Action::HoldKey).for_type("A", Action::Skip);
        assert_eq!(policy.action(Reason::Invalid, Some("A")), Action::Skip);
        assert_eq!(policy.action(Reason::Invalid, Some("B")), Action::HoldKey);
        assert_eq!(policy.action(Reason::Exhausted, None), Action::Stop);
    }

    #[test]
    fn an_error_is_reported_with_its_causes() {
        let error = EmitError::Database(sqlx::Error::PoolClosed);
        assert!(Failed::from(error).describe().starts_with("the event cannot be written: "));
    }
}
