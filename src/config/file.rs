//! Reads the TOML file: flat keys, and one table `[kafka]` with the dotted names of librdkafka.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::Needs;
use super::layer::{KAFKA, Layer, Target, unknown_key};
use super::mistake::{Mistake, shown_name};
use super::pem;
use crate::text;

/// Reads the file into a layer. Returns `None` if the content is unreadable: then no setting may be reported as missing.
pub(super) fn read(path: &Path, needs: Needs, mistakes: &mut Vec<Mistake>) -> Option<Layer> {
    let name = shown(path);
    let bytes = match pem::read(path) {
        Ok(bytes) => bytes,
        Err(error) => {
            mistakes.push(Mistake::new(name, format!("cannot read the file: {}", pem::reason(&error))));
            return None;
        }
    };
    let Ok(text) = String::from_utf8(bytes) else {
        mistakes.push(Mistake::new(name, "the file is not UTF-8 text"));
        return None;
    };
    parse(path, &text, needs, mistakes)
}

fn shown(path: &Path) -> String {
    text::name(&path.display().to_string()).to_string()
}

fn parse(path: &Path, text: &str, needs: Needs, mistakes: &mut Vec<Mistake>) -> Option<Layer> {
    let name = shown(path);
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        mistakes.extend(errors.iter().map(|error| syntax_mistake(&name, text, error)));
        return None;
    }
    let mut file = File { path, name, text, layer: Layer::new(needs) };
    for (key, value) in table.into_inner() {
        let (at, key) = (key.span().start, key.into_inner());
        match value.into_inner() {
            DeValue::Table(properties) if key == KAFKA => file.properties("", properties),
            value => file.value(&key, &key, at, value),
        }
    }
    Some(file.layer)
}

/// Makes the mistake of a syntax error: `relay.toml:3:7: …`. The parser's own text quotes the line, which may hold a password.
fn syntax_mistake(name: &str, text: &str, error: &toml::de::Error) -> Mistake {
    let at = error.span().map_or(0, |span| span.start);
    let before = text.get(..at).unwrap_or(text);
    let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
    Mistake::new(format!("{name}:{}:{column}", line(text, at)), "this is not TOML")
        .expected(expectation(error.message()))
}

/// Returns the parser's message if it quotes nothing from the file. A message about a key or a value may repeat it.
fn expectation(message: &str) -> String {
    const QUOTABLE: [&str; 2] = ["expected ", "missing "];
    let clause = message.split(", ").last().unwrap_or(message).trim();
    match QUOTABLE.iter().find(|start| clause.starts_with(*start)) {
        Some(_) if clause.len() <= 60 => clause.trim_start_matches("expected ").to_owned(),
        _ => "name = \"value\"".to_owned(),
    }
}

fn line(text: &str, at: usize) -> usize {
    text.get(..at).unwrap_or(text).matches('\n').count() + 1
}

struct File<'a> {
    path: &'a Path,
    /// The path as texts show it: escaped, and cut if it is long.
    name: String,
    text: &'a str,
    layer: Layer,
}

impl File<'_> {
    /// Reads the table `[kafka]`. TOML parses an unquoted `sasl.username = "x"` as a nested table, so the dots are put back.
    fn properties(&mut self, prefix: &str, table: DeTable<'_>) {
        for (key, value) in table {
            let at = key.span().start;
            let name = format!("{prefix}{}", key.into_inner());
            match value.into_inner() {
                DeValue::Table(inner) => self.properties(&format!("{name}."), inner),
                value => self.value(&format!("{KAFKA}.{name}"), &name, at, value),
            }
        }
    }

    fn value(&mut self, key: &str, written: &str, at: usize, value: DeValue<'_>) {
        let label = format!("{}:{}: {}", self.name, line(self.text, at), shown_name(written));
        match as_text(&value) {
            Some(text) => {
                if Target::from_key(key).is_some_and(Target::is_secret) {
                    self.layer.secret_files.insert(self.path.to_owned());
                }
                self.layer.set_key(key, label, text);
            }
            None => match Target::from_key(key) {
                Some(target) => self.layer.refuse(target, label, format!("cannot be a TOML {}", value.type_str())),
                None => self.layer.mistakes.push(unknown_key(key, label)),
            },
        }
    }
}

/// Returns the text that the same setting would have in an environment variable.
fn as_text(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        DeValue::Integer(number) => {
            let digits = i128::from_str_radix(number.as_str(), number.radix());
            Some(digits.map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()))
        }
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Array(items) => {
            let items: Option<Vec<&str>> = items.iter().map(|item| item.get_ref().as_str()).collect();
            items.map(|items| items.join(","))
        }
        DeValue::Datetime(_) | DeValue::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mistakes(text: &str) -> Vec<String> {
        let mut mistakes = Vec::new();
        let layer = parse(Path::new("relay.toml"), text, Needs::DatabaseAndKafka, &mut mistakes);
        mistakes.extend(layer.into_iter().flat_map(|layer| layer.mistakes));
        mistakes.iter().map(Mistake::to_string).collect()
    }

    #[test]
    fn a_syntax_error_names_file_line_and_column_and_repeats_nothing() {
        let found = mistakes("workers = 2\ndatabase_url = \"postgres://u:hunter2@h/d\nschema = hunter2\n");
        assert!(found[0].starts_with("relay.toml:2:"), "{found:?}");
        assert!(found.iter().all(|mistake| !mistake.contains("hunter2")), "{found:?}");
    }

    #[test]
    fn every_syntax_error_of_a_file_is_reported() {
        let found = mistakes("workers = \ntable = 'x'\nschema 3\n");
        assert!(found.iter().any(|mistake| mistake.starts_with("relay.toml:1:")), "{found:?}");
        assert!(found.iter().any(|mistake| mistake.starts_with("relay.toml:3:")), "{found:?}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn no_damage_to_a_file_makes_it_show_its_secrets(
            at in 0_usize..200,
            cut in 0_usize..4,
            put in "[ \"'=\\[\\]{}.,\n#x\\\\]{0,3}",
        ) {
            let whole = "workers = 2\ndatabase_url = \"postgres://u:hunter2@h/d\"\n[kafka]\n\"sasl.password\" = 'hunter2'\nssl.key.pem = '''hunter2'''\n";
            let mut text = whole.to_owned();
            let at = at % whole.len();
            text.replace_range(at..(at + cut).min(whole.len()), &put);
            let found = mistakes(&text);
            prop_assert!(!found.concat().contains("hunter2"), "{text}\n{found:?}");
        }
    }

    #[test]
    fn what_the_parser_says_is_passed_on_only_in_words_of_its_own() {
        assert_eq!(expectation("extra `hunter2`, expected `=`"), "`=`");
        for message in ["duplicate key hunter2", "invalid hunter2", "hunter2", ""] {
            assert_eq!(expectation(message), "name = \"value\"", "{message}");
        }
    }

    #[test]
    fn a_repeated_key_is_a_mistake() {
        let found = mistakes("workers = 2\nworkers = 3\n");
        assert!(found[0].starts_with("relay.toml:2:"), "{found:?}");
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line_and_the_nearest_name() {
        assert_eq!(
            mistakes("\nbatchsize = 5")[0],
            "relay.toml:2: batchsize: unknown setting; did you mean batch_size?"
        );
        let property = &mistakes("[kafka]\n\"sasl.user\" = 'hunter2'")[0];
        assert!(property.starts_with("relay.toml:2: sasl.user: unknown librdkafka property"), "{property}");
        assert!(mistakes("[relay]\nworkers = 2")[0].starts_with("relay.toml:1: relay: unknown setting"));
    }

    #[test]
    fn a_value_of_the_wrong_shape_is_refused() {
        assert_eq!(mistakes("workers = 2024-01-01"), ["relay.toml:1: workers: cannot be a TOML datetime"]);
        assert_eq!(mistakes("[workers]\nn = 2"), ["relay.toml:1: workers: cannot be a TOML table"]);
        assert_eq!(mistakes("workers = [1, 2]"), ["relay.toml:1: workers: cannot be a TOML array"]);
    }

    #[test]
    fn quoted_and_nested_names_of_properties_are_the_same() {
        assert_eq!(mistakes("[kafka]\n\"linger.ms\" = 5\nsasl.username = 'x'\n"), [""; 0]);
        assert!(mistakes("[kafka]\n\"linger.ms\" = 5\nlinger.ms = 6\n")[0].contains("sets the same"));
    }
}
