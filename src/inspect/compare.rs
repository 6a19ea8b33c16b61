//! Implements `compare`: compares two topics, whoever wrote them, event by event. Writes nothing, and needs bounded memory.
//!
//! # Steps
//! 1. Read both topics side by side: to the ends that they had at the start, or on and on until enough events were on both topics or the time
//!    is over (`topic`, `reading`). A window of events that only one topic has shown tells when reading may stop (`window`).
//! 2. Read on for the missing halves: events that only one topic has shown so far may still arrive on the other. A record that is read here
//!    completes an event, and opens none. This ends when nothing is missing, or at the topics' ends after a short wait.
//! 3. Sort the facts about all records by event id, on disk ([`sorter`](super::sorter), `fact`), and compare them as a stream (`matching`).
//! 4. Read the records of the first differences again, and say what differs (`example`).
//!
//! # Memory
//! Memory does not depend on the number of records: two sorters of at most [`CHUNK_BYTES`](super::sorter::CHUNK_BYTES) (one is filled, one
//! is merged), a window of 300,000 ids, the queues of two clients of 16 MiB, and ten examples of each kind. The disk (`TMPDIR`) takes 106
//! bytes per record and 40 more per keyed event.

mod example;
mod fact;
mod matching;
mod reading;
mod report;
mod topic;
mod window;

use std::io;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tokio::task::block_in_place;

use crate::config::KafkaSettings;
use crate::inspect::sorter::Sorter;
use crate::observe::progress::Progress;
use crate::sink::silence::{Silence, silence};
use fact::FACT_BYTES;
use matching::{Comparison, Example};
use topic::Topic;
use window::Window;

pub(crate) use fact::Side;
pub(crate) use matching::{Kind, LeftOut, Rules};
pub(crate) use reading::{IdFrom, Reading};
pub(crate) use report::Report;

/// The longest wait for the brokers before anything is read.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// The longest wait for the next record before a topic's end. A topic that delivers nothing for longer has lost a leader for good.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause while neither topic has a record.
const POLL: Duration = Duration::from_millis(20);

/// The wait for a topic while the other one has records. Without any wait, a client that logs (KAFKA_DEBUG) would get one line of its log out
/// of its queue instead of a record.
const SHORT_POLL: Duration = Duration::from_millis(1);

/// A topic and how to read it.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) topic: String,
    pub(crate) kafka: KafkaSettings,
    pub(crate) reading: Reading,
}

/// The options of a comparison.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) left: Source,
    pub(crate) right: Source,
    pub(crate) rules: Rules,
    pub(crate) since: Option<DateTime<Utc>>,
    /// Follow the topics until this number of events is on both.
    pub(crate) until: Option<u64>,
    /// Follow the topics for this time.
    pub(crate) lasts: Option<Duration>,
    /// The time in which an event may follow on the other topic.
    pub(crate) wait: Duration,
    /// Show header values and excerpts of values.
    pub(crate) payload: bool,
}

impl Plan {
    pub(crate) fn source(&self, side: Side) -> &Source {
        match side {
            Side::Left => &self.left,
            Side::Right => &self.right,
        }
    }

    fn follows(&self) -> bool {
        self.until.is_some() || self.lasts.is_some()
    }
}

/// The reason why two topics could not be compared.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CompareError {
    #[error("a Kafka error")]
    Kafka(#[from] KafkaError),
    #[error("{reason}", reason = .silence.reason)]
    Silent { brokers: String, silence: Silence },
    #[error("librdkafka refuses the combination of the KAFKA_ settings")]
    Client,
    #[error("topic {topic}: {code}")]
    Topic { side: Side, topic: String, code: RDKafkaErrorCode },
    #[error("topic {topic}: partitions {partitions:?} deliver no more records")]
    Stalled { topic: String, partitions: Vec<i32> },
    #[error("{}", no_id(.topic, .id, *.records, .headers))]
    NoId { side: Side, topic: String, id: IdFrom, records: u64, headers: Vec<String> },
    #[error("a temporary file cannot be written or read")]
    Disk(#[from] io::Error),
}

fn no_id(topic: &str, id: &IdFrom, records: u64, headers: &[String]) -> String {
    let place = match id {
        IdFrom::Header(name) => format!("the header {name:?}"),
        IdFrom::Json(pointer) => format!("the member {pointer} of the value"),
    };
    let others = match headers {
        [] => "they have no headers".to_owned(),
        headers => format!("their headers are {}", headers.join(", ")),
    };
    format!("none of {records} records of topic {topic} has {place}; {others}")
}

/// Compares the two topics.
///
/// # Errors
/// Returns [`CompareError`] when a topic cannot be read.
pub(crate) async fn run(plan: &Plan) -> Result<Report, CompareError> {
    for source in [&plan.left, &plan.right] {
        let silence = silence(&source.kafka, ANSWER_WITHIN).await.map_err(|_| CompareError::Client)?;
        if let Some(silence) = silence {
            return Err(CompareError::Silent { brokers: source.kafka.brokers().to_owned(), silence });
        }
    }
    block_in_place(|| {
        let since = plan.since.map(|since| since.timestamp_millis());
        let (left, right) = (Topic::open(&plan.left, since)?, Topic::open(&plan.right, since)?);
        let mut reading =
            BothTopics { plan, topics: [left, right], facts: Sorter::default(), window: Window::default() };
        if plan.follows() {
            reading.follow()?;
        } else {
            reading.read_to_the_ends()?;
        }
        reading.complete()?;
        reading.compare()
    })
}

/// Two topics that are read side by side.
struct BothTopics<'a> {
    plan: &'a Plan,
    topics: [Topic<'a>; 2],
    facts: Sorter<FACT_BYTES>,
    window: Window,
}

/// The use of records that are read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Take {
    /// All records are compared.
    All,
    /// Records behind the ends only complete events.
    UpToTheEnds,
    /// All records only complete events.
    Completing,
}

impl BothTopics<'_> {
    fn read_to_the_ends(&mut self) -> Result<(), CompareError> {
        let bars = [&self.topics[0], &self.topics[1]].map(|topic| Progress::new(&topic.source.topic, topic.len()));
        let mut heard = Instant::now();
        while !self.are_read() {
            if self.advance(Take::UpToTheEnds, Some(&bars))? {
                heard = Instant::now();
            }
            self.check_patience(heard)?;
        }
        Ok(())
    }

    fn follow(&mut self) -> Result<(), CompareError> {
        let began = Instant::now();
        let lasts = self.plan.lasts;
        let bar = match (self.plan.until, lasts) {
            (Some(until), _) => Progress::new("events on both topics", until),
            (None, lasts) => Progress::new("seconds", lasts.unwrap_or_default().as_secs()),
        };
        loop {
            self.advance(Take::All, None)?;
            bar.set(match self.plan.until {
                Some(_) => self.window.matched(),
                None => began.elapsed().as_secs(),
            });
            let is_enough = self.plan.until.is_some_and(|until| self.window.matched() >= until);
            if is_enough || lasts.is_some_and(|lasts| began.elapsed() >= lasts) {
                return Ok(());
            }
        }
    }

    /// Reads on for the missing halves of events.
    fn complete(&mut self) -> Result<(), CompareError> {
        self.topics.iter_mut().try_for_each(Topic::move_ends)?;
        let began = Instant::now();
        let mut heard = began;
        while !(self.window.is_complete() || self.are_read() && began.elapsed() >= self.plan.wait) {
            if self.advance(Take::Completing, None)? || self.are_read() {
                heard = Instant::now();
            }
            self.check_patience(heard)?;
        }
        Ok(())
    }

    fn are_read(&self) -> bool {
        self.topics.iter().all(Topic::is_read)
    }

    /// Takes records of both topics. Returns false if there were none.
    fn advance(&mut self, take: Take, bars: Option<&[Progress; 2]>) -> Result<bool, CompareError> {
        let (mut taken, mut within) = (0, SHORT_POLL);
        for index in [0, 1] {
            let (facts, window) = (&mut self.facts, &mut self.window);
            let topic = &mut self.topics[index];
            taken += topic.advance(within, bars.map(|bars| &bars[index]), |message, reading, behind, ids| {
                let late = match take {
                    Take::All => false,
                    Take::UpToTheEnds => behind,
                    Take::Completing => true,
                };
                if !reading.is_wanted(message) {
                    return Ok(());
                }
                let Some((id, fact)) = reading.fact(message, late) else {
                    if !late {
                        ids.add_nameless(message);
                    }
                    return Ok(());
                };
                ids.with += u64::from(!late);
                let is_needed = match take {
                    Take::All | Take::UpToTheEnds => {
                        window.take(id, fact.side, late);
                        true
                    }
                    Take::Completing => window.close(id, fact.side) || !window.is_exact(),
                };
                if is_needed { Ok(facts.push(fact.encode(id))?) } else { Ok(()) }
            })?;
            topic.check_ids(false)?;
            // The second topic is waited for if the first had nothing.
            within = if taken == 0 { POLL } else { SHORT_POLL };
        }
        Ok(taken > 0)
    }

    fn check_patience(&self, heard: Instant) -> Result<(), CompareError> {
        let unread = self.topics.iter().find(|topic| !topic.is_read());
        match unread {
            Some(topic) if heard.elapsed() > PATIENCE => {
                Err(CompareError::Stalled { topic: topic.source.topic.clone(), partitions: topic.unread() })
            }
            _ => Ok(()),
        }
    }

    fn compare(self) -> Result<Report, CompareError> {
        let Self { plan, topics, facts, .. } = self;
        topics.iter().try_for_each(|topic| topic.check_ids(true))?;
        let bar = Progress::new("comparing", facts.len());
        let mut counts = Comparison::new(plan.rules.clone()).run(facts, || bar.add(1))?;
        drop(bar);
        for topic in &topics {
            let examples = topic.ids.nameless.iter().map(|at| Example::of_one(topic.side(), *at));
            if topic.ids.without > 0 {
                counts.add(Kind::WithoutId, topic.ids.without, examples);
            }
        }
        let examples = example::look(plan, &topics, &counts)?;
        Ok(Report::new(plan, topics.map(|topic| topic.partitions), counts, examples))
    }
}
