//! Finds the topic of an event: the row's own `topic`, or else a template. The record's key is the entity id, unchanged.

use std::fmt;
use std::str::FromStr;

use crate::event::StoredEvent;

/// The longest topic name that Kafka allows (`org.apache.kafka.common.internals.Topic.MAX_NAME_LENGTH`), because the name is part of a
/// directory name.
const LONGEST_TOPIC: usize = 249;

/// The most characters of a bad name in a message, because entity types and topics of rows have no length limit.
const SHOWN: usize = 80;

/// A topic name with placeholders: `{entity_type}-events`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicTemplate {
    /// The beginning of every topic's name, also of those that rows name. Most often empty.
    prefix: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    EntityType,
    EventType,
}

/// The reason why a template cannot name topics.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "bad topic template {template:?}: {mistake}; accepted are letters, digits, '.', '_', '-' and the placeholders {{entity_type}} and \
     {{event_type}}, for example {{entity_type}}-events"
)]
pub struct BadTemplate {
    /// The template that was given.
    pub template: String,
    /// The mistake in the template.
    pub mistake: TemplateMistake,
}

/// The mistake in a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateMistake {
    /// The template is empty.
    #[error("it is empty")]
    Empty,
    /// The template has a placeholder that this relay does not know.
    #[error("unknown placeholder {{{0}}}")]
    UnknownPlaceholder(String),
    /// The template has `{` without `}`, or `}` without `{`.
    #[error("'{{' and '}}' are not balanced")]
    UnbalancedBrace,
    /// The text outside of placeholders already breaks Kafka's rules.
    #[error("{0}")]
    IllegalName(NameMistake),
}

/// The reason why a name is not a legal Kafka topic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameMistake {
    /// The name is empty.
    #[error("a topic name cannot be empty")]
    Empty,
    /// The name is longer than 249 bytes. Holds its length.
    #[error("a topic name has at most 249 characters, this one has {0} bytes")]
    TooLong(usize),
    /// The name is `.` or `..`.
    #[error("a topic cannot be named \".\" or \"..\"")]
    Dots,
    /// The name has a character outside of `[a-zA-Z0-9._-]`.
    #[error("{0:?} is not allowed in a topic name")]
    Character(char),
}

/// The error for an event whose topic name is illegal. The row is the cause, not the destination.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad topic {name:?} from {origin}: {mistake}")]
pub struct BadTopic {
    /// The name, cut after 80 characters.
    pub name: String,
    /// The source of the name.
    pub origin: TopicOrigin,
    /// The rule it breaks.
    pub mistake: NameMistake,
}

/// The source of a topic name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TopicOrigin {
    /// The row's `topic` column.
    Column,
    /// The template of the configuration.
    Template,
}

impl fmt::Display for TopicOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Column => "the row's topic column",
            Self::Template => "the topic template",
        })
    }
}

impl TopicTemplate {
    /// Returns the topic of an event: its own `topic` if set, else the template, written into `scratch`.
    ///
    /// # Errors
    /// [`BadTopic`] if the name breaks Kafka's rules. The relay checks the name before sending, because the broker's permanent error on one
    /// record would not stop the entity's next records.
    pub fn resolve<'b>(&self, event: &'b StoredEvent<'_>, scratch: &'b mut String) -> Result<&'b str, BadTopic> {
        let (name, origin) = match event.topic {
            Some(topic) if self.prefix.is_empty() => (topic, TopicOrigin::Column),
            Some(topic) => {
                scratch.clear();
                scratch.extend([self.prefix.as_str(), topic]);
                (scratch.as_str(), TopicOrigin::Column)
            }
            None => (self.fill(event, scratch), TopicOrigin::Template),
        };
        // A name has to be legal without the prefix as well, so that it still is when the prefix goes.
        match check(&name[self.prefix.len()..]).and_then(|()| check(name)) {
            Ok(()) => Ok(name),
            Err(mistake) => Err(BadTopic { name: name.chars().take(SHOWN).collect(), origin, mistake }),
        }
    }

    /// Returns the template with a prefix for every topic, also for the topics that rows name: `shadow.` makes
    /// `shadow.order-events` of `order-events`.
    ///
    /// # Errors
    /// The rule that every name with this prefix would break.
    pub fn with_prefix(self, prefix: &str) -> Result<Self, NameMistake> {
        match check(prefix) {
            Ok(()) | Err(NameMistake::Empty | NameMistake::Dots) => Ok(Self { prefix: prefix.to_owned(), ..self }),
            Err(mistake) => Err(mistake),
        }
    }

    /// Returns the prefix of every topic, which is empty unless [`TopicTemplate::with_prefix`] set it.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Returns a topic's name without the prefix.
    pub fn without_prefix<'n>(&self, name: &'n str) -> &'n str {
        name.strip_prefix(&self.prefix).unwrap_or(name)
    }

    fn fill<'b>(&self, event: &StoredEvent<'_>, scratch: &'b mut String) -> &'b str {
        scratch.clear();
        scratch.push_str(&self.prefix);
        for part in &self.parts {
            scratch.push_str(match part {
                Part::Literal(text) => text,
                Part::EntityType => event.entity_type,
                Part::EventType => event.event_type,
            });
        }
        scratch
    }
}

impl FromStr for TopicTemplate {
    type Err = BadTemplate;

    fn from_str(template: &str) -> Result<Self, Self::Err> {
        match parse(template) {
            Ok(parts) => Ok(Self { prefix: String::new(), parts }),
            Err(mistake) => Err(BadTemplate { template: template.to_owned(), mistake }),
        }
    }
}

impl fmt::Display for TopicTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        self.parts.iter().try_for_each(|part| {
            f.write_str(match part {
                Part::Literal(text) => text,
                Part::EntityType => "{entity_type}",
                Part::EventType => "{event_type}",
            })
        })
    }
}

fn parse(template: &str) -> Result<Vec<Part>, TemplateMistake> {
    let mut parts = Vec::new();
    let mut rest = template;
    while let Some(start) = rest.find(['{', '}']) {
        push_literal(&rest[..start], &mut parts)?;
        let inside = rest[start..].strip_prefix('{').ok_or(TemplateMistake::UnbalancedBrace)?;
        let (name, after) = inside.split_once('}').ok_or(TemplateMistake::UnbalancedBrace)?;
        parts.push(match name {
            "entity_type" => Part::EntityType,
            "event_type" => Part::EventType,
            _ if name.contains('{') => return Err(TemplateMistake::UnbalancedBrace),
            _ => return Err(TemplateMistake::UnknownPlaceholder(name.to_owned())),
        });
        rest = after;
    }
    push_literal(rest, &mut parts)?;
    match parts.as_slice() {
        [] => Err(TemplateMistake::Empty),
        [Part::Literal(name)] => check(name).map(|()| parts).map_err(TemplateMistake::IllegalName),
        _ => Ok(parts),
    }
}

fn push_literal(text: &str, parts: &mut Vec<Part>) -> Result<(), TemplateMistake> {
    match check(text) {
        Err(NameMistake::Empty) => return Ok(()),
        // "." and ".." are legal beside a placeholder. A template that is one literal is checked again in `parse`.
        Ok(()) | Err(NameMistake::Dots) => parts.push(Part::Literal(text.to_owned())),
        Err(mistake) => return Err(TemplateMistake::IllegalName(mistake)),
    }
    Ok(())
}

/// Checks a topic name against Kafka's rules.
///
/// # Errors
/// The rule that the name breaks.
pub fn check_topic(name: &str) -> Result<(), NameMistake> {
    check(name)
}

/// Checks a name by the rules of `org.apache.kafka.common.internals.Topic.validate`.
fn check(name: &str) -> Result<(), NameMistake> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name {
        "" => Err(NameMistake::Empty),
        "." | ".." => Err(NameMistake::Dots),
        _ if name.len() > LONGEST_TOPIC => Err(NameMistake::TooLong(name.len())),
        _ if name.bytes().all(legal) => Ok(()),
        _ => {
            let illegal = name.chars().find(|character| !character.is_ascii() || !legal(*character as u8));
            Err(NameMistake::Character(illegal.unwrap_or_default()))
        }
    }
}

#[cfg(test)]
mod tests;
