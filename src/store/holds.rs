//! Rows held back: PENDING with `available_at = 'infinity'` and the reason in `last_error`. The rows themselves are the record
//! of what is held, so a worker that takes a lane over learns it from them, and nothing can disagree with them.

use sqlx::{AssertSqlSafe, PgConnection, Row};

use crate::event::OutboxId;
use crate::lane::LaneRange;
use crate::store::claim::WAITING;
use crate::store::names::Names;

const TOPIC_PREFIX: &str = "held topic ";
pub(crate) const ENTITY_PREFIX: &str = "held entity: ";
const PAUSED_TOPIC_PREFIX: &str = "paused topic ";
const PAUSED_ENTITY_PREFIX: &str = "paused entity: ";

/// What a row says that waits behind another of its entity. The other says why.
pub(crate) const BEHIND: &str = "held entity: waits behind an event that was refused";

/// What a held row waits for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Hold {
    /// The topic cannot be written: it does not exist, or a right is missing.
    Topic(String),
    /// An event of this entity (type, id) was refused, and its successors wait behind it.
    Entity(String, String),
    /// The topic is or was paused.
    PausedTopic(String),
    /// The entity (type, id) is or was paused.
    PausedEntity(String, String),
}

impl Hold {
    /// True when it ends with a pause.
    pub(crate) fn is_pause(&self) -> bool {
        matches!(self, Hold::PausedTopic(_) | Hold::PausedEntity(..))
    }
}

/// `last_error` of a row that waits for its topic. A topic's name has no colon, so the prefix can be read back.
pub(crate) fn topic_reason(topic: &str, why: &str) -> String {
    format!("{TOPIC_PREFIX}{topic}: {why}")
}

/// `last_error` of a row that waits for its entity.
pub(crate) fn entity_reason(why: &str) -> String {
    format!("{ENTITY_PREFIX}{why}")
}

/// `last_error` of a row that waits because its topic is paused.
pub(crate) fn paused_topic_reason(topic: &str, why: &str) -> String {
    format!("{PAUSED_TOPIC_PREFIX}{topic}: {why}")
}

/// `last_error` of a row that waits because its entity is paused.
pub(crate) fn paused_entity_reason(why: &str) -> String {
    format!("{PAUSED_ENTITY_PREFIX}{why}")
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
        let of_entity = format!(
            "case when starts_with(last_error, '{ENTITY_PREFIX}') then '{ENTITY_PREFIX}' \
                  when starts_with(last_error, '{PAUSED_ENTITY_PREFIX}') then '{PAUSED_ENTITY_PREFIX}' end"
        );
        Self {
            // Reasons of topics repeat; of entities the reason is dropped and the entity kept.
            learn: format!(
                "select distinct coalesce({of_entity}, last_error), \
                   case when {of_entity} is not null then entity_type end, \
                   case when {of_entity} is not null then entity_id end \
                 from {outbox} where {held}"
            ),
            // In the order of their ids, a batch at a time: a million at once would outlast every timeout, and a topic that still
            // refuses gets no more than one batch to refuse.
            release: format!(
                "with released as (\
                   update {outbox} set available_at = null, last_error = null where ctid = any (array(\
                     select ctid from {outbox} where {held} and starts_with(last_error, $3) \
                       and ($5::text is null or (entity_type, entity_id) = ($5, $6)) order by id limit $4)) \
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
            let reason: &str = row.try_get(0)?;
            if let Some(hold) = topic_of(reason) {
                holds.push(hold);
            } else if let (Some(entity_type), Some(entity_id)) = (row.try_get(1)?, row.try_get(2)?) {
                holds.push(if waits_for_entity(reason) {
                    Hold::Entity(entity_type, entity_id)
                } else {
                    Hold::PausedEntity(entity_type, entity_id)
                });
            }
        }
        Ok(holds)
    }

    /// Makes the first `limit` rows that `hold` keeps waiting claimable again; returns the highest of them, and `None` when none is
    /// left behind them. Until then later rows of the same have to be held.
    pub(crate) async fn release(
        &self,
        conn: &mut PgConnection,
        lanes: LaneRange,
        hold: &Hold,
        limit: usize,
        persistent: bool,
    ) -> Result<Option<OutboxId>, sqlx::Error> {
        let (prefix, entity) = match hold {
            Hold::Topic(topic) => (format!("{TOPIC_PREFIX}{topic}:"), None),
            Hold::PausedTopic(topic) => (format!("{PAUSED_TOPIC_PREFIX}{topic}:"), None),
            Hold::Entity(kind, id) => (ENTITY_PREFIX.to_owned(), Some((kind, id))),
            Hold::PausedEntity(kind, id) => (PAUSED_ENTITY_PREFIX.to_owned(), Some((kind, id))),
        };
        let row = sqlx::query(AssertSqlSafe(self.release.as_str()))
            .bind(lanes.first)
            .bind(lanes.last)
            .bind(prefix)
            .bind(limit as i64)
            .bind(entity.map(|(kind, _)| kind))
            .bind(entity.map(|(_, id)| id))
            .persistent(persistent)
            .fetch_one(conn)
            .await?;
        let highest = row.try_get::<Option<i64>, _>(1)?.map(OutboxId);
        Ok(highest.filter(|_| row.try_get::<i64, _>(0).is_ok_and(|released| released >= limit as i64)))
    }
}

/// The hold of a row that waits for its topic.
fn topic_of(reason: &str) -> Option<Hold> {
    let topic = |rest: &str| rest.split_once(':').map(|(topic, _)| topic.to_owned());
    if let Some(rest) = reason.strip_prefix(TOPIC_PREFIX) {
        return topic(rest).map(Hold::Topic);
    }
    topic(reason.strip_prefix(PAUSED_TOPIC_PREFIX)?).map(Hold::PausedTopic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topic_is_read_back_from_the_reason() {
        let topic = || "order-events".to_owned();
        assert_eq!(topic_of(&topic_reason(&topic(), "it does not exist: create it")), Some(Hold::Topic(topic())));
        assert_eq!(topic_of(&paused_topic_reason(&topic(), "held topic x: y")), Some(Hold::PausedTopic(topic())));
        assert_eq!(topic_of(&entity_reason("held topic x: y")), None);
        assert_eq!(topic_of(&paused_entity_reason("paused topic x: y")), None);
    }
}
