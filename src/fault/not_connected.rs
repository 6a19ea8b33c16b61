//! The error for sessions that were not opened although a server answered, or after several servers were tried.

use super::{Fault, fault};
use crate::fault::Class;
use event_outbox::code::Code;

/// The fault of a server that cannot be written.
pub(crate) const READ_ONLY: Fault = fault(
    Class::Outage,
    Code::DatabaseReadOnly,
    "name every server in DATABASE_URL (postgres://user@host1,host2/database), so that the primary is found; or end \
     default_transaction_read_only",
);

/// No session was opened. It travels within a [`sqlx::Error`], because callers handle it like any other failure of the database.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct NotConnected {
    pub(crate) reason: String,
    pub(crate) fault: Fault,
}

impl NotConnected {
    /// Finds the error within one of sqlx.
    pub(crate) fn within(error: &sqlx::Error) -> Option<&Self> {
        match error {
            sqlx::Error::Io(error) => error.get_ref()?.downcast_ref(),
            _ => None,
        }
    }
}

impl From<NotConnected> for sqlx::Error {
    fn from(error: NotConnected) -> Self {
        Self::Io(std::io::Error::other(error))
    }
}
