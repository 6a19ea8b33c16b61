//! Checks payloads against a JSON Schema per event type and version, when they are written ([`crate::outbox::Outbox::checked_by`]) and when
//! they are read.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use jsonschema::Validator;
use serde_json::Value;

/// The schemas that a service knows. Cheap to clone.
///
/// ```
/// use event_outbox::schemas::Schemas;
/// use serde_json::json;
///
/// let schemas = Schemas::default().with(
///     "OrderPlaced",
///     1,
///     &json!({"type": "object", "required": ["orderId"], "properties": {"totalCents": {"type": "integer"}}}),
/// )?;
/// assert!(schemas.check("OrderPlaced", 1, br#"{"orderId": "o-1", "totalCents": 4200}"#).is_ok());
///
/// let invalid = schemas.check("OrderPlaced", 1, br#"{"orderId": "o-1", "totalCents": "many"}"#).unwrap_err();
/// assert_eq!(invalid.path, "/totalCents");
/// # Ok::<(), event_outbox::schemas::BadSchema>(())
/// ```
#[derive(Clone, Default)]
pub struct Schemas {
    validators: Arc<HashMap<(String, i32), Validator>>,
    strict: bool,
}

/// The error for a payload that does not match its schema. Holds no values of the payload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event_type} version {version} is not valid at {}: {problem}", if path.is_empty() { "its root" } else { path.as_str() })]
pub struct Invalid {
    /// The event type.
    pub event_type: String,
    /// The version of the payload.
    pub version: i32,
    /// JSON Pointer to the first member that fails; empty for the payload itself.
    pub path: String,
    /// The rule of the schema that the payload breaks.
    pub problem: String,
}

/// The error for a schema that is itself invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schema of {event_type} version {version} cannot be used: {problem}")]
pub struct BadSchema {
    /// The event type.
    pub event_type: String,
    /// The version of the payload.
    pub version: i32,
    /// The mistake in the schema.
    pub problem: String,
}

impl fmt::Debug for Schemas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut known: Vec<_> = self.validators.keys().collect();
        known.sort();
        f.debug_struct("Schemas").field("known", &known).field("strict", &self.strict).finish()
    }
}

impl Schemas {
    /// Adds the schema of a type and version, or replaces it. Remote references are not fetched.
    ///
    /// # Errors
    /// [`BadSchema`] if `schema` is not a JSON Schema.
    pub fn with(mut self, event_type: &str, version: i32, schema: &Value) -> Result<Self, BadSchema> {
        let validator = jsonschema::validator_for(schema).map_err(|error| BadSchema {
            event_type: event_type.to_owned(),
            version,
            problem: error.to_string(),
        })?;
        // A clone that is in use keeps its schemas.
        let mut validators = Arc::try_unwrap(self.validators).unwrap_or_else(|shared| (*shared).clone());
        validators.insert((event_type.to_owned(), version), validator);
        self.validators = Arc::new(validators);
        Ok(self)
    }

    /// Makes an event without a schema for its type and version invalid. Without this call such an event is accepted.
    pub fn strict(mut self) -> Self {
        self.strict = true;
        self
    }

    /// Checks a payload against the schema of its type and version.
    ///
    /// # Errors
    /// [`Invalid`] with the path of the first member that fails.
    pub fn check(&self, event_type: &str, version: i32, payload: &[u8]) -> Result<(), Invalid> {
        let invalid =
            |path: String, problem: String| Invalid { event_type: event_type.to_owned(), version, path, problem };
        let Some(validator) = self.validators.get(&(event_type.to_owned(), version)) else {
            let refused = || Err(invalid(String::new(), "it has no schema".to_owned()));
            return if self.strict { refused() } else { Ok(()) };
        };
        let value: Value = serde_json::from_slice(payload)
            .map_err(|error| invalid(String::new(), format!("it is not JSON (column {})", error.column())))?;
        // Masked: the message repeats only the schema's side. The payload's values stay out of logs and headers.
        validator
            .validate(&value)
            .map_err(|error| invalid(error.instance_path().to_string(), error.masked().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn schemas() -> Schemas {
        let lines = json!({"properties": {"lines": {"items": {"properties": {"quantity": {"type": "integer", "minimum": 1}}}}}});
        Schemas::default().with("OrderPlaced", 2, &lines).expect("a schema")
    }

    #[test]
    fn the_failing_path_is_reported_and_the_value_is_not() {
        let payload = br#"{"lines": [{"quantity": 1}, {"quantity": "secret"}]}"#;
        let invalid = schemas().check("OrderPlaced", 2, payload).expect_err("invalid");
        assert_eq!(invalid.path, "/lines/1/quantity");
        assert!(!invalid.to_string().contains("secret"), "{invalid}");
    }

    #[test]
    fn a_version_without_a_schema_is_refused_only_where_that_is_wanted() {
        assert_eq!(schemas().check("OrderPlaced", 1, b"{}"), Ok(()));
        assert!(schemas().strict().check("OrderPlaced", 1, b"{}").is_err());
        assert!(schemas().strict().check("OrderPlaced", 2, b"{}").is_ok());
    }

    #[test]
    fn a_schema_that_is_none_is_refused() {
        assert!(Schemas::default().with("X", 1, &json!({"type": "no such type"})).is_err());
    }

    #[test]
    fn what_is_no_json_is_invalid_at_its_root() {
        assert_eq!(schemas().check("OrderPlaced", 2, b"{").expect_err("no JSON").path, "");
    }
}
