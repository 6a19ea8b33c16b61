//! Writes events from a Rust service, in the service's own transaction.

use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::Names;
use crate::event::{Body, EventId, NewEvent};
#[cfg(feature = "schema")]
use crate::schemas::{Invalid, Schemas};

/// The writer of an outbox. Cheap to clone and to keep.
///
/// ```no_run
/// use event_outbox::event::NewEvent;
/// use event_outbox::outbox::Outbox;
/// use serde_json::json;
///
/// # async fn place_order(pool: &sqlx::PgPool) -> Result<(), Box<dyn std::error::Error>> {
/// let outbox = Outbox::default();
/// let mut tx = pool.begin().await?;
/// sqlx::query("insert into orders (id, customer, total_cents) values ('o-1', 'c-7', 4200)").execute(&mut *tx).await?;
/// let placed = NewEvent::new("order", "o-1", "OrderPlaced").json(&json!({"orderId": "o-1", "totalCents": 4200}))?;
/// outbox.emit(&mut tx, &placed).await?;
/// tx.commit().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Outbox {
    emit: String,
    persistent: bool,
    #[cfg(feature = "schema")]
    schemas: Option<Schemas>,
}

/// The reason why an event was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The database refused the event or cannot be reached.
    #[error("the event cannot be written")]
    Database(#[from] sqlx::Error),
    /// The payload does not match the schema of its event type and version.
    #[cfg(feature = "schema")]
    #[error(transparent)]
    Invalid(#[from] Invalid),
}

impl Default for Outbox {
    /// Returns the outbox with the default names: `event_outbox` in `public`.
    fn default() -> Self {
        Self::new(&Names::default())
    }
}

impl Outbox {
    /// Creates the writer of the outbox with these names.
    pub fn new(names: &Names) -> Self {
        Self {
            emit: format!(
                "select {}($1, $2, $3, $4::pg_catalog.text::pg_catalog.jsonb, $5::pg_catalog.jsonb, $6, $7, $8, $9)",
                names.emit()
            ),
            persistent: true,
            #[cfg(feature = "schema")]
            schemas: None,
        }
    }

    /// Sets whether the statement stays prepared; true by default. Set false behind a transaction-mode pooler that does not know prepared
    /// statements, such as PgBouncer before 1.21.
    pub fn prepared_statements(mut self, prepared_statements: bool) -> Self {
        self.persistent = prepared_statements;
        self
    }

    /// Checks payloads against these schemas before they are written.
    #[cfg(feature = "schema")]
    pub fn checked_by(mut self, schemas: Schemas) -> Self {
        self.schemas = Some(schemas);
        self
    }

    /// Writes the event in the transaction of `tx` and returns the id that consumers de-duplicate on.
    ///
    /// Takes a lock on the event's entity until the transaction ends. So for one entity the order of ids is the order of commits.
    ///
    /// # Errors
    /// [`EmitError`]. After a database error the transaction can only be rolled back.
    pub async fn emit(&self, tx: &mut PgConnection, event: &NewEvent) -> Result<EventId, EmitError> {
        #[cfg(feature = "schema")]
        if let (Some(schemas), Some(payload)) = (&self.schemas, event.json_payload()) {
            schemas.check(&event.event_type, event.event_version, payload.as_bytes())?;
        }
        let (json, bytes) = match &event.body {
            Body::Json(text) => (Some(text.as_str()), None),
            Body::Bytes(bytes) => (None, Some(bytes.as_slice())),
            Body::Tombstone => (None, None),
        };
        let id: Uuid = sqlx::query_scalar(AssertSqlSafe(self.emit.clone()))
            .bind(&event.entity_type)
            .bind(&event.entity_id)
            .bind(&event.event_type)
            .bind(json)
            .bind(Json(&event.headers))
            .bind(event.event_version)
            .bind(&event.topic)
            .bind(event.available_at)
            .bind(bytes)
            .persistent(self.persistent)
            .fetch_one(tx)
            .await?;
        Ok(EventId(id))
    }
}
