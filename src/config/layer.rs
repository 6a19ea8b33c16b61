//! Builds one layer of settings: the file, the environment or the flags. Resolves names, rejects unknown ones and reads the
//! files of `_FILE` variants.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Needs;
use super::mistake::{Mistake, nearest, showable};
use super::pem;
use super::property::{PROPERTIES, Property, known_elsewhere};
use super::setting::{Kind, SETTINGS, Setting};

/// The table of the TOML file, and the prefix of a flag, for librdkafka properties that are passed through.
pub(super) const KAFKA: &str = "kafka";

/// The kind of source that a value comes from; a later one is stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// No source gives a value.
    Default,
    /// The TOML file.
    File,
    /// The environment.
    Environment,
    /// An argument `--set`.
    Flag,
}

/// The setting or property that a name stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    Setting(&'static Setting),
    Property(&'static Property),
}

impl Target {
    pub(super) fn is_secret(self) -> bool {
        match self {
            Target::Setting(setting) => setting.is_secret(),
            Target::Property(property) => property.is_secret(),
        }
    }

    fn is_kafkas(self) -> bool {
        matches!(self, Target::Property(_) | Target::Setting(Setting { kind: Kind::Brokers, .. }))
    }

    /// Resolves a key: the setting `batch_size`, or the property `kafka.linger.ms`.
    pub(super) fn from_key(key: &str) -> Option<Target> {
        match key.strip_prefix("kafka.") {
            Some(name) => Property::named(name).map(Target::Property),
            None => Setting::named(key).map(Target::Setting),
        }
    }
}

/// A value, and the name it was given under.
#[derive(Clone)]
pub(super) struct Given {
    pub(super) label: String,
    /// `None` if it could not be had, which is a mistake of its own already.
    pub(super) text: Option<String>,
}

/// The values of one layer, each with the name it was given under, and the mistakes made in giving them.
pub(super) struct Layer {
    pub(super) settings: BTreeMap<&'static str, Given>,
    pub(super) properties: BTreeMap<&'static str, Given>,
    pub(super) mistakes: Vec<Mistake>,
    /// The files that secrets were read from.
    pub(super) secret_files: BTreeSet<PathBuf>,
    /// True if the later of two values wins; false if two values are a mistake.
    pub(super) last_wins: bool,
    /// The servers that the command needs. Without Kafka only the names of Kafka's settings are checked, because a migration may run
    /// where the certificates are not mounted.
    needs: Needs,
}

impl Layer {
    pub(super) fn new(needs: Needs) -> Layer {
        Layer {
            settings: BTreeMap::new(),
            properties: BTreeMap::new(),
            mistakes: Vec::new(),
            secret_files: BTreeSet::new(),
            last_wins: false,
            needs,
        }
    }

    /// Returns the value of a setting or a property.
    pub(super) fn given(&self, target: Target) -> Option<&Given> {
        match target {
            Target::Setting(setting) => self.settings.get(setting.name),
            Target::Property(property) => self.properties.get(property.canonical()),
        }
    }

    fn skips(&self, target: Target) -> bool {
        self.needs == Needs::DatabaseOnly && target.is_kafkas()
    }

    pub(super) fn set(&mut self, target: Target, label: String, text: String) {
        self.insert(target, Given { label, text: Some(text) });
    }

    /// Records a mistake in place of a value, so that the setting is not also reported as missing.
    pub(super) fn refuse(&mut self, target: Target, label: String, problem: impl Into<String>) {
        if self.skips(target) {
            return;
        }
        self.mistakes.push(Mistake::new(&label, problem));
        self.insert(target, Given { label, text: None });
    }

    fn insert(&mut self, target: Target, given: Given) {
        if self.skips(target) {
            return;
        }
        let (values, key) = match target {
            Target::Setting(setting) => (&mut self.settings, setting.name),
            Target::Property(property) => (&mut self.properties, property.canonical()),
        };
        match values.get(key) {
            Some(other) if !(self.last_wins && other.label == given.label) => {
                let problem = format!("{} sets the same; keep one of them", other.label);
                self.mistakes.push(Mistake::new(given.label, problem));
            }
            _ => {
                values.insert(key, given);
            }
        }
    }

    /// Takes the value from a file: its content without the line end that editors add.
    pub(super) fn set_from_file(&mut self, target: Target, label: String, path: &str) {
        if self.skips(target) {
            return;
        }
        match read_text(Path::new(path)) {
            Ok(text) => {
                if target.is_secret() {
                    self.secret_files.insert(path.into());
                }
                self.set(target, label, text);
            }
            Err(why) => {
                // A user may paste the secret itself instead of its path; the error must not repeat it.
                let is_shown = is_surely_a_path(path) || (!target.is_secret() && showable(path));
                let named = if is_shown { format!("{path:?}") } else { "it names".into() };
                self.refuse(target, label, format!("cannot read the file {named}: {why}"));
            }
        }
    }

    /// Resolves a name from the TOML file or a flag, exact or with the suffix `_file`, and stores the value.
    pub(super) fn set_key(&mut self, key: &str, label: String, text: String) {
        match (Target::from_key(key), key.strip_suffix("_file").and_then(Target::from_key)) {
            (Some(target), _) => self.set(target, label, text),
            (None, Some(target)) => self.set_from_file(target, label, &text),
            (None, None) => self.mistakes.push(unknown_key(key, label)),
        }
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.settings.keys()).entries(self.properties.keys()).finish()
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let bytes = pem::read(path).map_err(|error| pem::reason(&error))?;
    let mut text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
    while text.ends_with(['\n', '\r']) {
        text.pop();
    }
    if text.is_empty() { Err("it is empty".into()) } else { Ok(text) }
}

/// Returns true if the directory part exists, because no password is an existing directory by accident. `/` alone does not count.
fn is_surely_a_path(path: &str) -> bool {
    Path::new(path).parent().is_some_and(|parent| parent.parent().is_some() && parent.is_dir())
}

/// Makes the mistake for an unknown key.
pub(super) fn unknown_key(key: &str, label: String) -> Mistake {
    let Some(property) = key.strip_prefix("kafka.") else {
        let known = SETTINGS.iter().map(|setting| setting.name);
        let written = key.to_lowercase();
        let bare = written.strip_prefix("relay_").unwrap_or(&written);
        return Mistake::new(label, "unknown setting").nearest(nearest(bare, known).map(str::to_owned));
    };
    match known_elsewhere(property) {
        Some(why) => Mistake::new(label, why),
        None => {
            let near = nearest(property, PROPERTIES.iter().map(|property| property.name));
            Mistake::new(label, "unknown librdkafka property").nearest(near.map(|name| format!("kafka.{name}")))
        }
    }
}
