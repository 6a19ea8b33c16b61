//! Reads the errors of Produce requests that librdkafka sends again.
//!
//! A record with a temporary error is sent again until its batch times out, and then its delivery report does not contain the error. librdkafka
//! writes the error in one place only, a debug line for each failed request. A line that cannot be parsed only makes the message less
//! specific. A test compares librdkafka's names of all codes.

use rdkafka::error::RDKafkaErrorCode;

use crate::fault;

/// The debug context of these lines. It covers connections and errors, so nothing is formatted without a failure.
pub(super) const DEBUG_CONTEXT: &str = "broker";

/// The facility of these lines.
const FACILITY: &str = "REQERR";

/// The beginning of a line, after thread and broker.
const PREFIX: &str = "ProduceRequest failed: ";

/// Returns the error of a log line, if the line is about a Produce request that failed.
pub(super) fn parse(facility: &str, message: &str) -> Option<RDKafkaErrorCode> {
    if facility != FACILITY {
        return None;
    }
    let (_, told) = message.split_once(PREFIX)?;
    // "Broker: Not enough in-sync replicas: explicit actions Retry,MsgNotPersisted"
    let (named, _) = told.rsplit_once(": actions ").or_else(|| told.rsplit_once(": explicit actions "))?;
    fault::kafka_codes().find(|code| name(*code) == named)
}

/// Returns librdkafka's name of a code.
fn name(code: RDKafkaErrorCode) -> String {
    let text = code.to_string();
    let name = text.strip_prefix(&format!("{code:?} (")).and_then(|name| name.strip_suffix(')'));
    name.unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(code: RDKafkaErrorCode, actions: &str) -> String {
        format!("[thrd:10.0.0.1:9092/1]: 10.0.0.1:9092/1: ProduceRequest failed: {}: {actions}", name(code))
    }

    #[test]
    fn every_code_that_a_broker_answers_to_a_produce_request_is_understood() {
        for code in fault::PRODUCE_CODES {
            for actions in ["actions Permanent,MsgNotPersisted", "explicit actions Refresh,Retry,MsgNotPersisted"] {
                assert_eq!(parse("REQERR", &line(*code, actions)), Some(*code), "{code:?}");
            }
        }
    }

    #[test]
    fn other_lines_tell_nothing() {
        let produce = line(RDKafkaErrorCode::NotEnoughReplicas, "actions Retry");
        for (facility, message) in [
            ("FAIL", produce.as_str()),
            ("REQERR", "[thrd:a/1]: a/1: MetadataRequest failed: Local: Timed out: explicit actions Retry"),
            ("REQERR", "[thrd:a/1]: a/1: ProduceRequest failed: Broker: Something new: actions Permanent"),
            ("REQERR", "ProduceRequest failed: "),
            ("REQERR", ""),
        ] {
            assert_eq!(parse(facility, message), None, "{message}");
        }
    }
}
