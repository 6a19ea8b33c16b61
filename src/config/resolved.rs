//! The layers put on top of each other, read value by value into typed settings, and every mistake on the way.

use std::time::Duration;

use ::config::{Config, Map, Value, ValueKind};

use super::duration::GivenDuration;
use super::layer::{KAFKA, Layer};
use super::mistake::{Mistake, nearest};
use super::setting::{Kind, Setting};
use super::{bytes, duration};

/// A value in force, and the name it was given under.
pub(super) struct Given {
    pub(super) label: String,
    pub(super) text: String,
}

/// What the layers say about one setting.
enum Lookup {
    Given(Given),
    /// Given in a way that is a mistake already.
    Mistaken,
    Absent,
}

/// What is in force after layering.
pub(super) struct Resolved {
    settings: Map<String, Value>,
    properties: Map<String, Value>,
    /// False if a layer could not be read: then nothing is called missing.
    complete: bool,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) non_defaults: Vec<(&'static str, String)>,
}

impl Resolved {
    /// `layers` from the weakest to the strongest. Defaults are weaker than all and come in when a value is read.
    pub(super) fn new(layers: [Layer; 3], mut mistakes: Vec<Mistake>, complete: bool) -> Resolved {
        let mut builder = Config::builder();
        for mut layer in layers {
            mistakes.append(&mut layer.mistakes);
            builder = builder.add_source(layer);
        }
        // Neither can fail: every layer is a table, and none of its keys is refused.
        let mut settings = builder.build().ok().and_then(|config| config.cache.into_table().ok()).unwrap_or_default();
        let properties = settings.remove(KAFKA).and_then(|table| table.into_table().ok()).unwrap_or_default();
        Resolved { settings, properties, complete, mistakes, non_defaults: Vec::new() }
    }

    /// Reads a setting that is required or has a default. An `Err` says what is wrong; an empty one leaves it to the
    /// setting's kind to say what is accepted.
    pub(super) fn required<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Option<T> {
        let setting = self.setting(name)?;
        match (lookup(&self.settings, setting.name), setting.default) {
            (Lookup::Given(given), _) => self.parsed(setting, given, parse),
            (Lookup::Mistaken, _) => None,
            (Lookup::Absent, Some(default)) => parse(&setting.kind, default).ok(),
            (Lookup::Absent, None) => {
                if self.complete {
                    self.mistakes.push(Mistake::new(setting.env_name(), "missing").expected(setting.kind.accepted()));
                }
                None
            }
        }
    }

    /// Reads a setting that may be absent: `Some(None)`. `None` is a mistake.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Option<Option<T>> {
        let setting = self.setting(name)?;
        match lookup(&self.settings, setting.name) {
            Lookup::Given(given) => self.parsed(setting, given, parse).map(Some),
            Lookup::Mistaken => None,
            Lookup::Absent => Some(None),
        }
    }

    fn parsed<T>(
        &mut self,
        setting: &'static Setting,
        given: Given,
        parse: impl FnOnce(&Kind, &str) -> Result<T, String>,
    ) -> Option<T> {
        match parse(&setting.kind, &given.text) {
            Ok(value) => {
                self.note(setting, &given.text);
                Some(value)
            }
            Err(problem) => {
                self.mistakes.push(wrong(setting, given, problem));
                None
            }
        }
    }

    fn note(&mut self, setting: &'static Setting, text: &str) {
        if setting.is_secret() {
            self.non_defaults.push((setting.name, "set".into()));
        } else if setting
            .default
            .is_none_or(|default| canonical(&setting.kind, default) != canonical(&setting.kind, text))
        {
            self.non_defaults.push((setting.name, text.to_owned()));
        }
    }

    /// The table is fixed, so this is a slip of the programmer; it shows as a mistake at start and in every test.
    fn setting(&mut self, name: &str) -> Option<&'static Setting> {
        let setting = Setting::named(name);
        if setting.is_none() {
            self.mistakes.push(Mistake::new(name, "is missing from the table of settings"));
        }
        setting
    }

    /// The pass-through, by canonical name and in its order.
    pub(super) fn properties(&self) -> Vec<(&str, Given)> {
        let mut all: Vec<_> = self
            .properties
            .keys()
            .filter_map(|name| match lookup(&self.properties, name) {
                Lookup::Given(given) => Some((name.as_str(), given)),
                Lookup::Mistaken | Lookup::Absent => None,
            })
            .collect();
        all.sort_by_key(|(name, _)| *name);
        all
    }

    /// True if the property was given, be it in a way that is a mistake already.
    pub(super) fn has_property(&self, canonical: &str) -> bool {
        self.properties.contains_key(canonical)
    }

    pub(super) fn integer(&mut self, name: &str) -> Option<u64> {
        self.required(name, |kind, text| {
            let number = if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None };
            within(kind, number)
        })
    }

    pub(super) fn bytes(&mut self, name: &str) -> Option<u64> {
        self.required(name, |kind, text| within(kind, bytes::parse(text)))
    }

    pub(super) fn duration(&mut self, name: &str) -> Option<Duration> {
        self.given_duration(name).map(GivenDuration::length)
    }

    /// For a duration that people are shown.
    pub(super) fn given_duration(&mut self, name: &str) -> Option<GivenDuration> {
        self.required(name, |kind, text| match (kind, duration::parse(text)) {
            (Kind::Duration { min, max }, Some(value)) if (min..=max).contains(&&*value) => Ok(value),
            _ => Err(String::new()),
        })
    }

    pub(super) fn boolean(&mut self, name: &str) -> Option<bool> {
        self.required(name, |_, text| text.parse().map_err(|_| String::new()))
    }

    /// One of the setting's words, parsed by its type.
    pub(super) fn word<T: std::str::FromStr>(&mut self, name: &str) -> Option<T> {
        self.required(name, |_, text| text.parse().map_err(|_| String::new()))
    }
}

fn lookup(table: &Map<String, Value>, name: &str) -> Lookup {
    let Some(value) = table.get(name) else { return Lookup::Absent };
    match (&value.kind, value.origin()) {
        (ValueKind::String(text), Some(label)) => Lookup::Given(Given { label: label.to_owned(), text: text.clone() }),
        _ => Lookup::Mistaken,
    }
}

fn within(kind: &Kind, number: Option<u64>) -> Result<u64, String> {
    match (kind, number) {
        (Kind::Integer { min, max } | Kind::Bytes { min, max }, Some(number)) if (min..=max).contains(&&number) => {
            Ok(number)
        }
        _ => Err(String::new()),
    }
}

fn wrong(setting: &Setting, given: Given, problem: String) -> Mistake {
    let mut mistake = Mistake::new(given.label, problem);
    if mistake.problem.is_empty() {
        mistake = mistake.expected(setting.kind.accepted());
    }
    if let Kind::OneOf(words) = setting.kind {
        mistake = mistake.nearest(nearest(&given.text, words.iter().copied()).map(str::to_owned));
    }
    if setting.is_secret() { mistake } else { mistake.given(&given.text) }
}

/// One form for equal values: `16MiB` and `16777216` are the same.
fn canonical(kind: &Kind, text: &str) -> String {
    match kind {
        Kind::Bytes { .. } => bytes::parse(text).map(|number| number.to_string()),
        Kind::Duration { .. } => duration::parse(text).map(|given| format!("{:?}", given.length())),
        _ => None,
    }
    .unwrap_or_else(|| text.to_owned())
}
