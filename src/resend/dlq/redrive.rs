//! Sends dead letters again: logs a batch as started, sends it, waits for the acknowledgements, and logs it as done. A batch that cannot be
//! logged is not sent.

use event_outbox::consumer::dead_letter;
use event_outbox::envelope::headers::REDRIVE_ID;
use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::Utc;
use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::watch;
use uuid::Uuid;

use super::redrive_log::{LogEntry, Offsets, Stage};
use super::scan::{Cause, DeadLetter, DeadLetters};
use crate::resend::rate::Rate;
use crate::sink::resend::{BATCH, BATCH_BYTES, Outgoing, Resend, Unacknowledged};

/// Where dead letters are sent.
#[derive(Debug, Clone)]
pub(crate) enum Destination {
    /// Each to the retry topic of its group, which no other group reads.
    Retry,
    /// Each to the topic that it came from, where every group reads it again.
    Source,
    /// All to this topic.
    Topic(Arc<str>),
}

impl Destination {
    /// Returns the topic for dead letters of this cause; `None` if their headers do not name it.
    pub(crate) fn of(&self, cause: &Cause) -> Option<Arc<str>> {
        let source = cause.source_topic.as_deref();
        match self {
            Self::Retry => Some(dead_letter::DeadLetter::retry_topic(source?, cause.group.as_deref()?).into()),
            Self::Source => source.map(Arc::from),
            Self::Topic(topic) => Some(Arc::clone(topic)),
        }
    }
}

/// The options of a redrive.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// The topic of the dead letters.
    pub(crate) topic: Arc<str>,
    pub(crate) destination: Destination,
    pub(crate) id: Uuid,
    pub(crate) rate: Option<u32>,
    pub(crate) by: Option<String>,
    pub(crate) reason: Option<String>,
    /// The number of partitions of each source topic. A dead letter goes back to its source partition if the topic still has it.
    pub(crate) partitions: BTreeMap<String, i32>,
}

/// The result of a redrive.
#[derive(Debug)]
pub(crate) struct Ended {
    /// The number of dead letters that were acknowledged and logged as done.
    pub(crate) redriven: usize,
    /// The number of dead letters that were sent but not acknowledged, or acknowledged but not logged. The next redrive takes them for
    /// uncertain.
    pub(crate) uncertain: usize,
    pub(crate) why: Why,
}

/// The reason why a redrive ended.
#[derive(Debug)]
pub(crate) enum Why {
    /// All dead letters were redriven.
    Done,
    Interrupted,
    /// The dead letter topic rejected an entry of the log.
    Unlogged(Option<RDKafkaErrorCode>),
    /// A topic rejected the dead letter at this partition and offset.
    Refused {
        topic: Arc<str>,
        code: Option<RDKafkaErrorCode>,
        partition: i32,
        offset: i64,
    },
    /// The spool cannot be read.
    Disk(std::io::Error),
}

/// Sends the dead letters in the given order. `on_progress` receives the number of acknowledged dead letters of each batch.
pub(crate) async fn redrive(
    resend: &mut Resend,
    mut dead_letters: DeadLetters,
    plan: &Plan,
    stop: watch::Receiver<bool>,
    mut on_progress: impl FnMut(usize),
) -> Ended {
    let (mut rate, mut number, mut redriven) = (Rate::new(plan.rate), 0, 0);
    let ended = |redriven, uncertain, why| Ended { redriven, uncertain, why };
    let mut rest = std::mem::take(&mut dead_letters.entries).into_iter().peekable();
    let most = usize::try_from(rate.page(BATCH as i64)).unwrap_or(1);
    while rest.peek().is_some() {
        if *stop.borrow() {
            return ended(redriven, 0, Why::Interrupted);
        }
        let (mut batch, mut records, mut bytes) = (Vec::new(), Vec::new(), 0);
        while batch.len() < most
            && bytes < BATCH_BYTES
            && let Some(dead_letter) = rest.next()
        {
            match outgoing(&mut dead_letters, &dead_letter, plan) {
                Ok(outgoing) => {
                    bytes += outgoing.record.len();
                    records.push(outgoing);
                    batch.push(dead_letter);
                }
                Err(error) => return ended(redriven, 0, Why::Disk(error)),
            }
        }
        number += 1;
        if let Err(unsent) = log_stage(resend, plan, Stage::Started, batch.iter(), number).await {
            return ended(redriven, 0, Why::Unlogged(unsent.code));
        }
        let sent = resend.send(&records).await;
        let acked = |index: usize| sent.as_ref().err().is_none_or(|unsent| unsent.acked[index]);
        let done: Vec<&DeadLetter> =
            batch.iter().enumerate().filter_map(|(i, dead_letter)| acked(i).then_some(dead_letter)).collect();
        let logged = log_stage(resend, plan, Stage::Done, done.iter().copied(), number).await;
        if let Err(unlogged) = logged {
            return ended(redriven, batch.len(), Why::Unlogged(unlogged.code));
        }
        redriven += done.len();
        on_progress(done.len());
        if let Err(Unacknowledged { first, code, .. }) = sent {
            let DeadLetter { partition, offset, .. } = batch[first];
            let why = Why::Refused { topic: Arc::clone(&records[first].topic), code, partition, offset };
            return ended(redriven, batch.len() - done.len(), why);
        }
        tokio::time::sleep(rate.spend(batch.len() as i64)).await;
    }
    ended(redriven, 0, Why::Done)
}

fn outgoing(dead_letters: &mut DeadLetters, dead_letter: &DeadLetter, plan: &Plan) -> std::io::Result<Outgoing> {
    let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
    let spool = dead_letters.spool.as_mut().ok_or_else(missing)?;
    let mut record = spool.read(dead_letter.place.ok_or_else(missing)?)?;
    record.set_header(REDRIVE_ID, &plan.id.to_string());
    let cause = &dead_letters.causes[dead_letter.cause];
    let source = cause.source_topic.as_deref();
    let topic = plan.destination.of(cause).ok_or_else(missing)?;
    // Use the source partition, because the original producer may have another partitioner than this one.
    let there = |source: &str| plan.partitions.get(source).copied().unwrap_or(0);
    let partition = match (dead_letter.source, source) {
        (Some((partition, _)), Some(source)) if *source == *topic && partition < there(source) => Some(partition),
        _ => None,
    };
    Ok(Outgoing { topic, partition, record })
}

/// Writes one log entry for each partition.
pub(crate) async fn log_stage(
    resend: &mut Resend,
    plan: &Plan,
    stage: Stage,
    dead_letters: impl Iterator<Item = &DeadLetter>,
    number: u64,
) -> Result<(), Unacknowledged> {
    let mut offsets: BTreeMap<i32, Offsets> = BTreeMap::new();
    dead_letters.for_each(|dead_letter| {
        offsets.entry(dead_letter.partition).or_default().insert(dead_letter.offset, dead_letter.offset)
    });
    let entry = |(partition, offsets): (i32, Offsets)| {
        let (by, reason) = (plan.by.clone(), plan.reason.clone());
        let entry = LogEntry { redrive_id: plan.id, stage, offsets: offsets.runs(), at: Utc::now(), by, reason };
        // A batch has two entries, started and done.
        let number = number * 2 + u64::from(stage != Stage::Started);
        Outgoing { topic: Arc::clone(&plan.topic), partition: Some(partition), record: entry.record(number) }
    };
    let entries: Vec<Outgoing> = offsets.into_iter().map(entry).collect();
    if entries.is_empty() {
        return Ok(());
    }
    resend.send(&entries).await
}
