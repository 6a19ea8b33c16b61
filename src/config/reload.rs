//! Takes over what may change while a relay runs: secrets, certificates, retention, intervals and the log level. Clones of the settings share
//! what was taken over.

use super::Settings;
use super::kafka::is_login;
use super::relay::RelaySettings;

/// The names of the settings that [`Settings::adopt`] takes over, as the list of non-defaults has them.
const ADOPTED: [&str; 9] = [
    "admin_token",
    "database_url",
    "dead_letter_horizon",
    "log_level",
    "poll_interval",
    "processed_retention",
    "retention",
    "retention_after",
    "status_interval",
];

/// What was taken over of settings that were read again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adopted {
    /// What is new.
    pub changed: Vec<&'static str>,
    /// The directives of the log, if they are new.
    pub log_level: Option<String>,
    /// The settings that have changed and need a restart.
    pub needs_restart: Vec<&'static str>,
}

impl Settings {
    /// Takes over what may change while a relay runs from settings that were read again. The log level is left to the caller.
    pub fn adopt(&self, fresh: &Settings) -> Adopted {
        let mut changed = Vec::new();
        let mut note = |is_new: bool, what: &'static str| {
            if is_new {
                changed.push(what);
            }
        };
        let moved = self.database.target() != fresh.database.target();
        note(!moved && self.database.adopt(&fresh.database), "database login");
        if let (Some(kafka), Some(fresh)) = (&self.kafka, &fresh.kafka) {
            note(kafka.adopt(fresh), "login and certificates of Kafka");
        }
        note(self.admin.adopt(&fresh.admin), "admin token");
        note(self.relay.adopt(&fresh.relay), "retention and intervals");
        let log_level = (self.log.level != fresh.log.level).then(|| fresh.log.level.clone());
        note(log_level.is_some(), "log level");
        Adopted { changed, log_level, needs_restart: self.needs_restart(fresh, moved) }
    }

    fn needs_restart(&self, fresh: &Settings, moved: bool) -> Vec<&'static str> {
        let is_fixed = |name: &str| !is_login(name) && !ADOPTED.contains(&name);
        let values = |settings: &Settings| {
            settings.non_defaults().into_iter().filter(|(name, _)| is_fixed(name)).collect::<Vec<_>>()
        };
        let (old, new) = (values(self), values(fresh));
        let differs =
            old.iter().filter(|value| !new.contains(value)).chain(new.iter().filter(|value| !old.contains(value)));
        let mut names: Vec<_> = differs.map(|(name, _)| *name).chain(moved.then_some("database_url")).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

impl RelaySettings {
    fn adopt(&self, fresh: &Self) -> bool {
        self.live.set(fresh.live.get())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::Duration;

    use super::super::{Needs, Sources};
    use super::*;

    fn load(file: &Path, text: &str) -> Settings {
        fs::write(file, text).unwrap();
        Settings::load(Sources { file: Some(file.to_owned()), ..Sources::default() }, Needs::DatabaseAndKafka).unwrap()
    }

    const BASE: &str = "database_url = 'postgres://u:old@h/d'\nkafka_bootstrap_servers = 'a:1'\n";

    #[test]
    fn what_may_change_is_taken_over_by_every_clone_and_the_rest_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("relay.toml");
        let running = load(&file, BASE);
        let clone = running.clone();
        let same = load(&file, BASE);
        let nothing = Adopted { changed: Vec::new(), log_level: None, needs_restart: Vec::new() };
        assert_eq!(running.adopt(&same), nothing);

        let changed = BASE.replace("u:old", "v:new")
            + "retention = 'delete'\nstatus_interval = '5s'\nlog_level = 'debug'\nbatch_size = 5\n\
               [kafka]\nsecurity.protocol = 'sasl_ssl'\nsasl.mechanism = 'PLAIN'\nsasl.username = 'u'\nsasl.password = 'hunter2'\n";
        let adopted = running.adopt(&load(&file, &changed));
        let names = ["database login", "login and certificates of Kafka", "retention and intervals", "log level"];
        assert_eq!(adopted.changed, names);
        assert_eq!(
            (adopted.log_level.as_deref(), adopted.needs_restart.as_slice()),
            (Some("debug"), &["batch_size", "security.protocol"][..])
        );
        assert_eq!(clone.relay.live.get().status_interval, Duration::from_secs(5));
        let options = clone.database.session_options(&clone.database.servers[0]);
        assert_eq!(options.get_username(), "v");
        let kafka = clone.kafka.unwrap();
        assert_eq!(kafka.producer_config(&[]).get("sasl.password"), Some("hunter2"));
    }

    #[test]
    fn a_certificate_that_is_renewed_in_place_is_another_login() {
        let directory = tempfile::tempdir().unwrap();
        let (file, authority) = (directory.path().join("relay.toml"), directory.path().join("ca.pem"));
        let pem = |body: &str| format!("-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n");
        fs::write(&authority, pem("MIIA")).unwrap();
        let text = format!("{BASE}[kafka]\nsecurity.protocol = 'ssl'\nssl.ca.location = '{}'\n", authority.display());
        let running = load(&file, &text);
        let kafka = running.kafka.clone().unwrap();
        assert!(running.adopt(&load(&file, &text)).changed.is_empty());
        let before = kafka.version();
        fs::write(&authority, pem("MIIB")).unwrap();
        assert_eq!(running.adopt(&load(&file, &text)).changed, ["login and certificates of Kafka"]);
        assert_ne!(kafka.version(), before);
    }
}
