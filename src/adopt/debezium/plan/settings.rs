//! Decides about the options that nothing was computed from, and writes the settings of the relay.

use super::Reading;
use crate::adopt::debezium::options;
use crate::adopt::debezium::report::Verdict;

impl Reading<'_> {
    /// Decides about the options that nothing was computed from.
    pub(super) fn others(&mut self) {
        let names: Vec<String> = self.connector.0.keys().cloned().collect();
        for name in names {
            if self.decided.contains(&name) {
                continue;
            }
            if self.request.ignored.contains(&name) {
                self.say(&name, Verdict::Differs, "given up by --ignore");
                continue;
            }
            if let Some(property) = name.strip_prefix("producer.override.") {
                match producer_setting(property) {
                    Some(setting) => self.say(&name, Verdict::Kept, format!("becomes {setting}")),
                    None => self.say(&name, Verdict::Differs, "set the relay's own KAFKA_ settings"),
                }
                continue;
            }
            let in_router = name.strip_prefix(&self.prefix).filter(|_| !self.prefix.is_empty());
            // These are left over only where something else was refused before.
            let is_computed = options::COMPUTED.iter().any(|(computed, _)| *computed == in_router.unwrap_or(&name));
            if is_computed
                || ["key.converter.", "value.converter.", "header.converter."].iter().any(|of| name.starts_with(of))
            {
                continue;
            }
            // Options of transforms that are refused need no second line.
            if in_router.is_none() && (name.starts_with("transforms.") || name.starts_with("transforms")) {
                continue;
            }
            match options::find(in_router.unwrap_or(&name)) {
                Some(known) => self.say(&name, known.verdict, known.text),
                None => {
                    self.say(
                        &name,
                        Verdict::Refused,
                        "the option is not known, so what it does is not known either; --ignore gives it up",
                    );
                    self.unknown.push(name);
                }
            }
        }
        let ignored = &self.request.ignored;
        for line in &mut self.report.0 {
            if line.verdict == Verdict::Refused
                && ignored.contains(&line.option)
                && options::find(&line.option).is_some()
            {
                line.verdict = Verdict::Differs;
                line.text = format!("given up by --ignore: {}", line.text);
            }
        }
    }

    /// Returns true for an option that nothing was computed from, so that the trigger is the same without it.
    pub(super) fn can_be_ignored(&self, option: &str) -> bool {
        let is_of_the_file = self.connector.get(option).is_some();
        is_of_the_file && (options::find(option).is_some() || self.unknown.iter().any(|unknown| unknown == option))
    }

    /// Writes the settings.
    pub(super) fn env(&self) -> String {
        let timestamp = if self.router("table.field.event.timestamp").is_some() { "event" } else { "publish" };
        let get = |name: &str, other: &str| self.connector.get(name).unwrap_or(other).to_owned();
        let mut env = format!(
            "# Settings of the relay that goes on where the connector {:?} stops. Written by `outbox-relay import debezium`.\n\
             # The password is not copied: put the URL into a file, and its name into DATABASE_URL_FILE.\n\
             # DATABASE_URL=postgres://{}:PASSWORD@{}:{}/{}\n",
            one_line(&get("name", "")),
            one_line(&get("database.user", "USER")),
            one_line(&get("database.hostname", "HOST")),
            one_line(&get("database.port", "5432")),
            one_line(&get("database.dbname", "DATABASE")),
        );
        match self.request.worker.as_ref().and_then(|worker| worker.get("bootstrap.servers")) {
            Some(brokers) => env += &format!("KAFKA_BOOTSTRAP_SERVERS={}\n", one_line(brokers)),
            None => {
                env += "# The brokers of the Connect worker, bootstrap.servers:\n# KAFKA_BOOTSTRAP_SERVERS=HOST:9092\n"
            }
        }
        env += &format!(
            "# The trigger has made the bytes of the value and names the topic of each event.\nRELAY_ENVELOPE=debezium\n\
             # publish: the time of sending, as with a connector. event: the time from the table.\nRELAY_TIMESTAMP={timestamp}\n"
        );
        for (name, value) in &self.connector.0 {
            if let Some(setting) = name.strip_prefix("producer.override.").and_then(producer_setting) {
                env += &format!("{setting}={}\n", one_line(value));
            }
        }
        env
    }
}

/// Returns the value on one line, so that a line end in it cannot make another setting.
fn one_line(value: &str) -> String {
    value.chars().filter(|c| !c.is_control()).collect()
}

/// Returns the setting that a property of the connector's producer becomes.
fn producer_setting(property: &str) -> Option<&'static str> {
    match property {
        "compression.type" => Some("KAFKA_COMPRESSION_TYPE"),
        "linger.ms" => Some("KAFKA_LINGER_MS"),
        "batch.size" => Some("KAFKA_BATCH_SIZE"),
        "max.request.size" => Some("KAFKA_MESSAGE_MAX_BYTES"),
        _ => None,
    }
}
