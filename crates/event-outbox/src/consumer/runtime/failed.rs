//! Classifies the errors of handlers: whether another attempt can help, and what happens to the event if not.

use std::collections::HashMap;
use std::error::Error;
use std::fmt;
use std::ops::Deref;

use sqlx::postgres::PgDatabaseError;

use crate::consumer::dead_letter::Reason;
#[cfg(any(feature = "schema", test))]
use crate::outbox::EmitError;

/// The reason why a handler could not apply an event. The operator `?` makes one from any error:
///
/// | error | meaning |
/// |---|---|
/// | the database is down or overloaded | outage: tried again until it succeeds, costs no attempt |
/// | a constraint or a value was refused, an emitted event is invalid, JSON does not match | permanent |
/// | any other error | transient: tried again, up to [`Retry::attempts`](super::Retry) times |
///
/// The causes of an error count, too: an application's own error that was caused by a unique violation is permanent. [`Failed::of`] takes
/// errors without a type, such as those of `anyhow`.
/// A handler that knows better uses [`Failed::permanent`], [`Failed::transient`] or [`Failed::outage`].
pub struct Failed {
    pub(crate) kind: Kind,
    pub(crate) reason: Option<Reason>,
    pub(crate) path: Option<String>,
    pub(crate) action: Option<Action>,
    error: Box<dyn Error + Send + Sync>,
}

/// The effect that another attempt would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A server is down: the event is not the cause, and is tried again until it succeeds.
    Outage,
    /// Another attempt may help.
    Transient,
    /// Another attempt cannot help.
    Permanent,
}

/// The treatment of an event that cannot be applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Action {
    /// Sends the event to the dead letter topic and goes on with the next one.
    #[default]
    Skip,
    /// Sends the event to the dead letter topic, and parks all later events of its key in the consumer's database. They are applied in
    /// order when the event has been applied from the dead letter topic, or an operator has given it up. Events of other keys go on. A
    /// record without a key or without an event id is skipped, because it has no key to hold.
    HoldKey,
    /// Ends the consumer with the error. The event is delivered again after a restart.
    Stop,
}

/// Chooses the [`Action`] for an error. [`Failed::then`] of the handler comes first, then the action for the event type, then the action
/// for the reason, then the default.
///
/// ```
/// use event_outbox::consumer::{Action, Policy, Reason};
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
    /// Creates a policy with the same action for every error.
    pub fn always(action: Action) -> Self {
        Self { default: action, ..Self::default() }
    }

    /// Sets the action for one reason.
    pub fn on(mut self, reason: Reason, action: Action) -> Self {
        self.by_reason.insert(reason, action);
        self
    }

    /// Sets the action for one event type, for every reason.
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
    /// Creates a permanent failure: another attempt cannot help.
    pub fn permanent(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Permanent, error.into())
    }

    /// Creates a transient failure: another attempt may help.
    pub fn transient(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Transient, error.into())
    }

    /// Creates an outage: a system that every event needs is down. The event is tried again until it succeeds.
    pub fn outage(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::new(Kind::Outage, error.into())
    }

    /// Classifies an error without a type: a boxed one, or one of `anyhow`. These are no errors themselves, so `?` does not take them.
    ///
    /// ```
    /// use event_outbox::consumer::Failed;
    ///
    /// fn parse(text: &str) -> Result<i64, Box<dyn std::error::Error + Send + Sync>> {
    ///     Ok(text.parse()?)
    /// }
    ///
    /// fn handle(text: &str) -> Result<i64, Failed> {
    ///     parse(text).map_err(Failed::of)
    /// }
    /// # assert!(handle("x").is_err());
    /// ```
    pub fn of<E>(error: E) -> Self
    where
        E: Deref<Target = dyn Error + Send + Sync> + Into<Box<dyn Error + Send + Sync>>,
    {
        let kind = kind_of(&*error);
        Self::new(kind, error.into())
    }

    /// Returns whether another attempt may help.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the error that the handler returned, to look for its type with `downcast_ref`.
    pub fn error(&self) -> &(dyn Error + Send + Sync + 'static) {
        &*self.error
    }

    /// Sets the action for this event once its attempts are over, whatever the policy says.
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

    /// Returns the error and its causes in one line.
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

/// Shows the error and its causes in one line.
impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.describe())
    }
}

/// `Failed` must not implement [`Error`], or this blanket impl would overlap with `From<T> for T`.
impl<E: Error + Send + Sync + 'static> From<E> for Failed {
    fn from(error: E) -> Self {
        let kind = kind_of(&error);
        Self::new(kind, Box::new(error))
    }
}

/// Classifies an error by itself, or else by the first of its causes that is known.
fn kind_of(error: &(dyn Error + 'static)) -> Kind {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(kind) = known_kind(error) {
            return kind;
        }
        cause = error.source();
    }
    Kind::Transient
}

fn known_kind(error: &(dyn Error + 'static)) -> Option<Kind> {
    if let Some(error) = error.downcast_ref::<sqlx::Error>() {
        return Some(classify_database(error));
    }
    // An error that is transparent about a `sqlx::Error` has the server's answer as its source.
    if let Some(error) = error.downcast_ref::<PgDatabaseError>() {
        return Some(classify_state(error.code()));
    }
    #[cfg(feature = "schema")]
    if matches!(error.downcast_ref::<EmitError>(), Some(EmitError::Invalid(_))) {
        return Some(Kind::Permanent);
    }
    error.is::<serde_json::Error>().then_some(Kind::Permanent)
}

/// Classifies a database error by its SQLSTATE, never by the text of a message.
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
            // A missing row may still come with an event of another topic.
            sqlx::Error::RowNotFound => Kind::Transient,
            _ => Kind::Permanent,
        };
    };
    classify_state(code)
}

fn classify_state(code: &str) -> Kind {
    match code {
        // 57014 query_canceled: the statement itself may have been slow.
        "57014" => Kind::Transient,
        // 25006 read_only_sql_transaction: a standby that is about to be promoted, or the wrong server.
        "25006" => Kind::Outage,
        // A pooler has lost or mixed up prepared statements, which is not the event's fault: see `Consumer::prepared_statements`.
        "26000" | "42P05" => Kind::Outage,
        // A missing right, table, column or function: the deployment is not complete yet.
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
