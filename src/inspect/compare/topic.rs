//! Follows one of the two topics from its first record on. The consumer joins no group and commits nothing.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rdkafka::message::{BorrowedMessage, Headers, Message};

use super::fact::{At, Side};
use super::matching::MOST_EXAMPLES;
use super::reading::Reading;
use super::{CompareError, Source};
use crate::observe::progress::Progress;
use crate::sink::reader::{Heard, Part, Reader};

/// The most records that are taken from one topic before the other has its turn.
const AT_ONCE: usize = 500;

/// The number of records without an id, and none with one, after which the wrong id is asked for.
const ENOUGH: u64 = 1_000;

/// The most names of headers in the error about a missing id.
const MOST_HEADERS: usize = 20;

/// A topic that is read.
pub(super) struct Topic<'a> {
    pub(super) source: &'a Source,
    pub(super) reader: Reader,
    pub(super) partitions: usize,
    /// The offset behind the last record to compare, by partition.
    ends: HashMap<i32, i64>,
    /// The next offset, by partition.
    positions: HashMap<i32, i64>,
    /// The partitions that were read to their end, and have shown no record since.
    ended: HashSet<i32>,
    /// The partitions that have not reached the end in `ends`.
    unread: HashSet<i32>,
    pub(super) ids: Ids,
}

/// Counts the records with and without an id.
#[derive(Debug, Default)]
pub(super) struct Ids {
    pub(super) with: u64,
    pub(super) without: u64,
    /// The first records without an id.
    pub(super) nameless: Vec<At>,
    /// The names of their headers.
    headers: Vec<String>,
}

impl Ids {
    /// Takes a record without an id.
    pub(super) fn add_nameless(&mut self, message: &BorrowedMessage<'_>) {
        self.without += 1;
        if self.nameless.len() < MOST_EXAMPLES {
            self.nameless.push(At { partition: message.partition(), offset: message.offset() });
        }
        for header in message.headers().into_iter().flat_map(Headers::iter) {
            if self.headers.len() < MOST_HEADERS && !self.headers.iter().any(|known| known == header.key) {
                self.headers.push(header.key.to_owned());
            }
        }
    }
}

impl<'a> Topic<'a> {
    /// Starts to follow the topic from its first record, or from the first one that is not older than `since`.
    pub(super) fn open(source: &'a Source, since_ms: Option<i64>) -> Result<Self, CompareError> {
        let reader = Reader::new(&source.kafka).map_err(|_| CompareError::Client)?;
        let name = &source.topic;
        let found = reader.partitions(name)?;
        let found =
            found.map_err(|code| CompareError::Topic { side: source.reading.side, topic: name.clone(), code })?;
        let partitions: Vec<i32> = found.iter().map(|partition| partition.id).collect();
        let parts = match since_ms {
            Some(since) => reader.since(name, &partitions, since)?,
            None => whole(&reader, name, &partitions)?,
        };
        let from: Vec<_> = parts.iter().map(|part| (name.clone(), part.partition, part.from)).collect();
        reader.follow(&from)?;
        Ok(Self {
            source,
            reader,
            partitions: partitions.len(),
            ends: parts.iter().map(|part| (part.partition, part.end)).collect(),
            positions: parts.iter().map(|part| (part.partition, part.from)).collect(),
            ended: HashSet::new(),
            unread: parts.iter().filter(|part| part.from < part.end).map(|part| part.partition).collect(),
            ids: Ids::default(),
        })
    }

    pub(super) fn side(&self) -> Side {
        self.source.reading.side
    }

    /// Returns the number of offsets up to the ends.
    pub(super) fn len(&self) -> u64 {
        self.ends.iter().map(|(partition, end)| end.saturating_sub(self.position(*partition)).unsigned_abs()).sum()
    }

    fn position(&self, partition: i32) -> i64 {
        self.positions.get(&partition).copied().unwrap_or(0)
    }

    /// Moves the ends to where they are now.
    pub(super) fn move_ends(&mut self) -> Result<(), CompareError> {
        for (partition, end) in &mut self.ends {
            (_, *end) = self.reader.watermarks(&self.source.topic, *partition)?;
        }
        let is_unread =
            |partition: &i32, end: &i64| !self.ended.contains(partition) && self.position(*partition) < *end;
        self.unread = self.ends.iter().filter(|(partition, end)| is_unread(partition, end)).map(|(p, _)| *p).collect();
        Ok(())
    }

    /// Returns true once every partition was read to its end.
    pub(super) fn is_read(&self) -> bool {
        self.unread.is_empty()
    }

    /// Returns the partitions that were not read to their end.
    pub(super) fn unread(&self) -> Vec<i32> {
        let mut unread: Vec<i32> = self.unread.iter().copied().collect();
        unread.sort_unstable();
        unread
    }

    /// Takes the next records, waiting for the first one for at most `within`. `visit` is also told whether the record is behind the end.
    /// Returns the number of records.
    pub(super) fn advance(
        &mut self,
        within: Duration,
        bar: Option<&Progress>,
        mut visit: impl FnMut(&BorrowedMessage<'_>, &Reading, bool, &mut Ids) -> Result<(), CompareError>,
    ) -> Result<usize, CompareError> {
        let (mut taken, mut wait) = (0, within);
        while taken < AT_ONCE {
            match self.reader.poll(wait)? {
                Heard::Nothing => break,
                Heard::End(partition) => {
                    self.ended.insert(partition);
                    self.unread.remove(&partition);
                }
                Heard::Record(message) => {
                    let (partition, offset) = (message.partition(), message.offset());
                    let end = self.ends.get(&partition).copied().unwrap_or(i64::MAX);
                    self.ended.remove(&partition);
                    self.positions.insert(partition, offset + 1);
                    if offset + 1 >= end {
                        self.unread.remove(&partition);
                    }
                    bar.filter(|_| offset < end).inspect(|bar| bar.add(1));
                    visit(&message, &self.source.reading, offset >= end, &mut self.ids)?;
                    taken += 1;
                }
            }
            wait = Duration::ZERO;
        }
        Ok(taken)
    }

    /// Fails if no record has an id: where the id is expected, it is not.
    pub(super) fn check_ids(&self, at_the_end: bool) -> Result<(), CompareError> {
        let Ids { with, without, headers, .. } = &self.ids;
        if *with > 0 || *without < if at_the_end { 1 } else { ENOUGH } {
            return Ok(());
        }
        Err(CompareError::NoId {
            side: self.side(),
            topic: self.source.topic.clone(),
            id: self.source.reading.id.clone(),
            records: *without,
            headers: headers.clone(),
        })
    }
}

fn whole(reader: &Reader, topic: &str, partitions: &[i32]) -> Result<Vec<Part>, CompareError> {
    let part = |partition: &i32| {
        let (from, end) = reader.watermarks(topic, *partition)?;
        Ok(Part { partition: *partition, from, end })
    };
    partitions.iter().map(part).collect()
}
