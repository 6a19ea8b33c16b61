//! Compares the records of a connector with those of a relay.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use lab::kafka::Record;
use serde::{Deserialize, Serialize};

use super::cases::{Case, Difference, Stop};

/// Headers that only the connector sends, by the beginning of their names.
const CONNECTORS_OWN: &str = "__debezium.context.";

/// Headers that every record of the relay has. They are compared where the connector has them too.
const RELAYS_OWN: [&str; 4] = ["event-id", "event-type", "event-version", "sequence"];

/// The length from which golden.json has only a hash of key and value.
pub(crate) const LONG: usize = 2_000;

/// A key or a value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Bytes {
    Text(String),
    Hex { hex: String },
    Long { length: usize, fnv1a: String },
}

impl Bytes {
    /// Returns bytes as text if they are text. More than `longest` bytes become a hash.
    fn new(bytes: &[u8], longest: usize) -> Self {
        if bytes.len() > longest {
            let hash = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325, hash);
            return Self::Long { length: bytes.len(), fnv1a: format!("{hash:016x}") };
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Text(text.to_owned()),
            Err(_) => Self::Hex { hex: bytes.iter().map(|byte| format!("{byte:02x}")).collect() },
        }
    }

    /// Returns true if the bytes are this text.
    fn is(&self, text: &str) -> bool {
        matches!(self, Self::Text(found) if found == text)
    }
}

/// A record in the form in which it is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    /// The place in the partition.
    #[serde(skip)]
    pub(crate) offset: i64,
    pub(crate) key: Option<Bytes>,
    pub(crate) value: Option<Bytes>,
    pub(crate) headers: BTreeMap<String, Option<String>>,
    /// Only where the row has the time: otherwise it is the time of reading or of sending.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) timestamp: Option<i64>,
}

impl Sent {
    /// Returns a record of a topic. More than `longest` bytes of key or value become a hash.
    pub(crate) fn new(case: &Case, topic: &str, record: &Record, longest: usize) -> Self {
        let bytes = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(|bytes| Bytes::new(bytes, longest));
        let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
        let headers = record.headers.iter().filter(|(name, _)| !name.starts_with(CONNECTORS_OWN));
        Self {
            topic: topic.to_owned(),
            partition: record.partition,
            offset: record.offset,
            key: bytes(&record.key),
            value: bytes(&record.value),
            headers: headers.map(|(name, value)| (name.clone(), value.as_ref().map(text))).collect(),
            timestamp: record.timestamp.filter(|_| case.has_timestamp()),
        }
    }

    /// Returns the header `id`, by which both sides know the event.
    pub(crate) fn id(&self) -> &str {
        self.headers.get("id").and_then(Option::as_deref).unwrap_or("no header id")
    }
}

/// Returns everything in which the records of the two differ, except for what `import` announces.
pub(crate) fn compare(case: &Case, connector: &[Sent], relay: &[Sent]) -> Vec<String> {
    let mut differences = Vec::new();
    if let Some(stop) = case.stops {
        let is = |sent: &Option<Bytes>, expected: &str| sent.as_ref().is_some_and(|sent| sent.is(expected));
        let as_announced = match (stop, connector, relay) {
            (Stop::Sent(key, value), [], [only]) => is(&only.key, key) && is(&only.value, value),
            (Stop::Dead, [], []) => true,
            _ => false,
        };
        if !as_announced {
            differences.push(format!("{}: the connector wrote {connector:?}, the relay {relay:?}", case.name));
        }
        return differences;
    }
    let mut differ = |text: String| differences.push(format!("{}: {text}", case.name));
    let by_id = |found: &[Sent]| found.iter().map(|one| (one.id().to_owned(), one.clone())).collect::<HashMap<_, _>>();
    let (left, right) = (by_id(connector), by_id(relay));
    if left.len() != connector.len() || right.len() != relay.len() {
        differ(format!("ids repeat: {} of {} and {} of {}", left.len(), connector.len(), right.len(), relay.len()));
    }
    for id in left.keys().filter(|id| !right.contains_key(*id)) {
        differ(format!("{id} is missing"));
    }
    for (id, ours) in &right {
        match left.get(id) {
            Some(theirs) => compare_records(theirs, ours, case.difference(id), |text| differ(format!("{id}: {text}"))),
            None => differ(format!("{id} is only the relay's")),
        }
    }
    if case.rows[0].contains("{w}") && orders(connector) != orders(relay) {
        differ("the order of a key differs".to_owned());
    }
    differences
}

/// Reports in what two records of an event differ.
fn compare_records(theirs: &Sent, ours: &Sent, announced: Option<&Difference>, mut differ: impl FnMut(String)) {
    if theirs.topic != ours.topic {
        differ(format!("topic {} became {}", theirs.topic, ours.topic));
    }
    if theirs.key != ours.key {
        differ(format!("key {:?} became {:?}", theirs.key, ours.key));
    }
    let is = |value: &Option<Bytes>, expected: &str| value.as_ref().is_some_and(|value| value.is(expected));
    let is_announced = |difference: &Difference| {
        difference.connector.iter().any(|expected| is(&theirs.value, expected)) && is(&ours.value, difference.relay)
    };
    if !announced.map_or(theirs.value == ours.value, is_announced) {
        differ(format!("value {:?} became {:?}", theirs.value, ours.value));
    }
    if theirs.partition != ours.partition {
        differ(format!("partition {} became {}", theirs.partition, ours.partition));
    }
    for name in theirs.headers.keys().chain(ours.headers.keys()).collect::<BTreeSet<_>>() {
        match (theirs.headers.get(name), ours.headers.get(name)) {
            (Some(theirs), Some(ours)) if theirs == ours => {}
            // A column that is NULL.
            (Some(None), None) => {}
            (None, Some(_)) if RELAYS_OWN.contains(&name.as_str()) => {}
            (theirs, ours) => differ(format!("header {name}: {theirs:?} became {ours:?}")),
        }
    }
    if theirs.timestamp != ours.timestamp {
        differ(format!("timestamp {:?} became {:?}", theirs.timestamp, ours.timestamp));
    }
}

/// Returns the ids of each key in their order, except for the empty key, which several writers have.
fn orders(found: &[Sent]) -> BTreeMap<(&str, i32, String), Vec<&str>> {
    let mut sorted: Vec<_> = found.iter().collect();
    sorted.sort_by_key(|one| (one.topic.as_str(), one.partition, one.offset));
    let mut orders: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for one in sorted {
        let Some(Bytes::Text(key)) = &one.key else { continue };
        if !key.is_empty() && key != "\"\"" && !key.ends_with(":\"\"}") {
            orders.entry((one.topic.as_str(), one.partition, key.clone())).or_default().push(one.id());
        }
    }
    orders
}
