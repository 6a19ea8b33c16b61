//! Runs `outbox-relay dlq show`.

use clap::Args;
use serde_json::{Value, json};

use super::{Which, failed, look, show_others};
use crate::cli::exit::Failure;
use crate::cli::output;
use crate::config::KafkaSettings;
use crate::resend::dlq::info::DeadLetterInfo;
use crate::resend::dlq::scan::{Cause, DeadLetter};
use crate::sink::resend::Record;
use crate::text;

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    which: Which,
    /// Include dead letters that were redriven
    #[arg(long)]
    redriven: bool,
    /// Show headers and payload as well; they may be confidential
    #[arg(long)]
    payload: bool,
    /// Take at most N, the first ones
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Show {
    pub(super) fn run(self, kafka: &KafkaSettings) -> Result<(), Failure> {
        let (topic, filter) = (self.which.topic.clone(), self.which.filter());
        let looked = look(kafka, &topic, &filter, true);
        let (_, mut dead_letters) = looked.map_err(|error| failed(error, &topic, kafka))?;
        dead_letters.entries.retain(|dead_letter| self.redriven || dead_letter.state.is_open());
        let all = dead_letters.entries.len();
        dead_letters.entries.truncate(self.limit as usize);
        let mut shown = Vec::new();
        for dead_letter in std::mem::take(&mut dead_letters.entries) {
            let record = dead_letters.spool.as_mut().zip(dead_letter.place).map(|(spool, place)| spool.read(place));
            let Some(record) = record else { continue };
            let record = record.map_err(|error| failed(error.into(), &topic, kafka))?;
            shown.push(document(&dead_letter, &dead_letters.causes[dead_letter.cause], &record, self.payload));
        }
        if all == 0 && !self.json {
            show_others(kafka, &topic, &filter);
        }
        if self.json {
            return output::json(&json!({ "topic": topic, "matching": all, "dead_letters": shown })).map(drop);
        }
        let mut text: String = shown.iter().map(render).collect();
        if all > shown.len() {
            text += &format!("{} of {all} are shown; raise --limit\n", shown.len());
        }
        if all == 0 {
            text += &format!("no dead letter of {topic} matches the filter\n");
        }
        output::text(&text);
        Ok(())
    }
}

fn readable(bytes: Option<&[u8]>) -> Value {
    bytes.map(text::of_bytes).into()
}

fn document(dead_letter: &DeadLetter, cause: &Cause, record: &Record, payload: bool) -> Value {
    let info = DeadLetterInfo::from_record(record);
    let source = info.source.as_ref().map(|source| {
        let (partition, offset) = source.place.unzip();
        json!({ "topic": source.topic, "partition": partition, "offset": offset })
    });
    let mut document = json!({
        "partition": dead_letter.partition, "offset": dead_letter.offset, "state": dead_letter.state,
        "fingerprint": cause.fingerprint, "entity_id": readable(record.key.as_deref()), "event_id": info.event_id,
        "event_type": info.event_type, "reason": info.reason, "error": info.error, "attempts": info.attempts,
        "group": info.group, "source": source, "failed_at": dead_letter.at, "bytes": record.len(),
    });
    if payload {
        let pair = |(name, value): &(String, Option<Vec<u8>>)| json!([name, readable(value.as_deref())]);
        document["headers"] = record.headers.iter().map(pair).collect();
        document["payload"] = readable(record.value.as_deref());
    }
    document
}

fn render(dead_letter: &Value) -> String {
    let whole = |pointer: &str| match dead_letter.pointer(pointer) {
        None | Some(Value::Null) => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    let name = |pointer: &str| text::name(&whole(pointer)).to_string();
    let mut lines = format!(
        "{}/{}  {}  {} {} of entity {} from {}/{} offset {} by {}, {}, attempts {}, failed {}\n    {} {}\n",
        name("/partition"),
        name("/offset"),
        name("/state"),
        name("/event_type"),
        name("/event_id"),
        name("/entity_id"),
        name("/source/topic"),
        name("/source/partition"),
        name("/source/offset"),
        name("/group"),
        name("/reason"),
        name("/attempts"),
        name("/failed_at"),
        name("/fingerprint"),
        text::sentence(&whole("/error")),
    );
    if let Some(headers) = dead_letter["headers"].as_array() {
        let headers: Vec<String> = headers.iter().map(|pair| pair.to_string()).collect();
        let (headers, payload) = (headers.join(" "), whole("/payload"));
        lines += &format!("    headers {}\n    payload {}\n", text::sentence(&headers), text::sentence(&payload));
    }
    lines
}
