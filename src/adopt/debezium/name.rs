//! Checks names of the connector's file before they become part of the SQL.

/// Refuses a name with a control character. A line end would end a comment of the SQL, and a NUL would cut a line off.
///
/// # Errors
/// The end of a sentence.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.contains(char::is_control) {
        true => {
            Err(format!("the {what} {name:?} has a control character, such as a line end; accepted are names without"))
        }
        false => Ok(()),
    }
}
