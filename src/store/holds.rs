//! Rows held back: PENDING with `available_at = 'infinity'` and the reason in `last_error`. The rows themselves are the record
//! of what is held, so a worker that takes a lane over learns it from them, and nothing can disagree with them.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::event::OutboxId;
use crate::lane::LaneRange;
use crate::store::claim::WAITING;
use crate::store::names::Names;

const TOPIC_PREFIX: &str = "held topic ";
const ENTITY_PREFIX: &str = "held entity: ";

/// What a held row waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Hold {
    /// The topic cannot be written: it does not exist, or a right is missing.
    Topic(String),
    /// An event of this entity (type, id) was refused, and its successors wait behind it.
    Entity(String, String),
}

/// `last_error` of a row that waits for its topic. A topic's name has no colon, so the prefix can be read back.
pub(crate) fn topic_reason(topic: &str, why: &str) -> String {
    format!("{TOPIC_PREFIX}{topic}: {why}")
}

/// `last_error` of a row that waits for its entity.
pub(crate) fn entity_reason(why: &str) -> String {
    format!("{ENTITY_PREFIX}{why}")
}

/// True for the `last_error` of a row that waits for its entity.
pub(crate) fn waits_for_entity(reason: &str) -> bool {
    reason.starts_with(ENTITY_PREFIX)
}

/// The statements about held rows, rendered once per worker.
#[derive(Debug, Clone)]
pub(crate) struct HoldSql {
    learn: String,
    release: String,
}

impl HoldSql {
    pub(crate) fn new(names: &Names) -> Self {
        let outbox = names.outbox();
        let held =
            format!("{WAITING} and available_at = 'infinity' and last_error is not null and lane between $1 and $2");
        Self {
            // Reasons of topics repeat; of entities the reason is dropped and the entity kept.
            learn: format!(
                "select distinct \
                   case when starts_with(last_error, '{TOPIC_PREFIX}') then last_error end, \
                   case when starts_with(last_error, '{ENTITY_PREFIX}') then entity_type end, \
                   case when starts_with(last_error, '{ENTITY_PREFIX}') then entity_id end \
                 from {outbox} where {held}"
            ),
            // In the order of their ids, a batch at a time: a million at once would outlast every timeout, and a topic that still
            // refuses gets no more than one batch to refuse.
            release: format!(
                "with released as (\
                   update {outbox} set available_at = null, last_error = null where ctid = any (array(\
                     select ctid from {outbox} where {held} and starts_with(last_error, $3) order by id limit $4)) \
                   returning id) \
                 select count(*), max(id) from released"
            ),
        }
    }

    /// What is held in these lanes.
    pub(crate) async fn learn(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        persistent: bool,
    ) -> Result<Vec<Hold>, sqlx::Error> {
        let rows = sqlx::query(AssertSqlSafe(self.learn.as_str()))
            .bind(lanes.first)
            .bind(lanes.last)
            .persistent(persistent)
            .fetch_all(conn)
            .await?;
        let mut holds = Vec::new();
        for row in rows {
            if let Some(topic) = row.try_get::<Option<&str>, _>(0)?.and_then(topic_of) {
                holds.push(Hold::Topic(topic.to_owned()));
            } else if let (Some(entity_type), Some(entity_id)) = (row.try_get(1)?, row.try_get(2)?) {
                holds.push(Hold::Entity(entity_type, entity_id));
            }
        }
        Ok(holds)
    }

    /// Makes the first `limit` rows that wait for `topic` claimable again; returns the highest of them, and `None` when none is
    /// left behind them. Until then later rows of the topic have to be held.
    pub(crate) async fn release_topic(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        topic: &str,
        limit: usize,
        persistent: bool,
    ) -> Result<Option<OutboxId>, sqlx::Error> {
        let row = sqlx::query(AssertSqlSafe(self.release.as_str()))
            .bind(lanes.first)
            .bind(lanes.last)
            .bind(format!("{TOPIC_PREFIX}{topic}:"))
            .bind(limit as i64)
            .persistent(persistent)
            .fetch_one(conn)
            .await?;
        let highest = row.try_get::<Option<i64>, _>(1)?.map(OutboxId);
        Ok(highest.filter(|_| row.try_get::<i64, _>(0).is_ok_and(|released| released >= limit as i64)))
    }
}

fn topic_of(reason: &str) -> Option<&str> {
    reason.strip_prefix(TOPIC_PREFIX)?.split_once(':').map(|(topic, _)| topic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_is_read_back_from_the_reason() {
        assert_eq!(topic_of(&topic_reason("order-events", "it does not exist: create it")), Some("order-events"));
        assert_eq!(topic_of(&entity_reason("held topic x: y")), None);
    }
}
