//! Publishes retained events again: the same records as the relay's, in the order of their ids, with one more header.
//!
//! A first walk over the ids, up to the highest one, counts the events. A second walk sends them batch by batch, and each batch is
//! acknowledged before the next one is read. Rows are only read, and no transaction is open during a wait for Kafka.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use chrono::SecondsFormat;
use rdkafka::error::RDKafkaErrorCode;
use sqlx::PgConnection;
use tokio::sync::watch;
use uuid::Uuid;

use crate::resend::rate::Rate;
use crate::sink::admission;
use crate::sink::resend::{BATCH, BATCH_BYTES, Outgoing, Record, Resend, Unacknowledged};
use crate::store::replay::{Found, Stored, Walk};
use crate::store::routes;
use event_outbox::envelope::Envelope;
use event_outbox::envelope::headers::{EVENT_TIME, REPLAY_ID};
use event_outbox::route::TopicTemplate;

/// The options of a replay.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) walk: Walk,
    /// The first id to replay.
    pub(crate) from: i64,
    /// The last id to replay.
    pub(crate) upto: i64,
    pub(crate) id: Uuid,
    /// The topic for all events; `None` sends each event to the topic that it is routed to.
    pub(crate) to: Option<Arc<str>>,
    pub(crate) template: TopicTemplate,
    pub(crate) envelope: Envelope,
    pub(crate) source: Option<String>,
    pub(crate) rate: Option<u32>,
}

/// The events to replay, in numbers.
#[derive(Debug, Clone, Default, serde::Serialize)]
pub(crate) struct Counted {
    pub(crate) events: u64,
    pub(crate) archived: u64,
    /// The number of events without a legal topic.
    pub(crate) unroutable: u64,
    pub(crate) first_id: Option<i64>,
    pub(crate) last_id: Option<i64>,
    /// The number of events by topic.
    pub(crate) topics: BTreeMap<String, u64>,
    /// The highest partition that an event names, by topic.
    pub(crate) named: BTreeMap<String, i32>,
}

/// The progress of a replay.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) replayed: u64,
    /// The number of events that cannot become a record.
    pub(crate) skipped: u64,
    /// The id of the first skipped event, and the reason.
    pub(crate) first_skipped: Option<(i64, String)>,
    /// The id to continue from: all events with lower ids are sent or skipped.
    pub(crate) next: i64,
}

impl Progress {
    /// Counts an event that cannot become a record. Keeps the reason of the one with the lowest id.
    fn skip(&mut self, id: i64, why: String) {
        self.skipped += 1;
        if self.first_skipped.as_ref().is_none_or(|(first, _)| id < *first) {
            self.first_skipped = Some((id, why));
        }
    }
}

/// The reason why a replay ended.
#[derive(Debug)]
pub(crate) enum Why {
    Done,
    Interrupted,
    Database(sqlx::Error),
    /// A topic rejected an event.
    Refused {
        topic: Arc<str>,
        id: i64,
        code: Option<RDKafkaErrorCode>,
    },
}

impl Plan {
    fn topic(&self, found: &Found) -> Option<Arc<str>> {
        let Found { entity_type, event_type, topic, .. } = found;
        let routed = || routes::resolve(&self.template, entity_type, event_type, topic.as_deref()).ok();
        self.to.clone().or_else(|| routed().map(Arc::from))
    }

    /// Counts the events to replay. `on_progress` receives the last id of each step.
    ///
    /// # Errors
    /// Returns any database error.
    pub(crate) async fn count(
        &self,
        conn: &mut PgConnection,
        mut on_progress: impl FnMut(i64),
    ) -> Result<Counted, sqlx::Error> {
        let (mut counted, mut from) = (Counted::default(), self.from - 1);
        loop {
            let step = self.walk.step(conn, from, self.upto).await?;
            for found in &step.found {
                let Some(topic) = self.topic(found) else {
                    counted.unroutable += 1;
                    continue;
                };
                counted.events += 1;
                counted.archived += u64::from(found.archived);
                counted.first_id.get_or_insert(found.id);
                counted.last_id = Some(found.id);
                if let Some(named) = found.partition {
                    let highest = counted.named.entry(topic.to_string()).or_insert(named);
                    *highest = named.max(*highest);
                }
                *counted.topics.entry(topic.to_string()).or_default() += 1;
            }
            let Some(last) = step.last else { return Ok(counted) };
            from = last;
            on_progress(last);
        }
    }

    /// Walks over the events once more and sends them. `on_progress` receives the number of events of each batch.
    pub(crate) async fn replay(
        &self,
        conn: &mut PgConnection,
        resend: &mut Resend,
        stop: watch::Receiver<bool>,
        on_progress: impl FnMut(u64),
    ) -> (Progress, Why) {
        let mut progress = Progress { next: self.from, ..Progress::default() };
        let why = self.send_all(conn, resend, stop, on_progress, &mut progress).await;
        (progress, why)
    }

    async fn send_all(
        &self,
        conn: &mut PgConnection,
        resend: &mut Resend,
        stop: watch::Receiver<bool>,
        mut on_progress: impl FnMut(u64),
        progress: &mut Progress,
    ) -> Why {
        let (mut rate, id) = (Rate::new(self.rate), self.id.to_string());
        let mut partitions = HashMap::new();
        let (mut from, mut at_once) = (self.from - 1, BATCH);
        loop {
            let step = match self.walk.step(conn, from, self.upto).await {
                Ok(step) => step,
                Err(error) => return Why::Database(error),
            };
            let mut waiting: VecDeque<Found> = step.found.into();
            while !waiting.is_empty() {
                if *stop.borrow() {
                    return Why::Interrupted;
                }
                let most = usize::try_from(rate.page(at_once as i64)).unwrap_or(1);
                let asked: Vec<Found> = waiting.iter().take(most).cloned().collect();
                let rows = match self.walk.rows(conn, &asked, BATCH_BYTES).await {
                    Ok(rows) => rows,
                    Err(error) => return Why::Database(error),
                };
                // If a batch of large events is cut, ask for fewer the next time, because all rows asked for are read.
                let taken = rows.last().map_or(asked.len(), |last| {
                    let cut = rows.len() < asked.len() && rows.iter().map(Stored::size).sum::<usize>() >= BATCH_BYTES;
                    if cut { asked.partition_point(|found| found.id <= last.id) } else { asked.len() }
                });
                at_once = if taken < asked.len() { (taken * 2).clamp(1, BATCH) } else { (at_once * 2).min(BATCH) };
                let asked: Vec<Found> = waiting.drain(..taken).collect();
                let (ids, batch) = self.batch(&asked, &rows, &id, progress);
                let (ids, batch) = with_partition(resend, &mut partitions, ids.into_iter().zip(batch), progress).await;
                if let Err(Unacknowledged { first, code, acked }) = resend.send(&batch).await {
                    progress.replayed += acked.iter().filter(|acked| **acked).count() as u64;
                    progress.next = ids[first];
                    return Why::Refused { topic: Arc::clone(&batch[first].topic), id: ids[first], code };
                }
                progress.replayed += batch.len() as u64;
                progress.next = asked.last().map_or(progress.next, |last| last.id + 1);
                on_progress(batch.len() as u64);
                tokio::time::sleep(rate.spend(batch.len() as i64)).await;
            }
            let Some(last) = step.last else { return Why::Done };
            from = last;
        }
    }

    /// Makes the records of these rows, and returns them with the rows' ids. A row that was removed or changed its status since it was
    /// found is left out.
    fn batch(&self, found: &[Found], rows: &[Stored], id: &str, progress: &mut Progress) -> (Vec<i64>, Vec<Outgoing>) {
        let (mut ids, mut batch, mut scratch) = (Vec::new(), Vec::new(), Vec::new());
        let mut found = found.iter().peekable();
        for row in rows {
            while found.next_if(|found| found.id < row.id).is_some() {}
            let Some(found) = found.next_if(|found| found.id == row.id) else { continue };
            let event = row.event((REPLAY_ID, id)).map_err(|bad| bad.to_string());
            let topic = self.topic(found).ok_or_else(|| "it has no legal topic".to_owned());
            let routed = event.and_then(|event| {
                let partition = event.partition().map_err(admission::no_partition)?;
                Ok((topic?, partition, event))
            });
            match routed {
                Ok((topic, partition, event)) => {
                    let mut headers = Vec::new();
                    let source = self.source.as_deref();
                    self.envelope.headers(&event, source, &mut |name, value| {
                        headers.push((name.to_owned(), Some(value.to_vec())));
                    });
                    let value = self.envelope.value(&event, source, &mut scratch).map(<[u8]>::to_vec);
                    let key = event.entity_id.map(|key| key.as_bytes().to_vec());
                    let event_time = event.created_at.to_rfc3339_opts(SecondsFormat::Micros, true);
                    headers.push((EVENT_TIME.to_owned(), Some(event_time.into_bytes())));
                    // The record is stamped with the time of sending. Brokers would soon delete records with the time of old events.
                    let record = Record { key, value, headers, timestamp: None };
                    batch.push(Outgoing { topic, partition, record });
                    ids.push(row.id);
                }
                Err(why) => progress.skip(row.id, why),
            }
        }
        (ids, batch)
    }
}

/// Leaves out the events that name a partition which their topic does not have. `partitions` keeps the numbers of partitions that the
/// cluster has told; a number that is too low is asked for again, because partitions may have been added.
async fn with_partition(
    resend: &Resend,
    partitions: &mut HashMap<Arc<str>, i32>,
    batch: impl Iterator<Item = (i64, Outgoing)>,
    progress: &mut Progress,
) -> (Vec<i64>, Vec<Outgoing>) {
    let (mut kept, mut asked) = (Vec::new(), HashSet::new());
    for (id, outgoing) in batch {
        let topic = &outgoing.topic;
        if let Some(named) = outgoing.partition {
            let is_known = partitions.get(topic).is_some_and(|count| named < *count);
            if !is_known && asked.insert(Arc::clone(topic)) {
                let count = resend.partitions(topic).await;
                partitions.extend(count.map(|count| (Arc::clone(topic), count)));
            }
            // If the cluster does not tell the number, librdkafka refuses a partition that is not there.
            if let Some(count) = partitions.get(topic).filter(|count| named >= **count) {
                progress.skip(id, admission::no_such_partition(named, topic, *count));
                continue;
            }
        }
        kept.push((id, outgoing));
    }
    kept.into_iter().unzip()
}
