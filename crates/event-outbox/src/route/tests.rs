use chrono::DateTime;
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::event::{EventHeaders, EventId, OutboxId, Payload};

fn event<'a>(entity_type: &'a str, event_type: &'a str, topic: Option<&'a str>) -> StoredEvent<'a> {
    StoredEvent {
        id: OutboxId(1),
        event_id: EventId(Uuid::nil()),
        entity_type,
        entity_id: None,
        event_type,
        event_version: 1,
        payload: Payload::Tombstone,
        headers: EventHeaders::default(),
        topic,
        created_at: DateTime::UNIX_EPOCH,
    }
}

fn resolve(template: &str, event: &StoredEvent<'_>) -> Result<String, BadTopic> {
    let template: TopicTemplate = template.parse().expect("a good template");
    template.resolve(event, &mut "left over".to_owned()).map(str::to_owned)
}

fn mistake(template: &str) -> TemplateMistake {
    template.parse::<TopicTemplate>().expect_err(template).mistake
}

#[test]
fn placeholders_are_filled_from_the_row() {
    let placed = event("order", "OrderPlaced", None);
    assert_eq!(resolve("{entity_type}-events", &placed).as_deref(), Ok("order-events"));
    assert_eq!(resolve("outbox.event.{entity_type}", &placed).as_deref(), Ok("outbox.event.order"));
    assert_eq!(resolve("{entity_type}{event_type}", &placed).as_deref(), Ok("orderOrderPlaced"));
    assert_eq!(resolve("..{entity_type}.", &placed).as_deref(), Ok("..order."));
    assert_eq!(resolve("all", &placed).as_deref(), Ok("all"));
}

#[test]
fn the_rows_own_topic_overrides_the_template() {
    assert_eq!(resolve("{entity_type}-events", &event("order", "x", Some("audit_1"))).as_deref(), Ok("audit_1"));
}

#[test]
fn every_default_topic_of_an_envelope_is_a_good_template() {
    for envelope in crate::envelope::Envelope::ALL {
        let template: TopicTemplate = envelope.default_topic().parse().expect("a good template");
        assert_eq!(template.to_string(), envelope.default_topic());
    }
}

#[test]
fn a_bad_template_is_refused_and_says_what_is_accepted() {
    assert_eq!(mistake(""), TemplateMistake::Empty);
    assert_eq!(mistake("{entity}-events"), TemplateMistake::UnknownPlaceholder("entity".into()));
    assert_eq!(mistake("{}"), TemplateMistake::UnknownPlaceholder(String::new()));
    for unbalanced in ["{entity_type", "entity_type}", "{", "}", "{{entity_type}}", "a}b{c"] {
        assert_eq!(mistake(unbalanced), TemplateMistake::UnbalancedBrace, "{unbalanced}");
    }
    assert_eq!(mistake("{entity_type} events"), TemplateMistake::IllegalName(NameMistake::Character(' ')));
    assert_eq!(mistake("bestellungen-ü"), TemplateMistake::IllegalName(NameMistake::Character('ü')));
    assert_eq!(mistake(".."), TemplateMistake::IllegalName(NameMistake::Dots));
    assert_eq!(mistake(&"a".repeat(250)), TemplateMistake::IllegalName(NameMistake::TooLong(250)));
    assert_eq!(
        "{entity}-events".parse::<TopicTemplate>().expect_err("unknown").to_string(),
        "bad topic template \"{entity}-events\": unknown placeholder {entity}; accepted are letters, digits, '.', '_', '-' and the \
         placeholders {entity_type} and {event_type}, for example {entity_type}-events"
    );
}

#[test]
fn a_name_that_breaks_kafkas_rules_is_refused_and_says_which() {
    let of = |entity_type| resolve("{entity_type}", &event(entity_type, "x", None)).expect_err(entity_type);
    assert_eq!(of("").mistake, NameMistake::Empty);
    assert_eq!(of(".").mistake, NameMistake::Dots);
    assert_eq!(of("..").mistake, NameMistake::Dots);
    assert_eq!(of("a b").mistake, NameMistake::Character(' '));
    assert_eq!(of("a/b").mistake, NameMistake::Character('/'));
    assert_eq!(of("😀").mistake, NameMistake::Character('😀'));
    assert_eq!(
        of("a\0").to_string(),
        r#"bad topic "a\0" from the topic template: '\0' is not allowed in a topic name"#
    );
    let empty = resolve("all", &event("order", "x", Some(""))).expect_err("an empty topic is no topic");
    assert_eq!((empty.mistake, empty.origin), (NameMistake::Empty, TopicOrigin::Column));
}

#[test]
fn a_name_may_have_249_characters_and_a_longer_one_is_not_repeated_whole() {
    let longest = "a".repeat(249);
    assert_eq!(resolve("{entity_type}", &event(&longest, "x", None)), Ok(longest.clone()));
    let error = resolve("{entity_type}-", &event(&longest, "x", None)).expect_err("too long");
    assert_eq!(error.mistake, NameMistake::TooLong(250));
    assert_eq!(error.name.len(), 80);
}

proptest! {
    #[test]
    fn a_template_prints_as_it_was_written(template in r"([a-z._-]{0,3}|\{entity_type\}|\{event_type\}|[{} ü]){0,5}") {
        if let Ok(parsed) = template.parse::<TopicTemplate>() {
            prop_assert_eq!(parsed.to_string(), template);
        }
    }

    #[test]
    fn what_resolves_is_a_legal_topic_and_what_does_not_is_none(entity_type in "[a-zA-Z0-9._ü /-]{0,6}|[a-z]{230,260}") {
        let legal = kafkas_rule(&entity_type);
        prop_assert_eq!(resolve("{entity_type}", &event(&entity_type, "x", None)).is_ok(), legal);
    }
}

/// Checks Kafka's rule a second way, as its documentation states it.
fn kafkas_rule(name: &str) -> bool {
    let alphabet = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";
    name != "." && name != ".." && (1..=249).contains(&name.len()) && name.chars().all(|c| alphabet.contains(c))
}

fn shadow(template: &str) -> TopicTemplate {
    template.parse::<TopicTemplate>().expect("a good template").with_prefix("shadow.").expect("a good prefix")
}

#[test]
fn a_prefix_comes_before_the_topics_of_the_template_and_before_those_of_rows() {
    let template = shadow("{entity_type}-events");
    let mut scratch = "left over".to_owned();
    assert_eq!(template.resolve(&event("order", "x", None), &mut scratch), Ok("shadow.order-events"));
    assert_eq!(template.resolve(&event("order", "x", Some("audit")), &mut scratch), Ok("shadow.audit"));
    assert_eq!(template.to_string(), "shadow.{entity_type}-events");
    assert_eq!((template.prefix(), template.without_prefix("shadow.audit")), ("shadow.", "audit"));
    assert_eq!(shadow("all").without_prefix("audit"), "audit");
}

#[test]
fn a_topic_that_is_illegal_without_its_prefix_stays_illegal_with_it() {
    let template = shadow("{entity_type}");
    for (topic, mistake) in [("", NameMistake::Empty), (".", NameMistake::Dots), ("a b", NameMistake::Character(' '))] {
        let found = template.resolve(&event("order", "x", Some(topic)), &mut String::new()).map(str::to_owned);
        assert_eq!(found.expect_err(topic).mistake, mistake, "{topic}");
    }
    let long = "a".repeat(LONGEST_TOPIC - 3);
    let found = template.resolve(&event(&long, "x", None), &mut String::new()).map(str::to_owned);
    assert_eq!(found.expect_err("too long").mistake, NameMistake::TooLong(LONGEST_TOPIC + 4));
    let template: TopicTemplate = "all".parse().expect("a good template");
    assert_eq!(template.clone().with_prefix("a b"), Err(NameMistake::Character(' ')));
    assert_eq!(template.with_prefix("").expect("no prefix").to_string(), "all");
}
