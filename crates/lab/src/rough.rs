//! Writes events like those of real applications: without a key, with odd keys and payloads, and now and then one that cannot be sent.

use rand::Rng;
use rand::rngs::StdRng;
use sqlx::{AssertSqlSafe, PgConnection};
use uuid::Uuid;

/// The `event_type` of events that cannot be sent. They end as DEAD, all others as PUBLISHED.
pub const POISON: &str = "Poison";

/// One in N odd events is poison.
const POISON_IN: u32 = 12;

/// The rest of `insert into event_outbox (entity_type, event_type, entity_id, `. `KEY` stands for the writer's own entity.
const ODD: [&str; 9] = [
    "payload) values ('order', 'Odd', null, '{\"keyless\": true}')",
    "payload) values ('order', 'Odd', null, null)",
    "payload_bytes) values ('order', 'Odd', KEY, '\\x0001e28682000000ff')",
    "payload) values ('order', 'Odd', KEY, '{\"n\": 12345678901234567890, \"m\": 0.10000000000000000000000000001}')",
    "payload) values ('order', 'Odd', '🦀🔑' || KEY, '{\"emoji\": \"🦀\", \"escaped\": \"\\u00e9\\t\\\"\\\\\", \"\": \"\"}')",
    "payload) values ('order', 'Odd', KEY, '\"\"')",
    "payload) values ('order', 'Odd', KEY, null)",
    "payload_bytes) values ('order', 'Odd', KEY, '')",
    "payload, headers) values ('order', 'Odd', KEY, '{\"ünï\": [1, 2.50, null]}', '{\"trace\": \"ü\", \"empty\": \"\"}')",
];

const BAD: [&str; 3] = [
    "payload, headers) values ('order', 'Poison', KEY, '{}', '{\"number\": 1}')",
    "payload, topic) values ('order', 'Poison', KEY, '{}', 'no such topic!')",
    "payload_bytes) values ('order', 'Poison', KEY, decode(repeat('00', 2000000), 'hex'))",
];

/// Writes one odd event, of the connection's own entity or of none.
pub async fn insert(connection: &mut PgConnection, entity: &str, random: &mut StdRng) -> sqlx::Result<Uuid> {
    let bad = random.random_ratio(1, POISON_IN);
    let rest = if bad { BAD[random.random_range(0..BAD.len())] } else { ODD[random.random_range(0..ODD.len())] };
    let rest = rest.replace("KEY", &format!("'{entity}'"));
    let sql = format!("insert into event_outbox (entity_type, event_type, entity_id, {rest} returning event_id");
    sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(connection).await
}
