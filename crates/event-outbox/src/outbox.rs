//! Writes events from a Rust service, in the service's own transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

use crate::Names;
use crate::event::{Body, EventId, Identity, NewEvent};
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
    emit_identified: String,
    emit_many: String,
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
        let emit = |more: &str| {
            format!(
                "select {}($1, $2, $3, $4::pg_catalog.text::pg_catalog.jsonb, $5::pg_catalog.jsonb, $6, $7, $8, $9{more})",
                names.emit()
            )
        };
        Self {
            emit: emit(""),
            emit_identified: emit(", $10, $11"),
            emit_many: format!("select {}($1::pg_catalog.text::pg_catalog.jsonb)", names.emit_many()),
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
    /// Takes a lock on the event's entity until the transaction ends. So for one entity the order of ids is the order of commits. Two
    /// transactions that write events of two entities in different orders can deadlock; [`Self::emit_many`] takes the locks in one order.
    ///
    /// # Errors
    /// [`EmitError`]. After a database error the transaction can only be rolled back.
    pub async fn emit(&self, tx: &mut PgConnection, event: &NewEvent) -> Result<EventId, EmitError> {
        #[cfg(feature = "schema")]
        self.check(event)?;
        let (json, bytes) = match &event.body {
            Body::Json(text) => (Some(text.as_str()), None),
            Body::Bytes(bytes) => (None, Some(bytes.as_slice())),
            Body::Tombstone => (None, None),
        };
        // Without an identity the call is the one that every version of the outbox knows.
        let sql = if event.identity.is_some() { &self.emit_identified } else { &self.emit };
        let mut query = sqlx::query_scalar::<_, Uuid>(AssertSqlSafe(sql.clone()))
            .bind(&event.entity_type)
            .bind(&event.entity_id)
            .bind(&event.event_type)
            .bind(json)
            .bind(Json(&event.headers))
            .bind(event.event_version)
            .bind(&event.topic)
            .bind(event.available_at)
            .bind(bytes);
        query = match &event.identity {
            Some(Identity::Id(id)) => query.bind(id.0).bind(None::<&str>),
            Some(Identity::DedupeKey(key)) => query.bind(None::<Uuid>).bind(key),
            None => query,
        };
        Ok(EventId(query.persistent(self.persistent).fetch_one(tx).await?))
    }

    /// Writes the events in their order, in one statement, and returns their ids in the same order. Locks all entities first, in one order
    /// for all callers. The JSON payload `null` becomes a tombstone.
    ///
    /// # Errors
    /// [`EmitError`]. After a database error the transaction can only be rolled back.
    pub async fn emit_many(&self, tx: &mut PgConnection, events: &[NewEvent]) -> Result<Vec<EventId>, EmitError> {
        #[cfg(feature = "schema")]
        events.iter().try_for_each(|event| self.check(event))?;
        let listed = events.iter().map(Listed::new).collect::<Result<Vec<_>, _>>();
        let json = listed.and_then(|listed| serde_json::to_string(&listed));
        let json = json.map_err(|error| sqlx::Error::Encode(Box::new(error)))?;
        let query = sqlx::query_scalar::<_, Uuid>(AssertSqlSafe(self.emit_many.clone())).bind(json);
        let ids = query.persistent(self.persistent).fetch_all(tx).await?;
        Ok(ids.into_iter().map(EventId).collect())
    }

    /// Checks the payload against its schema, if the outbox has schemas.
    #[cfg(feature = "schema")]
    pub(crate) fn check(&self, event: &NewEvent) -> Result<(), Invalid> {
        match (&self.schemas, event.json_payload()) {
            (Some(schemas), Some(payload)) => schemas.check(&event.event_type, event.event_version, payload.as_bytes()),
            _ => Ok(()),
        }
    }
}

/// An event as the function for many events takes it.
#[derive(Serialize)]
struct Listed<'a> {
    entity_type: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity_id: Option<&'a str>,
    event_type: &'a str,
    event_version: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_bytes: Option<String>,
    headers: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    topic: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available_at: Option<DateTime<Utc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dedupe_key: Option<&'a str>,
}

impl<'a> Listed<'a> {
    fn new(event: &'a NewEvent) -> Result<Self, serde_json::Error> {
        let (event_id, dedupe_key) = match &event.identity {
            Some(Identity::Id(id)) => (Some(id.0), None),
            Some(Identity::DedupeKey(key)) => (None, Some(key.as_str())),
            None => (None, None),
        };
        Ok(Self {
            entity_type: &event.entity_type,
            entity_id: event.entity_id.as_deref(),
            event_type: &event.event_type,
            event_version: event.event_version,
            payload: event.json_payload().map(serde_json::from_str).transpose()?,
            payload_bytes: match &event.body {
                Body::Bytes(bytes) => Some(hex(bytes)),
                Body::Json(_) | Body::Tombstone => None,
            },
            headers: &event.headers,
            topic: event.topic.as_deref(),
            available_at: event.available_at,
            event_id,
            dedupe_key,
        })
    }
}

/// Returns bytes as Postgres reads them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::from("\\x"), |text, byte| text + &format!("{byte:02x}"))
}
