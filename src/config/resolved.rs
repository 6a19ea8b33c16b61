//! Puts the layers on top of each other, reads them value by value into typed settings, and collects every mistake.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use super::layer::{Given, Layer};
use super::mistake::{Mistake, nearest};
use super::setting::{Kind, Setting};
use super::value::Value;
use super::{bytes, duration};

/// What is in force after layering.
pub(super) struct Resolved {
    settings: BTreeMap<&'static str, Given>,
    properties: BTreeMap<&'static str, Given>,
    /// False if a layer could not be read: then nothing is called missing.
    complete: bool,
    pub(super) mistakes: Vec<Mistake>,
    pub(super) non_defaults: Vec<(&'static str, String)>,
    /// The files that secrets were read from.
    pub(super) secret_files: BTreeSet<PathBuf>,
}

impl Resolved {
    /// Merges `layers`, given from the weakest to the strongest. Defaults are weaker than all layers and apply when a value is read.
    pub(super) fn new(layers: [Layer; 3], mut mistakes: Vec<Mistake>, complete: bool) -> Resolved {
        let (mut settings, mut properties) = (BTreeMap::new(), BTreeMap::new());
        let mut secret_files = BTreeSet::new();
        for mut layer in layers {
            secret_files.append(&mut layer.secret_files);
            mistakes.append(&mut layer.mistakes);
            settings.extend(layer.settings);
            properties.extend(layer.properties);
        }
        Resolved { settings, properties, complete, mistakes, non_defaults: Vec::new(), secret_files }
    }

    /// Reads a setting that is required or has a default; `None` is a mistake.
    pub(super) fn required<T: Value>(&mut self, setting: &'static Setting) -> Option<T> {
        match setting.default {
            _ if self.is_given(setting) => self.optional(setting),
            Some(default) => T::parse(&setting.kind, default).ok(),
            None => self.missing(setting),
        }
    }

    /// Reads a setting that is required and has no default with `parse`; `None` is a mistake.
    pub(super) fn required_by<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        if self.is_given(setting) { self.optional_by(setting, parse) } else { self.missing(setting) }
    }

    fn missing<T>(&mut self, setting: &'static Setting) -> Option<T> {
        if self.complete {
            self.mistakes.push(Mistake::new(setting.env_name(), "missing").expected(setting.kind.accepted()));
        }
        None
    }

    /// Reads a setting that has a default. After a mistake the value is one that nobody sees: the mistake is returned instead of all values.
    pub(super) fn get<T: Value + Default>(&mut self, setting: &'static Setting) -> T {
        self.required(setting).unwrap_or_default()
    }

    /// Reads a setting that may be absent; `None`: it is, or it is a mistake.
    pub(super) fn optional<T: Value>(&mut self, setting: &'static Setting) -> Option<T> {
        self.optional_by(setting, |text| T::parse(&setting.kind, text))
    }

    pub(super) fn optional_by<T>(
        &mut self,
        setting: &'static Setting,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let Given { label, text: Some(text) } = self.settings.get(setting.name)?.clone() else { return None };
        match parse(&text) {
            Ok(value) => {
                self.note(setting, &text);
                Some(value)
            }
            Err(problem) => {
                self.mistakes.push(wrong(setting, label, &text, problem));
                None
            }
        }
    }

    /// True if the setting was given, be it in a way that is a mistake.
    pub(super) fn is_given(&self, setting: &Setting) -> bool {
        self.settings.contains_key(setting.name)
    }

    fn note(&mut self, setting: &'static Setting, text: &str) {
        let is_default = |default| canonical(&setting.kind, default) == canonical(&setting.kind, text);
        if setting.is_secret() {
            self.non_defaults.push((setting.name, "set".into()));
        } else if !setting.default.is_some_and(is_default) {
            self.non_defaults.push((setting.name, text.to_owned()));
        }
    }

    /// The pass-through, by canonical name and in its order: the name it was given under, and the value.
    pub(super) fn properties(&self) -> impl Iterator<Item = (&'static str, &str, &str)> {
        self.properties.iter().filter_map(|(name, given)| Some((*name, given.label.as_str(), given.text.as_deref()?)))
    }

    /// A property of the pass-through by its canonical name: the name it was given under, and the value.
    pub(super) fn property(&self, canonical: &str) -> Option<(&str, &str)> {
        let given = self.properties.get(canonical)?;
        Some((&given.label, given.text.as_deref()?))
    }

    /// Returns true if the property was given, even if wrongly.
    pub(super) fn has_property(&self, canonical: &str) -> bool {
        self.properties.contains_key(canonical)
    }
}

fn wrong(setting: &Setting, label: String, text: &str, problem: String) -> Mistake {
    let mut mistake = Mistake::new(label, problem);
    if mistake.problem.is_empty() {
        mistake = mistake.expected(setting.kind.accepted());
    }
    if let Kind::OneOf(words) = setting.kind {
        mistake = mistake.nearest(nearest(text, words.iter().copied()).map(str::to_owned));
    }
    if setting.is_secret() { mistake } else { mistake.given(text) }
}

/// Converts equal values to one form: `16MiB` and `16777216` become the same text.
fn canonical(kind: &Kind, text: &str) -> String {
    match kind {
        Kind::Bytes { .. } => bytes::parse(text).map(|number| number.to_string()),
        Kind::Duration { .. } => duration::parse(text).map(|given| format!("{:?}", given.length())),
        _ => None,
    }
    .unwrap_or_else(|| text.to_owned())
}
