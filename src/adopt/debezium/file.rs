//! Reads the configuration of a connector: the two JSON forms and Java properties.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Value};

/// The options of a connector by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Options(pub(super) BTreeMap<String, String>);

/// The forms that a file may have, for messages.
const ACCEPTED: &str =
    "a JSON object with the connector's options, the same under \"config\" beside \"name\", or Java properties";

impl Options {
    /// Parses a file by its content. `name` decides between JSON and properties if the content does not.
    ///
    /// # Errors
    /// The line or the key that is wrong, and what is accepted.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let options = if name.ends_with(".json") || text.trim_start().starts_with(['{', '[']) {
            from_json(text)?
        } else {
            from_properties(text)?
        };
        if options.is_empty() {
            return Err(format!("it has no options; accepted is {ACCEPTED}"));
        }
        Ok(Self(options))
    }

    /// Returns the names of the options.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// Returns an option.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// Returns the options whose names begin with `prefix`, without it.
    pub(super) fn below(&self, prefix: &str) -> Options {
        let below =
            self.0.iter().filter_map(|(key, value)| Some((key.strip_prefix(prefix)?.to_owned(), value.clone())));
        Self(below.collect())
    }
}

fn from_json(text: &str) -> Result<BTreeMap<String, String>, String> {
    let Once(value) = serde_json::from_str(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        match error.classify() {
            // The parser appends the position.
            Category::Data => {
                let error = error.to_string();
                let found = error.rsplit_once(" at line ").map_or(error.as_str(), |(found, _)| found);
                format!("line {line}: {found}")
            }
            _ => format!("line {line}, column {column} is not JSON; accepted is {ACCEPTED}"),
        }
    })?;
    let Value::Object(mut object) = value else {
        return Err(format!("the JSON is not an object; accepted is {ACCEPTED}"));
    };
    let mut name = None;
    if let Some(Value::Object(config)) = object.get("config") {
        name = object.get("name").and_then(Value::as_str).map(str::to_owned);
        if let Some(other) =
            object.keys().find(|key| !["name", "config", "tasks", "type", "initial_state"].contains(&key.as_str()))
        {
            return Err(format!("{other:?} stands beside \"config\"; options belong into \"config\""));
        }
        object = config.clone();
    }
    let option = |(key, value): (String, Value)| match value {
        Value::String(text) => Ok((key, text)),
        Value::Number(_) | Value::Bool(_) => Ok((key, value.to_string())),
        Value::Null => Err(format!("the option {key:?} is null; accepted is a text, a number, true or false")),
        _ => Err(format!("the option {key:?} is not a text; accepted is a text, a number, true or false")),
    };
    let mut options: BTreeMap<_, _> = object.into_iter().map(option).collect::<Result<_, _>>()?;
    if let Some(name) = name {
        options.entry("name".to_owned()).or_insert(name);
    }
    Ok(options)
}

/// JSON in which no object has a member twice. Otherwise the last one would win, and nobody would see that the file says two things.
struct Once(Value);

impl<'de> Deserialize<'de> for Once {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(OnceVisitor).map(Self)
    }
}

struct OnceVisitor;

impl<'de> Visitor<'de> for OnceVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Vec::new();
        while let Some(Once(member)) = members.next_element()? {
            all.push(member);
        }
        Ok(Value::Array(all))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut all = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if all.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{name:?} is there a second time; leave one of the two")));
            }
            let Once(value) = members.next_value()?;
            all.insert(name, value);
        }
        Ok(Value::Object(all))
    }
}

/// Parses Java properties: comments, continued lines, `=`, `:` or a space between name and value, and escapes.
fn from_properties(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut options = BTreeMap::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let mut line = line.trim_start().to_owned();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        while line.chars().rev().take_while(|c| *c == '\\').count() % 2 == 1 {
            line.pop();
            match lines.next() {
                Some((_, next)) => line += next.trim_start(),
                None => break,
            }
        }
        let (key, value) = split(&line);
        let line = number + 1;
        let key = unescape(key).ok_or_else(|| format!("line {line} has a bad \\u escape"))?;
        let value = unescape(value).ok_or_else(|| format!("line {line} has a bad \\u escape"))?;
        if key.is_empty() || !line_has_separator(key.as_str(), &value) {
            return Err(format!("line {line} is not NAME=VALUE; accepted is {ACCEPTED}"));
        }
        options.insert(key, value);
    }
    Ok(options)
}

/// Returns false for a line that is one word: nobody sets an option of a connector to an empty text that way.
fn line_has_separator(key: &str, value: &str) -> bool {
    !value.is_empty() || key.contains('.')
}

fn split(line: &str) -> (&str, &str) {
    let mut escaped = false;
    let end = line.char_indices().find(|(_, c)| {
        let found = !escaped && (matches!(c, '=' | ':') || c.is_whitespace());
        escaped = *c == '\\' && !escaped;
        found
    });
    let Some((end, _)) = end else { return (line, "") };
    let (key, rest) = line.split_at(end);
    let rest = rest.trim_start();
    (key, rest.strip_prefix(['=', ':']).unwrap_or(rest).trim_start())
}

fn unescape(text: &str) -> Option<String> {
    let mut units: Vec<u16> = Vec::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        let c = match (next, next == '\\') {
            (_, true) => match rest.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                Some('r') => '\r',
                Some('f') => '\u{c}',
                Some('u') => {
                    let digits: String = rest.by_ref().take(4).collect();
                    units.push(u16::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == 4)?);
                    continue;
                }
                Some(other) => other,
                None => break,
            },
            (c, false) => c,
        };
        units.extend_from_slice(c.encode_utf16(&mut [0; 2]));
    }
    String::from_utf16(&units).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_give_the_same_options() {
        let bare = r#"{"name": "outbox", "tasks.max": 1, "tombstones.on.delete": false, "a.b": "x\ty"}"#;
        let wrapped =
            r#"{"name": "outbox", "config": {"tasks.max": "1", "tombstones.on.delete": "false", "a.b": "x\ty"}}"#;
        let properties =
            "# a comment\n! another\nname=outbox\ntasks.max : 1\n  tombstones.on.delete fal\\\n    se\n\na.b = x\\ty\n";
        let expected = Options::parse("connector.json", bare).expect("bare");
        assert_eq!(Options::parse("connector.json", wrapped), Ok(expected.clone()));
        assert_eq!(Options::parse("connector.properties", properties), Ok(expected));
    }

    #[test]
    fn escapes_of_properties_are_read() {
        let text = "a.b=\\u00e9\\ud83d\\ude00\na\\ b=c\\=d\n";
        let options = Options::parse("x.properties", text).expect("properties");
        assert_eq!(options.get("a.b"), Some("é😀"));
        assert_eq!(options.get("a b"), Some("c=d"));
    }

    #[test]
    fn a_mistake_names_line_or_key_and_the_accepted_form() {
        for (name, text, part) in [
            ("c.json", "{\n  \"a\": 1,\n  b\n}", "line 3"),
            ("c.json", "[1]", "not an object"),
            ("c.json", r#"{"a.b": {"c": 1}}"#, "\"a.b\""),
            ("c.json", r#"{"a.b": null}"#, "\"a.b\""),
            ("c.json", "{}", "no options"),
            ("c.json", r#"{"config": {"a": "b"}, "transforms": "x"}"#, "\"transforms\""),
            ("c.json", "{\n  \"a\": 1,\n  \"b\": 2,\n  \"a\":\n 3}", "line 4: \"a\" is there a second time"),
            ("c.json", "{\"config\": {\"a.b\": \"x\",\n\"a.b\": \"x\"}}", "line 2: \"a.b\" is there a second time"),
            ("c.properties", "a=b\nword\n", "line 2"),
            ("c.properties", "a=\\u12\n", "line 1"),
            ("c.txt", "", "no options"),
        ] {
            let error = Options::parse(name, text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
