//! The text of an error without what it may quote.

use std::borrow::Cow;

use super::NotConnected;

/// The longest reason, in bytes: a server's message or an operator's text may be of any length, and is repeated with every status line.
const REASON_MAX_BYTES: usize = 600;

/// An error without what it may quote: neither the detail of a database error nor the URL.
pub(crate) fn describe(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(database) => {
            format!("{} (SQLSTATE {})", shortened(database.message()), database.code().unwrap_or_default())
        }
        None => match NotConnected::within(error) {
            Some(error) => shortened(&error.reason).into_owned(),
            None => shortened(&error.to_string()).into_owned(),
        },
    }
}

/// Returns the text, cut where it is too long to be repeated.
pub(crate) fn shortened(text: &str) -> Cow<'_, str> {
    if text.len() <= REASON_MAX_BYTES {
        return Cow::Borrowed(text);
    }
    let end = text.floor_char_boundary(REASON_MAX_BYTES);
    Cow::Owned(format!("{}...", &text[..end]))
}
