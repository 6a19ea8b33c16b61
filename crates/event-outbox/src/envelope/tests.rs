use chrono::DateTime;
use proptest::prelude::*;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::*;
use crate::event::{EventHeaders, EventId, OutboxId};

const JSON: &[u8] = br#"{"id": 12345678901234567890, "total": 10.00, "id": "again"}"#;

fn order_placed<'a>(payload: Payload<'a>, headers: &[(&'a str, &'a str)]) -> StoredEvent<'a> {
    StoredEvent {
        id: OutboxId(42),
        event_id: EventId(Uuid::from_u128(0x0190_a1b2_c3d4_7e5f_8a9b_0c1d_2e3f_4a5b)),
        entity_type: "order",
        entity_id: Some("order-17"),
        event_type: "OrderPlaced",
        event_version: 3,
        payload,
        headers: headers.iter().copied().collect(),
        topic: None,
        created_at: DateTime::from_timestamp_micros(1_763_716_020_000_120).expect("in range"),
    }
}

fn value(envelope: Envelope, event: &StoredEvent<'_>, source: Option<&str>) -> Option<String> {
    let mut scratch = b"left over from the event before".to_vec();
    let value = envelope.value(event, source, &mut scratch)?;
    Some(String::from_utf8(value.to_vec()).expect("UTF-8"))
}

fn headers(envelope: Envelope, event: &StoredEvent<'_>, source: Option<&str>) -> Vec<(String, String)> {
    let mut all = Vec::new();
    envelope.headers(event, source, &mut |name, value| {
        all.push((name.to_owned(), String::from_utf8(value.to_vec()).expect("UTF-8")));
    });
    all
}

fn assert_headers(found: &[(String, String)], expected: &[(&str, &str)]) {
    let found: Vec<_> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(found, expected);
}

const ALWAYS_SENT: [(&str, &str); 4] = [
    ("event-id", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"),
    ("event-type", "OrderPlaced"),
    ("event-version", "3"),
    ("sequence", "42"),
];

#[test]
fn event_envelope_is_byte_exact() {
    let event = order_placed(Payload::Json(JSON), &[("correlation-id", "c-1"), ("source", "shop")]);
    assert_eq!(
        value(Envelope::Event, &event, Some("relay")).expect("a value"),
        concat!(
            r#"{"eventId":"0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","eventType":"OrderPlaced","#,
            r#""timestamp":"2025-11-21T09:07:00.000120Z","version":3,"source":"shop","correlationId":"c-1","#,
            r#""data":{"id": 12345678901234567890, "total": 10.00, "id": "again"}}"#
        )
    );
}

#[test]
fn event_envelope_says_null_for_what_is_unknown() {
    let event = order_placed(Payload::Json(b"null"), &[]);
    let text = value(Envelope::Event, &event, None).expect("a value");
    assert!(text.ends_with(r#""version":3,"source":null,"correlationId":null,"data":null}"#), "{text}");
    let text = value(Envelope::Event, &event, Some("relay")).expect("a value");
    assert!(text.contains(r#""source":"relay""#), "{text}");
}

#[test]
fn event_and_raw_headers_are_the_four_then_the_rows_own_then_the_source() {
    let event =
        order_placed(Payload::Json(JSON), &[("traceparent", "00-ab"), ("tenant", "é"), ("content-type", "x/y")]);
    for envelope in [Envelope::Event, Envelope::Raw] {
        let expected = [("traceparent", "00-ab"), ("tenant", "é"), ("content-type", "x/y"), ("source", "relay")];
        assert_headers(&headers(envelope, &event, Some("relay")), &[&ALWAYS_SENT[..], &expected].concat());
        assert_headers(&headers(envelope, &event, None), &[&ALWAYS_SENT[..], &expected[..3]].concat());
    }
}

#[test]
fn the_rows_own_source_is_sent_once_and_wins() {
    let event = order_placed(Payload::Json(JSON), &[("source", "shop")]);
    for envelope in Envelope::ALL {
        let sent = headers(envelope, &event, Some("relay"));
        let sources: Vec<_> = sent.iter().filter(|(name, _)| name == "source").map(|(_, value)| value).collect();
        assert_eq!(sources, ["shop"], "{envelope}");
    }
}

#[test]
fn a_row_header_cannot_pose_as_one_of_the_envelope() {
    let posing = [
        ("id", "x"),
        ("ce_id", "x"),
        ("ce_traceparent", "x"),
        ("event-id", "x"),
        ("sequence", "x"),
        ("ce_tenant", "t"),
        ("Event-Id", "kept: names are case-sensitive"),
    ];
    let event = order_placed(Payload::Json(JSON), &posing);
    for envelope in Envelope::ALL {
        let sent = headers(envelope, &event, None);
        let mut names: Vec<_> = sent.iter().map(|(name, _)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), sent.len(), "{envelope} repeats a header: {sent:?}");
        assert_headers(&sent[..4], &ALWAYS_SENT);
        let kept: Vec<_> = sent.iter().filter(|(_, value)| value == "x").map(|(name, _)| name.as_str()).collect();
        let expected: &[&str] = match envelope {
            Envelope::Event | Envelope::Raw => &["id", "ce_id", "ce_traceparent"],
            Envelope::CloudeventsBinary | Envelope::CloudeventsStructured => &["id"],
            // The row's own id is that of the router.
            Envelope::Debezium => &["id", "ce_id", "ce_traceparent"],
        };
        assert_eq!(kept, expected, "{envelope}");
        assert!(sent.contains(&("ce_tenant".to_owned(), "t".to_owned())), "{envelope}");
    }
}

#[test]
fn raw_and_debezium_values_are_the_payload() {
    for payload in [Payload::Json(JSON), Payload::Bytes(b"\0\xff")] {
        let event = order_placed(payload, &[]);
        let (Payload::Json(bytes) | Payload::Bytes(bytes)) = payload else { unreachable!("no tombstone here") };
        for envelope in [Envelope::Raw, Envelope::Debezium, Envelope::CloudeventsBinary] {
            assert_eq!(envelope.value(&event, Some("relay"), &mut Vec::new()), Some(bytes), "{envelope}");
        }
    }
}

#[test]
fn no_payload_is_no_value_in_every_envelope_and_an_empty_one_is_a_value() {
    for envelope in Envelope::ALL {
        assert_eq!(envelope.value(&order_placed(Payload::Tombstone, &[]), None, &mut Vec::new()), None, "{envelope}");
    }
    let empty = order_placed(Payload::Bytes(b""), &[]);
    assert_eq!(Envelope::Event.value(&empty, None, &mut Vec::new()), Some(&b""[..]));
}

#[test]
fn binary_payloads_pass_the_event_envelope_as_they_are() {
    let event = order_placed(Payload::Bytes(b"\0\xffavro"), &[]);
    assert_eq!(Envelope::Event.value(&event, Some("relay"), &mut Vec::new()), Some(&b"\0\xffavro"[..]));
}

#[test]
fn debezium_adds_the_routers_id_header_and_uses_its_topic() {
    let event = order_placed(Payload::Json(JSON), &[("tenant", "a")]);
    let expected = [("tenant", "a"), ("source", "relay"), ("id", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b")];
    assert_headers(&headers(Envelope::Debezium, &event, Some("relay")), &[&ALWAYS_SENT[..], &expected].concat());
    assert_eq!(Envelope::Debezium.default_topic(), "outbox.event.{entity_type}");
    assert_eq!(Envelope::Event.default_topic(), "{entity_type}-events");
}

#[test]
fn a_row_has_its_own_id_with_debezium_and_its_partition_is_never_sent() {
    let event = order_placed(Payload::Json(JSON), &[("id", "t-17"), ("outbox-partition", "3")]);
    assert_headers(&headers(Envelope::Debezium, &event, None), &[&ALWAYS_SENT[..], &[("id", "t-17")]].concat());
    assert_eq!(event.partition(), Ok(Some(3)));
    for text in ["-1", "x", "3.5", "2147483648"] {
        assert_eq!(order_placed(Payload::Json(JSON), &[("outbox-partition", text)]).partition(), Err(text));
    }
    assert_eq!(order_placed(Payload::Json(JSON), &[]).partition(), Ok(None));
}

const CE_ATTRIBUTES: [(&str, &str); 7] = [
    ("ce_specversion", "1.0"),
    ("ce_id", "0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b"),
    ("ce_source", "/shop"),
    ("ce_type", "OrderPlaced"),
    ("ce_subject", "order-17"),
    ("ce_time", "2025-11-21T09:07:00.000120Z"),
    ("ce_eventversion", "3"),
];

#[test]
fn cloudevents_binary_headers_are_exact() {
    let event = order_placed(Payload::Json(JSON), &[("tracestate", "s"), ("correlation-id", "c-1")]);
    let expected = [
        &ALWAYS_SENT[..],
        &[("tracestate", "s"), ("correlation-id", "c-1"), ("source", "/shop"), ("content-type", "application/json")],
        &CE_ATTRIBUTES,
        &[("ce_correlationid", "c-1"), ("ce_tracestate", "s")],
    ];
    assert_headers(&headers(Envelope::CloudeventsBinary, &event, Some("/shop")), &expected.concat());
}

#[test]
fn cloudevents_leave_out_what_may_not_be_empty_and_always_have_a_source() {
    let mut event = order_placed(Payload::Bytes(b"x"), &[("source", ""), ("causation-id", "")]);
    event.entity_id = Some("");
    let sent = headers(Envelope::CloudeventsBinary, &event, None);
    assert!(sent.contains(&("ce_source".to_owned(), "/outbox-relay".to_owned())), "{sent:?}");
    assert!(sent.contains(&("content-type".to_owned(), "application/octet-stream".to_owned())), "{sent:?}");
    assert!(!sent.iter().any(|(name, _)| name == "ce_subject" || name == "ce_causationid"), "{sent:?}");
}

#[test]
fn cloudevents_structured_is_byte_exact() {
    let event =
        order_placed(Payload::Json(JSON), &[("causation-id", "a\"b"), ("content-type", "application/vnd.x+json")]);
    assert_eq!(
        value(Envelope::CloudeventsStructured, &event, Some("/shop")).expect("a value"),
        concat!(
            r#"{"specversion":"1.0","id":"0190a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b","source":"/shop","type":"OrderPlaced","#,
            r#""subject":"order-17","time":"2025-11-21T09:07:00.000120Z","eventversion":3,"causationid":"a\"b","#,
            r#""datacontenttype":"application/vnd.x+json","#,
            r#""data":{"id": 12345678901234567890, "total": 10.00, "id": "again"}}"#
        )
    );
    let expected = [
        ("causation-id", "a\"b"),
        ("source", "/shop"),
        ("content-type", "application/cloudevents+json; charset=UTF-8"),
    ];
    let sent = headers(Envelope::CloudeventsStructured, &event, Some("/shop"));
    assert_headers(&sent, &[&ALWAYS_SENT[..], &expected].concat());
}

#[test]
fn cloudevents_structured_wraps_bytes_as_base64() {
    let text = value(Envelope::CloudeventsStructured, &order_placed(Payload::Bytes(b"\0\xff"), &[]), None);
    let text = text.expect("a value");
    let end = r#""eventversion":3,"datacontenttype":"application/octet-stream","data_base64":"AP8="}"#;
    assert!(text.ends_with(end), "{text}");
}

#[test]
fn a_structured_tombstone_goes_out_in_binary_mode() {
    let event = order_placed(Payload::Tombstone, &[("content-type", "application/json")]);
    let expected = [&ALWAYS_SENT[..], &[("source", "/shop")], &CE_ATTRIBUTES].concat();
    for envelope in [Envelope::CloudeventsStructured, Envelope::CloudeventsBinary] {
        assert_headers(&headers(envelope, &event, Some("/shop")), &expected);
    }
}

#[test]
fn names_parse_and_print_and_others_are_refused_with_the_list() {
    for envelope in Envelope::ALL {
        assert_eq!(envelope.to_string().parse(), Ok(envelope));
    }
    let error = "Event".parse::<Envelope>().expect_err("names are exact").to_string();
    assert_eq!(
        error,
        "unknown envelope \"Event\": accepted are event, raw, cloudevents-binary, cloudevents-structured, debezium"
    );
}

/// Generates JSON texts that a parsed tree would not give back: any spacing, digits, duplicate keys, escapes.
fn json() -> impl Strategy<Value = String> {
    let text = any::<String>().prop_map(|text| serde_json::to_string(&text).expect("a string"));
    let leaf = prop_oneof![
        Just("null".to_owned()),
        Just("true".to_owned()),
        "-?[1-9][0-9]{19}(\\.[0-9]{1,20}0)?([eE][+-]?[0-9]{1,3})?",
        Just(r#""\u00e9\ud83d\ude00\u0000""#.to_owned()),
        Just("\"😀 é\u{7f}\"".to_owned()),
        text.clone(),
    ];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        let member = (prop_oneof![Just(r#""same""#.to_owned()), text.clone()], "[ \t\n]{0,2}", inner.clone());
        prop_oneof![
            prop::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(" ,"))),
            prop::collection::vec(member.prop_map(|(key, space, value)| format!("{key}{space}:{value}")), 0..4)
                .prop_map(|members| format!("{{ {}}}", members.join(", "))),
        ]
    })
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct EventValue<'a> {
    event_id: Uuid,
    event_type: String,
    timestamp: DateTime<chrono::Utc>,
    version: i32,
    source: Option<String>,
    correlation_id: Option<String>,
    #[serde(borrow)]
    data: &'a RawValue,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct CloudEvent<'a> {
    specversion: String,
    id: Uuid,
    source: String,
    r#type: String,
    subject: Option<String>,
    time: DateTime<chrono::Utc>,
    eventversion: i32,
    correlationid: Option<String>,
    datacontenttype: String,
    #[serde(borrow)]
    data: &'a RawValue,
}

proptest! {
    #[test]
    fn json_envelopes_parse_and_carry_the_payload_byte_for_byte(
        payload in json(),
        (id, version, micros) in (any::<u128>(), any::<i32>(), 0..4_102_444_800_000_000_i64),
        (event_type, entity_id) in (any::<String>(), any::<Option<String>>()),
        (source, correlation) in (any::<Option<String>>(), any::<Option<String>>()),
    ) {
        let mut event = order_placed(Payload::Json(payload.as_bytes()), &[]);
        event.event_id = EventId(Uuid::from_u128(id));
        event.event_type = &event_type;
        event.event_version = version;
        event.entity_id = entity_id.as_deref();
        event.created_at = DateTime::from_timestamp_micros(micros).expect("in range");
        event.headers = correlation.iter().map(|value| ("correlation-id", value.as_str())).collect::<EventHeaders<'_>>();

        let mut scratch = Vec::new();
        let bytes = Envelope::Event.value(&event, source.as_deref(), &mut scratch).expect("a value");
        let read: EventValue<'_> = serde_json::from_slice(bytes).expect("valid JSON");
        prop_assert_eq!(read.data.get(), payload.as_str());
        prop_assert_eq!(read.event_id, event.event_id.0);
        prop_assert_eq!(&read.event_type, &event_type);
        prop_assert_eq!(read.timestamp, event.created_at);
        prop_assert_eq!(read.version, version);
        prop_assert_eq!(&read.source, &source);
        prop_assert_eq!(&read.correlation_id, &correlation);

        let bytes = Envelope::CloudeventsStructured.value(&event, source.as_deref(), &mut scratch).expect("a value");
        let read: CloudEvent<'_> = serde_json::from_slice(bytes).expect("valid JSON");
        prop_assert_eq!(read.data.get(), payload.as_str());
        prop_assert_eq!(read.id, event.event_id.0);
        prop_assert_eq!((read.specversion.as_str(), read.datacontenttype.as_str()), ("1.0", "application/json"));
        prop_assert_eq!(&read.r#type, &event_type);
        prop_assert_eq!(read.subject, entity_id.clone().filter(|id| !id.is_empty()));
        prop_assert_eq!(read.source, source.clone().filter(|text| !text.is_empty()).unwrap_or("/outbox-relay".to_owned()));
        prop_assert_eq!(read.correlationid, correlation.clone().filter(|text| !text.is_empty()));
        prop_assert_eq!((read.time, read.eventversion), (event.created_at, version));
    }
}
