//! Collects the sources of settings in their order: defaults < file < environment < flags.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use super::Needs;
use super::file;
use super::layer::{Layer, Source, Target};
use super::mistake::{Mistake, UNKNOWN_SETTING, nearest, shown_name};
use super::noise::{is_kubernetes, is_of_kafka, means_the_brokers};
use super::property::{PROPERTIES, Property, known_elsewhere, not_passed_through, variable};
use super::resolved::Resolved;
use super::setting::{SETTINGS, Setting};

/// The replacement for the value of a variable that is not UTF-8.
const NOT_TEXT: char = char::REPLACEMENT_CHARACTER;

/// The sources that a configuration is read from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The TOML file of `--config`.
    pub file: Option<PathBuf>,
    /// All environment variables; those of other programs are ignored. `HOSTNAME` is the default of the setting `name`.
    pub env: BTreeMap<String, String>,
    /// The arguments of `--set name=value`, in order; the last value of a name wins. `kafka.linger.ms` names a property of librdkafka.
    pub overrides: Vec<(String, String)>,
}

/// Prints only names, because values may be secrets.
impl fmt::Debug for Sources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.overrides.iter().map(|(name, _)| shown_name(name)).collect();
        f.debug_struct("Sources")
            .field("file", &self.file)
            .field("env", &self.env.keys().filter(|name| is_ours(name)).collect::<Vec<_>>())
            .field("overrides", &names)
            .finish()
    }
}

impl Sources {
    /// Takes the environment of this process. No other code of the crate reads it.
    pub fn from_process(file: Option<PathBuf>, overrides: Vec<(String, String)>) -> Sources {
        let text = |os: OsString| os.to_string_lossy().into_owned();
        let mut env: BTreeMap<_, _> = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
        // Containers export HOSTNAME, login shells do not; Linux has it in a file.
        if !env.contains_key("HOSTNAME")
            && let Ok(name) = std::fs::read_to_string("/proc/sys/kernel/hostname")
        {
            env.insert("HOSTNAME".into(), name.trim().into());
        }
        Sources { file, env, overrides }
    }

    /// Returns the variables that the SDKs of AWS read.
    pub(super) fn variables_of_aws(&self) -> BTreeMap<String, String> {
        let is_read = |name: &str| name.starts_with("AWS_") || name == "HOME";
        self.env.iter().filter(|(name, _)| is_read(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// Puts the layers on top of each other.
    pub(super) fn resolve(&self, needs: Needs) -> Resolved {
        let (file, mistakes) = self.file_layer(needs);
        let complete = file.is_some() || self.file.is_none();
        let file = file.unwrap_or_else(|| Layer::new(needs));
        let layers = [file, environment(&self.env, needs), flags(&self.overrides, needs)];
        Resolved::new(layers, mistakes, complete)
    }

    /// Returns the layers from the weakest to the strongest. A file that cannot be read is an empty layer.
    pub(super) fn layers(&self) -> [(Source, Layer); 3] {
        let needs = Needs::DatabaseAndKafka;
        let file = self.file_layer(needs).0.unwrap_or_else(|| Layer::new(needs));
        let (environment, flags) = (environment(&self.env, needs), flags(&self.overrides, needs));
        [(Source::File, file), (Source::Environment, environment), (Source::Flag, flags)]
    }

    fn file_layer(&self, needs: Needs) -> (Option<Layer>, Vec<Mistake>) {
        let mut mistakes = Vec::new();
        let file = self.file.as_deref().and_then(|path| file::read(path, needs, &mut mistakes));
        (file, mistakes)
    }
}

/// The variable of the brokers.
const BROKERS: &str = "KAFKA_BOOTSTRAP_SERVERS";

fn is_ours(name: &str) -> bool {
    name.starts_with("RELAY_") || name.starts_with("KAFKA_") || name == "DATABASE_URL" || name == "DATABASE_URL_FILE"
}

fn environment(env: &BTreeMap<String, String>, needs: Needs) -> Layer {
    let mut layer = Layer::new(needs);
    for (name, value) in env.iter().filter(|(name, _)| is_ours(name)) {
        let file_of = name.strip_suffix("_FILE").and_then(target_of_variable);
        match (target_of_variable(name), file_of) {
            (Some(target), _) | (None, Some(target)) if value.contains(NOT_TEXT) => {
                layer.refuse(target, name.clone(), "its value is not UTF-8 text");
            }
            (Some(target), _) => layer.set(target, name.clone(), value.clone()),
            (None, Some(target)) => layer.set_from_file(target, name.clone(), value),
            (None, None) if is_kubernetes(name, value) || is_of_kafka(name) => {}
            (None, None) if means_the_brokers(name) => {
                if !env.contains_key(BROKERS) {
                    let unknown = Mistake::new(shown_name(name), UNKNOWN_SETTING);
                    layer.mistakes.push(unknown.nearest(Some(BROKERS.to_owned())));
                }
            }
            // Other programs have variables that begin with KAFKA_, too. Only a name that resembles one of ours is a mistake.
            (None, None) => match unknown_variable(name) {
                mistake if name.starts_with("KAFKA_") && mistake.is_unlike_any() => {}
                mistake => layer.mistakes.push(mistake),
            },
        }
    }
    layer
}

fn target_of_variable(name: &str) -> Option<Target> {
    let setting = SETTINGS.iter().copied().find(|setting| setting.env_name() == name).map(Target::Setting);
    setting.or_else(|| Property::from_variable(name.strip_prefix("KAFKA_")?).map(Target::Property))
}

fn unknown_variable(name: &str) -> Mistake {
    let (plain, file) = name.strip_suffix("_FILE").map_or((name, ""), |plain| (plain, "_FILE"));
    if let Some(property) = plain.strip_prefix("KAFKA_")
        && let Some(why) = elsewhere_as_variable(property)
    {
        return Mistake::new(shown_name(name), why);
    }
    // Without the wrong prefix a name such as RELAY_DATABASE_URL resembles the right name.
    let bare = plain.strip_prefix("RELAY_").unwrap_or(plain);
    let of_setting = Setting::named(&bare.to_lowercase()).map(Setting::env_name);
    let known = SETTINGS.iter().map(|setting| setting.env_name());
    let known: Vec<_> =
        known.chain(PROPERTIES.iter().map(|property| format!("KAFKA_{}", variable(property.name)))).collect();
    let near = of_setting.or_else(|| nearest(plain, known.iter().map(String::as_str)).map(str::to_owned));
    Mistake::new(shown_name(name), UNKNOWN_SETTING).nearest(near.map(|near| near + file))
}

/// Calls [`known_elsewhere`] with the name as a variable has it.
fn elsewhere_as_variable(property: &str) -> Option<String> {
    not_passed_through().find(|name| variable(name) == property).and_then(known_elsewhere)
}

fn flags(overrides: &[(String, String)], needs: Needs) -> Layer {
    let mut layer = Layer::new(needs);
    layer.last_wins = true;
    for (name, value) in overrides {
        layer.set_key(name, format!("--set {}", shown_name(name)), value.clone());
    }
    layer
}
