//! Keeps the known state of topics in memory. Answers of the cluster and the time go in, states come out. The code is deterministic, except
//! for the jitter of a pause.
//!
//! The states of a topic:
//! - unknown -> writable or closed, by the cluster's answer
//! - closed -> writable, by a later answer
//! - writable -> refused, if the topic refused a record
//! - refused -> on trial, after the pause is over and the cluster lists the topic
//! - on trial -> writable, if the topic took a record; or refused again, for about twice as long

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;

use super::{TopicState, closed};
use event_outbox::backoff::Backoff;

/// The pause after which a topic that refused a record is tried again. It doubles with each refusal, up to the longest.
const REFUSAL_PAUSE: Duration = Duration::from_secs(2);
const REFUSAL_PAUSE_LONGEST: Duration = Duration::from_secs(60);

/// The time after which a closed topic is asked for again, while a worker waits for it.
const REASK_AFTER: Duration = Duration::from_secs(2);

/// The time for which the answer "closed" is valid. It is longer than the time of asking again.
const CLOSED_VALID: Duration = Duration::from_secs(5);

/// The time for which a list of all topics answers for topics that were not known when it was fetched.
pub(super) const LIST_VALID: Duration = Duration::from_secs(2);

/// The time without a request after which a topic is removed. A topic that took records is kept for longer.
const CLOSED_KEPT: Duration = Duration::from_secs(60);
const WRITABLE_KEPT: Duration = Duration::from_secs(3600);

/// The time for which a higher partition count has to be seen before it is used. One broker may know the count before the others do.
const COUNT_SETTLES: Duration = Duration::from_secs(2);

/// The cluster's answer about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The topic exists and may be seen.
    Exists { partitions: i32 },
    /// The topic does not exist, or may not be seen.
    Error(RDKafkaErrorCode),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Unknown,
    Writable,
    Closed(RDKafkaErrorCode),
    Refused { code: RDKafkaErrorCode, until: Instant, backoff: Backoff },
}

#[derive(Debug)]
struct Entry {
    state: State,
    answered_at: Option<Instant>,
    wanted_at: Instant,
    /// The number of partitions that records are spread over.
    partitions: Option<i32>,
    /// The last count in an answer of the cluster, and its time.
    seen: Option<(i32, Instant)>,
    /// The time at which a worker asked for a new count.
    count_wanted_at: Option<Instant>,
    /// A higher count, and the time since when it has been seen.
    rising: Option<(i32, Instant)>,
    /// True if the topic may have been created again under the same name. The next count is then used at once.
    recount: bool,
}

impl Entry {
    fn new(now: Instant) -> Self {
        Self {
            state: State::Unknown,
            answered_at: None,
            wanted_at: now,
            partitions: None,
            seen: None,
            count_wanted_at: None,
            rising: None,
            recount: false,
        }
    }

    fn answered_within(&self, time: Duration, now: Instant) -> bool {
        self.answered_at.is_some_and(|at| now - at < time)
    }

    fn is_on_trial(&self, now: Instant) -> bool {
        let State::Refused { until, .. } = self.state else { return false };
        until <= now && self.answered_at.is_some_and(|at| at >= until)
    }

    fn state(&self, now: Instant) -> TopicState {
        match self.state {
            State::Writable => TopicState::Writable,
            State::Refused { .. } if self.is_on_trial(now) => TopicState::Writable,
            State::Refused { code, until, .. } if until > now => TopicState::Closed(closed(code)),
            State::Closed(code) if self.answered_within(CLOSED_VALID, now) => TopicState::Closed(closed(code)),
            State::Unknown | State::Closed(_) | State::Refused { .. } => TopicState::Unknown,
        }
    }

    /// Returns true if the cluster should be asked now.
    fn is_due(&self, now: Instant) -> bool {
        let confirms_count = self.rising.is_some_and(|(_, since)| now - since >= COUNT_SETTLES);
        let is_count_wanted = self.count_wanted_at.is_some();
        match self.state {
            State::Unknown => true,
            State::Writable => confirms_count || is_count_wanted,
            State::Closed(_) => now - self.wanted_at < CLOSED_KEPT && !self.answered_within(REASK_AFTER, now),
            State::Refused { until, .. } => until <= now && (is_count_wanted || !self.is_on_trial(now)),
        }
    }

    /// Takes a new partition count. Returns true if records have to be spread differently.
    fn count(&mut self, seen: i32, now: Instant) -> bool {
        let settled = match self.rising {
            Some((count, since)) => count == seen && now - since >= COUNT_SETTLES,
            None => false,
        };
        match self.partitions {
            Some(current) if !self.recount && seen > current && !settled => {
                if self.rising.is_none_or(|(count, _)| count != seen) {
                    self.rising = Some((seen, now));
                }
                false
            }
            // The broker has not learnt of the new partitions yet. A topic that was created again refuses a record first.
            Some(current) if !self.recount && seen < current => false,
            before => {
                (self.rising, self.recount, self.partitions) = (None, false, Some(seen));
                before.is_some_and(|before| before != seen)
            }
        }
    }
}

/// The topics to ask for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    /// New topics, for whose answer a worker waits.
    pub(super) new: Vec<String>,
    /// Topics that were closed and may be writable now.
    pub(super) closed: Vec<String>,
}

/// The known state of all topics.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: HashMap<String, Entry>,
    /// All visible topics, and the time of the list.
    list: Option<(HashMap<String, Answer>, Instant)>,
    /// A number that grows when records of a topic have to be spread over another number of partitions.
    layout: u64,
}

impl Table {
    /// Returns the state of `topic` and notes that it was requested. While the state is unknown, the cluster has to be asked.
    pub(super) fn state(&mut self, topic: &str, now: Instant) -> TopicState {
        let Some(entry) = self.entries.get_mut(topic) else {
            self.entries.insert(topic.to_owned(), Entry::new(now));
            return self.by_list(topic, now);
        };
        entry.wanted_at = now;
        match entry.state(now) {
            TopicState::Unknown if entry.state == State::Unknown => self.by_list(topic, now),
            state => state,
        }
    }

    fn by_list(&mut self, topic: &str, now: Instant) -> TopicState {
        let Some((list, at)) = self.list.as_ref().filter(|(_, at)| now - *at < LIST_VALID) else {
            return TopicState::Unknown;
        };
        let at = *at;
        let answer = list.get(topic).copied().unwrap_or(Answer::Error(RDKafkaErrorCode::UnknownTopicOrPartition));
        self.update(topic, answer, at);
        self.entries.get(topic).map_or(TopicState::Unknown, |entry| entry.state(now))
    }

    /// Returns true if the topic can be written, as far as is known.
    pub(super) fn is_writable(&mut self, topic: &str, now: Instant) -> bool {
        let Some(entry) = self.entries.get_mut(topic) else { return false };
        entry.wanted_at = now;
        entry.state(now) == TopicState::Writable
    }

    /// Returns the topics to ask for now.
    pub(super) fn due(&self, now: Instant) -> Due {
        let (mut new, mut closed) = (Vec::new(), Vec::new());
        for (topic, entry) in self.entries.iter().filter(|(_, entry)| entry.is_due(now)) {
            let list = if matches!(entry.state, State::Closed(_)) { &mut closed } else { &mut new };
            list.push(topic.clone());
        }
        Due { new, closed }
    }

    /// Returns true if no answer about the topic is known.
    pub(super) fn is_unknown(&self, topic: &str) -> bool {
        self.entries.get(topic).is_none_or(|entry| entry.state == State::Unknown)
    }

    /// Returns the closed topics that workers wait for.
    pub(super) fn closed(&self, now: Instant) -> Vec<String> {
        let closed = |entry: &Entry| matches!(entry.state, State::Closed(_)) && now - entry.wanted_at < CLOSED_KEPT;
        self.entries.iter().filter(|(_, entry)| closed(entry)).map(|(topic, _)| topic.clone()).collect()
    }

    /// Returns the number of topics that take records.
    pub(super) fn writable(&self) -> usize {
        self.entries.values().filter(|entry| entry.state == State::Writable).count()
    }

    /// Returns the writable topic whose last answer is the oldest.
    pub(super) fn stalest(&self) -> Option<String> {
        let writable = self.entries.iter().filter(|(_, entry)| entry.state == State::Writable);
        writable.min_by_key(|(_, entry)| entry.answered_at).map(|(topic, _)| topic.clone())
    }

    /// Updates a topic by an answer of the cluster.
    pub(super) fn update(&mut self, topic: &str, answer: Answer, now: Instant) {
        let Some(entry) = self.entries.get_mut(topic) else { return };
        entry.answered_at = Some(now);
        entry.count_wanted_at = None;
        match (answer, entry.state) {
            (Answer::Exists { partitions }, state) => {
                if !matches!(state, State::Refused { .. }) {
                    entry.state = State::Writable;
                }
                if partitions > 0 {
                    entry.seen = Some((partitions, now));
                    self.layout += u64::from(entry.count(partitions, now));
                }
            }
            // A topic that took records is closed only when it refuses one, and not because a broker does not know it.
            (Answer::Error(_), State::Writable) => {}
            (Answer::Error(code), _) => entry.state = State::Closed(code),
        }
    }

    /// Updates all topics from a list of all topics.
    pub(super) fn update_all(&mut self, list: HashMap<String, Answer>, now: Instant) {
        let topics: Vec<String> = self.entries.keys().cloned().collect();
        for topic in topics {
            match list.get(&topic) {
                Some(answer) => self.update(&topic, *answer, now),
                None => self.update_missing(&topic, now),
            }
        }
        self.list = Some((list, now));
    }

    /// Updates a topic that a list does not contain. A list leaves out topics that may not be seen, so a topic that lacked a right still
    /// lacks it.
    fn update_missing(&mut self, topic: &str, now: Instant) {
        let code = match self.entries.get(topic).map(|entry| entry.state) {
            Some(State::Closed(code)) => code,
            _ => RDKafkaErrorCode::UnknownTopicOrPartition,
        };
        self.update(topic, Answer::Error(code), now);
    }

    /// Closes the topic because it refused a record.
    pub(super) fn refused(&mut self, topic: &str, code: RDKafkaErrorCode, now: Instant) {
        let entry = self.entries.entry(topic.to_owned()).or_insert_with(|| Entry::new(now));
        let mut backoff = match entry.state {
            State::Refused { until, .. } if until > now => return,
            State::Refused { backoff, .. } => backoff,
            _ => Backoff::new(REFUSAL_PAUSE, REFUSAL_PAUSE_LONGEST),
        };
        entry.state = State::Refused { code, until: now + backoff.pause(), backoff };
        entry.recount = true;
    }

    /// Makes a topic on trial writable because it took a record.
    pub(super) fn acknowledged(&mut self, topic: &str) {
        if let Some(entry) = self.entries.get_mut(topic)
            && matches!(entry.state, State::Refused { .. })
        {
            entry.state = State::Writable;
        }
    }

    /// Returns the topics with a partition count.
    pub(super) fn counted(&self) -> Vec<String> {
        self.entries.iter().filter(|(_, entry)| entry.partitions.is_some()).map(|(topic, _)| topic.clone()).collect()
    }

    /// Uses a higher partition count at once.
    pub(super) fn raise(&mut self, topic: &str, answer: Answer) {
        let (Some(entry), Answer::Exists { partitions: seen }) = (self.entries.get_mut(topic), answer) else { return };
        if entry.partitions.is_some_and(|current| seen > current) {
            (entry.rising, entry.partitions) = (None, Some(seen));
            self.layout += 1;
        }
    }

    /// Returns the number of partitions to spread records over.
    pub(super) fn partitions(&self, topic: &str) -> Option<i32> {
        self.entries.get(topic)?.partitions
    }

    /// Returns the number of partitions in an answer that is not older than `asked`; `None` while there is no such answer. The cluster is asked
    /// if the topic is writable.
    pub(super) fn counted_since(&mut self, topic: &str, asked: Instant) -> Option<i32> {
        let entry = self.entries.get_mut(topic)?;
        let fresh = entry.seen.filter(|(_, at)| *at >= asked);
        if fresh.is_none() {
            entry.count_wanted_at.get_or_insert(asked);
        }
        fresh.map(|(count, _)| count)
    }

    pub(super) fn layout(&self) -> u64 {
        self.layout
    }

    /// Removes topics and lists that nobody asks for any more.
    pub(super) fn expire(&mut self, now: Instant) {
        self.entries.retain(|_, entry| {
            let kept = match entry.state {
                State::Unknown | State::Closed(_) => CLOSED_KEPT,
                State::Writable | State::Refused { .. } => WRITABLE_KEPT,
            };
            now - entry.wanted_at < kept
        });
        if self.list.as_ref().is_some_and(|(_, at)| now - *at >= LIST_VALID) {
            self.list = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use event_outbox::code::Code;

    const MISSING: Answer = Answer::Error(RDKafkaErrorCode::UnknownTopicOrPartition);
    const UNAUTHORIZED: RDKafkaErrorCode = RDKafkaErrorCode::TopicAuthorizationFailed;
    const SIX: Answer = Answer::Exists { partitions: 6 };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_topic_is_unknown_until_the_cluster_has_answered_and_closed_only_for_a_while() {
        let (mut table, now) = (Table::default(), Instant::now());
        assert_eq!(table.state("orders", now), TopicState::Unknown);
        assert_eq!(table.due(now).new, ["orders"]);
        table.update("orders", MISSING, now);
        assert!(matches!(table.state("orders", now), TopicState::Closed(_)));
        assert_eq!(table.due(now), Due::default());
        assert_eq!(table.due(now + REASK_AFTER).closed, ["orders"]);
        assert_eq!(table.state("orders", now + CLOSED_VALID), TopicState::Unknown, "the answer has expired");
        table.update("orders", SIX, now + CLOSED_VALID);
        assert_eq!(table.state("orders", now + CLOSED_VALID), TopicState::Writable);
        assert_eq!(table.partitions("orders"), Some(6));
    }

    #[test]
    fn one_list_answers_for_topics_that_were_not_known_when_it_was_fetched() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.state("first", now);
        table.update_all(HashMap::from([("orders".to_owned(), SIX)]), now);
        assert!(matches!(table.state("first", now), TopicState::Closed(_)));
        for n in 0..20_000 {
            assert!(matches!(table.state(&format!("missing-{n}"), now + seconds(1)), TopicState::Closed(_)));
        }
        assert_eq!(table.state("orders", now + seconds(1)), TopicState::Writable);
        assert_eq!(table.state("late", now + LIST_VALID), TopicState::Unknown);
        assert_eq!(table.due(now + seconds(1)).new, ["late"]);
        table.expire(now + LIST_VALID + WRITABLE_KEPT);
        assert!(table.entries.is_empty() && table.list.is_none(), "unused topics must be removed");
    }

    #[test]
    fn a_topic_that_a_list_leaves_out_may_still_be_one_that_needs_a_right() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.state("orders", now);
        table.update("orders", Answer::Error(RDKafkaErrorCode::TopicAuthorizationFailed), now);
        table.update_all(HashMap::new(), now);
        let TopicState::Closed(closure) = table.state("orders", now) else { panic!("the topic should be closed") };
        assert!(closure.why.contains("right") && closure.why.ends_with(" (OR-3102)"), "{closure:?}");
    }

    #[test]
    fn a_topic_that_refuses_a_record_is_closed_for_the_reason_of_the_refusal() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.refused("orders", RDKafkaErrorCode::InvalidTopic, now);
        let TopicState::Closed(closure) = table.state("orders", now) else { panic!("the topic should be closed") };
        assert_eq!(closure.fault.code, Code::TopicIllegal, "{closure:?}");
    }

    #[test]
    fn a_topic_that_refuses_records_is_tried_again_ever_more_rarely() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.state("orders", now);
        table.update("orders", SIX, now);
        table.refused("orders", UNAUTHORIZED, now);
        assert!(matches!(table.state("orders", now), TopicState::Closed(_)));
        let later = now + REFUSAL_PAUSE;
        assert_eq!(
            (table.state("orders", later), table.due(later).new),
            (TopicState::Unknown, vec!["orders".to_owned()])
        );
        table.update("orders", SIX, later);
        assert_eq!(table.state("orders", later), TopicState::Writable);
        table.refused("orders", UNAUTHORIZED, later);
        assert!(
            matches!(table.state("orders", later + REFUSAL_PAUSE), TopicState::Closed(_)),
            "the second pause should be twice as long"
        );
        table.update("orders", SIX, later + 2 * REFUSAL_PAUSE);
        table.acknowledged("orders");
        assert!(table.is_writable("orders", later + 2 * REFUSAL_PAUSE));
    }

    #[test]
    fn a_count_is_asked_for_once_more_when_a_worker_wants_a_new_one() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.state("orders", now);
        table.update("orders", SIX, now);
        let asked = now + seconds(1);
        assert_eq!(table.counted_since("orders", asked), None, "the answer is older");
        assert_eq!(table.due(asked).new, ["orders"]);
        table.update("orders", SIX, asked + seconds(1));
        assert_eq!(table.counted_since("orders", asked), Some(6));
        assert_eq!(table.due(asked + seconds(1)), Due::default());
        table.counted_since("orders", asked + seconds(2));
        table.update("orders", MISSING, asked + seconds(3));
        assert_eq!(table.due(asked + seconds(3)), Due::default(), "an error should not be asked for again and again");
        assert_eq!(table.counted_since("orders", asked + seconds(2)), None, "an error is no count");
        assert_eq!(table.counted_since("missing", now), None);
        // A topic on trial takes records, so events that name a partition are looked at there, too.
        table.refused("orders", UNAUTHORIZED, asked + seconds(4));
        let trial = asked + seconds(4) + 2 * REFUSAL_PAUSE;
        table.update("orders", SIX, trial);
        assert_eq!((table.state("orders", trial), table.due(trial)), (TopicState::Writable, Due::default()));
        assert_eq!(table.counted_since("orders", trial + seconds(1)), None);
        assert_eq!(table.due(trial + seconds(1)).new, ["orders"]);
    }

    #[test]
    fn a_higher_count_is_believed_once_it_has_stayed_and_a_lower_one_after_a_refusal() {
        let (mut table, now) = (Table::default(), Instant::now());
        table.state("orders", now);
        table.update("orders", SIX, now);
        let nine = Answer::Exists { partitions: 9 };
        table.update("orders", nine, now);
        assert_eq!((table.partitions("orders"), table.layout()), (Some(6), 0));
        assert_eq!(table.due(now + COUNT_SETTLES).new, ["orders"], "the higher count should be confirmed");
        table.update("orders", nine, now + COUNT_SETTLES);
        assert_eq!((table.partitions("orders"), table.layout()), (Some(9), 1));
        table.update("orders", SIX, now + seconds(10));
        assert_eq!(
            (table.partitions("orders"), table.layout()),
            (Some(9), 1),
            "a lagging broker should not lower the count"
        );
        table.refused("orders", UNAUTHORIZED, now + seconds(11));
        table.update("orders", SIX, now + seconds(20));
        assert_eq!((table.partitions("orders"), table.layout()), (Some(6), 2), "the topic was created again");
    }
}
