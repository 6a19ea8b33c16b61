//! Reads the progress of lanes that are published exactly once from Kafka.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::PgConnection;

use super::Status;
use crate::config::Settings;
use crate::sink::client::ClientSettings;
use crate::sink::progress::Progress;
use crate::sink::transactions::ProgressGroup;
use crate::store::delivery;
use crate::store::fleet::LaneDelivery;
use event_outbox::Names;

/// The last batch of a lane. Its ids were committed to Kafka in one transaction with its records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LaneProgress {
    pub(crate) epoch: i64,
    /// True when worker and epoch equal those of the lane's row. Otherwise the progress was lost.
    pub(crate) is_current: bool,
    /// The number of events in the batch; 0 right after a worker took the lane.
    pub(crate) events: usize,
    /// The highest `id` of the batch.
    pub(crate) last_id: Option<i64>,
}

/// The owner of a lane that is published in transactions, and its progress.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct LaneOwner {
    #[serde(flatten)]
    pub(crate) row: LaneDelivery,
    /// The progress in Kafka; `None` if there is none or Kafka was not asked.
    pub(crate) progress: Option<LaneProgress>,
}

impl From<LaneDelivery> for LaneOwner {
    fn from(row: LaneDelivery) -> Self {
        Self { row, progress: None }
    }
}

impl Status {
    /// Reads the progress of the lanes whose owner may have sent records. If Kafka does not answer within 5 s, the screen shows that.
    pub(crate) async fn read_progress(&mut self, conn: &mut PgConnection, settings: &Settings, names: &Names) {
        let opened: Vec<i16> = self.delivery.iter().filter(|lane| lane.row.opened).map(|lane| lane.row.lane).collect();
        let Some(kafka) = settings.kafka.as_ref().filter(|_| !opened.is_empty()) else { return };
        let Ok(identity) = delivery::identity(conn, names).await else { return };
        let client = ClientSettings::new(kafka, settings.relay.batch_size, 0);
        let group = ProgressGroup::new(client, identity, self.delivery.len() as u16);
        match group.read(opened).await {
            Ok(found) => self.take_progress(&found),
            Err(_) => self.progress_unread = Some(format!("the group {} could not be read", group.name())),
        }
    }

    fn take_progress(&mut self, found: &BTreeMap<i16, Progress>) {
        for lane in &mut self.delivery {
            let Some(progress) = found.get(&lane.row.lane) else { continue };
            lane.progress = Some(LaneProgress {
                epoch: progress.epoch,
                is_current: lane
                    .row
                    .transactional_id
                    .as_deref()
                    .is_some_and(|owner| progress.is_of(owner, lane.row.epoch)),
                events: progress.ids.len(),
                last_id: progress.ids.iter().max().copied(),
            });
        }
    }
}
