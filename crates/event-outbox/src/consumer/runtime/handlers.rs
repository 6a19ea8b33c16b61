//! Decides which handler gets an event: by its schema, its type and its version.

use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::delivery::Event;
use crate::consumer::runtime::failed::Failed;
use crate::consumer::runtime::options::UnknownType;
use crate::consumer::runtime::registry::{Registry, Taken};
#[cfg(feature = "schema")]
use crate::schemas::Schemas;

/// Chooses the handler of an event.
#[derive(Default)]
pub(super) struct Handlers {
    pub(super) registry: Registry,
    pub(super) unknown_type: UnknownType,
    #[cfg(feature = "schema")]
    pub(super) schemas: Option<Schemas>,
}

impl Handlers {
    /// Finds the event's handler, and the payload and version to call it with; `None` if the event is to be ignored.
    pub(super) fn take(&self, event: &Event, payload: Option<Vec<u8>>) -> Result<Option<Taken>, Failed> {
        #[cfg(feature = "schema")]
        if let (Some(schemas), Some(payload)) = (&self.schemas, &payload) {
            schemas.check(&event.event_type, event.event_version, payload).map_err(|invalid| {
                let path = invalid.path.clone();
                Failed::permanent(invalid).because(Reason::Invalid).at(path)
            })?;
        }
        match self.registry.take(&event.event_type, event.event_version, payload)? {
            Some(taken) => Ok(Some(taken)),
            None => match self.unknown_type.action() {
                None => Ok(None),
                Some(action) => {
                    let error = format!("no handler takes {}", event.event_type);
                    Err(Failed::permanent(error).because(Reason::UnknownType).then(action))
                }
            },
        }
    }
}
