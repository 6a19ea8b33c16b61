//! Parses the list of topics that events may go to.

use std::fmt;

use super::setting::Kind;
use super::value::Value;
use event_outbox::route;

/// Names of topics, and beginnings of names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicList(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Name(String),
    Beginning(String),
}

impl TopicList {
    /// Returns true if the list has the topic.
    pub fn has(&self, topic: &str) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Name(name) => name == topic,
            Pattern::Beginning(beginning) => topic.starts_with(beginning),
        })
    }
}

impl Value for TopicList {
    fn parse(_: &Kind, text: &str) -> Result<Self, String> {
        let pattern = |entry: &str| {
            let entry = entry.trim();
            let name = entry.strip_suffix('*').unwrap_or(entry);
            // A beginning may be empty, but every name needs a character.
            let checked = if name.is_empty() && entry == "*" { Ok(()) } else { route::check_topic(name) };
            checked.map_err(|mistake| format!("{mistake}, expected names such as order-events,billing-*"))?;
            Ok(match entry.ends_with('*') {
                true => Pattern::Beginning(name.to_owned()),
                false => Pattern::Name(name.to_owned()),
            })
        };
        text.split(',').map(pattern).collect::<Result<_, String>>().map(Self)
    }
}

impl fmt::Display for TopicList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, pattern) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            match pattern {
                Pattern::Name(name) => f.write_str(name)?,
                Pattern::Beginning(beginning) => write!(f, "{beginning}*")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<TopicList, String> {
        TopicList::parse(&Kind::Topics, text)
    }

    #[test]
    fn a_list_has_names_and_beginnings() {
        let list = parse("order-events, billing-*").expect("a list");
        for (topic, is_there) in
            [("order-events", true), ("order-events-2", false), ("billing-", true), ("billing-eu", true), ("b", false)]
        {
            assert_eq!(list.has(topic), is_there, "{topic}");
        }
        assert_eq!(list.to_string(), "order-events,billing-*");
        assert!(parse("*").expect("all").has("anything"));
    }

    #[test]
    fn a_name_that_kafka_does_not_allow_is_refused() {
        for text in ["", "a,,b", "or der", "a*b", "bücher"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
