//! Publishes each batch to its topic exactly once, whichever process dies at whichever moment. The model in `tests/model` checks the
//! protocol.
//!
//! A batch and its progress (the note "these ids are done") go to Kafka in one transaction. Postgres gets the marks afterwards. A worker
//! that finds a lane whose last owner did not release it reads the progress before it sends anything.
//!
//! ```text
//! a lane's row         meaning                                         what may be in doubt
//! free                 no worker, or one that publishes at least once  nothing that was sent in a Kafka transaction
//! taken (id, epoch)    `id` is making itself known to Kafka            nothing: `id` has not sent any event
//! opened (id, epoch)   `id` may have sent events                       the batch that its progress names, if that is of this epoch
//!
//! free | taken | opened --take--> taken, epoch + 1 --open--> opened --batch--> opened --release--> free
//! ```
//!
//! Each step changes the lanes' rows under their locks. The changes are durable before the next step begins:
//!
//! - take: 1. the worker fences the former owner's transactional id, which rolls back what that owner had open and stops it for good; 2. it
//!   reads the lane's progress; 3. it marks the events that the progress names and that are still PENDING; 4. it writes the new owner and
//!   the next epoch to the row.
//! - open: the worker commits a progress without ids to Kafka, then writes `opened` to the row. From here on a progress of this epoch has
//!   to exist. If it is missing, it was lost, and the events that may be in doubt are searched for on the topics (`recovery`).
//! - batch: the worker claims and sends, commits records and progress in one transaction of Kafka, marks the rows, and commits in Postgres.
//!   The next transaction of Kafka, whose progress replaces this one, begins only when the marks are durable (`synchronous_commit = on`).
//! - release: nothing is in doubt, and the worker writes this to the row.
//!
//! A worker that was frozen does no harm, wherever it wakes up. It sends with a producer that had taken the transactional id before the
//! worker read the row under the lock. A worker that has taken the lane since has fenced that producer. A new producer requires a new look
//! at the row.
//!
//! After any error a worker trusts nothing. It drops its producer, and takes its own lanes as if they were another worker's. Like every
//! other worker, it learns from the progress whether its commit was made.
//!
//! A transaction whose records are not acknowledged is left ([`leave`]): nobody has asked for its commit, so it can only be rolled back. The
//! worker releases its lanes and goes on under a new transactional id.
//!
//! A worker that publishes at least once takes such a lane (taken or opened) by the same steps, and leaves it free.

mod leave;
pub(crate) mod ownership;
mod recovery;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use rdkafka::error::RDKafkaErrorCode;

use crate::config::Settle;
use crate::lane::LaneRange;
use crate::relay::exactly_once::ownership::{relay_of, transactions_of};
use crate::relay::worker::claim::Batch;
use crate::relay::worker::context::{CycleError, WorkerContext};
use crate::relay::worker::lane_assignment::LaneAssignment;
use crate::relay::worker::outcome::{RowOutcome, Sent};
use crate::sink::broker::BrokerDown;
use crate::sink::progress::{Progress, Room, digest};
use crate::sink::transactions::{Offsets, TransactionError};
use crate::store::delivery::Owner;
use crate::store::session::within;
use crate::store::session::{self, Begun, Wanted};
use event_outbox::notice::Notice;

/// The silence, in halves of a heartbeat interval, after which the owner of a lane no longer counts as alive. Such a relay does not release
/// its lanes any more. The time is shorter than elsewhere, because this owner does not hold the lock on the lane either.
const SILENT_HALVES: u32 = 3;

/// The time, in heartbeat intervals, for which a worker waits for a live owner to release a lane. After this time it takes the lane.
const PATIENT_BEATS: u32 = 10;

impl WorkerContext<'_> {
    /// Returns the lanes to work on: the longest run of lanes that are locked and free to take. Also returns those of them that have to be
    /// taken first.
    pub(super) async fn lanes_to_work_on(
        &mut self,
        begun: &Begun,
    ) -> Result<Option<(LaneRange, Vec<i16>)>, CycleError> {
        let locked: Vec<i16> = begun.lanes.iter().map(|row| row.lane).collect();
        if begun.owners.is_empty() && !self.shared.options.is_exactly_once() {
            return Ok(LaneRange::longest_run(&locked).map(|lanes| (lanes, Vec::new())));
        }
        let free = self.without_those_of_the_living(begun, locked).await?;
        let lanes = LaneRange::longest_run(&free);
        Ok(lanes
            .map(|lanes| (lanes, (lanes.first..=lanes.last).filter(|lane| !self.is_settled(begun, *lane)).collect())))
    }

    /// Returns true when nothing of the locked lanes can be in doubt.
    pub(super) fn are_settled(&self, begun: &Begun) -> bool {
        begun.lanes.iter().all(|row| self.is_settled(begun, row.lane))
    }

    /// Removes from `locked` the lanes that a live worker owns. Such a worker itself releases the lanes that are another worker's share.
    /// Fencing it would cost it the events that it has in flight. After [`PATIENT_BEATS`] intervals of waiting nothing is removed.
    async fn without_those_of_the_living(&mut self, begun: &Begun, locked: Vec<i16>) -> Result<Vec<i16>, CycleError> {
        let own = &self.ownership.transactional_id;
        let others: Vec<_> =
            begun.owners.iter().filter(|o| o.transactional_id != *own && locked.contains(&o.lane)).collect();
        if others.is_empty() {
            self.ownership.contested_since = None;
            return Ok(locked);
        }
        let options = &self.shared.options;
        let silence = options.relay.heartbeat_interval / 2 * SILENT_HALVES;
        let rows = within(self.shared.registry.all_of(self.conn)).await?;
        let (relays, now) = (&self.shared.relays, Instant::now());
        relays.observe(&rows, now);
        let lives = |owner: &Owner| {
            let relay = relay_of(&owner.transactional_id).and_then(|relay| relay.parse().ok());
            relay.is_some_and(|relay| relays.is_alive(relay, silence, now))
        };
        let since = *self.ownership.contested_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= options.relay.heartbeat_interval * PATIENT_BEATS {
            return Ok(locked);
        }
        let kept: BTreeSet<i16> = others.into_iter().filter(|owner| lives(owner)).map(|owner| owner.lane).collect();
        Ok(locked.into_iter().filter(|lane| !kept.contains(lane)).collect())
    }

    /// Returns true when nothing of the lane can be in doubt.
    fn is_settled(&self, begun: &Begun, lane: i16) -> bool {
        let owner = begun.owners.iter().find(|owner| owner.lane == lane);
        match owner {
            Some(owner) if self.shared.options.is_exactly_once() => {
                owner.opened
                    && owner.transactional_id == self.ownership.transactional_id
                    && self.ownership.settled.get(&lane) == Some(&owner.epoch)
            }
            Some(_) => false,
            None => !self.shared.options.is_exactly_once(),
        }
    }

    /// Takes lanes in the transaction that has locked them, and commits that transaction. In exactly-once mode it then opens them.
    pub(super) async fn take(&mut self, begun: &Begun, lanes: LaneRange, wanted: &[i16]) -> Result<(), CycleError> {
        let former: Vec<_> = begun.owners.iter().filter(|owner| wanted.contains(&owner.lane)).collect();
        self.fence_former(lanes, wanted, &former).await?;
        let states = within(self.shared.transaction.read_lanes(self.conn, lanes)).await?;
        let sealed: BTreeMap<i16, i64> = states.iter().map(|state| (state.row.lane, state.sealed)).collect();
        let settled = self.settle_former(lanes, wanted, &former, &sealed).await?;
        let shared = self.shared;
        let persistent = shared.options.database.prepared_statements;
        let heir = shared.options.is_exactly_once().then_some(self.ownership.transactional_id.as_str());
        let taken = within(shared.delivery.take(self.conn, lanes, wanted, heir, persistent)).await?;
        within(session::commit(self.conn)).await?;
        shared.settled(settled as usize, 0);
        tracing::debug!(worker = self.worker, ?wanted, settled, "lanes are taken");
        if heir.is_some() {
            self.open(lanes, taken, &sealed).await?;
        }
        if shared.obstacles.unblock(self.component(), &transactions_of(self.worker)) {
            tracing::info!(
                notice = %Notice::TransactionsUsable,
                worker = self.worker,
                "events can be published in transactions again"
            );
        }
        Ok(())
    }

    /// Returns the lanes whose progress in Kafka has to be read. In exactly-once mode this includes lanes whose row names no owner, because
    /// the row may have lost commits.
    fn lanes_in_doubt(&self, wanted: &[i16], former: &[&Owner]) -> Vec<i16> {
        match self.shared.options.is_exactly_once() {
            true => wanted.to_vec(),
            false => former.iter().filter(|owner| owner.opened).map(|owner| owner.lane).collect(),
        }
    }

    /// Stops the former owners for good: the owners that the lanes' rows name, and the owners that only Kafka knows, because Postgres has
    /// lost the commit that made them owners.
    async fn fence_former(&mut self, lanes: LaneRange, wanted: &[i16], former: &[&Owner]) -> Result<(), CycleError> {
        let mut ids: BTreeSet<String> = former.iter().map(|owner| owner.transactional_id.clone()).collect();
        let read = self.lanes_in_doubt(wanted, former);
        if !read.is_empty() {
            let persistent = self.shared.options.database.prepared_statements;
            let epochs = within(self.shared.delivery.epochs(self.conn, lanes, persistent)).await?;
            for (lane, found) in self.shared.progress.read(read).await? {
                if epochs.get(&lane).is_none_or(|epoch| found.epoch > *epoch) {
                    ids.insert(found.owner);
                }
            }
        }
        for id in ids.into_iter().filter(|id| *id != self.ownership.transactional_id) {
            self.shared.progress.fence(&id, self.shared.options.longest_transaction()).await?;
        }
        Ok(())
    }

    /// Marks the events that the former owners have published and could not mark. Returns the number of marked events.
    ///
    /// The progress in Kafka names ids. The ids stand for the events that were sent only if the table has not lost commits since, in a
    /// failover or by a restored backup: lost ids are allocated again. The nonces tell whether the table is in the state before or after
    /// the batch. The digest tells whether the rows are the ones that were sent.
    async fn settle_former(
        &mut self,
        lanes: LaneRange,
        wanted: &[i16],
        former: &[&Owner],
        sealed: &BTreeMap<i16, i64>,
    ) -> Result<u64, CycleError> {
        let read = self.lanes_in_doubt(wanted, former);
        if read.is_empty() {
            return Ok(0);
        }
        let progress = self.shared.progress.read(read.clone()).await?;
        let persistent = self.shared.options.database.prepared_statements;
        let (mut ids, mut lost) = (Vec::new(), Vec::new());
        for lane in read {
            let stored = sealed.get(&lane).copied().unwrap_or_default();
            let owner = former.iter().find(|owner| owner.lane == lane && owner.opened);
            match (progress.get(&lane), owner) {
                // The lane was never published exactly once.
                (None, None) => {}
                (Some(found), Some(owner)) if !found.is_of(&owner.transactional_id, owner.epoch) => lost.push(lane),
                // The batch is settled: the table has it.
                (Some(found), _) if found.after == stored => {}
                (Some(found), _) if found.before == stored => {
                    let rows = within(self.shared.delivery.events(self.conn, &found.ids, lane, persistent)).await?;
                    // Deleted rows are settled; so they were by a former owner that then ended before it could say so.
                    if rows.is_empty() && self.shared.options.relay.settle == Settle::Delete {
                        continue;
                    }
                    let of_batch: Option<Vec<_>> = found.ids.iter().map(|id| Some((*id, *rows.get(id)?))).collect();
                    match of_batch {
                        Some(rows) if digest(&rows) == found.digest => ids.extend_from_slice(&found.ids),
                        _ => lost.push(lane),
                    }
                }
                _ => lost.push(lane),
            }
        }
        if !lost.is_empty() {
            ids.extend(self.recover_lost_progress(lanes, &lost).await?);
        }
        if ids.is_empty() {
            return Ok(0);
        }
        let settled = within(self.shared.delivery.settle(self.conn, lanes, &ids, persistent)).await?;
        if settled > 0 {
            tracing::info!(
                notice = %Notice::EventsRecovered,
                worker = self.worker,
                %lanes,
                events = settled,
                "marked events that another worker had published"
            );
        }
        Ok(settled)
    }

    /// Makes the new owner known to Kafka, then writes to the rows that the owner may send.
    async fn open(
        &mut self,
        lanes: LaneRange,
        taken: Vec<(i16, i64)>,
        sealed: &BTreeMap<i16, i64>,
    ) -> Result<(), CycleError> {
        let owner = &self.ownership.transactional_id;
        let progress = |(lane, epoch): &(i16, i64)| {
            let nonce = sealed.get(lane).copied().unwrap_or_default();
            let digest = digest(&[]);
            let owner = owner.clone();
            (*lane, Progress { owner, epoch: *epoch, before: nonce, after: nonce, digest, ids: Vec::new() })
        };
        self.commit_progress(taken.iter().map(progress).collect()).await?;
        self.ownership.has_written = false;
        let begun = within(self.shared.transaction.begin(self.conn, Wanted::Free(lanes))).await?;
        let is_locked = |lane: i16| begun.lanes.iter().any(|row| row.lane == lane);
        let locked: Vec<_> = taken.into_iter().filter(|(lane, _)| is_locked(*lane)).collect();
        let (id, persistent) = (&self.ownership.transactional_id, self.shared.options.database.prepared_statements);
        let opened = within(self.shared.delivery.open(self.conn, &locked, id, persistent)).await?;
        within(session::commit(self.conn)).await?;
        self.ownership.settled.extend(locked.into_iter().filter(|(lane, _)| opened.contains(lane)));
        Ok(())
    }

    /// Commits to Kafka the records that were sent since the transaction began, with the progress of these lanes.
    async fn commit_progress(&mut self, lanes: Vec<(i16, Progress)>) -> Result<(), CycleError> {
        let member = self.shared.progress.prepare().await?;
        let producer = self.producer.as_mut().ok_or(BrokerDown)?;
        producer.begin_transaction().map_err(TransactionError::from)?;
        let offsets = Offsets { topic: self.shared.progress.name().to_owned(), lanes, member };
        let committed = producer.commit_transaction(offsets, self.shared.options.relay.publish_timeout).await;
        match committed.as_ref().err().and_then(TransactionError::code) {
            Some(RDKafkaErrorCode::OffsetMetadataTooLarge | RDKafkaErrorCode::InvalidCommitOffsetSize) => {
                self.ownership.metadata_was_refused();
            }
            Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => {
                self.shared.progress.check_topic_again();
            }
            _ => {}
        }
        Ok(committed?)
    }

    /// Commits the batch to Kafka, with a progress that fixes the nonce which the lanes' rows get with this batch. After an error the batch
    /// may or may not be committed: the progress tells.
    pub(super) async fn seal(
        &mut self,
        assignment: &LaneAssignment,
        batch: &Batch,
        sent: &Sent,
    ) -> Result<(), CycleError> {
        let mut rows: BTreeMap<i16, Vec<(i64, uuid::Uuid)>> = BTreeMap::new();
        for (row, outcome) in batch.rows.iter().zip(&sent.outcomes) {
            if matches!(outcome, RowOutcome::Sent { .. }) {
                rows.entry(row.lane()?).or_default().push((row.id()?.0, row.event_id()?.0));
            }
        }
        let Some(owned) = &assignment.owned else { return Err(sqlx::Error::PoolClosed.into()) };
        let lanes = rows.into_iter().map(|(lane, rows)| {
            let epoch = self.ownership.settled.get(&lane).copied().ok_or(sqlx::Error::RowNotFound)?;
            let before = owned.sealed.get(&lane).copied().unwrap_or_default();
            let (digest, ids) = (digest(&rows), rows.into_iter().map(|(id, _)| id).collect());
            let owner = self.ownership.transactional_id.clone();
            Ok((lane, Progress { owner, epoch, before, after: owned.next_nonce, digest, ids }))
        });
        let lanes = lanes.collect::<Result<Vec<_>, sqlx::Error>>()?;
        self.ownership.has_written = true;
        self.commit_progress(lanes).await
    }

    /// Releases the owned lanes outside `keep`. Nothing of them is in doubt.
    pub(crate) async fn release_lanes(&mut self, keep: Option<LaneRange>) -> Result<(), CycleError> {
        let is_kept = |lane: i16| keep.is_some_and(|keep| (keep.first..=keep.last).contains(&lane));
        let released: Vec<_> = self
            .ownership
            .settled
            .iter()
            .map(|(lane, epoch)| (*lane, *epoch))
            .filter(|(lane, _)| !is_kept(*lane))
            .collect();
        if released.is_empty() {
            return Ok(());
        }
        self.ownership.settled.retain(|lane, _| is_kept(*lane));
        let (id, persistent) = (&self.ownership.transactional_id, self.shared.options.database.prepared_statements);
        within(self.shared.delivery.release_lanes(self.conn, &released, id, persistent)).await?;
        Ok(())
    }

    /// Returns how many rows of the batch fit into the progress that is committed with them. The next claim takes the rest.
    pub(super) fn fitting_rows(&mut self, batch: &Batch) -> Result<usize, sqlx::Error> {
        if !self.shared.options.is_exactly_once() {
            return Ok(batch.rows.len());
        }
        let mut rooms: BTreeMap<i16, Room> = BTreeMap::new();
        let mut fitting = 0;
        for row in &batch.rows {
            let room = rooms.entry(row.lane()?).or_insert_with(|| Room::new(self.ownership.metadata_bytes));
            if !room.take(row.id()?.0) {
                self.budget.rows = fitting.max(1);
                break;
            }
            fitting += 1;
        }
        Ok(fitting)
    }
}
