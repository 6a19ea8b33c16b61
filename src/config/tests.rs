//! Tests the configuration as a whole: layers, mistakes of every kind at once, secrets, `.env.example`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use rdkafka::config::ClientConfig;
use secrecy::ExposeSecret;
use tempfile::TempDir;

use super::*;
use event_outbox::envelope::Envelope;

const URL: &str = "postgres://relay:hunter2@db:5432/app";

/// Returns the settings that a relay needs at least, and `more`.
fn env(more: &[(&str, &str)]) -> Sources {
    let least =
        [("DATABASE_URL", URL), ("KAFKA_BOOTSTRAP_SERVERS", "a:9092,b:9092"), ("HOSTNAME", "pod-7"), ("PATH", "/bin")];
    let env = least.iter().chain(more).map(|(name, value)| (name.to_string(), value.to_string())).collect();
    Sources { env, ..Sources::default() }
}

fn load(sources: Sources) -> Result<Settings, ConfigError> {
    Settings::load(sources, Needs::DatabaseAndKafka)
}

fn mistakes(more: &[(&str, &str)]) -> Vec<String> {
    load(env(more)).err().map_or(Vec::new(), |error| error.0.iter().map(Mistake::to_string).collect())
}

/// Writes a file in a directory of its own; dropping the guard removes both.
fn file(name: &str, content: &str) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(name);
    fs::write(&path, content).unwrap();
    (dir, path)
}

#[test]
fn two_variables_are_enough() {
    let settings = load(env(&[])).unwrap();
    assert_eq!(settings.database.target(), "db:5432/app");
    assert_eq!(settings.database.connect_timeout, Duration::from_secs(10));
    assert!(settings.database.prepared_statements);
    assert_eq!(settings.outbox.schema, "public");
    assert_eq!(settings.outbox.table, "event_outbox");
    assert_eq!(settings.outbox.processed_table, "processed_events");
    assert_eq!(settings.kafka.as_ref().unwrap().brokers(), "a:9092,b:9092");
    let relay = &settings.relay;
    assert_eq!((relay.workers, relay.batch_size, relay.batch_bytes), (3, 2000, 16 << 20));
    assert_eq!(relay.poll_interval, Duration::from_millis(250));
    assert_eq!(relay.publish_timeout, Duration::from_secs(30));
    assert_eq!(relay.shutdown_timeout, Duration::from_secs(40));
    assert_eq!(relay.status_interval, Duration::from_secs(30));
    assert_eq!(relay.heartbeat_interval, Duration::from_secs(1));
    assert_eq!(relay.stall_after, Duration::from_secs(60));
    assert!(settings.admin.address.is_none() && settings.admin.token().is_none());
    assert_eq!((relay.name.as_str(), relay.source.as_deref()), ("pod-7", None));
    assert_eq!((relay.envelope, relay.on_poison), (Envelope::Event, OnPoison::DeadLetter));
    assert_eq!(relay.topic.to_string(), "{entity_type}-events");
    assert_eq!((relay.retention.outbox, relay.retention.processed_after), (Retention::Keep, None));
    assert!(!relay.retention.prunes());
    assert_eq!((settings.log.format, settings.log.level.as_str()), (LogFormat::Auto, "info"));
    assert_eq!(
        settings.non_defaults().iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        ["database_url", "kafka_bootstrap_servers"]
    );
}

#[test]
fn flags_are_stronger_than_the_environment_and_that_than_the_file_and_that_than_defaults() {
    let (_dir, path) = file(
        "relay.toml",
        "workers = 3\nbatch_size = 3\npoll_interval = '3ms'\n[kafka]\n\"linger.ms\" = 3\nclient.id = 'file'\n",
    );
    let mut sources =
        env(&[("RELAY_BATCH_SIZE", "4"), ("RELAY_POLL_INTERVAL", "4ms"), ("KAFKA_QUEUE_BUFFERING_MAX_MS", "4")]);
    sources.file = Some(path);
    sources.overrides = [("poll_interval", "9ms"), ("poll_interval", "5ms"), ("kafka.client.rack", "r5")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec();
    let settings = load(sources).unwrap();
    assert_eq!((settings.relay.workers, settings.relay.batch_size), (3, 4));
    assert_eq!(settings.relay.poll_interval, Duration::from_millis(5));
    let kafka = settings.kafka.unwrap();
    let properties: BTreeMap<_, _> = kafka.properties().map(|(name, value)| (name, value.expose())).collect();
    let expected = [
        ("client.id", "file"),
        ("client.rack", "r5"),
        ("partitioner", "murmur2_random"),
        ("queue.buffering.max.ms", "4"),
    ];
    assert_eq!(properties, BTreeMap::from(expected), "an alias in a stronger layer replaces the other name");
}

#[test]
fn the_topic_follows_the_envelope_unless_it_is_set() {
    let topic = |more: &[(&str, &str)]| load(env(more)).unwrap().relay.topic.to_string();
    assert_eq!(topic(&[("RELAY_ENVELOPE", "debezium")]), Envelope::Debezium.default_topic());
    assert_eq!(topic(&[("RELAY_ENVELOPE", "debezium"), ("RELAY_TOPIC", "all")]), "all");
}

#[test]
fn every_setting_takes_its_value() {
    let settings = load(env(&[
        ("RELAY_SCHEMA", "Shop \"A\""),
        ("RELAY_TABLE", &"ü".repeat(31)),
        ("RELAY_PROCESSED_TABLE", "p"),
        ("RELAY_NAME", "relay-1"),
        ("RELAY_WORKERS", "64"),
        ("RELAY_BATCH_SIZE", "100000"),
        ("RELAY_BATCH_BYTES", "512KB"),
        ("RELAY_POLL_INTERVAL", "1ms"),
        ("RELAY_PUBLISH_TIMEOUT", "15m"),
        ("RELAY_SHUTDOWN_TIMEOUT", "1s"),
        ("RELAY_CONNECT_TIMEOUT", "1s 500ms"),
        ("RELAY_STATUS_INTERVAL", "1h"),
        ("RELAY_HEARTBEAT_INTERVAL", "100ms"),
        ("RELAY_STALL_AFTER", "1s"),
        ("RELAY_ENVELOPE", "cloudevents-structured"),
        ("RELAY_TOPIC", "shop.{event_type}"),
        ("RELAY_SOURCE", "/shop/orders"),
        ("RELAY_TOPIC_PREFIX", "shadow."),
        ("RELAY_TOPICS", "order-events,billing-*"),
        ("RELAY_WAKE_UP", "off"),
        ("RELAY_WAKE_UP_URL", "postgres://u@direct/d"),
        ("RELAY_TIMESTAMP", "publish"),
        ("RELAY_SETTLE", "delete"),
        ("RELAY_ON_POISON", "hold_entity"),
        ("RELAY_DELIVERY", "exactly_once"),
        ("RELAY_RETENTION", "archive"),
        ("RELAY_RETENTION_AFTER", "90d"),
        ("RELAY_PROCESSED_RETENTION", "10years"),
        ("RELAY_DEAD_LETTER_HORIZON", "60d"),
        ("RELAY_PREPARED_STATEMENTS", "false"),
        ("RELAY_ADMIN_ADDRESS", "[::]:9187"),
        ("RELAY_ADMIN_TOKEN", "hunter2hunter2hunter2"),
        ("RELAY_LOG_FORMAT", "json"),
        ("RELAY_LOG_LEVEL", "warn,outbox_relay=debug"),
    ]))
    .unwrap();
    assert_eq!(settings.outbox.schema, "Shop \"A\"");
    assert_eq!(settings.outbox.table.len(), 62);
    assert_eq!((settings.relay.batch_bytes, settings.relay.publish_timeout), (512_000, Duration::from_secs(900)));
    assert_eq!(settings.relay.shutdown_timeout, Duration::from_secs(1), "may be shorter than publish_timeout");
    assert_eq!(settings.relay.source.as_deref(), Some("/shop/orders"));
    assert_eq!(settings.relay.timestamp, Timestamp::Publish);
    assert_eq!((settings.relay.on_poison, settings.relay.delivery), (OnPoison::HoldEntity, Delivery::ExactlyOnce));
    let day = Duration::from_secs(86_400);
    let kept = RetentionSettings {
        outbox: Retention::Archive,
        after: (day * 90).into(),
        processed_after: Some((day * 7305 / 2).into()),
        dead_letter_horizon: Some((day * 60).into()),
    };
    assert_eq!(settings.relay.retention, kept);
    assert!(!settings.database.prepared_statements && settings.wake_up.is_none());
    assert!(settings.relay.topics.as_ref().is_some_and(|topics| topics.has("billing-eu") && !topics.has("payroll")));
    assert_eq!(settings.relay.topic.prefix(), "shadow.");
    let of_records = settings.relay.of_records(settings.kafka.as_ref().unwrap());
    assert_eq!(of_records.get("RELAY_TOPIC_PREFIX").map(String::as_str), Some("shadow."));
    assert_eq!(settings.relay.stall_after, Duration::from_secs(1));
    assert!(settings.admin.address.is_some() && settings.admin.token().is_some());
    assert_eq!(settings.non_defaults().len(), SETTINGS.len(), "all of them differ");
}

#[test]
fn every_setting_refuses_what_is_out_of_bounds_or_no_value_at_all() {
    let long = "x".repeat(64);
    for (name, values) in [
        ("DATABASE_URL", &["", "db", "postgres://u@/d"][..]),
        ("KAFKA_BOOTSTRAP_SERVERS", &["", "a", "a:0", "a:1,,"]),
        ("RELAY_SCHEMA", &["", &long, "a\0b"]),
        ("RELAY_TABLE", &["", &long]),
        ("RELAY_PROCESSED_TABLE", &["", &long, "event_outbox"]),
        ("RELAY_NAME", &["", &long, "a\nb"]),
        ("RELAY_WORKERS", &["", "0", "65", "-1", "+2", "2.0", "two", "99999999999999999999"]),
        ("RELAY_BATCH_SIZE", &["0", "100001"]),
        ("RELAY_BATCH_BYTES", &["", "0", "2GiB", "16Mi", "1.5MB"]),
        ("RELAY_POLL_INTERVAL", &["", "0ms", "61s", "250", "-1"]),
        ("RELAY_PUBLISH_TIMEOUT", &["999ms", "16min"]),
        ("RELAY_SHUTDOWN_TIMEOUT", &["0s", "61min"]),
        ("RELAY_CONNECT_TIMEOUT", &["0s", "never"]),
        ("RELAY_STATUS_INTERVAL", &["0s", "61min"]),
        ("RELAY_HEARTBEAT_INTERVAL", &["99ms", "11s"]),
        ("RELAY_STALL_AFTER", &["", "999ms", "61min", "never"]),
        ("RELAY_ENVELOPE", &["", "Event", "cloudevents"]),
        ("RELAY_TOPIC", &["", "{entity}", "a b"]),
        ("RELAY_SOURCE", &["", "a\tb"]),
        ("RELAY_TOPIC_PREFIX", &["", "a b", "__shadow.", "sch\u{f6}n.", &"a".repeat(101)]),
        ("RELAY_TOPICS", &["", "a,,b", "or der", "a*b"]),
        ("RELAY_WAKE_UP", &["", "on"]),
        ("RELAY_WAKE_UP_URL", &["", "db", "postgres://u@/d"]),
        ("RELAY_ON_POISON", &["", "dead-letter"]),
        ("RELAY_RETENTION", &["", "drop"]),
        ("RELAY_RETENTION_AFTER", &["", "0s", "7", "11years"]),
        ("RELAY_PROCESSED_RETENTION", &["", "never", "999ms"]),
        ("RELAY_PREPARED_STATEMENTS", &["", "yes", "1"]),
        ("RELAY_ADMIN_ADDRESS", &["", "9187", "127.0.0.1", "0.0.0.0:9187"]),
        ("RELAY_ADMIN_TOKEN", &["", "hunter2"]),
        ("RELAY_LOG_FORMAT", &["", "xml"]),
        ("RELAY_LOG_LEVEL", &["", "verbose"]),
    ] {
        for value in values {
            let found = mistakes(&[(name, value)]);
            assert_eq!(found.len(), 1, "{name}={value:?}: {found:?}");
            assert!(found[0].starts_with(&format!("{name}: ")), "{name}={value:?}: {found:?}");
        }
    }
}

#[test]
fn all_mistakes_are_reported_at_once_each_under_the_name_it_was_given() {
    let (_dir, path) = file("relay.toml", "workers = 0\ntabel = 'x'\nbatch_size = 0\n[kafka]\nacks = 1\n");
    let mut sources = env(&[
        ("DATABASE_URL", "postgres://u:hunter2@h:99999/d"),
        ("RELAY_BATCH_SIZE", "0"),
        ("RELAY_BATCHSIZE", "5"),
        ("RELAY_ENVELOPE", "cloudevents-binry"),
        ("KAFKA_LINGER_MS", "soon"),
        ("KAFKA_SASL_USER", "x"),
        ("KAFKA_GROUP_ID", "x"),
        ("KAFKA_SSL_CA_LOCATION", "/nonexistent/ca.pem"),
    ]);
    let shown = path.display().to_string();
    sources.file = Some(path);
    sources.overrides = vec![("poll_interval".into(), "0s".into()), ("colour".into(), "red".into())];
    let error = load(sources).unwrap_err();
    let text = error.to_string();
    let found: Vec<&str> = text.lines().collect();
    for expected in [
        format!("{shown}:1: workers: given \"0\", expected an integer from 1 to 64"),
        format!("{shown}:2: tabel: unknown setting; did you mean table?"),
        format!("{shown}:5: acks: given \"1\", an event counts as published once all in-sync replicas have it, expected all or -1"),
        "DATABASE_URL: its port is not a number from 1 to 65535".into(),
        "RELAY_BATCH_SIZE: given \"0\", expected an integer from 1 to 100000".into(),
        "RELAY_BATCHSIZE: unknown setting; did you mean RELAY_BATCH_SIZE?".into(),
        "RELAY_ENVELOPE: given \"cloudevents-binry\", expected one of event, raw, cloudevents-binary, cloudevents-structured, debezium; did you mean cloudevents-binary?".into(),
        "KAFKA_LINGER_MS: given \"soon\", librdkafka: Invalid value for configuration property \"queue.buffering.max.ms\"".into(),
        "KAFKA_SASL_USER: unknown setting; did you mean KAFKA_SASL_USERNAME?".into(),
        "KAFKA_GROUP_ID: a consumer property, without effect on the relay's producer".into(),
        "KAFKA_SSL_CA_LOCATION: given \"/nonexistent/ca.pem\", the file cannot be read: no such file".into(),
        "KAFKA_SSL_CA_LOCATION: has no effect while KAFKA_SECURITY_PROTOCOL is plaintext".into(),
        "--set poll_interval: given \"0s\", expected a duration with its unit from 1ms to 1m, such as 250ms or 1m".into(),
        "--set colour: unknown setting".into(),
    ] {
        assert!(found.contains(&expected.as_str()), "{expected}\nis not in\n{text}");
    }
    assert_eq!(found.len(), 14, "{text}");
}

#[test]
fn required_settings_are_missing_one_by_one_and_kafkas_only_where_it_is_needed() {
    let both = load(Sources::default()).unwrap_err().to_string();
    assert!(both.contains("DATABASE_URL: missing") && both.contains("KAFKA_BOOTSTRAP_SERVERS: missing"), "{both}");
    assert_eq!(both.lines().count(), 2);

    let mut sources = env(&[("KAFKA_ACKS", "0"), ("KAFKA_SASL_PASSWORD_FILE", "/nonexistent/password")]);
    sources.env.remove("KAFKA_BOOTSTRAP_SERVERS");
    let settings = Settings::load(sources.clone(), Needs::DatabaseOnly).unwrap();
    assert!(settings.kafka.is_none());
    sources.env.insert("KAFKA_ASKS".into(), "0".into());
    assert!(Settings::load(sources, Needs::DatabaseOnly).is_err(), "an unknown name is refused all the same");
}

#[test]
fn a_file_that_cannot_be_read_is_one_mistake_and_hides_no_others() {
    let broken = "database_url = 'postgres://u:hunter2@h/d\nworkers = 2\n";
    let (_dir, path) = file("relay.toml", broken);
    for path in [path, "/nonexistent/relay.toml".into()] {
        let mut sources = Sources { file: Some(path.clone()), ..Sources::default() };
        sources.env.insert("RELAY_WORKERS".into(), "0".into());
        let text = load(sources).unwrap_err().to_string();
        assert!(text.contains(&path.display().to_string()) && text.contains("RELAY_WORKERS"), "{text}");
        assert!(!text.contains("missing") && !text.contains("hunter2"), "{text}");
    }
}

#[test]
fn a_secret_comes_from_a_file_without_its_line_end() {
    let (_dir, url) = file("url", &format!("{URL}\r\n"));
    let (_dir, password) = file("password", "hunter 2 \n");
    let mut sources = env(&[
        ("DATABASE_URL_FILE", &url.display().to_string()),
        ("KAFKA_SASL_PASSWORD_FILE", &password.display().to_string()),
        ("KAFKA_SASL_USERNAME", "relay"),
        ("KAFKA_SASL_MECHANISM", "SCRAM-SHA-512"),
        ("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext"),
    ]);
    sources.env.remove("DATABASE_URL");
    let settings = load(sources).unwrap();
    assert_eq!(settings.database.target(), "db:5432/app");
    let kafka = settings.kafka.unwrap();
    let (_, password) = kafka.properties().find(|(name, _)| *name == "sasl.password").unwrap();
    assert_eq!(password.expose(), "hunter 2 ");
}

#[test]
fn a_toml_key_and_a_flag_take_files_too() {
    let (_dir, url) = file("url", URL);
    let (_dir, toml) = file("relay.toml", &format!("database_url_file = {url:?}\n"));
    let mut sources = Sources { file: Some(toml), ..Sources::default() };
    sources.overrides = vec![("kafka_bootstrap_servers".into(), "a:1".into())];
    assert_eq!(load(sources).unwrap().database.target(), "db:5432/app");
}

#[test]
fn a_secret_given_twice_or_in_an_unreadable_file_is_a_mistake() {
    let (_dir, url) = file("url", URL);
    let (_dir, empty) = file("empty", "\n");
    let twice = mistakes(&[("DATABASE_URL_FILE", &url.display().to_string())]);
    assert_eq!(twice, ["DATABASE_URL_FILE: DATABASE_URL sets the same; keep one of them"]);
    let unreadable = |path: &str| {
        let mut sources = env(&[("DATABASE_URL_FILE", path)]);
        sources.env.remove("DATABASE_URL");
        load(sources).unwrap_err().to_string()
    };
    assert!(unreadable(&empty.display().to_string()).ends_with("it is empty"));
    let gone = url.with_file_name("gone").display().to_string();
    assert_eq!(unreadable(&gone), format!("DATABASE_URL_FILE: cannot read the file {gone:?}: no such file"));
    for pasted in ["hunter2", "/hunter2", URL, "hunter2/hunter2"] {
        assert_eq!(unreadable(pasted), "DATABASE_URL_FILE: cannot read the file it names: no such file", "{pasted}");
    }
}

#[test]
fn unsafe_producer_settings_are_refused_with_the_reason() {
    for (name, value, reason) in [
        ("KAFKA_ENABLE_IDEMPOTENCE", "false", "idempotence"),
        ("KAFKA_ACKS", "1", "in-sync replicas"),
        ("KAFKA_REQUEST_REQUIRED_ACKS", "0", "in-sync replicas"),
        ("KAFKA_MAX_IN_FLIGHT", "6", "at most 5"),
        ("KAFKA_MESSAGE_TIMEOUT_MS", "1000", "RELAY_PUBLISH_TIMEOUT"),
        ("KAFKA_DELIVERY_TIMEOUT_MS", "1000", "RELAY_PUBLISH_TIMEOUT"),
        ("KAFKA_RETRIES", "3", "inverts the order"),
        ("KAFKA_TRANSACTIONAL_ID", "x", "reserved"),
        ("KAFKA_ENABLE_GAPLESS_GUARANTEE", "true", "set by the relay"),
        ("KAFKA_PARTITIONER", "random", "share a partition"),
        ("KAFKA_METADATA_BROKER_LIST", "a:1", "KAFKA_BOOTSTRAP_SERVERS"),
        ("KAFKA_DR_MSG_CB", "x", "callback"),
        ("KAFKA_SASL_JAAS_CONFIG", "hunter2", "Java"),
        ("KAFKA_MAX_IN_FLIGHT", "4294967297", "at most 5"),
        ("KAFKA_MESSAGE_MAX_BYTES", "4294969296", "librdkafka would read it as 2000"),
        ("KAFKA_MESSAGE_MAX_BYTES", "999", "outside allowed range 1000..1000000000"),
        ("KAFKA_LINGER_MS", "5s", "librdkafka would read it as 5"),
        ("KAFKA_DEBUG", "everything", "property \"debug\""),
    ] {
        let found = mistakes(&[(name, value)]);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].starts_with(&format!("{name}: ")) && found[0].contains(reason), "{found:?}");
        assert!(!found[0].contains("hunter2"));
    }
    let (_dir, path) = file("relay.toml", "[kafka]\n\"bootstrap.servers\" = 'a:1'\n");
    let refused = load(Sources { file: Some(path), ..env(&[]) }).unwrap_err().to_string();
    assert!(refused.contains(":2: bootstrap.servers: ") && refused.contains("KAFKA_BOOTSTRAP_SERVERS"), "{refused}");
}

#[test]
fn two_names_of_one_property_are_a_mistake() {
    let found = mistakes(&[("KAFKA_LINGER_MS", "5"), ("KAFKA_QUEUE_BUFFERING_MAX_MS", "9")]);
    assert_eq!(found, ["KAFKA_QUEUE_BUFFERING_MAX_MS: KAFKA_LINGER_MS sets the same; keep one of them"]);
}

#[test]
fn security_that_would_silently_not_apply_is_refused() {
    let found = mistakes(&[("KAFKA_SASL_USERNAME", "relay"), ("KAFKA_SASL_PASSWORD", "hunter2")]);
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|mistake| mistake.ends_with("has no effect while KAFKA_SECURITY_PROTOCOL is plaintext")));
    let found = mistakes(&[("KAFKA_SECURITY_PROTOCOL", "sasl_ssl")]);
    assert!(found[0].contains("KAFKA_SASL_MECHANISM"), "{found:?}");
    let found = mistakes(&[("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"), ("KAFKA_SASL_MECHANISMS", "GSSAPI")]);
    assert!(found[0].contains("SCRAM-SHA-512"), "{found:?}");
    let found = mistakes(&[
        ("KAFKA_SECURITY_PROTOCOL", "SASL_SSL"),
        ("KAFKA_SASL_MECHANISM", "PLAIN"),
        ("KAFKA_SASL_USERNAME", "u"),
    ]);
    assert_eq!(found, ["KAFKA_SASL_PASSWORD: missing, KAFKA_SASL_MECHANISM needs it"]);
}

#[test]
fn a_login_with_tokens_needs_what_fetches_them() {
    let with = |more: &[(&str, &str)]| {
        let login = [("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"), ("KAFKA_SASL_MECHANISM", "OAUTHBEARER")];
        mistakes(&[&login, more].concat())
    };
    let (oidc, url) =
        (("KAFKA_SASL_OAUTHBEARER_METHOD", "oidc"), ("KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL", "https://id/token"));
    assert!(with(&[])[0].contains("KAFKA_SASL_OAUTHBEARER_METHOD=oidc"));
    assert_eq!(with(&[("KAFKA_ENABLE_SASL_OAUTHBEARER_UNSECURE_JWT", "true")]), [""; 0]);
    assert_eq!(with(&[oidc]).len(), 3);
    assert_eq!(with(&[oidc, url])[1], "KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET: missing, KAFKA_SASL_MECHANISM needs it");
    let client = [("KAFKA_SASL_OAUTHBEARER_CLIENT_ID", "relay"), ("KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", "hunter2")];
    assert_eq!(with(&[&[oidc, url][..], &client].concat()), [""; 0]);
    let grant = ("KAFKA_SASL_OAUTHBEARER_GRANT_TYPE", "urn:ietf:params:oauth:grant-type:jwt-bearer");
    assert_eq!(with(&[oidc, url, grant]), [""; 0]);
    let iam = |more: &[(&str, &str)]| {
        let login = [("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"), ("KAFKA_SASL_MECHANISM", "AWS_MSK_IAM")];
        mistakes(&[&login, more].concat())
    };
    assert_eq!(iam(&[]), ["KAFKA_SASL_MECHANISM: no region of AWS is known; set AWS_REGION"]);
    assert_eq!(iam(&[("AWS_REGION", "eu-central-1")]), [""; 0]);
    let kerberos = mistakes(&[("KAFKA_SECURITY_PROTOCOL", "sasl_ssl"), ("KAFKA_SASL_MECHANISM", "GSSAPI")]);
    assert!(kerberos[0].contains("Cyrus SASL"), "{kerberos:?}");
}

#[test]
fn kubernetes_variables_are_ignored_and_other_unknown_ones_are_not() {
    assert_eq!(
        mistakes(&[
            ("KAFKA_PORT", "tcp://10.0.0.1:9092"),
            ("KAFKA_SERVICE_HOST", "10.0.0.1"),
            ("KAFKA_PORT_9092_TCP_ADDR", "10.0.0.1"),
            ("RELAY_SERVICE_PORT_HTTP", "80"),
            ("RELAY_PORT", "tcp://10.0.0.1:80"),
        ]),
        [""; 0]
    );
    assert_eq!(mistakes(&[("RELAY_PORT", "80")]).len(), 1);
    assert_eq!(
        mistakes(&[("RELAY_DATABASE_URL", URL)]),
        ["RELAY_DATABASE_URL: unknown setting; did you mean DATABASE_URL?"]
    );
    assert_eq!(
        mistakes(&[("KAFKA_SASL_PASWORD_FILE", "x")]),
        ["KAFKA_SASL_PASWORD_FILE: unknown setting; did you mean KAFKA_SASL_PASSWORD_FILE?"]
    );
}

#[test]
fn bytes_that_are_no_text_are_a_mistake() {
    assert_eq!(mistakes(&[("RELAY_SOURCE", "a\u{fffd}")]), ["RELAY_SOURCE: its value is not UTF-8 text"]);
}

#[test]
fn a_client_gets_the_defaults_unless_they_are_overridden_under_either_name() {
    let settings = load(env(&[("KAFKA_LINGER_MS", "7"), ("KAFKA_CLIENT_ID", "me")])).unwrap();
    let kafka = settings.kafka.unwrap();
    let producer = kafka.producer_config(&[("linger.ms", "1"), ("acks", "all"), ("client.id", "relay")]);
    assert_eq!(producer.get("queue.buffering.max.ms"), Some("7"));
    assert_eq!((producer.get("linger.ms"), producer.get("acks")), (None, None), "stored by one name only");
    assert_eq!((producer.get("request.required.acks"), producer.get("client.id")), (Some("all"), Some("me")));
    assert_eq!(producer.get("metadata.broker.list"), Some("a:9092,b:9092"));
    assert_eq!(producer.get("partitioner"), Some("murmur2_random"));
    let consumer = kafka.consumer_config(&[("group.id", "g")]);
    assert_eq!((consumer.get("partitioner"), consumer.get("queue.buffering.max.ms")), (None, None));
    assert_eq!((consumer.get("client.id"), consumer.get("group.id")), (Some("me"), Some("g")));
    assert!(producer.create_native_config().is_ok() && consumer.create_native_config().is_ok());
}

#[test]
fn non_defaults_show_values_and_hide_secrets() {
    let settings = load(env(&[
        ("RELAY_BATCH_BYTES", "16777216"),
        ("RELAY_POLL_INTERVAL", "0.1s"),
        ("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext"),
        ("KAFKA_SASL_MECHANISM", "PLAIN"),
        ("KAFKA_SASL_USERNAME", "relay"),
        ("KAFKA_SASL_PASSWORD", "hunter2"),
    ]))
    .unwrap();
    let shown: BTreeMap<_, _> = settings.non_defaults().into_iter().collect();
    assert_eq!(shown["database_url"], "set");
    assert_eq!(shown["sasl.password"], "set");
    assert_eq!((shown["poll_interval"].as_str(), shown["sasl.username"].as_str()), ("0.1s", "relay"));
    assert!(!shown.contains_key("batch_bytes"), "16777216 is the default in other words");
    assert!(!shown.contains_key("partitioner"));
}

#[test]
fn debug_of_everything_hides_secrets() {
    let mut sources = env(&[
        ("KAFKA_SECURITY_PROTOCOL", "sasl_plaintext"),
        ("KAFKA_SASL_MECHANISM", "PLAIN"),
        ("KAFKA_SASL_USERNAME", "relay"),
        ("KAFKA_SASL_PASSWORD", "hunter2"),
        ("SOMEBODYS_PASSWORD", "hunter2"),
    ]);
    sources.overrides = vec![("database_url".into(), "postgres://u:hunter2@h/d".into())];
    let before = format!("{sources:?}");
    let settings = load(sources).unwrap();
    let after =
        format!("{settings:?} {settings:#?} {:?}", settings.kafka.as_ref().unwrap().properties().collect::<Vec<_>>());
    assert!(!before.contains("hunter2") && !after.contains("hunter2"), "{before} {after}");
    assert!(before.contains("KAFKA_SASL_PASSWORD") && after.contains("sasl.password"));
}

#[test]
fn the_admin_address_needs_a_token_beyond_this_host() {
    let token = ("RELAY_ADMIN_TOKEN", "hunter2hunter2hunter2");
    for address in ["127.0.0.1:9187", "[::1]:0", "localhost:9187"] {
        assert_eq!(mistakes(&[("RELAY_ADMIN_ADDRESS", address)]), [""; 0], "{address}");
    }
    for address in ["0.0.0.0:9187", "[::]:9187", "10.0.0.1:9187"] {
        let refused = mistakes(&[("RELAY_ADMIN_ADDRESS", address)]);
        let problem = format!("{address} can be reached from other hosts, which needs RELAY_ADMIN_TOKEN");
        assert_eq!(refused, [format!("RELAY_ADMIN_ADDRESS: {problem}")]);
        let settings = load(env(&[("RELAY_ADMIN_ADDRESS", address), token])).unwrap();
        assert_eq!(settings.admin.token().map(|set| set.expose_secret() == token.1), Some(true));
        assert!(!format!("{settings:?} {:?}", settings.non_defaults()).contains("hunter2"));
    }
    for address in ["9187", "127.0.0.1", "example.org:9187", "127.0.0.1:99999", ""] {
        assert_eq!(mistakes(&[("RELAY_ADMIN_ADDRESS", address)]).len(), 1, "{address}");
    }
    for token in ["hunter2", "hunter2 hunter2 hunter2", "hunter2hunter2hunter2\n", &"hunter2".repeat(50)] {
        let refused = mistakes(&[("RELAY_ADMIN_TOKEN", token)]);
        assert!(refused.len() == 1 && refused[0].contains("16 to 256 visible ASCII"), "{refused:?}");
        assert!(!refused[0].contains("hunter2"), "{refused:?}");
    }
}

/// Renders `.env.example` from the table of settings.
fn example() -> String {
    let mut text = String::from(
        "# Every setting of Outbox Relay. A setting that is commented out shows its default, or an example if it has none.\n\
         # In a TOML file (--config) the same settings are lower-case and without RELAY_: batch_size = 2000.\n\
         # <NAME>_FILE instead of <NAME> reads the value from a file: use it for secrets.\n\
         # An empty value is a mistake, not a default: leave out a setting that you do not need.\n",
    );
    for setting in SETTINGS {
        let mark = if ["database_url", "kafka_bootstrap_servers"].contains(&setting.name) { "" } else { "# " };
        text += &format!(
            "\n# {}\n# Accepts {}.\n{mark}{}={}\n",
            setting.doc,
            setting.kind.accepted(),
            setting.env_name(),
            setting.example
        );
    }
    text += "\n# KAFKA_<PROPERTY> passes any other property to librdkafka: its name in upper case, with underscores for dots. In TOML it is a\n\
         # table [kafka] with the dotted names. A property that would break a guarantee is refused, with the reason.\n\
         # KAFKA_SECURITY_PROTOCOL=sasl_ssl\n\
         # KAFKA_SASL_MECHANISM=SCRAM-SHA-512\n\
         # KAFKA_SASL_USERNAME=relay\n\
         # KAFKA_SASL_PASSWORD_FILE=/run/secrets/kafka-password\n\
         # KAFKA_SSL_CA_LOCATION=/etc/ssl/certs/kafka-ca.pem\n\
         # KAFKA_LINGER_MS=5\n\
         # KAFKA_COMPRESSION_TYPE=zstd\n\
         # Lets brokers create missing topics. Off by default, so that a wrong entity_type creates no topic:\n\
         # KAFKA_ALLOW_AUTO_CREATE_TOPICS=true\n";
    text
}

#[test]
fn env_example_lists_every_setting_with_its_default() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/.env.example");
    assert_eq!(fs::read_to_string(path).unwrap_or_default(), example());
}

#[test]
fn env_example_is_taken_as_it_is_and_with_every_line_uncommented() {
    let (_dir, password) = file("password", "hunter2");
    let (_dir, ca) = file("ca.pem", "-----BEGIN CERTIFICATE-----\n");
    let lines = |all: bool| {
        let text = example().replace("/run/secrets/kafka-password", &password.display().to_string());
        let text = text.replace("/etc/ssl/certs/kafka-ca.pem", &ca.display().to_string());
        let lines = text.lines().map(|line| if all { line.trim_start_matches("# ") } else { line }.to_owned());
        let is_set = |name: &str| !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_');
        let pairs =
            lines.filter_map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())));
        Sources { env: pairs.filter(|(name, _)| is_set(name)).collect(), ..Sources::default() }
    };
    assert_eq!(lines(false).env.len(), 2);
    load(lines(false)).unwrap();
    assert!(lines(true).env.len() > SETTINGS.len());
    let settings = load(lines(true)).unwrap();
    let differ: BTreeSet<_> = settings
        .non_defaults()
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| Setting::named(name).is_some())
        .collect();
    let no_default: BTreeSet<_> =
        SETTINGS.iter().filter(|setting| setting.default.is_none()).map(|setting| setting.name).collect();
    assert_eq!(differ, no_default, "what is shown for a setting with a default is the default");
}

/// Generates names: correct ones, misspelt ones, `_FILE` variants, and variables of other programs.
fn some_name() -> impl Strategy<Value = String> {
    let known: Vec<String> = SETTINGS
        .iter()
        .map(|setting| setting.env_name())
        .chain(property::PROPERTIES.iter().map(|property| format!("KAFKA_{}", property::variable(property.name))))
        .collect();
    (proptest::sample::select(known), 0_usize..12, prop_oneof![Just(""), Just("_FILE"), Just("X")]).prop_map(
        |(name, drop, suffix)| {
            if drop < 3 { format!("{}{suffix}", &name[..name.len() - drop]) } else { format!("{name}{suffix}") }
        },
    )
}

/// Generates values with a secret in them: bare, inside a URL, a path or a PEM block, or next to separators.
fn some_secret_value() -> impl Strategy<Value = String> {
    let templates = [
        "SECRET",
        "postgres://u:SECRET@h/d",
        "postgres://u:SECRET@h:99999/d",
        "postgres://u:12/SECRET@h/d",
        "postgres://u:1?SECRET@h/d",
        "postgres://u:1?SECRET&sslmode=x@h/d",
        "postgres://u:#SECRET@h/d",
        "postgres://u:SECRET@/d",
        "postgres://u:SECRET@h/d?sslmod=require",
        "postgres://h/d?password=SECRET&colour=x",
        "postgres://u:%zzSECRET@h/d",
        "mysql://u:SECRET@h/d",
        "host=h password=SECRET",
        "/SECRET",
        "SECRET/SECRET",
        "-----BEGIN PRIVATE KEY-----SECRET",
        "SECRET\nSECRET",
        "SECRET\0",
        "u:SECRET@h:1",
    ];
    proptest::sample::select(templates.to_vec()).prop_map(str::to_owned)
}

/// Returns true if the value may be repeated in an error: a plain setting that was given a bare word.
fn may_show(name: &str, value: &str) -> bool {
    let plain = name.strip_suffix("_FILE").unwrap_or(name);
    let secret = matches!(plain, "DATABASE_URL" | "RELAY_ADMIN_TOKEN")
        || plain.strip_prefix("KAFKA_").and_then(property::Property::from_variable).is_some_and(|p| p.is_secret());
    !secret && !value.contains(['@', '\n']) && !value.contains("BEGIN")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_secret_appears_in_any_error_or_debug(given in proptest::collection::btree_map(some_name(), some_secret_value(), 1..6)) {
        const SECRET: &str = "hunter2swordfish";
        let given: BTreeMap<String, String> =
            given.into_iter().filter(|(name, value)| !may_show(name, value)).map(|(name, value)| (name, value.replace("SECRET", SECRET))).collect();
        let text = match load(Sources { env: given, ..Sources::default() }) {
            Ok(settings) => format!("{settings:?} {:?}", settings.non_defaults()),
            Err(error) => format!("{error} {error:?}"),
        };
        prop_assert!(!text.contains(SECRET), "{}", text);
    }

    #[test]
    fn no_configuration_makes_it_panic(
        env in proptest::collection::btree_map("(RELAY|KAFKA|DATABASE)_[A-Z_]{0,12}", "\\PC{0,20}", 0..4),
        value in "\\PC{0,40}",
        setting in 0..SETTINGS.len(),
    ) {
        let name = SETTINGS[setting].env_name();
        let _ = load(Sources { env: env.into_iter().chain([(name, value)]).collect(), ..Sources::default() });
    }
}

#[test]
fn what_librdkafka_says_about_a_secret_is_dropped() {
    let error = ClientConfig::new().set("sasl.oauthbearer.client.secret", "hunter2").create_native_config().err();
    let found = mistakes(&[("KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", "hunter2")]);
    assert_eq!(found.is_empty(), error.is_none(), "{found:?}");
    assert!(!found.concat().contains("hunter2"), "{found:?}");
}
