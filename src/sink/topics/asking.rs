//! The task that asks the cluster about topics.

use std::sync::Arc;
use std::time::Instant;

use rdkafka::error::RDKafkaErrorCode;

use super::table::{Due, LIST_VALID};
use super::{
    ATTEMPT_PAUSE, ATTEMPTS, ATTEMPTS_TO_CREATE, Answer, COUNTS_INTERVAL, FEW, LIST_INTERVAL_LONGEST, LIST_SHARE,
    Listed, TICK, Topics, WATCHED,
};
use crate::sink::broker::{Broker, BrokerDown};

impl Topics {
    /// Asks the cluster for what workers wait for. Never ends.
    pub(crate) async fn run(self: Arc<Self>, broker: Arc<Broker>) {
        let mut up = broker.state();
        let mut listed = Listed { at: None, interval: LIST_VALID };
        // Fails only when the watch is gone, and with it the relay.
        while up.wait_for(|up| *up).await.is_ok() {
            // When it fails the cluster is suspected to be away, and asked by the watch.
            let asked = self.ask(&broker, &mut listed).await;
            let pause = if asked.is_ok() { TICK } else { ATTEMPT_PAUSE };
            drop(tokio::time::timeout(pause, self.asked.notified()).await);
            if asked.is_ok_and(|waits| waits) {
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
        }
    }

    /// Asks for what is due; returns true when new topics have to wait for the next list.
    async fn ask(&self, broker: &Arc<Broker>, listed: &mut Listed) -> Result<bool, BrokerDown> {
        let (Due { new, closed }, many_writable) = {
            let (mut table, now) = (self.table(), Instant::now());
            table.expire(now);
            (table.due(now), table.writable() > WATCHED)
        };
        let (many_new, many_closed) = (new.len() > FEW, closed.len() > FEW);
        let counts_due = many_writable && listed.is_older_than(COUNTS_INTERVAL);
        let list_due = many_new && listed.is_older_than(LIST_VALID)
            || many_closed && listed.is_older_than(listed.interval)
            || counts_due;
        if !many_new {
            self.ask_singly(broker, new).await?;
        }
        if list_due {
            let began = Instant::now();
            self.ask_for_all(broker).await?;
            listed.interval = (began.elapsed() * LIST_SHARE).clamp(LIST_VALID, LIST_INTERVAL_LONGEST);
            listed.at = Some(Instant::now());
        } else if !many_closed {
            self.ask_singly(broker, closed).await?;
        }
        Ok(many_new && !list_due)
    }

    /// Asks for the partition counts of the topics in use. The last owner of a lane may have used a count that this relay does not know yet;
    /// without it, the lane's entities would go back to their old partitions.
    ///
    /// # Errors
    /// [`BrokerDown`] if the cluster does not answer.
    pub(crate) async fn refresh_counts(&self, broker: &Arc<Broker>) -> Result<(), BrokerDown> {
        let known = self.table().counted();
        let counted = match known.len() {
            0 => return Ok(()),
            1..=FEW => broker.describe(known).await?,
            _ => broker.describe_all().await?.into_iter().collect(),
        };
        let mut table = self.table();
        for (topic, answer) in counted {
            table.raise(&topic, answer);
        }
        Ok(())
    }

    async fn ask_for_all(&self, broker: &Arc<Broker>) -> Result<(), BrokerDown> {
        let list = broker.describe_all().await?;
        self.table().update_all(list, Instant::now());
        self.answered.send_replace(());
        if self.creates {
            // The list creates none.
            let mut missing = self.table().closed(Instant::now());
            missing.truncate(FEW);
            self.ask_singly(broker, missing).await?;
        }
        Ok(())
    }

    /// Topics that are missing are asked for more than once, together: the pauses do not add up.
    async fn ask_singly(&self, broker: &Arc<Broker>, mut topics: Vec<String>) -> Result<(), BrokerDown> {
        let attempts = if self.creates { ATTEMPTS_TO_CREATE } else { ATTEMPTS };
        for attempt in 1..=attempts {
            if topics.is_empty() {
                break;
            }
            if attempt > 1 {
                tokio::time::sleep(ATTEMPT_PAUSE).await;
            }
            let answers = broker.describe(std::mem::take(&mut topics)).await?;
            for (topic, answer) in answers {
                let is_new = self.table().is_unknown(&topic);
                let settled = match answer {
                    Answer::Exists { .. } => true,
                    Answer::Error(RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic) => true,
                    Answer::Error(_) => attempt == attempts || !is_new,
                };
                if settled {
                    self.update(&topic, answer);
                } else {
                    topics.push(topic);
                }
            }
        }
        Ok(())
    }
}
