//! Lists the settings in force, each with its source, for people and programs. Secrets are left out.

use serde::Serialize;

use super::layer::{Given, Layer, Source, Target};
use super::mistake::showable;
use super::property::Property;
use super::setting::SETTINGS;
use super::sources::Sources;

/// A setting in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Effective {
    /// The name in the TOML file and in `--set`, such as `batch_size` or `kafka.linger.ms`.
    pub name: String,
    /// The value as it was given; `None` for a secret, and for a setting that is not set and has no fixed default.
    pub value: Option<String>,
    /// True if a value is in force and must not be shown.
    pub hidden: bool,
    /// The kind of source.
    pub source: Source,
    /// The name under which the value was given, with the line of a file; `None` for a default.
    pub given_as: Option<String>,
}

impl Effective {
    fn new(name: String, default: Option<&str>, target: Target, layers: &[(Source, Layer); 3]) -> Self {
        let given = layers.iter().rev().find_map(|(source, layer)| Some((*source, layer.given(target)?)));
        let Some((source, Given { label, text })) = given else {
            let value = default.map(str::to_owned);
            return Self { name, value, hidden: false, source: Source::Default, given_as: None };
        };
        // Somebody may have put a secret into the wrong setting.
        let value = text.clone().filter(|text| !target.is_secret() && showable(text));
        Self { name, hidden: text.is_some() && value.is_none(), value, source, given_as: Some(label.clone()) }
    }
}

impl Sources {
    /// Returns every setting in the order of `.env.example`, then the properties of librdkafka that are given.
    pub fn effective(&self) -> Vec<Effective> {
        let layers = self.layers();
        let settings = SETTINGS
            .iter()
            .map(|setting| Effective::new(setting.name.to_owned(), setting.default, Target::Setting(setting), &layers));
        let mut properties: Vec<_> = layers.iter().flat_map(|(_, layer)| layer.properties.keys().copied()).collect();
        properties.sort_unstable();
        properties.dedup();
        let properties = properties.into_iter().filter_map(|name| {
            let target = Target::Property(Property::named(name)?);
            Some(Effective::new(format!("kafka.{name}"), None, target, &layers))
        });
        settings.chain(properties).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_in_force_names_its_source_and_no_secret_is_shown() {
        let env = [
            ("DATABASE_URL", "postgres://u:hunter2@h/d"),
            ("RELAY_BATCH_SIZE", "500"),
            ("RELAY_WORKERS", "2"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
            ("KAFKA_LINGER_MS", "7"),
            ("RELAY_TABLE", "postgres://u:hunter2@h/d"),
        ];
        let sources = Sources {
            env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            overrides: vec![("workers".to_owned(), "3".to_owned())],
            ..Sources::default()
        };
        let all = sources.effective();
        let of = |name: &str| all.iter().find(|setting| setting.name == name).expect("a setting").clone();
        let shown = |name: &str| {
            let Effective { value, hidden, source, given_as, .. } = of(name);
            (value, hidden, source, given_as)
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(shown("batch_size"), (some("500"), false, Source::Environment, some("RELAY_BATCH_SIZE")));
        assert_eq!(shown("workers"), (some("3"), false, Source::Flag, some("--set workers")));
        assert_eq!(shown("table").0, None);
        assert_eq!(shown("schema"), (some("public"), false, Source::Default, None));
        assert_eq!(
            shown("kafka.queue.buffering.max.ms"),
            (some("7"), false, Source::Environment, some("KAFKA_LINGER_MS"))
        );
        assert_eq!(shown("kafka.sasl.password"), (None, true, Source::Environment, some("KAFKA_SASL_PASSWORD")));
        assert!(shown("database_url").1 && !format!("{all:?}").contains("hunter2"));
    }
}
