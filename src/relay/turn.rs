//! One turn of a worker, strictly serial:
//!
//! probe -> begin (own lanes) -> claim -> recount -> send -> await acks -> settle -> commit
//!
//! Whatever fails on the way, the rows that were not marked are still pending, the producer that may hold them is dropped, and
//! the next turn claims and sends them again in order. Only rows the broker has acknowledged are ever marked.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use sqlx::PgConnection;

use crate::event::OutboxId;
use crate::fault::{self, Class};
use crate::lane::LaneRange;
use crate::observe::code::Code;
use crate::relay::batch::{Closed, Fate, Plan, Sent, poison, refused};
use crate::relay::shared::Shared;
use crate::relay::stint::Stint;
use crate::sink::broker::BrokerDown;
use crate::sink::delivery::Outcome;
use crate::sink::producer::KafkaProducer;
use crate::sink::topics::TopicState;
use crate::store::claim::{Claimed, ClaimedRow, Reach, Skipped};
use crate::store::holds::{Hold, topic_reason, waits_for_entity};
use crate::store::session::{self, Owned};
use crate::store::settle::{Ctid, SettleError};

/// How long the statements of one step may take before the connection counts as dead.
pub(crate) const DATABASE_TIMEOUT: Duration = Duration::from_secs(15);

/// How often scheduled rows are looked for while a backlog keeps the probe from doing so.
const DUE_INTERVAL: Duration = Duration::from_millis(100);

/// How often a topic that is held is asked for.
const TOPIC_INTERVAL: Duration = Duration::from_secs(2);

/// A row that another session has locked is told after this long.
const LOCKED_TELL: Duration = Duration::from_secs(5);

/// How long claims go around the entities that wait behind a locked row.
const AROUND_TIME: Duration = Duration::from_millis(250);

/// How long a turn may ask for topics it does not know; the rows of the others are left for the next.
const ASKING_TIME: Duration = Duration::from_secs(1);

/// What [`Shared::block`] calls records of a worker that are not acknowledged.
pub(crate) fn acks_of(worker: usize) -> String {
    format!("acks of worker {worker}")
}

/// What [`Shared::block`] calls a row of these lanes that another session has locked.
pub(crate) fn lock_in(lanes: LaneRange) -> String {
    format!("lanes {lanes}")
}

/// How a turn ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Nothing to do.
    Idle,
    /// Rows were settled.
    Worked,
}

/// Why a turn did not end well. Nothing is lost: see the head of this file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    #[error("database")]
    Database(#[from] sqlx::Error),
    #[error("lanes {lanes}: {source}")]
    NotOwned { lanes: LaneRange, source: SettleError },
    #[error(transparent)]
    BrokerDown(#[from] BrokerDown),
    /// Some records were not acknowledged; those that were are marked.
    #[error("{unacknowledged} of {records} records were not acknowledged: {reason}")]
    Unacknowledged { unacknowledged: usize, records: usize, reason: String, class: Class },
}

/// How the wait for acks ended.
enum Waited {
    Settled,
    BrokerDown,
    TimedOut,
}

/// The claimed rows of a turn.
struct Claim {
    rows: Vec<ClaimedRow>,
    skipped: Vec<Skipped>,
    start: i64,
    /// Last id of the claim proper; scheduled rows do not count.
    last: Option<OutboxId>,
    full: bool,
}

/// The parts of a worker that a turn works with.
pub(crate) struct Hands<'w> {
    pub(crate) worker: usize,
    pub(crate) shared: &'w Shared,
    pub(crate) conn: &'w mut PgConnection,
    pub(crate) producer: &'w mut Option<KafkaProducer>,
    /// Events of the next claim: the batch size, less after a refusal, to find out which record it was.
    pub(crate) limit: &'w mut usize,
}

/// Bounds a step against the database: a connection into a black hole answers never.
pub(crate) async fn within<T, E: From<sqlx::Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match tokio::time::timeout(DATABASE_TIMEOUT, step).await {
        Ok(done) => done,
        Err(_) => Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()).into()),
    }
}

impl Hands<'_> {
    /// One turn. After an error the connection must be dropped, unless it is [`TurnError::Unacknowledged`].
    pub(crate) async fn turn(&mut self, stint: &mut Stint, probe_first: bool) -> Result<Turn, TurnError> {
        if stint.gate.has_expired(Instant::now()) {
            stint.generation = None;
        }
        if (probe_first || stint.gate.is_shut()) && !self.probe(stint).await? {
            return Ok(Turn::Idle);
        }
        let turned = self.turn_in_transaction(stint).await;
        if turned.is_err() {
            stint.forget();
        }
        turned
    }

    /// True when any row of these lanes can be claimed. Without locks, without writes.
    pub(crate) async fn anything_waits(&mut self, lanes: LaneRange) -> Result<bool, TurnError> {
        let probed = within(self.shared.claim.probe(self.conn, 0, lanes)).await?;
        Ok(probed.pending || probed.due)
    }

    /// True when there may be work. Without locks, without writes.
    async fn probe(&mut self, stint: &mut Stint) -> Result<bool, TurnError> {
        let now = Instant::now();
        let start = stint.frontier.start(now);
        let probed = within(self.shared.claim.probe(self.conn, start, stint.range)).await?;
        stint.frontier.observe(&probed.snapshot, now);
        let went_back = stint.frontier.start(now) < start;
        // Not learnt yet, or somebody has held rows here since: there may be topics to ask for.
        let holds_changed = stint.generation != Some(probed.generation);
        if stint.gate.is_shut() && !holds_changed {
            return Ok(false);
        }
        let releases = stint.gate.lifted().is_some() || self.topics_are_due(stint);
        if probed.pending || probed.due || went_back || holds_changed || releases {
            if probed.due {
                stint.due_checked = None;
            }
            return Ok(true);
        }
        stint.frontier.advance(start, false, now);
        Ok(false)
    }

    async fn turn_in_transaction(&mut self, stint: &mut Stint) -> Result<Turn, TurnError> {
        // Asked before the transaction begins: inside, only acks are waited for, and topics the relay meets for the first time.
        let reopened = self.reopened_topics(stint).await?;
        let owned = within(self.shared.beginning.begin(self.conn, stint.range)).await?;
        let Some(lanes) = LaneRange::longest_run(&owned.lanes) else {
            within(session::rollback(self.conn)).await?;
            return Ok(Turn::Idle);
        };
        self.learn(stint, &owned, lanes, reopened).await?;
        if stint.gate.is_shut() {
            within(session::commit(self.conn)).await?;
            return Ok(Turn::Idle);
        }
        stint.frontier.observe(&owned.snapshot, Instant::now());

        let Some(claim) = self.claim(stint, lanes).await? else {
            within(session::rollback(self.conn)).await?;
            stint.forget();
            return Ok(Turn::Worked);
        };
        if claim.rows.is_empty() {
            within(session::commit(self.conn)).await?;
            self.advance(stint, lanes, &claim, None);
            return Ok(Turn::Idle);
        }
        if claim.full {
            self.shared.note_full_claim();
        }
        let (settled, left) = self.publish(stint, lanes, &claim).await?;
        self.advance(stint, lanes, &claim, left);
        if claim.full && settled * 2 < claim.rows.len() {
            go_around(stint, &claim.skipped);
        }
        // All of it may have been left behind a locked row: then there is no hurry.
        Ok(if settled > 0 { Turn::Worked } else { Turn::Idle })
    }

    /// Reads what is held or paused in these lanes when that changed, and releases what waited for topics that can be written
    /// again and for pauses that are over.
    async fn learn(
        &mut self,
        stint: &mut Stint,
        owned: &Owned,
        lanes: LaneRange,
        reopened: Vec<String>,
    ) -> Result<(), TurnError> {
        let persistent = self.shared.options.prepared_statements;
        if stint.generation != Some(owned.generation) {
            let holds = within(self.shared.holds.learn(self.conn, stint.range, persistent)).await?;
            self.learn_pauses(stint, &holds).await?;
            stint.holds = holds.into_iter().filter(|hold| !hold.is_pause()).collect();
            stint.generation = Some(owned.generation);
            stint.frontier.reset();
        }
        if lanes != stint.range {
            return Ok(());
        }
        // One topic at a time: the rows of the others wait no longer than these take.
        if let Some(topic) = reopened.into_iter().next() {
            let limit = self.shared.options.batch_size;
            let hold = Hold::Topic(topic.clone());
            let released = self.shared.holds.release(self.conn, lanes, &hold, limit, persistent);
            match within(released).await? {
                Some(highest) => stint.releasing = Some((topic, highest)),
                None => {
                    stint.releasing = None;
                    stint.holds.remove(&hold);
                }
            }
            stint.frontier.reset();
            self.bump_generation(stint, lanes).await?;
        }
        self.release_paused(stint, lanes).await
    }

    pub(super) async fn bump_generation(&mut self, stint: &mut Stint, lanes: LaneRange) -> Result<(), TurnError> {
        let persistent = self.shared.options.prepared_statements;
        let grown = within(self.shared.settle.bump_generation(self.conn, lanes, persistent)).await?;
        stint.generation = stint.generation.map(|generation| generation + grown);
        Ok(())
    }

    /// Locks the rows of the batch; `None` when the claim may have overlooked a row and has to be made again.
    async fn claim(&mut self, stint: &mut Stint, lanes: LaneRange) -> Result<Option<Claim>, TurnError> {
        let Self { shared, conn, limit, .. } = self;
        let (sql, options) = (&shared.claim, &shared.options);
        let persistent = options.prepared_statements;
        let mut due = Claimed::default();
        if stint.due_checked.is_none_or(|checked| checked.elapsed() >= DUE_INTERVAL) {
            stint.due_checked = Some(Instant::now());
            due = within(sql.claim_due(conn, lanes, **limit, options.batch_bytes, persistent)).await?;
        }
        if stint.around_since.elapsed() >= AROUND_TIME {
            stint.around.clear();
            stint.around_from = None;
        }
        let start = stint.frontier.start(Instant::now());
        let reach = Reach { start, lanes, around: &stint.around };
        // Both together are a batch, so that a record that is refused is alone in the smallest one.
        let room = **limit - due.rows.len();
        let mut claimed = Claimed { full: true, ..Claimed::default() };
        if room > 0 && !due.cut {
            claimed = within(sql.claim(conn, reach, room, options.batch_bytes, persistent)).await?;
        }
        if due.cut || claimed.cut {
            // All rows of a claim are read, so one that was cut is made smaller.
            **limit = (due.rows.len() + claimed.rows.len()).max(1);
        }
        let last = claimed.rows.last().map(ClaimedRow::id).transpose()?;
        // A full claim is recounted up to its end; one that found all there was, up to all that was ever seen: a locked row
        // may be the only one left there.
        let upto = match last {
            None if claimed.full => OutboxId(start),
            Some(last) if claimed.full => last,
            last => OutboxId(stint.frontier.seen().max(last.map_or(0, |last| last.0))),
        };
        let mut skipped = Vec::new();
        if upto.0 > start {
            let recount = within(sql.recount(conn, reach, upto, persistent)).await?;
            if stint.frontier.overlooks(&recount.snapshot, Instant::now()) {
                return Ok(None);
            }
            if recount.pending > claimed.rows.len() {
                let ids = claimed.rows.iter().map(|row| row.id().map(|id| id.0)).collect::<Result<Vec<_>, _>>()?;
                skipped = within(sql.skipped(conn, reach, upto, &ids, persistent)).await?;
            }
        }
        let mut rows = due.rows;
        rows.extend(claimed.rows);
        Ok(Some(Claim { rows, skipped, start, last, full: claimed.full }))
    }

    /// Notes how far the claim came, once its transaction has committed.
    fn advance(&self, stint: &mut Stint, lanes: LaneRange, claim: &Claim, left: Option<OutboxId>) {
        if stint.around_from.is_none() {
            self.tell_locked(stint, &claim.skipped);
        }
        if lanes != stint.range {
            // Rows of the lanes that were taken were not seen.
            return;
        }
        let now = Instant::now();
        let first_left = [claim.skipped.first().map(|row| row.id), stint.around_from, left];
        match first_left.into_iter().flatten().min() {
            // It and its successors are pending still: the next claim has to look from before it.
            Some(first) => stint.frontier.advance(first.0 - 1, true, now),
            None => {
                let last = claim.last.map_or(claim.start, |last| last.0);
                stint.frontier.advance(last, claim.full, now);
            }
        }
    }

    fn tell_locked(&self, stint: &mut Stint, skipped: &[Skipped]) {
        let what = lock_in(stint.range);
        match (skipped.first(), stint.locked) {
            (Some(row), Some((id, since))) if row.id == id => {
                let why = format!("event {id} is locked by another session, its entity waits");
                if since.elapsed() >= LOCKED_TELL && self.shared.block(&what, &why) {
                    tracing::warn!(
                        code = %Code::EventLocked,
                        event.sequence = id.0,
                        next_step = "`outbox-relay status` names the session: end its transaction",
                        "another session has locked a pending event: its entity waits"
                    );
                }
            }
            (Some(row), _) => stint.locked = Some((row.id, Instant::now())),
            (None, Some((id, _))) => {
                stint.locked = None;
                if self.shared.unblock(&what) {
                    tracing::info!(event.sequence = id.0, "the event is no longer locked by another session");
                }
            }
            (None, None) => {}
        }
    }

    /// Sends, awaits the acks, settles and commits; returns how many rows changed, and the first that was left for the next turn.
    async fn publish(
        &mut self,
        stint: &mut Stint,
        lanes: LaneRange,
        claim: &Claim,
    ) -> Result<(usize, Option<OutboxId>), TurnError> {
        let options = &self.shared.options;
        let plan = Plan::new(&claim.rows, &claim.skipped, options)?;
        let closed = self.closed_topics(stint, &plan.topics).await?;
        let Some(producer) = self.producer.as_mut() else {
            return Err(BrokerDown.into());
        };
        let mut sent = plan.send(producer, options, &stint.gate, &closed, &mut stint.holds);
        let waited = self.acks().await;
        let outcomes = self.producer.as_ref().map(|producer| producer.deliveries().outcomes()).unwrap_or_default();
        let missing = self.judge(stint, claim, &mut sent, &outcomes, &waited)?;
        if missing.is_some() && sent.records > 1 {
            // Predecessors of a refused event may be among the unacknowledged: held now, it would hold them as well.
            for fate in &mut sent.fates {
                if matches!(fate, Fate::Held { reason, .. } if waits_for_entity(reason)) {
                    *fate = Fate::Left;
                }
            }
        }
        if missing.is_some()
            && let Some(producer) = self.producer.take()
        {
            // Nothing it still holds may be sent behind what the next producer sends.
            producer.retire();
        }
        let settled = self.settle(stint, lanes, claim, &sent, &outcomes).await;
        let settled = settled.map_err(|error| match error {
            SettleError::Database(error) => TurnError::Database(error),
            source => TurnError::NotOwned { lanes, source },
        })?;
        self.tell_topics(&sent, &outcomes);
        match missing {
            Some(error) => Err(error),
            None => {
                if self.shared.unblock(&acks_of(self.worker)) {
                    tracing::info!("records are acknowledged again");
                }
                *self.limit = (*self.limit * 2).min(options.batch_size);
                Ok((settled, first_left(claim, &sent)?))
            }
        }
    }

    async fn acks(&self) -> Waited {
        let Some(producer) = self.producer.as_ref() else {
            return Waited::BrokerDown;
        };
        let mut up = self.shared.broker.state();
        tokio::select! {
            // Acks first: what has arrived is marked even when the broker went away with the last one.
            biased;
            () = producer.deliveries().all_settled() => Waited::Settled,
            _ = up.wait_for(|up| !*up) => Waited::BrokerDown,
            () = tokio::time::sleep(self.shared.options.publish_timeout) => Waited::TimedOut,
        }
    }

    /// Turns refusals into fates, and tells what is missing.
    fn judge(
        &mut self,
        stint: &mut Stint,
        claim: &Claim,
        sent: &mut Sent,
        outcomes: &[Outcome],
        waited: &Waited,
    ) -> Result<Option<TurnError>, sqlx::Error> {
        let mut unacknowledged = 0;
        let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
        let mut class = Class::Outage;
        let fatal = self.producer.as_ref().and_then(KafkaProducer::fatal);
        for (row, fate) in claim.rows.iter().zip(&mut sent.fates) {
            let Fate::Sent { slot, topic } = *fate else { continue };
            let code = match outcomes.get(slot) {
                Some(Outcome::Acked) => continue,
                // Records that fail with a broken producer say no more than that; the producer knows why.
                Some(Outcome::Failed(RDKafkaErrorCode::Fatal)) => Some(fatal.unwrap_or(RDKafkaErrorCode::Fatal)),
                Some(Outcome::Failed(code)) => Some(*code),
                _ => None,
            };
            unacknowledged += 1;
            *reasons.entry(code.map_or_else(|| "no answer".to_owned(), |code| format!("{code:?}"))).or_default() += 1;
            let Some(code) = code else { continue };
            match fault::of_kafka(code).class {
                Class::Destination => {
                    let topic = &sent.topics[topic];
                    self.refused_topic(stint, topic, code);
                    *fate = Fate::Held { reason: topic_reason(topic, &crate::sink::topics::closed(code)), attempts: 0 };
                    class = Class::Destination;
                }
                // Alone in its batch it is the culprit. In company it may be the size of the batch: fewer the next time.
                Class::Row if sent.records == 1 => {
                    let entity_type = row.entity_type()?;
                    let policy = self.shared.options.on_poison;
                    *fate = poison(policy, &mut stint.holds, entity_type, row.entity_id()?, &refused(code));
                    class = Class::Row;
                }
                Class::Row => {
                    *self.limit = (sent.records / 4).max(1);
                    class = Class::Row;
                }
                found @ (Class::Outage | Class::Operator) => {
                    if class == Class::Outage {
                        class = found;
                    }
                }
            }
        }
        if unacknowledged == 0 {
            return Ok(None);
        }
        let how = match waited {
            Waited::Settled => "",
            // The watch has told it.
            Waited::BrokerDown => return Ok(Some(BrokerDown.into())),
            Waited::TimedOut => "RELAY_PUBLISH_TIMEOUT passed; ",
        };
        let reasons: Vec<_> = reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let reason = format!("{how}{}", reasons.join(", "));
        Ok(Some(TurnError::Unacknowledged { unacknowledged, records: sent.records, reason, class }))
    }

    /// Writes the fates down and commits; returns how many rows changed.
    async fn settle(
        &mut self,
        stint: &mut Stint,
        lanes: LaneRange,
        claim: &Claim,
        sent: &Sent,
        outcomes: &[Outcome],
    ) -> Result<usize, SettleError> {
        let persistent = self.shared.options.prepared_statements;
        let mut published: Vec<Ctid> = Vec::with_capacity(sent.records);
        let mut held: HashMap<(&str, i32), Vec<Ctid>> = HashMap::new();
        let mut changed = 0;
        for (row, fate) in claim.rows.iter().zip(&sent.fates) {
            match fate {
                Fate::Sent { slot, .. } if outcomes.get(*slot) == Some(&Outcome::Acked) => published.push(row.ctid()?),
                Fate::Sent { .. } | Fate::Left => {}
                Fate::Dead { error } => {
                    within(self.shared.settle.mark_dead(self.conn, row.ctid()?, error, persistent)).await?;
                    tell_poison(row, error, "the event is DEAD, its successors go on")?;
                    changed += 1;
                }
                Fate::Held { reason, attempts } => {
                    held.entry((reason, *attempts)).or_default().push(row.ctid()?);
                    if *attempts > 0 {
                        tell_poison(row, reason, "the entity waits until the event is retried or discarded")?;
                    }
                }
            }
        }
        if !published.is_empty() {
            within(self.shared.settle.mark_published(self.conn, &published, persistent)).await?;
        }
        for ((reason, attempts), rows) in &held {
            within(self.shared.settle.hold(self.conn, rows, reason, *attempts, persistent)).await?;
            changed += rows.len();
        }
        if !held.is_empty() {
            let grown = within(self.shared.settle.bump_generation(self.conn, lanes, persistent)).await?;
            stint.generation = stint.generation.map(|generation| generation + grown);
        }
        within(session::commit(self.conn)).await?;
        self.shared.add_published(published.len());
        Ok(changed + published.len())
    }
}

/// Most of a batch waits behind rows that could not be claimed: their entities are passed by for a moment.
fn go_around(stint: &mut Stint, skipped: &[Skipped]) {
    let Some(first) = skipped.first() else { return };
    if stint.around_from.is_none() {
        stint.around_since = Instant::now();
    }
    stint.around_from = Some(stint.around_from.map_or(first.id, |from| from.min(first.id)));
    stint.around.extend(skipped.iter().filter_map(|row| row.entity_id.clone()));
    stint.around.sort_unstable();
    stint.around.dedup();
}

fn first_left(claim: &Claim, sent: &Sent) -> Result<Option<OutboxId>, sqlx::Error> {
    let left = claim.rows.iter().zip(&sent.fates).find(|(_, fate)| **fate == Fate::Left);
    left.map(|(row, _)| row.id()).transpose()
}

fn tell_poison(row: &ClaimedRow, error: &str, consequence: &str) -> Result<(), sqlx::Error> {
    tracing::error!(
        code = %Code::EventRefused,
        event.id = %row.event_id()?,
        event.sequence = row.id()?.0,
        entity.r#type = row.entity_type()?,
        entity.id = row.entity_id()?,
        error,
        "an event cannot be sent: {consequence}"
    );
    Ok(())
}

/// Topics: asked for before they are used, held while they cannot be.
impl Hands<'_> {
    fn topics_are_due(&self, stint: &Stint) -> bool {
        stint.releasing.is_some()
            || stint.topics_checked.elapsed() >= TOPIC_INTERVAL && stint.held_topics().next().is_some()
    }

    /// The held topics that can be written again.
    async fn reopened_topics(&mut self, stint: &mut Stint) -> Result<Vec<String>, TurnError> {
        if !self.topics_are_due(stint) {
            return Ok(Vec::new());
        }
        let mut reopened = Vec::new();
        if let Some((topic, _)) = &stint.releasing
            && self.shared.topics.is_known(topic)
        {
            return Ok(vec![topic.clone()]);
        }
        for topic in stint.held_topics() {
            if self.shared.topics.check(&self.shared.broker, topic, true).await? == TopicState::Writable {
                reopened.push(topic.to_owned());
            }
        }
        stint.topics_checked = Instant::now();
        Ok(reopened)
    }

    /// Of the topics of a batch, those that cannot be written, with the reason.
    async fn closed_topics(
        &mut self,
        stint: &mut Stint,
        topics: &[String],
    ) -> Result<HashMap<String, Closed>, TurnError> {
        let began = Instant::now();
        let mut closed = HashMap::new();
        for topic in topics {
            let hold = Hold::Topic(topic.clone());
            if stint.gate.shuts_topic(topic) {
                // Nothing is sent to it, so nothing is asked.
            } else if stint.holds.contains(&hold) {
                let released = match &stint.releasing {
                    Some((releasing, highest)) if releasing == topic => highest.0,
                    _ => 0,
                };
                closed.insert(topic.clone(), Closed::Held { why: "waits for the topic".to_owned(), released });
            } else if self.shared.topics.is_known(topic) {
            } else if began.elapsed() >= ASKING_TIME {
                closed.insert(topic.clone(), Closed::Unasked);
            } else if let TopicState::Closed(why) = self.shared.topics.check(&self.shared.broker, topic, false).await? {
                self.tell_closed(topic, &why);
                stint.holds.insert(hold);
                closed.insert(topic.clone(), Closed::Held { why, released: 0 });
            }
        }
        Ok(closed)
    }

    fn refused_topic(&self, stint: &mut Stint, topic: &str, code: RDKafkaErrorCode) {
        self.shared.topics.refused(topic);
        if stint.holds.insert(Hold::Topic(topic.to_owned())) {
            self.tell_closed(topic, &crate::sink::topics::closed(code));
        }
    }

    fn tell_closed(&self, topic: &str, why: &str) {
        if self.shared.block(&format!("topic {topic}"), why) {
            tracing::warn!(code = %Code::TopicClosed, topic, reason = why, "a topic cannot be written: its events are held, all others go on");
        }
    }

    /// The end of a topic's incident: something was acknowledged on it.
    fn tell_topics(&self, sent: &Sent, outcomes: &[Outcome]) {
        let mut last = usize::MAX;
        for fate in &sent.fates {
            let Fate::Sent { slot, topic } = *fate else { continue };
            if topic == last || outcomes.get(slot) != Some(&Outcome::Acked) {
                continue;
            }
            last = topic;
            let name = &sent.topics[topic];
            self.shared.topics.acknowledged(name);
            if self.shared.unblock(&format!("topic {name}")) {
                tracing::info!(topic = name, "the topic can be written again");
            }
        }
    }
}
