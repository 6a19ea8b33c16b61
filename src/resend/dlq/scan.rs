//! Reads a topic of dead letters once, up to its end at the start. Each dead letter that the filter selects takes a few hundred bytes of
//! memory. Records that are needed again go to disk.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::ControlFlow;
use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::message::Message;

use super::DlqError;
use super::filter::{Filter, Seen};
use super::info::{DeadLetterInfo, without_particulars};
use super::redrive_log::{LogEntry, RedriveLog, State};
use super::spool::{Place, Spool};
use crate::sink::reader::{Part, Reader};
use crate::sink::resend::Record;
use event_outbox::ledger::Fingerprint;

/// The longest wait for the next record. A topic that delivers nothing for longer has lost a leader for good.
const PATIENCE: Duration = Duration::from_secs(60);

/// The common cause of dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) fingerprint: String,
    pub(crate) reason: Option<String>,
    /// The error of the first dead letter.
    pub(crate) error: Option<String>,
    pub(crate) source_topic: Option<String>,
    pub(crate) group: Option<String>,
}

/// A dead letter, without its record.
#[derive(Debug, Clone)]
pub(crate) struct DeadLetter {
    pub(crate) partition: i32,
    pub(crate) offset: i64,
    pub(crate) state: State,
    /// The index of its cause in [`DeadLetters::causes`].
    pub(crate) cause: usize,
    /// The index of its event type in [`DeadLetters::event_types`].
    pub(crate) event_type: Option<usize>,
    /// A hash of the record's key.
    pub(crate) key: u64,
    /// The partition and offset in its source topic.
    pub(crate) source: Option<(i32, i64)>,
    pub(crate) at: Option<DateTime<Utc>>,
    pub(crate) place: Option<Place>,
}

/// The dead letters of a topic.
#[derive(Debug, Default)]
pub(crate) struct DeadLetters {
    /// The dead letters, sorted by partition and offset.
    pub(crate) entries: Vec<DeadLetter>,
    pub(crate) causes: Vec<Cause>,
    pub(crate) event_types: Vec<String>,
    pub(crate) spool: Option<Spool>,
}

impl DeadLetters {
    pub(crate) fn count(&self, state: State) -> usize {
        self.entries.iter().filter(|dead_letter| dead_letter.state == state).count()
    }
}

/// Returns the current offsets of a topic's partitions.
pub(crate) fn parts(reader: &Reader, topic: &str, filter: &Filter) -> Result<Vec<Part>, DlqError> {
    let partitions = reader.partitions(topic)?.map_err(|code| DlqError::Topic { topic: topic.to_owned(), code })?;
    let mut parts = Vec::new();
    for partition in partitions.iter().filter(|found| filter.partition.is_none_or(|wanted| wanted == found.id)) {
        let (low, end) = reader.watermarks(topic, partition.id)?;
        // Read beyond the filter's last offset, because log entries come later than their dead letters.
        let from = filter.offsets.map_or(low, |run| run.first.max(low));
        parts.push(Part { partition: partition.id, from, end });
    }
    Ok(parts)
}

/// Reads the given parts of a topic, and calls `on_record` for each record. Blocks.
pub(crate) fn scan(
    reader: &Reader,
    topic: &str,
    parts: &[Part],
    filter: &Filter,
    keep_records: bool,
    mut on_record: impl FnMut(),
) -> Result<DeadLetters, DlqError> {
    let mut scan = Scan { filter, found: DeadLetters::default(), logs: HashMap::new(), causes: HashMap::new() };
    if keep_records {
        scan.found.spool = Some(Spool::new()?);
    }
    let mut failed = None;
    let left = reader.read_patiently(topic, parts, PATIENCE, |message| {
        on_record();
        match scan.take(message.partition(), message.offset(), &Record::from_message(message)) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    })?;
    match failed {
        Some(error) => Err(error.into()),
        None if !left.is_empty() => Err(DlqError::Stalled(left)),
        None => Ok(scan.end()),
    }
}

struct Scan<'a> {
    filter: &'a Filter,
    found: DeadLetters,
    logs: HashMap<i32, RedriveLog>,
    /// The index of each cause, by reason, error without its details, source topic and group.
    causes: HashMap<[Option<String>; 4], usize>,
}

impl Scan<'_> {
    fn take(&mut self, partition: i32, offset: i64, record: &Record) -> std::io::Result<()> {
        if LogEntry::is(record) {
            if let Some(entry) = LogEntry::read(record) {
                self.logs.entry(partition).or_default().take(&entry);
            }
            return Ok(());
        }
        let info = DeadLetterInfo::from_record(record);
        let at = info.failed_at.or_else(|| DateTime::from_timestamp_millis(record.timestamp?));
        let common = [
            info.reason.clone(),
            info.error.as_deref().map(without_particulars),
            info.source.as_ref().map(|source| source.topic.clone()),
            info.group.clone(),
        ];
        let fingerprint = fingerprint(&common);
        let key = record.key.as_deref();
        if !self.filter.takes(&Seen { key, info: &info, cause: &fingerprint, at, offset }) {
            return Ok(());
        }
        let place = match &mut self.found.spool {
            Some(spool) => Some(spool.push(record)?),
            None => None,
        };
        let DeadLetters { entries, causes, event_types, .. } = &mut self.found;
        let cause = *self.causes.entry(common).or_insert_with_key(|[reason, _, source_topic, group]| {
            let (reason, source_topic, group) = (reason.clone(), source_topic.clone(), group.clone());
            causes.push(Cause { fingerprint, reason, error: info.error.clone(), source_topic, group });
            causes.len() - 1
        });
        let event_type = info.event_type.map(|event_type| {
            event_types.iter().position(|known| *known == event_type).unwrap_or_else(|| {
                event_types.push(event_type);
                event_types.len() - 1
            })
        });
        let source = info.source.and_then(|source| source.place);
        let key = hash(key);
        entries.push(DeadLetter {
            partition,
            offset,
            state: State::Waiting,
            cause,
            event_type,
            key,
            source,
            at,
            place,
        });
        Ok(())
    }

    fn end(mut self) -> DeadLetters {
        for dead_letter in &mut self.found.entries {
            if let Some(log) = self.logs.get(&dead_letter.partition) {
                dead_letter.state = log.state(dead_letter.offset);
            }
        }
        self.found.entries.sort_unstable_by_key(|dead_letter| (dead_letter.partition, dead_letter.offset));
        self.found
    }
}

/// Returns a short digest of a cause. It must stay the same in every version, because scripts store it.
fn fingerprint(common: &[Option<String>; 4]) -> String {
    let text = common.iter().map(|part| part.as_deref().unwrap_or("\0")).collect::<Vec<_>>().join("\0");
    let digest = Fingerprint::from_key_value(Some(text.as_bytes()), None);
    digest.0[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(key: Option<&[u8]>) -> u64 {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

/// Sorts the dead letters of each source partition by their source offset. They share the same positions in the list as before; a dead
/// letter without a known source keeps its position.
pub(crate) fn in_source_order(dead_letters: Vec<DeadLetter>, causes: &[Cause]) -> Vec<DeadLetter> {
    let mut places: BTreeMap<(&str, i32), Vec<usize>> = BTreeMap::new();
    for (index, dead_letter) in dead_letters.iter().enumerate() {
        if let (Some((partition, _)), Some(topic)) = (dead_letter.source, &causes[dead_letter.cause].source_topic) {
            places.entry((topic, partition)).or_default().push(index);
        }
    }
    let mut order: Vec<usize> = (0..dead_letters.len()).collect();
    for places in places.into_values() {
        let mut sorted = places.clone();
        // The sort is stable, so copies of one dead letter keep their order.
        sorted.sort_by_key(|index| dead_letters[*index].source.map(|(_, offset)| offset));
        places.into_iter().zip(sorted).for_each(|(place, dead_letter)| order[place] = dead_letter);
    }
    let mut dead_letters: Vec<Option<DeadLetter>> = dead_letters.into_iter().map(Some).collect();
    order.into_iter().filter_map(|index| dead_letters[index].take()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dead_letter(offset: i64, cause: usize, source: Option<(i32, i64)>) -> DeadLetter {
        let state = State::Waiting;
        DeadLetter { partition: 0, offset, state, cause, event_type: None, key: 0, source, at: None, place: None }
    }

    #[test]
    fn a_dead_letter_that_died_again_comes_before_those_that_were_held_behind_it() {
        let cause = |topic: Option<&str>| Cause {
            fingerprint: String::new(),
            reason: None,
            error: None,
            source_topic: topic.map(str::to_owned),
            group: None,
        };
        let causes = [cause(Some("a")), cause(Some("b")), cause(None)];
        let dead_letters = vec![
            dead_letter(0, 0, Some((1, 7))),
            dead_letter(1, 0, Some((1, 8))),
            dead_letter(2, 2, None),
            dead_letter(3, 1, Some((1, 1))),
            dead_letter(4, 0, Some((2, 3))),
            // This one was redriven and failed again.
            dead_letter(5, 0, Some((1, 6))),
        ];
        let order: Vec<_> =
            in_source_order(dead_letters, &causes).iter().map(|dead_letter| dead_letter.offset).collect();
        assert_eq!(order, [5, 0, 2, 3, 4, 1]);
    }

    #[test]
    fn a_fingerprint_stays_the_same_from_version_to_version() {
        let common = [Some("permanent".to_owned()), Some("no ?".to_owned()), None, Some("billing".to_owned())];
        let one = fingerprint(&common);
        assert_eq!(one.len(), 8);
        assert_ne!(one, fingerprint(&[common[0].clone(), None, common[1].clone(), common[3].clone()]));
    }
}
