//! Counts the records of a batch that were not acknowledged, by the reason.

use std::fmt;

use rdkafka::error::RDKafkaErrorCode;

use crate::fault::{self, Fault};
use event_outbox::code::Code;

/// The number of records by librdkafka's code; `None` for records without an answer.
#[derive(Debug, Default)]
pub(super) struct Unacknowledged {
    by_code: Vec<(Option<RDKafkaErrorCode>, usize)>,
}

impl Unacknowledged {
    pub(super) fn add(&mut self, code: Option<RDKafkaErrorCode>) {
        match self.by_code.iter_mut().find(|(known, _)| *known == code) {
            Some((_, records)) => *records += 1,
            None => self.by_code.push((code, 1)),
        }
    }

    pub(super) fn records(&self) -> usize {
        self.by_code.iter().map(|(_, records)| records).sum()
    }

    /// Returns the fault of the most records. Ignores faults that only follow from another one: if one record is refused, the others fail
    /// with their producer.
    pub(super) fn fault(&self) -> Fault {
        let faults = self.by_code.iter().map(|(code, records)| (fault_of(*code), records));
        let main = faults.max_by_key(|(fault, records)| (!is_consequence(fault.code), **records));
        main.map_or(fault::NO_ANSWER, |(fault, _)| fault)
    }

    /// Returns each runbook code with its number of records.
    pub(super) fn by_fault(&self) -> impl Iterator<Item = (Code, usize)> {
        self.by_code.iter().map(|(code, records)| (fault_of(*code).code, *records))
    }
}

fn fault_of(code: Option<RDKafkaErrorCode>) -> Fault {
    code.map_or(fault::NO_ANSWER, fault::classify_kafka)
}

fn is_consequence(code: Code) -> bool {
    matches!(code, Code::ProducerLost | Code::BrokerTimeout | Code::BrokerAnswer | Code::RecordsUnacknowledged)
}

/// `2 NotEnoughReplicas, 1 no answer`.
impl fmt::Display for Unacknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (code, records)) in self.by_code.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            match code {
                Some(code) => write!(f, "{comma}{records} {code:?}")?,
                None => write!(f, "{comma}{records} no answer")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use RDKafkaErrorCode::{Fatal, GaplessGuarantee, InvalidTopic, NotEnoughReplicas, PurgeInflight};

    use super::*;

    fn of(codes: &[Option<RDKafkaErrorCode>]) -> Unacknowledged {
        let mut unacknowledged = Unacknowledged::default();
        codes.iter().for_each(|code| unacknowledged.add(*code));
        unacknowledged
    }

    #[test]
    fn the_cause_outweighs_its_many_consequences() {
        let refused =
            of(&[Some(PurgeInflight), Some(Fatal), Some(NotEnoughReplicas), Some(GaplessGuarantee), None, None]);
        assert_eq!(refused.fault().code, Code::TopicMinIsr);
        assert_eq!(refused.records(), 6);
        assert_eq!(
            refused.to_string(),
            "1 PurgeInflight, 1 Fatal, 1 NotEnoughReplicas, 1 GaplessGuarantee, 2 no answer"
        );
    }

    #[test]
    fn of_two_causes_the_one_of_most_records_is_reported() {
        let refused = of(&[Some(InvalidTopic), Some(NotEnoughReplicas), Some(NotEnoughReplicas)]);
        assert_eq!(refused.fault().code, Code::TopicMinIsr);
        let records: Vec<_> = refused.by_fault().collect();
        assert_eq!(records, [(Code::TopicIllegal, 1), (Code::TopicMinIsr, 2)]);
    }

    #[test]
    fn records_of_which_nothing_was_heard_have_a_next_step_too() {
        let silent = of(&[None]);
        assert_eq!((silent.fault().code, silent.to_string()), (Code::RecordsUnacknowledged, "1 no answer".to_owned()));
        assert!(!silent.fault().next_step.is_empty());
    }
}
