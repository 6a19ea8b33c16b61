//! The converters of Kafka Connect: what bytes they make of a key, a value or a header.

use event_outbox::names::literal;

use super::columns::Form;
use super::file::Options;

/// A converter whose bytes the trigger can make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Converter {
    /// `StringConverter` and `SimpleHeaderConverter`: the text.
    Text,
    /// `JsonConverter`.
    Json { schemas: bool },
    /// `ByteArrayConverter` and `BinaryDataConverter`: bytes as they are; everything else goes to the delegate.
    Bytes { delegate: Option<Box<Converter>> },
}

/// The classes that are accepted, for messages.
const ACCEPTED: &str = "org.apache.kafka.connect.storage.StringConverter, org.apache.kafka.connect.json.JsonConverter, \
    org.apache.kafka.connect.converters.ByteArrayConverter, io.debezium.converters.ByteArrayConverter, \
    io.debezium.converters.BinaryDataConverter, and for headers org.apache.kafka.connect.storage.SimpleHeaderConverter";

impl Converter {
    /// Parses a converter: its class, and its options without the prefix. Returns also the names of options that change nothing.
    ///
    /// # Errors
    /// The class or the option that cannot be kept.
    pub(super) fn parse(class: &str, options: &Options) -> Result<Self, String> {
        match class {
            "org.apache.kafka.connect.storage.StringConverter" => {
                for (name, value) in &options.0 {
                    let is_encoding = name.ends_with("encoding");
                    let is_utf8 = matches!(value.to_uppercase().as_str(), "UTF-8" | "UTF8");
                    if is_encoding && !is_utf8 {
                        return Err(format!("{name}={value} cannot be kept: accepted is UTF-8"));
                    }
                }
                Ok(Self::Text)
            }
            "org.apache.kafka.connect.storage.SimpleHeaderConverter" => Ok(Self::Text),
            "org.apache.kafka.connect.json.JsonConverter" => {
                let schemas = match options.get("schemas.enable").map(str::trim) {
                    None => true,
                    Some(value) if value.eq_ignore_ascii_case("true") => true,
                    Some(value) if value.eq_ignore_ascii_case("false") => false,
                    Some(value) => {
                        return Err(format!("schemas.enable={value} is not known: accepted are true and false"));
                    }
                };
                let known = ["schemas.enable", "schemas.cache.size", "decimal.format", "replace.null.with.default"];
                match options.0.keys().find(|name| !known.contains(&name.as_str()) && name.as_str() != "converter.type")
                {
                    Some(unknown) => Err(format!(
                        "the option {unknown} of JsonConverter is not known: accepted are {}",
                        known.join(", ")
                    )),
                    None => Ok(Self::Json { schemas }),
                }
            }
            "org.apache.kafka.connect.converters.ByteArrayConverter" => Ok(Self::Bytes { delegate: None }),
            "io.debezium.converters.ByteArrayConverter" | "io.debezium.converters.BinaryDataConverter" => {
                let delegate = options
                    .get("delegate.converter.type")
                    .map(|class| Self::parse(class, &options.below("delegate.converter.type.")).map(Box::new));
                Ok(Self::Bytes { delegate: delegate.transpose()? })
            }
            _ if class.contains("Avro") || class.contains("Protobuf") || class.contains("JsonSchema") => Err(format!(
                "{class} needs a schema registry, and the relay sends bytes as Postgres has them: let the application write them into a bytea column; \
                 accepted are {ACCEPTED}"
            )),
            _ => Err(format!("the class {class} is not known: accepted are {ACCEPTED}")),
        }
    }

    /// Returns the converter of a value that is not bytes.
    ///
    /// # Errors
    /// The connector itself would stop.
    pub(super) fn of_text(&self) -> Result<&Converter, String> {
        match self {
            Self::Bytes { delegate: Some(delegate) } => delegate.of_text(),
            Self::Bytes { delegate: None } => {
                Err("a converter of bytes takes only a bytea column; the connector itself stops at any other"
                    .to_owned())
            }
            other => Ok(other),
        }
    }

    /// Returns an expression for the text that the converter makes of a column. `json` is the function that prints JSON strings.
    ///
    /// # Errors
    /// The form cannot be kept, with the reason.
    pub(super) fn text(&self, form: &Form, json: &str) -> Result<String, String> {
        match self.of_text()? {
            Self::Text if form.is_bytes() => {
                Err("StringConverter prints the name of a Java object for bytes, and not the bytes".to_owned())
            }
            Self::Text | Self::Bytes { .. } => Ok(form.text.clone()),
            Self::Json { schemas: false } => Ok(form.json(json)),
            Self::Json { schemas: true } => Ok(with_schema(&literal(&form.schema()), &form.json(json))),
        }
    }

    /// Returns true if the text shows the schema of the column.
    pub(super) fn shows_schema(&self) -> bool {
        matches!(self.of_text(), Ok(Self::Json { schemas: true }))
    }
}

/// Returns an expression for JSON with its schema, from expressions for both.
pub(super) fn with_schema(schema: &str, payload: &str) -> String {
    format!("'{{\"schema\":' || {schema} || ',\"payload\":' || {payload} || '}}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        Options(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn converters_are_known_by_class_and_options() {
        let json = "org.apache.kafka.connect.json.JsonConverter";
        let parse = |class: &str, pairs: &[(&str, &str)]| Converter::parse(class, &options(pairs));
        assert_eq!(parse(json, &[]), Ok(Converter::Json { schemas: true }));
        assert_eq!(parse(json, &[("schemas.enable", "false")]), Ok(Converter::Json { schemas: false }));
        let delegated = parse(
            "io.debezium.converters.BinaryDataConverter",
            &[("delegate.converter.type", json), ("delegate.converter.type.schemas.enable", "false")],
        );
        assert_eq!(delegated, Ok(Converter::Bytes { delegate: Some(Box::new(Converter::Json { schemas: false })) }));
    }

    #[test]
    fn what_cannot_be_kept_is_named_with_what_is_accepted() {
        for (class, pairs, part) in [
            ("io.confluent.connect.avro.AvroConverter", &[][..], "schema registry"),
            ("com.example.MyConverter", &[], "com.example.MyConverter is not known: accepted are"),
            ("org.apache.kafka.connect.storage.StringConverter", &[("converter.encoding", "UTF-16")], "UTF-16"),
            ("org.apache.kafka.connect.json.JsonConverter", &[("schemas.enable", "yes")], "schemas.enable=yes"),
            ("org.apache.kafka.connect.json.JsonConverter", &[("schema.content", "{}")], "schema.content"),
        ] {
            let error = Converter::parse(class, &options(pairs)).expect_err(class);
            assert!(error.contains(part), "{error}");
        }
    }
}
