//! Finds the handler of an event by type and version, after upcasters have brought the payload to a version that a handler takes.

use std::collections::HashMap;
use std::future::Future;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::consumer::dead_letter::Reason;
use crate::consumer::runtime::context::{BatchContext, BatchEvent, Context, Input, Work};
use crate::consumer::runtime::failed::Failed;

type One = Arc<dyn Fn(Context) -> BoxFuture<'static, Result<(), Failed>> + Send + Sync>;
type Many = Arc<dyn Fn(BatchContext, Vec<Input>) -> BoxFuture<'static, Result<(), Failed>> + Send + Sync>;
type Upcaster = Arc<dyn Fn(&[u8]) -> Result<Vec<u8>, Failed> + Send + Sync>;

/// A handler of a service.
#[derive(Clone)]
pub(super) enum Handler {
    /// Takes one event.
    One(One),
    /// Takes the events of a batch.
    Many(Many),
}

impl Handler {
    /// Calls the handler. A handler of one event gets the first input.
    pub(super) async fn call(&self, work: Work, inputs: Vec<Input>) -> Result<(), Failed> {
        match self {
            Self::One(handler) => match inputs.into_iter().next() {
                Some(input) => handler(Context { work, input }).await,
                None => Ok(()),
            },
            Self::Many(handler) => handler(BatchContext { work }, inputs).await,
        }
    }

    /// Returns true if one call may get the events of both.
    pub(super) fn joins(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Many(one), Self::Many(two)) if Arc::ptr_eq(one, two))
    }
}

struct Route {
    versions: (Bound<i32>, Bound<i32>),
    handler: Handler,
}

/// The handlers and upcasters of a consumer.
#[derive(Default)]
pub(super) struct Registry {
    routes: HashMap<String, Vec<Route>>,
    upcasters: HashMap<String, HashMap<i32, Upcaster>>,
    /// Types and versions that were registered twice; reported when the consumer starts.
    pub(super) conflicts: Vec<String>,
}

/// A handler, with the payload and the version to call it with.
pub(super) struct Taken {
    pub(super) handler: Handler,
    pub(super) version: i32,
    pub(super) payload: Option<Vec<u8>>,
}

impl Registry {
    pub(super) fn on<T, F, Fut>(&mut self, event_type: &str, versions: &impl RangeBounds<i32>, handler: F)
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(Context, T) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        self.on_any(event_type, versions, move |context| {
            let handler = Arc::clone(&handler);
            async move {
                let payload = parse(context.payload().unwrap_or(b"null"))?;
                handler(context, payload).await
            }
        });
    }

    pub(super) fn on_any<F, Fut>(&mut self, event_type: &str, versions: &impl RangeBounds<i32>, handler: F)
    where
        F: Fn(Context) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let one: One = Arc::new(move |context| Box::pin(handler(context)));
        self.add(event_type, versions, Handler::One(one));
    }

    pub(super) fn on_batch<T, F, Fut>(&mut self, event_type: &str, versions: &impl RangeBounds<i32>, handler: F)
    where
        T: DeserializeOwned + Send + 'static,
        F: Fn(BatchContext, Vec<BatchEvent<T>>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), Failed>> + Send + 'static,
    {
        let handler = Arc::new(handler);
        let many: Many = Arc::new(move |context, inputs| {
            let handler = Arc::clone(&handler);
            Box::pin(async move {
                let parsed = |input: Input| {
                    let payload = parse(input.payload.as_deref().unwrap_or(b"null"))?;
                    Ok(BatchEvent { event: input.event, payload })
                };
                let events = inputs.into_iter().map(parsed).collect::<Result<Vec<_>, Failed>>()?;
                handler(context, events).await
            })
        });
        self.add(event_type, versions, Handler::Many(many));
    }

    fn add(&mut self, event_type: &str, versions: &impl RangeBounds<i32>, handler: Handler) {
        let versions = (versions.start_bound().cloned(), versions.end_bound().cloned());
        let routes = self.routes.entry(event_type.to_owned()).or_default();
        if routes.iter().any(|route| overlap(route.versions, versions)) {
            self.conflicts.push(format!("two handlers take the same version of {event_type}"));
        }
        routes.push(Route { versions, handler });
    }

    pub(super) fn upcast<A, B, F>(&mut self, event_type: &str, from: i32, upcaster: F)
    where
        A: DeserializeOwned,
        B: Serialize,
        F: Fn(A) -> Result<B, Failed> + Send + Sync + 'static,
    {
        let upcaster: Upcaster = Arc::new(move |payload| Ok(serde_json::to_vec(&upcaster(parse(payload)?)?)?));
        if self.upcasters.entry(event_type.to_owned()).or_default().insert(from, upcaster).is_some() {
            self.conflicts.push(format!("two upcasters take version {from} of {event_type}"));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.routes.is_empty()
    }

    /// Finds the handler of an event; `None` if no handler takes the type. The payload is upcast only while no handler takes its version.
    pub(super) fn take(
        &self,
        event_type: &str,
        mut version: i32,
        mut payload: Option<Vec<u8>>,
    ) -> Result<Option<Taken>, Failed> {
        let Some(routes) = self.routes.get(event_type) else {
            return Ok(None);
        };
        loop {
            if let Some(route) = routes.iter().find(|route| route.versions.contains(&version)) {
                return Ok(Some(Taken { handler: route.handler.clone(), version, payload }));
            }
            let Some(upcaster) = self.upcasters.get(event_type).and_then(|upcasters| upcasters.get(&version)) else {
                let error = format!("no handler and no upcaster of {event_type} takes version {version}");
                return Err(Failed::permanent(error).because(Reason::UnsupportedVersion));
            };
            // A tombstone has no payload to change.
            payload = payload.map(|payload| upcaster(&payload)).transpose()?;
            version += 1;
        }
    }
}

/// Parses a payload. The error leaves out the message of serde_json, which repeats the value: payloads stay out of logs and headers.
fn parse<T: DeserializeOwned>(payload: &[u8]) -> Result<T, Failed> {
    serde_json::from_slice(payload).map_err(|error| {
        let what = match error.classify() {
            serde_json::error::Category::Data => "is not of the type that the consumer expects",
            _ => "is not JSON",
        };
        let place = format!("the payload {what} (line {}, column {})", error.line(), error.column());
        Failed::permanent(place).because(Reason::Invalid)
    })
}

fn overlap(one: (Bound<i32>, Bound<i32>), two: (Bound<i32>, Bound<i32>)) -> bool {
    let first = |bound| match bound {
        Bound::Included(version) => version,
        Bound::Excluded(version) => version + 1,
        Bound::Unbounded => i32::MIN,
    };
    let last = |bound| match bound {
        Bound::Included(version) => version,
        Bound::Excluded(version) => version - 1,
        Bound::Unbounded => i32::MAX,
    };
    first(one.0).max(first(two.0)) <= last(one.1).min(last(two.1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn registry() -> Registry {
        let mut registry = Registry::default();
        registry.on("A", &(3..=4), |_: Context, _: Value| async { Ok(()) });
        registry.upcast("A", 1, |old: Value| Ok(json!({"was": old})));
        registry.upcast("A", 2, |old: Value| Ok(json!({"then": old})));
        registry
    }

    #[test]
    fn an_old_version_is_brought_up_step_by_step() {
        let taken = registry().take("A", 1, Some(b"7".to_vec())).expect("a handler").expect("a known type");
        assert_eq!(taken.version, 3);
        assert_eq!(taken.payload.as_deref(), Some(&br#"{"then":{"was":7}}"#[..]));
        let taken = registry().take("A", 4, Some(b"7".to_vec())).expect("a handler").expect("a known type");
        assert_eq!((taken.version, taken.payload.as_deref()), (4, Some(&b"7"[..])));
    }

    #[test]
    fn a_version_that_nobody_takes_is_a_failure_and_a_type_that_nobody_knows_is_none() {
        for version in [0, 5] {
            let failed = registry().take("A", version, None).err().expect("a failure");
            assert_eq!(failed.reason, Some(Reason::UnsupportedVersion));
        }
        assert!(registry().take("B", 1, None).expect("no failure").is_none());
    }

    #[test]
    fn handlers_that_take_the_same_version_are_a_conflict() {
        let mut registry = registry();
        registry.on_any("A", &(5..), |_| async { Ok(()) });
        assert!(registry.conflicts.is_empty());
        registry.on_any("A", &(..=3), |_| async { Ok(()) });
        registry.upcast("A", 1, |old: Value| Ok(old));
        assert_eq!(registry.conflicts.len(), 2, "{:?}", registry.conflicts);
    }

    #[test]
    fn a_payload_of_another_type_is_reported_without_its_value() {
        let failed = parse::<u8>(b"\"secret\"").expect_err("no number");
        assert!(!failed.describe().contains("secret"), "{failed:?}");
    }
}
